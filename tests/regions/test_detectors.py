"""Detectors of others by a short description: tiny random ones of transformers, a stand-in for torchvision's, ONNX."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    BertConfig,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from imagebert.config import UsageError
from imagebert.data.records import WHOLE_IMAGE
from imagebert.data.regions import RegionStore
from imagebert.regions.extract import extract
from imagebert.regions.extractor import DetectorExtractor, ExtractorSpec, open_extractor, pool
from imagebert.strict_yaml import build, parse_yaml
from tests.regions.test_extractor import save_pooling_network

CLASSES = ["N/A", "person", "bicycle", "cat", "N/A"]
WIDE, TALL = (90, 50), (41, 77)  # width, height
SIZES = [8, 12, 16, 24]  # channels of a backbone's stages


def detr() -> DetrForObjectDetection:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=SIZES, depths=[1] * 4, layer_type="basic", out_features=["stage4"]
    )
    return DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False,
            backbone_config=backbone,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=12,
            id2label=dict(enumerate(CLASSES)),
        )
    )


HYBRID: dict[str, Any] = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": SIZES[1:],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "num_queries": 12,
    "decoder_in_channels": [16] * 3,
    "decoder_ffn_dim": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 0,
    "id2label": dict(enumerate(CLASSES)),
}


def rt_detr(**keys: Any) -> RTDetrForObjectDetection:
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=SIZES, depths=[1] * 4, layer_type="basic", out_indices=[2, 3, 4]
    )
    return RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, decoder_n_points=2, **HYBRID, **keys))


def d_fine() -> DFineForObjectDetection:
    backbone = HGNetV2Config(
        embedding_size=8,
        hidden_sizes=SIZES,
        depths=[1] * 4,
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 12, 16],
        stage_mid_channels=[8] * 4,
        stage_out_channels=SIZES,
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        out_indices=[2, 3, 4],
    )
    made = DFineForObjectDetection(DFineConfig(backbone_config=backbone, decoder_n_points=[2, 2, 2], **HYBRID))
    for weight in made.model.backbone.parameters():
        if weight.dim() == 4:  # which begin so small that all maps are zero
            torch.nn.init.kaiming_normal_(weight)
    return made


def short() -> DetrImageProcessorPil:
    return DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 100})


def padded() -> DetrImageProcessorPil:
    return DetrImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 100}, pad_size={"height": 160, "width": 160}
    )


def square() -> RTDetrImageProcessorPil:
    return RTDetrImageProcessorPil(size={"height": 64, "width": 64})


MADE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "detr": (detr, short),
    "detr, padded": (detr, padded),
    "rt_detr": (rt_detr, square),
    "rt_detr, softmax": (lambda: rt_detr(use_focal_loss=False), square),
    "d_fine": (d_fine, square),
}


def save(folder: Path, model: Callable[[], Any], processor: Callable[[], Any]) -> Path:
    """A random detector whose boxes and confidences differ, as published ones lie in their folders."""
    torch.manual_seed(0)
    made = model()
    for name, weight in made.named_parameters():
        if weight.dim() > 1 and ("embed" in name or "classifier" in name or "predictor" in name):
            torch.nn.init.normal_(weight, std=0.5)
    made.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def describe(path: Path, detector: dict[str, Any], **keys: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": "test", "detector": detector, **keys}))
    return path


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.mark.parametrize("kind", MADE)
def test_a_transformers_detector_is_its_own_post_processing(kind: str, tmp_path: Path) -> None:
    """Boxes, classes and confidences are the processor's, and vectors are read from its own backbone under them."""
    folder = save(tmp_path / "detector", *MADE[kind])
    description = describe(tmp_path / "e.yaml", {"transformers": str(folder), "confidence": 0.2}, max_regions=5)
    extractor = DetectorExtractor(description)
    assert extractor.classes == CLASSES
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    for size in (WIDE, TALL):
        image = noise(size)
        given = processor(images=image, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**given)
            last = model.model.backbone.model(given["pixel_values"]).feature_maps[-1][0]
        way = {"use_focal_loss": False} if "softmax" in kind else {}
        sizes = [(image.height, image.width)]
        (found,) = processor.post_process_object_detection(outputs, threshold=0.2, target_sizes=sizes, **way)
        boxes = found["boxes"].numpy().clip(0, [*size, *size])
        large = (boxes[:, 2:] - boxes[:, :2] > 1).all(axis=1)
        order = np.flatnonzero(large)[np.argsort(-found["scores"].numpy()[large], kind="stable")][:5]
        record = extractor(image)
        assert len(order) > 1
        assert record.classes.tolist() == [WHOLE_IMAGE, *found["labels"].numpy()[order]]
        np.testing.assert_allclose(record.boxes[0], [0, 0, *size])
        np.testing.assert_allclose(record.boxes[1:], boxes[order], atol=1e-3)
        np.testing.assert_allclose(record.confidences[1:], found["scores"].numpy()[order], rtol=1e-5)
        # Where the input is padded, the picture is its upper left part.
        high, wide = given["pixel_values"].shape[2:]
        seen = (short() if "padded" in kind else processor)(images=image, return_tensors="pt")["pixel_values"].shape
        share = seen[3] / wide, seen[2] / high
        relative = torch.from_numpy(record.boxes / [*size, *size] * [*share, *share]).float()
        np.testing.assert_allclose(record.features, pool(last, relative, 7), rtol=1e-4, atol=1e-4)
        assert record.features.shape == (len(record.boxes), SIZES[-1])
        assert np.ptp(record.features, axis=0).max() > 0.05 * np.ptp(record.features) > 0


def test_a_folder_of_pictures_becomes_a_store(tmp_path: Path) -> None:
    folder = save(tmp_path / "detector", *MADE["rt_detr"])
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate((WIDE, TALL)):
        noise(size, number).save(tmp_path / f"pictures/{number}.png")
    extractor = open_extractor(describe(tmp_path / "e.yaml", {"transformers": str(folder), "confidence": 0.01}))
    assert extract(tmp_path / "pictures", tmp_path / "store", extractor).stored == 2
    store = RegionStore(tmp_path / "store")
    assert store.classes == CLASSES
    assert store.whole_image.all()
    assert store.region_counts.min() > 1
    assert store.extractor == extractor.description


@pytest.mark.parametrize(("name", "size"), [("line", (2000, 1)), ("dot", (1, 1))])
def test_odd_pictures_are_named_and_skipped(
    name: str, size: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """DETR's processor makes nothing of a line, and a backbone that sees pictures as they are nothing of a dot."""
    (tmp_path / "pictures").mkdir()
    noise(WIDE).save(tmp_path / "pictures/good.png")
    Image.new("RGB", size).save(tmp_path / f"pictures/{name}.png")
    keys: dict[str, Any] = {}
    if name == "dot":
        module = "tests.regions.test_extractor:small_backbone"
        keys["backbone"] = {"module": module, "arguments": {"channels": 3}, "input": {"fit": "as_is"}}
    folder = save(tmp_path / "detector", *MADE["rt_detr" if name == "dot" else "detr"])
    extractor = open_extractor(describe(tmp_path / "e.yaml", {"transformers": str(folder)}, **keys))
    assert extract(tmp_path / "pictures", tmp_path / "store", extractor)[:3] == (2, 1, 1)
    assert f"{name}.png is skipped: the extractor fails on it (" in caplog.text


def test_weights_that_are_no_numbers_are_told_before_the_work(tmp_path: Path) -> None:
    """A confidence that is no number is below every threshold: a store of whole pictures."""
    model = detr()
    torch.nn.init.constant_(model.class_labels_classifier.bias, float("nan"))
    model.save_pretrained(tmp_path / "detector")
    short().save_pretrained(tmp_path / "detector")
    (tmp_path / "in").mkdir()
    noise(WIDE).save(tmp_path / "in/a.png")
    extractor = open_extractor(describe(tmp_path / "e.yaml", {"transformers": str(tmp_path / "detector")}))
    with pytest.raises(
        UsageError, match=r"^detector\.transformers: .* gives boxes or scores that are no numbers \(NaN\)"
    ):
        extract(tmp_path / "in", tmp_path / "out", extractor)


def test_another_backbone_than_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path / "detector", *MADE["detr"])
    save_pooling_network(tmp_path / "backbone.onnx", 32)
    backbone = {"onnx": str(tmp_path / "backbone.onnx"), "input": {"height": 32, "width": 32}}
    plain = Image.new("RGB", WIDE, (200, 100, 50))
    record = DetectorExtractor(describe(tmp_path / "e.yaml", {"transformers": str(folder)}, backbone=backbone))(plain)
    np.testing.assert_allclose(record.features, np.tile([200, 100, 50], (len(record.boxes), 1)), rtol=1e-5)


def test_the_digest_covers_weights_and_settings_and_no_places(tmp_path: Path) -> None:
    save(tmp_path / "a", *MADE["rt_detr"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def digest(folder: str, **keys: Any) -> str:
        described = describe(tmp_path / "e.yaml", {"transformers": str(tmp_path / folder), **keys})
        return str(DetectorExtractor(described).description["digest"])

    first = digest("a")
    assert digest("b") == first
    assert digest("a", confidence=0.3) != first
    assert digest("a", nms_iou=0.7) != first
    settings = json.loads((tmp_path / "b/preprocessor_config.json").read_text())
    (tmp_path / "b/preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 96, "width": 96}}))
    second = digest("b")
    shutil.copy(tmp_path / "a/preprocessor_config.json", tmp_path / "b")
    save(tmp_path / "c", lambda: rt_detr(layer_norm_eps=1e-3), square)
    shutil.copy(tmp_path / "c/config.json", tmp_path / "b")
    assert len({first, second, digest("b")}) == 3
    torch.manual_seed(1)
    rt_detr().save_pretrained(tmp_path / "a")
    assert digest("a") != first


def test_descriptions_of_before_have_their_digest() -> None:
    """What a store was made with is compared by this text."""
    tree = """
name: n
detector: {network: {onnx: a, input: {height: 4, width: 4}}, classes: c, layout: yolox}
backbone: {onnx: b, input: {height: 2, width: 2, fit: letterbox}}
"""
    seen = (
        "arguments={}, method='forward', weights=None, input=InputSpec(height={0}, width={0}, channels='rgb',"
        " scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fit='{1}', pad=114))"
    ).replace("{}", "{{}}")
    assert str(build(ExtractorSpec, parse_yaml(tree, ""), "")) == (
        "ExtractorSpec(name='n', detector=DetectorSpec(network=NetworkSpec(onnx='a', module=None, "
        + seen.format(4, "stretch")
        + ", classes='c', layout='yolox', strides=(8, 16, 32), confidence=0.05, nms_iou=0.45),"
        + " backbone=NetworkSpec(onnx='b', module=None, "
        + seen.format(2, "letterbox")
        + ", backbone_output=0, max_regions=100, samples=7)"
    )


def test_folders_that_are_no_detector(tmp_path: Path) -> None:
    """Each is one sentence that names the folder."""
    good = save(tmp_path / "good", *MADE["detr"])

    def refused(message: str, change: Callable[[Path], object]) -> None:
        folder = tmp_path / "detector"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder)
        with pytest.raises(UsageError, match=message) as raised:
            DetectorExtractor(describe(tmp_path / "e.yaml", {"transformers": str(folder)}))
        assert "\n" not in str(raised.value)

    refused(r"there is no folder .*detector of a detector: give one with config\.json, model", shutil.rmtree)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        refused(rf"lacks {name} \(cannot read .*No such file", lambda folder, name=name: (folder / name).unlink())
    refused(r"cannot be loaded as a detector \(", lambda folder: (folder / "config.json").write_text("{"))
    refused(r"cannot be loaded as a detector \(", lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99))
    refused("holds a bert, which is no object detector", BertConfig().save_pretrained)
    refused(
        r"does not fit its config\.json: it lacks model\.\S+, model\S+, model\S+ and \d+ more",
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace('"encoder_layers": 1', '"encoder_layers": 2')
        ),
    )
    refused(
        "names ViTImageProcessorPil, which finds no boxes",
        lambda folder: (folder / "preprocessor_config.json").write_text(
            '{"image_processor_type": "ViTImageProcessor"}'
        ),
    )


def test_a_detector_without_a_backbone_wants_one(tmp_path: Path) -> None:
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        num_detection_tokens=4,
    )
    YolosForObjectDetection(config).save_pretrained(tmp_path / "yolos")
    (tmp_path / "yolos/preprocessor_config.json").write_text('{"image_processor_type": "YolosImageProcessor"}')
    described = describe(tmp_path / "e.yaml", {"transformers": str(tmp_path / "yolos")})
    with pytest.raises(UsageError, match=r"yolos \(YolosForObjectDetection\) has no backbone with feature maps"):
        DetectorExtractor(described)


class StandIn(torch.nn.Module):
    """Answers as torchvision's detectors do: a list of pictures [3, h, w] of 0 to 1 in, boxes in their pixels out."""

    def __init__(self, gives: str = "torchvision") -> None:
        super().__init__()
        self.gives = gives
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, images: list[torch.Tensor]) -> Any:
        assert isinstance(images, list) or self.gives != "torchvision"  # torchvision's own take a tensor, too
        (image,) = images
        assert image.dim() == 3
        assert 0 < image.max() <= 1
        high, wide = image.shape[1:]
        # The second lies in the first and is of the same class: the detector has kept both, and so does what follows.
        boxes = torch.tensor([[0, 0, wide / 2, high], [0, 0, wide / 2, high * 0.9], [1, 2, wide + 9, 8], [3, 3, 3, 9]])
        found = {
            "boxes": boxes,
            "labels": torch.tensor([3, 3, 1, 2]),
            "scores": torch.tensor([0.5, 0.9, 0.04, 0.8]) + 0 * self.weight,
        }
        return {
            "torchvision": [found],
            "unasked": [found],
            "tensor": boxes[None],
            "tuple": [{"boxes": boxes}],
            "text": "no",
        }[self.gives]


def stand_in_description(tmp_path: Path, gives: str = "torchvision", **keys: Any) -> Path:
    (tmp_path / "classes.txt").write_text("__background__\nperson\nbicycle\ncat\n")
    save_pooling_network(tmp_path / "backbone.onnx", 32)
    detector = {
        "network": {
            "module": "tests.regions.test_detectors:StandIn",
            "arguments": {"gives": gives},
            "input": {"fit": "as_is", "scale": 1 / 255},
        },
        "classes": str(tmp_path / "classes.txt"),
        "layout": "torchvision",
        **keys,
    }
    backbone = {"onnx": str(tmp_path / "backbone.onnx"), "input": {"height": 32, "width": 32}}
    return describe(tmp_path / "e.yaml", detector, backbone=backbone)


def test_torchvisions_layout(tmp_path: Path) -> None:
    record = DetectorExtractor(stand_in_description(tmp_path))(noise(WIDE))
    assert record.classes.tolist() == [WHOLE_IMAGE, 3, 3]
    np.testing.assert_allclose(record.boxes[1:], [[0, 0, 45, 45], [0, 0, 45, 50]])
    np.testing.assert_allclose(record.confidences, [1, 0.9, 0.5])
    record = DetectorExtractor(stand_in_description(tmp_path, confidence=0.01))(noise(WIDE))
    np.testing.assert_allclose(record.boxes[3], [1, 2, 90, 8])
    # Whoever asks for it has boxes that overlap taken out.
    record = DetectorExtractor(stand_in_description(tmp_path, nms_iou=0.5))(noise(WIDE))
    assert record.classes.tolist() == [WHOLE_IMAGE, 3]


def save_three(path: Path, brackets: bool) -> None:
    """An ONNX detector of two boxes [N, 4], classes [N] and confidences [N], or [1, N, 4], [1, N] and [1, N]."""
    arrays = {
        "boxes": np.array([[2, 4, 20, 30], [8, 8, 16, 16]], np.float32),
        "labels": np.array([0, 1], np.int64),
        "scores": np.array([0.3, 0.6], np.float32),
    }
    arrays = {name: array[None] if brackets else array for name, array in arrays.items()}
    kinds = {name: TensorProto.INT64 if name == "labels" else TensorProto.FLOAT for name in arrays}
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(a)) for name, a in arrays.items()]
    nodes.append(helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
    outs = [helper.make_tensor_value_info(name, kinds[name], a.shape) for name, a in arrays.items()]
    outs.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, []))
    graph = helper.make_graph(nodes, "network", [image], outs[:3])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.parametrize("brackets", [False, True])
def test_boxes_labels_scores_of_an_onnx_file(brackets: bool, tmp_path: Path) -> None:
    described = yaml.safe_load(stand_in_description(tmp_path).read_text())
    save_three(tmp_path / "detector.onnx", brackets)
    described["detector"] |= {
        "network": {"onnx": str(tmp_path / "detector.onnx"), "input": {"height": 64, "width": 64, "fit": "letterbox"}},
        "layout": "boxes_labels_scores",
    }
    record = DetectorExtractor(describe(tmp_path / "e.yaml", described["detector"], backbone=described["backbone"]))(
        noise((128, 64))
    )
    assert record.classes.tolist() == [WHOLE_IMAGE, 1, 0]
    np.testing.assert_allclose(record.boxes[1:], [[16, 16, 32, 32], [4, 8, 40, 60]])
    (tmp_path / "classes.txt").write_text("one\n")
    with pytest.raises(UsageError, match=r"found class 1, .*classes\.txt names 1: name all, from class 0"):
        DetectorExtractor(tmp_path / "e.yaml")(noise((128, 64)))


@pytest.mark.parametrize(
    ("gives", "layout", "message"),
    [
        ("unasked", "boxes_scores", r"gives \[4, 4\], \[4\], \[4\]; layout boxes_scores wants \[1, A, 4\] and"),
        ("unasked", "yolox", r"layout yolox wants \[1, A, 5 \+ classes\]"),
        (
            "tensor",
            "boxes_labels_scores",
            r"gives \[1, 4, 4\]; layout boxes_labels_scores wants boxes \[N, 4\], labels",
        ),
        (
            "tuple",
            "torchvision",
            r"StandIn\.forward gives a list of no tensors: it has to give tensors, or torchvision's",
        ),
        ("text", "torchvision", r"gives a str of no tensors"),
    ],
)
def test_another_layout_than_the_network_has(gives: str, layout: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        description = stand_in_description(tmp_path, gives, layout=layout)
        DetectorExtractor(description)._find(noise(WIDE))


@pytest.mark.parametrize(
    ("detector", "keys", "message"),
    [
        ({}, {}, r"has to name either network \(onnx or module\) or transformers"),
        ({"transformers": "d", "network": {"onnx": "a", "input": {"height": 4, "width": 4}}}, {}, "either network"),
        ({"transformers": "d", "classes": "c.txt"}, {}, r"classes is c\.txt, and the transformers folder says it"),
        ({"transformers": "d", "layout": "yolox"}, {}, "layout is yolox, and the transformers folder says it"),
        ({"network": {"onnx": "a", "input": {"height": 4, "width": 4}}, "layout": "yolox"}, {}, "classes is missing"),
        (
            {"network": {"onnx": "a", "input": {"height": 4, "width": 4}}, "layout": "yolox", "classes": "c"},
            {},
            "backbone is missing: only a transformers detector",
        ),
        ({"network": {"onnx": "a", "input": {"height": 4}}}, {}, r"input\.width is 0: give 1 to"),
        ({"network": {"onnx": "a", "input": {"fit": "as_is", "width": 4}}}, {}, r"input\.width is 4, and fit as_is"),
        ({"transformers": "d"}, {"scales": [1, 2]}, "own backbone sees a picture at one size: leave scales out"),
        ({"transformers": "d"}, {"backbone_output": 1}, "no backbone is named: leave it out"),
    ],
)
def test_descriptions_that_contradict_themselves(
    detector: dict[str, Any], keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        DetectorExtractor(describe(tmp_path / "e.yaml", detector, **keys))


def test_the_documents_examples_are_descriptions() -> None:
    page = (Path(__file__).parents[2] / "docs/extract.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(name: .*?)^```", page, re.M | re.S)
    specs = [build(ExtractorSpec, parse_yaml(block, "docs/extract.md"), "docs/extract.md") for block in blocks]
    assert [spec.detector.layout for spec in specs] == ["yolox", None, None, "torchvision"]
    assert [spec.backbone is None for spec in specs] == [False, True, False, False]
