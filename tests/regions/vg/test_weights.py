"""Weights as each project publishes them, and what is refused by name."""

from __future__ import annotations

import json
import pickle
import re
import resource
import signal
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from benchmarks import made_up
from benchmarks.made_up import Variant, Weights
from imagebert.errors import UsageError
from imagebert.regions.extractor import open_extractor
from imagebert.regions.vg.extractor import VisualGenomeExtractor
from imagebert.regions.vg.rules import Rules, anchors
from imagebert.regions.vg.weights import convert_detector, read_detector

_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def tensors(weights: Weights) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((name, torch.from_numpy(array)) for name, array in weights.items())


def as_milvlg(weights: Weights, file: Path) -> Path:
    """bua-caffe-frcn-r101.pth: detectron2's checkpoint, with what training needs."""
    state = tensors(weights)
    state["backbone.res4.0.conv1.norm.num_batches_tracked"] = torch.tensor(7)
    torch.save({"model": state, "optimizer": {"param_groups": [{"lr": 0.1}]}, "iteration": 9}, file)
    return file


def as_airsplay(weights: Weights, file: Path) -> Path:
    """faster_rcnn_from_caffe_attr.pkl: a pickle of arrays."""
    file.write_bytes(
        pickle.dumps({"model": weights, "__author__": "somebody", "matching_heuristics": True}, protocol=2)
    )
    return file


def as_transformers(weights: Weights, folder: Path, **config: Any) -> Path:
    """frcnn-vg-finetuned: a state dict and its configuration."""
    folder.mkdir()
    torch.save(tensors(weights), folder / "pytorch_model.bin")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def caffe() -> Weights:
    return made_up.weights("caffe", blocks=(1, 1, 2, 1))


@pytest.fixture(scope="module")
def detectron2() -> Weights:
    return made_up.weights("detectron2", blocks=(1, 1, 2, 1))


def test_every_published_file_is_read(caffe: Weights, detectron2: Weights, tmp_path: Path) -> None:
    milvlg = read_detector(as_milvlg(caffe, tmp_path / "a.pth"))
    airsplay = read_detector(as_airsplay(detectron2, tmp_path / "b.pkl"))
    config = {"INPUT": {"MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333}, "min_detections": 36, "max_detections": 36}
    config |= {"roi_heads": {"nms_thresh_test": [0.2, 0.9]}, "rpn": {"post_nms_topk_test": 1000}}
    transformers = read_detector(as_transformers(detectron2, tmp_path / "c", **config))
    assert milvlg.rules == Rules(variant="caffe", resize="factor")
    assert airsplay.rules == Rules(variant="detectron2", resize="pillow")
    assert transformers.rules == Rules(
        variant="detectron2",
        resize="interpolate",
        short_side=800,
        long_side=1333,
        proposals=1000,
        least=36,
        most=36,
        nms_iou=(0.2, 0.9),
    )
    assert airsplay.digest == transformers.digest != milvlg.digest
    for detector, weights in ((milvlg, caffe), (airsplay, detectron2), (transformers, detectron2)):
        assert set(detector.weights) == set(weights)
        assert all(np.array_equal(detector.weights[name].numpy(), array) for name, array in weights.items())
        assert detector.classes[-1] == "object 59"
        assert detector.attributes[-1] == "attribute 39"


def test_a_configuration_beside_the_file_counts(
    detectron2: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the folder is named or the file in it; and without one, the log says what is taken instead."""
    caplog.set_level("INFO")
    folder = as_transformers(detectron2, tmp_path / "c", INPUT={"MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333})
    assert read_detector(folder / "pytorch_model.bin").rules == read_detector(folder).rules
    assert read_detector(folder).rules.short_side == 800
    assert "rules of detectron2 as " in caplog.messages[-1]
    for content in ("MODEL: {DEVICE: cpu}\nINPUT: {MIN_SIZE_TRAIN: 400}\nROI_HEADS: {SCORE_THRESH_TEST: 0.2}\n", None):
        (folder / "config.yaml").unlink() if content is None else (folder / "config.yaml").write_text(content)
        read_detector(folder)
        assert caplog.messages[-1].endswith(
            "pytorch_model.bin: rules of detectron2, its defaults: resize interpolate, sides of 600 to 1000 pixels, "
            "10 to 100 regions of 300 proposals of 6000 candidates, suppressed at 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9"
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"INPUT": {"MIN_SIZE_TSET": 800}}, r"unknown key input\.min_size_tset; did you mean min_size_test"),
        ({"INPUTS": {"MIN_SIZE_TEST": 800}}, r"unknown key inputs; did you mean input\?"),
        ({"rpn": {"post_nms_topk": 100}}, r"unknown key rpn\.post_nms_topk; did you mean post_nms_topk_test"),
        ({"min_detection": 36, "max_detections": 36}, "unknown key min_detection; did you mean min_detections"),
    ],
)
def test_misspelt_keys_are_not_passed_over(
    config: dict[str, Any], message: str, detectron2: Weights, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"c/config\.yaml: {message}"):
        read_detector(as_transformers(detectron2, tmp_path / "c", **config))


def test_published_tensors_as_safetensors(detectron2: Weights, tmp_path: Path) -> None:
    """As a bare file, or in transformers' folder under its name of late; then they are converted as all others."""
    wanted = read_detector(as_airsplay(detectron2, tmp_path / "a.pkl"))
    save_file(tensors(detectron2), tmp_path / "a.safetensors")
    convert_detector(tmp_path / "a.safetensors", tmp_path / "vg.safetensors")
    found = read_detector(tmp_path / "vg.safetensors")
    assert (found.digest, found.rules, found.source) == (wanted.digest, wanted.rules, "a.safetensors")
    folder = as_transformers(detectron2, tmp_path / "c", min_detections=36, max_detections=36)
    (folder / "pytorch_model.bin").unlink()
    save_file(tensors(detectron2), folder / "model.safetensors")
    for path in (folder, folder / "model.safetensors"):
        rules = read_detector(path).rules
        assert (rules.resize, rules.least) == ("interpolate", 36)


def test_another_detectors_folder_wants_a_description(tmp_path: Path) -> None:
    folder = tmp_path / "detr"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    with pytest.raises(UsageError, match=r"give a YAML description with detector: \{transformers: .*/detr\}$"):
        open_extractor(folder)


def test_a_full_disk_is_a_sentence(caffe: Weights, tmp_path: Path) -> None:
    published, out = as_milvlg(caffe, tmp_path / "a.pth"), tmp_path / "vg.safetensors"
    out.write_text("what was there")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"writing .*vg\.safetensors failed, it is as it was: .*File too large"):
            convert_detector(published, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert out.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "vg.safetensors"]


@pytest.mark.parametrize("variant", ["caffe", "detectron2"])
def test_anchors_that_a_file_lacks_are_its_ports(variant: Variant, tmp_path: Path) -> None:
    weights = made_up.weights(variant, blocks=(1, 1, 1, 1))
    wanted = weights.pop(_ANCHORS)
    found = read_detector(as_airsplay(weights, tmp_path / "a.pkl")).weights[_ANCHORS]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(anchors(variant), made_up.anchors(variant), rtol=1e-6)


def test_a_converted_detector_is_the_same_with_its_names(caffe: Weights, tmp_path: Path) -> None:
    published = as_milvlg(caffe, tmp_path / "a.pth")
    names = tmp_path / "objects_vocab.txt"
    names.write_text("\n".join(f"thing {number}" for number in range(60)) + "\n")
    out = tmp_path / "new" / "vg.safetensors"
    made = convert_detector(published, out, classes=names)
    read = read_detector(out)
    assert read.digest == made.digest == read_detector(published).digest
    assert (read.rules, read.classes, read.attributes) == (made.rules, made.classes, made.attributes)
    assert read.classes[3] == "thing 3"
    assert read.source == "a.pth"
    named, bare = (VisualGenomeExtractor(detector).description for detector in (read, published))
    assert named["digest"] != bare["digest"]  # a store says which names it has
    assert named["weights_sha256"] == bare["weights_sha256"]
    names.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(f"thing {number}".encode() for number in range(60)) + b"\r\n\r\n")
    assert convert_detector(published, out, classes=names).classes == made.classes
    names.write_text("\n".join("" if number == 7 else f"thing {number}" for number in range(60)))
    with pytest.raises(UsageError, match=r"objects_vocab.txt, line 8 is blank"):
        convert_detector(published, out, classes=names)
    names.write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"objects_vocab.txt has 2 names, the detector 60"):
        convert_detector(published, out, classes=names)
    with pytest.raises(UsageError, match=r"ends in .safetensors"):
        convert_detector(published, tmp_path / "vg.bin")


def test_what_is_missing_or_wrong_is_named(caffe: Weights, detectron2: Weights, tmp_path: Path) -> None:
    head = "roi_heads.box_predictor"

    def refused(weights: Weights, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            read_detector(as_airsplay(weights, tmp_path / "a.pkl"))

    without = {name: array for name, array in caffe.items() if name != "backbone.res4.1.conv2.norm.bias"}
    refused(without, r"no whole caffe detector .*1 tensors are missing: backbone.res4.1.conv2.norm.bias")
    partial = {name: array for name, array in caffe.items() if not name.startswith("backbone.res3")}
    refused(partial, r"tensors are missing: backbone.res3")
    refused({name: array for name, array in caffe.items() if "cls_embed" not in name}, r"neither .*cls_embed")
    refused(
        caffe | {"roi_heads.mask_head.weight": np.zeros(3, np.float32)}, r"do not belong to it: roi_heads.mask_head"
    )
    refused(
        caffe | {f"{head}.cls_score.weight": np.zeros((61, 9), np.float32)}, r"cls_score.weight \[61, 9\] instead of"
    )
    grouped = {name: array[:, :1] if ".conv2.weight" in name else array for name, array in detectron2.items()}
    refused(grouped, r"detectron2 detector .* have another shape: .*conv2.weight")  # ResNeXt, as VinVL's
    bad = caffe["backbone.stem.conv1.weight"].copy()
    bad[0, 0, 0, 0] = np.nan
    refused(caffe | {"backbone.stem.conv1.weight": bad}, r"not finite: backbone.stem.conv1.weight")
    variance = "backbone.stem.conv1.norm.running_var"
    refused(caffe | {variance: -caffe[variance]}, r"negative: backbone.stem.conv1.norm.running_var")


def test_a_published_file_that_lost_blocks_is_refused(tmp_path: Path) -> None:
    """A ResNet-101 has 3, 4, 23 and 3 blocks; only made-up weights may say that they have fewer."""

    def refused(weights: Weights, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            read_detector(as_airsplay(weights, tmp_path / "a.pkl"))

    whole = made_up.weights("caffe", base=2)
    read_detector(as_airsplay(whole, tmp_path / "a.pkl"))
    last = "backbone.res4.22."
    without = {name: array for name, array in whole.items() if not name.startswith(last)}
    refused(without, r"15 tensors are missing: backbone\.res4\.22\.conv1\.weight")
    for stage in ("backbone.res2.2.", "backbone.res3.3.", "roi_heads.res5.2."):
        lost = {name: array for name, array in whole.items() if not name.startswith(stage)}
        refused(lost, rf"are missing: {re.escape(stage)}conv1")
    small = made_up.weights("caffe", base=2, blocks=(1, 1, 2, 1))
    for stated in ([1, 1, 1], [1, 1, 1e9, 1], [1, 1, np.nan, 1], [1, 1, -2, 1], [3, 4, 23, 3]):
        refused(small | {"imagebert.made_up_blocks": np.array(stated, np.float32)}, "are missing: backbone.res2.1.")
    for number in ("23", "1000000", "99999999999"):  # by its name, before anything is made of so many
        more = {name.replace(last, f"backbone.res4.{number}."): whole[name] for name in whole if last in name}
        refused(whole | more, rf"15 tensors do not belong to it: backbone\.res4\.{number}\.conv1\.weight")
        refused(without | more, r"are missing: backbone\.res4\.22\.conv1\.weight")


def test_no_weights_is_a_sentence(tmp_path: Path) -> None:
    text, folder = tmp_path / "text.pth", tmp_path / "folder"
    text.write_text("hello")
    folder.mkdir()
    for path in (tmp_path / "nowhere.pth", text, folder):
        with pytest.raises(UsageError, match=str(path.name)):
            read_detector(path)
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="holds list, not tensors by their names"):
        read_detector(tmp_path / "list.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="holds no Visual Genome detector with attributes: among its 1 tensors"):
        read_detector(tmp_path / "other.safetensors")


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.modules['imagebert_was_here'] = sys",)


def test_nothing_in_a_file_is_executed(caffe: Weights, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": dict(caffe), "more": Evil()}))
    torch.save({"model": tensors(caffe), "more": Evil()}, tmp_path / "a.pth")
    for file in ("a.pkl", "a.pth"):
        with pytest.raises(UsageError, match="cannot be read as the weights of a detector: its pickle names"):
            read_detector(tmp_path / file)
    assert "imagebert_was_here" not in sys.modules


def test_a_changed_converted_file_is_refused(caffe: Weights, tmp_path: Path) -> None:
    out = tmp_path / "vg.safetensors"
    convert_detector(as_milvlg(caffe, tmp_path / "a.pth"), out)
    data = bytearray(out.read_bytes())
    data[-5] ^= 1
    out.write_bytes(data)
    with pytest.raises(UsageError, match="its tensors are not those that were written"):
        read_detector(out)
    data[-5] ^= 1
    start = data.index(b"short_side")
    data[start + len('short_side\\": ')] = ord("7")
    out.write_bytes(data)
    with pytest.raises(UsageError, match="has changed since it was written"):
        read_detector(out)
    out.write_bytes(data[:1000])
    with pytest.raises(UsageError, match="damaged"):
        read_detector(out)
    # The tensors of another variant, with this one's description.
    convert_detector(as_milvlg(caffe, tmp_path / "a.pth"), out)
    from safetensors import safe_open

    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["imagebert_detector"])["rules"]["variant"] == "caffe"
    save_file(load_file(out) | {"extra": torch.zeros(1)}, out, metadata)
    with pytest.raises(UsageError, match="its tensors are not those that were written"):
        read_detector(out)


@pytest.mark.parametrize("boxes", ["0", "36-10", "x", "-", "400"])
def test_impossible_numbers_of_boxes_are_refused(boxes: str) -> None:
    with pytest.raises(UsageError):
        Rules(variant="caffe", resize="factor").boxes(boxes)
