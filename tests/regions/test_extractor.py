"""The extractor on small networks written as ONNX here: a YOLOX-shaped detector whose boxes are known, a backbone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.records import WHOLE_IMAGE
from imagebert.data.regions import RegionStore
from imagebert.regions.extract import Extracted, extract
from imagebert.regions.extractor import DetectorExtractor, decode_yolox, pool, select
from imagebert.regions.networks import Candidates
from tests.regions.test_decoding import stand_in

SIZE = 64  # detector's input; strides 8, 16, 32 give 64 + 16 + 4 anchors
ANCHORS = 84


def yolox_output(boxes: list[tuple[float, float, float, float, int, float]]) -> np.ndarray:
    """A raw output [84, 5 + 3] with these boxes (centre, extent, class, score), each at an anchor of stride 8."""
    output = np.zeros((ANCHORS, 8), np.float32)
    for cx, cy, w, h, kind, score in boxes:
        column, row = int(cx // 8), int(cy // 8)
        output[row * 8 + column] = [cx / 8 - column, cy / 8 - row, np.log(w / 8), np.log(h / 8), score, 0, 0, 0]
        output[row * 8 + column, 5 + kind] = 1
    return output


def save_constant_network(path: Path, *outputs: np.ndarray) -> None:
    """A network that gives `outputs` whatever it sees."""
    nodes = [helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0)]
    nodes.append(helper.make_node("Sub", ["mean", "mean"], ["nothing"]))
    for number, output in enumerate(outputs):
        value = numpy_helper.from_array(output[None].astype(np.float32))
        nodes.append(helper.make_node("Constant", [], [f"constant{number}"], value=value))
        nodes.append(helper.make_node("Add", [f"constant{number}", "nothing"], [f"output{number}"]))
    _save(path, nodes, SIZE, *([1, *output.shape] for output in outputs))


def save_pooling_network(path: Path, size: int | str) -> None:
    """A backbone whose feature map is the picture, averaged over 4 x 4 cells; a name stands for any size."""
    node = helper.make_node("AveragePool", ["images"], ["output0"], kernel_shape=[4, 4], strides=[4, 4])
    cells = size if isinstance(size, str) else size // 4
    _save(path, [node], size, [1, 3, cells, cells])


def _save(path: Path, nodes: list[onnx.NodeProto], size: int | str, *shapes: list[int | str]) -> None:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])
    outs = [helper.make_tensor_value_info(f"output{n}", TensorProto.FLOAT, shape) for n, shape in enumerate(shapes)]
    graph = helper.make_graph(nodes, "network", [image], outs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.fixture
def description(tmp_path: Path) -> Path:
    # In the letterboxed input of a 128 x 64 picture one input pixel is two picture pixels.
    detections = [(20, 12, 24, 16, 1, 0.9), (25, 13, 24, 16, 1, 0.6), (20, 20, 24, 16, 0, 0.5), (50, 16, 4, 8, 2, 0.04)]
    save_constant_network(tmp_path / "detector.onnx", yolox_output(detections))
    save_pooling_network(tmp_path / "backbone.onnx", 32)
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    tree = {
        "name": "test",
        "detector": {
            "network": {
                "onnx": str(tmp_path / "detector.onnx"),
                "input": {"height": SIZE, "width": SIZE, "channels": "bgr", "fit": "letterbox"},
            },
            "classes": str(tmp_path / "classes.txt"),
            "layout": "yolox",
        },
        "backbone": {"onnx": str(tmp_path / "backbone.onnx"), "input": {"height": 32, "width": 32, "scale": 0.5}},
    }
    path = tmp_path / "extractor.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def half_red(width: int = 128, height: int = 64) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 200
    return Image.fromarray(pixels)


def test_boxes_classes_and_vectors_of_a_wide_picture(description: Path) -> None:
    record = DetectorExtractor(description)(half_red())
    assert (record.width, record.height) == (128, 64)
    # The second dog overlaps the first and goes; the bird is below the threshold.
    assert record.classes.tolist() == [WHOLE_IMAGE, 1, 0]
    np.testing.assert_allclose(record.confidences, [1, 0.9, 0.5], rtol=1e-5)
    np.testing.assert_allclose(record.boxes, [[0, 0, 128, 64], [16, 8, 64, 40], [16, 24, 64, 56]], atol=1e-3)
    # Features are half the colour under the box: red inside the left half, half red for the whole picture.
    np.testing.assert_allclose(record.features[0], [50, 0, 0], atol=4)
    np.testing.assert_allclose(record.features[1], [100, 0, 0], atol=8)


def test_at_most_n_regions(description: Path) -> None:
    text = description.read_text() + "max_regions: 1\n"
    description.write_text(text)
    assert DetectorExtractor(description)(half_red()).classes.tolist() == [WHOLE_IMAGE, 1]


def test_a_picture_without_a_box_is_its_whole(description: Path, tmp_path: Path) -> None:
    save_constant_network(tmp_path / "detector.onnx", yolox_output([]))
    assert DetectorExtractor(description)(half_red()).classes.tolist() == [WHOLE_IMAGE]


def test_decode_yolox_on_every_stride() -> None:
    output = np.zeros((ANCHORS, 6), np.float32)
    output[:, 4:] = 1
    boxes, _ = decode_yolox(output, (SIZE, SIZE), (8, 16, 32))
    # Zero offsets: boxes of one stride's extent around each cell's corner, row by row.
    assert boxes[1].tolist() == [4, -4, 12, 4]
    assert boxes[64 + 5].tolist() == [8, 8, 24, 24]
    assert boxes[64 + 16 + 2].tolist() == [-16, 16, 16, 48]
    with pytest.raises(UsageError, match=r"84 boxes, strides \(8, 16\) imply 80"):
        decode_yolox(output, (SIZE, SIZE), (8, 16))


def test_select_equals_a_plain_greedy_search() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((200, 2)) * 60
    boxes = np.concatenate([low, low + 4 + rng.random((200, 2)) * 40], axis=1).astype(np.float32)
    scores = rng.random((200, 3)).astype(np.float32) ** 3
    top = Candidates(boxes, scores.argmax(axis=1), scores.max(axis=1))
    got, classes, confidences, _ = select(top, 0.3, 0.4, 20)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return float(w * h / (areas - w * h))

    kept: list[int] = []
    for i in sorted(range(200), key=lambda i: -scores[i].max()):
        kind, score = scores[i].argmax(), scores[i].max()
        if score > 0.3 and all(scores[k].argmax() != kind or iou(boxes[i], boxes[k]) <= 0.4 for k in kept):
            kept.append(i)
    np.testing.assert_array_equal(got, boxes[kept[:20]])
    assert classes.tolist() == [int(scores[k].argmax()) for k in kept[:20]]
    assert (np.diff(confidences) <= 0).all()


def test_pool_is_the_mean_of_a_plane_at_the_boxes_centre() -> None:
    """On a map that is linear in x and y, any average over a box is the value at its centre."""
    ys, xs = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    plane = torch.stack([xs, ys, xs + 2 * ys])
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.4], [0.25, 0.25, 0.9, 0.9]])
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 * 16
    expected = torch.stack([center[:, 0], center[:, 1], center[:, 0] + 2 * center[:, 1]], dim=1)
    torch.testing.assert_close(pool(plane, boxes, 7), expected, rtol=1e-4, atol=1e-4)


def small_backbone(channels: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, channels, 4, stride=4)


def test_a_torch_module_as_backbone(description: Path) -> None:
    tree = yaml.safe_load(description.read_text())
    size = tree["backbone"]["input"]
    tree["backbone"] = {
        "module": "tests.regions.test_extractor:small_backbone",
        "arguments": {"channels": 6},
        "input": size,
    }
    description.write_text(yaml.safe_dump(tree))
    assert DetectorExtractor(description)(half_red()).features.shape == (3, 6)
    tree["backbone"]["module"] = "nowhere:at_all"
    description.write_text(yaml.safe_dump(tree))
    with pytest.raises(UsageError, match="module 'nowhere:at_all' cannot be imported"):
        DetectorExtractor(description)


def test_extract_skips_and_counts_what_it_cannot_read(
    description: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    half_red().save(folder / "a.jpg")
    half_red(30, 90).convert("L").save(folder / "sub/gray.png")
    half_red().convert("CMYK").save(folder / "sub/print.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    done = extract(folder, tmp_path / "store", DetectorExtractor(description))
    assert done == Extracted(4, 3, 1)
    assert "broken.jpg is skipped: it is not a picture" in caplog.text
    store = RegionStore(tmp_path / "store")
    assert [store.key(i) for i in range(3)] == ["a.jpg", "sub/gray.png", "sub/print.jpg"]
    assert store.extractor["name"] == "test"
    assert store.classes == ["cat", "dog", "bird"]
    assert store.whole_image.all()
    assert store.read(1).height == 90


def test_bad_descriptions(description: Path, tmp_path: Path) -> None:
    original = description.read_text()
    for change, message in (
        (("layout: yolox", "layout: yolo"), "did you mean yolox"),
        (("detector.onnx", "missing.onnx"), r"ONNX file: cannot read .*missing\.onnx: No such file"),
        (("classes.txt", "missing.txt"), r"class names: cannot read .*missing\.txt: No such file"),
        (("onnx: " + str(tmp_path / "backbone.onnx"), "method: forward"), "either onnx"),
    ):
        assert change[0] in original
        description.write_text(original.replace(*change))
        with pytest.raises(UsageError, match=message):
            DetectorExtractor(description)
    description.write_text(original)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match="names 2 classes, the detector has 3"):
        DetectorExtractor(description)(half_red())
    (tmp_path / "classes.txt").write_text("\ufeffcat\r\ndog\r\nbird\r\n\r\n\n", encoding="utf-8")
    assert DetectorExtractor(description).classes == ["cat", "dog", "bird"]
    (tmp_path / "classes.txt").write_text("cat\n\ndog\nbird\n")
    with pytest.raises(UsageError, match=r"classes\.txt, line 2 is blank, and lines number the names"):
        DetectorExtractor(description)
    (tmp_path / "classes.txt").write_text("cat\ndog\nbird\n")
    (tmp_path / "detector.onnx").write_bytes(b"no network")
    with pytest.raises(UsageError, match="no ONNX network"):
        DetectorExtractor(description)


def changed(description: Path, **keys: Any) -> DetectorExtractor:
    """With other keys, a.b for those in mappings."""
    tree = yaml.safe_load(description.read_text())
    for key, value in keys.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    other = description.with_name("other.yaml")
    other.write_text(yaml.safe_dump(tree))
    return DetectorExtractor(other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"detector__network__input__height": 32},
            r"^detector\.network\.input, height 32 and width 64: correct it, the network fails .*Got: 32 Expected: 64",
        ),
        (
            {"backbone__input__width": 48},
            r"^backbone\.input, height 32 and width 48: correct it, the network fails .*Expected: 32",
        ),
        (
            {"scales": [1, 0.5]},
            r"^backbone\.input, height 32 and width 32, at 0\.5 of scales: correct it, the network fails",
        ),
        ({"backbone_output": 3}, r"^backbone_output is 3, the backbone gives 1: count from 0"),
        ({"backbone": "flat"}, r"^backbone_output 0 is \[1, 3072\] and no feature map"),
        ({"backbone": "small"}, r"^backbone\.input, height 2 and width 2: correct it, the network fails .*Kernel size"),
        ({"backbone": "empty"}, r"^backbone\.input, .*ValueError: the feature map is empty, \[1, 3, 32, 0\]"),
    ],
)
def test_networks_that_cannot_what_the_description_says(
    keys: dict[str, Any], message: str, description: Path, tmp_path: Path
) -> None:
    """Before the work, by the key, and in one sentence: each was a traceback at the first picture."""
    size = 2 if keys.get("backbone") == "small" else 32
    if isinstance(which := keys.get("backbone"), str):
        module = f"tests.regions.test_extractor:{'small_backbone' if which == 'small' else 'Other'}"
        arguments: dict[str, Any] = {"channels": 3} if which == "small" else {"gives": which}
        shape = {"height": size, "width": size}
        keys = {"backbone": {"module": module, "arguments": arguments, "input": shape}}
    (tmp_path / "in").mkdir()
    half_red().save(tmp_path / "in/a.png")
    with pytest.raises(UsageError, match=message) as raised:
        extract(tmp_path / "in", tmp_path / "out", changed(description, **keys))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.incomplete").exists()


class Other(torch.nn.Module):
    """A backbone without a map."""

    def __init__(self, gives: str) -> None:
        super().__init__()
        self._gives = gives

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1) if self._gives == "flat" else pixels[..., :0]


@pytest.mark.parametrize("name", ["confidence", "nms_iou"])
def test_shares_are_shares(name: str, description: Path) -> None:
    for value in (0, 1):
        changed(description, **{f"detector__{name}": value})
    for value in (5, -0.1, 1.01):
        with pytest.raises(UsageError, match=rf"detector\.{name} is {float(value)}: give 0 to 1"):
            changed(description, **{f"detector__{name}": value})


def test_a_detector_of_shares_or_of_no_numbers_is_told(
    description: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of these gave stores of whole pictures, without a word."""
    folder = tmp_path / "in"
    folder.mkdir()
    half_red().save(folder / "a.png")
    boxes = np.array([[0.1, 0.1, 0.6, 0.9], [0, 0.2, 1, 1]], np.float32)
    scores = np.array([[0.9, 0, 0], [0, 0.8, 0]], np.float32)

    def told(boxes: np.ndarray, scores: np.ndarray) -> DetectorExtractor:
        save_constant_network(tmp_path / "detector.onnx", boxes, scores)
        return changed(description, detector__layout="boxes_scores")

    with pytest.raises(
        UsageError, match=r"detector\.network lie within one pixel of the corner .* 64 x 64: it gives sh"
    ):
        extract(folder, tmp_path / "out", told(boxes, scores))
    for one, other in ((boxes * np.nan, scores), (boxes * 64, scores * np.nan)):
        with pytest.raises(
            UsageError, match=r"^detector\.network\.input, .* gives boxes or scores that are no numbers"
        ):
            extract(folder, tmp_path / "out", told(one, other))
    # What fills the outputs up, and what nobody believes, tells nothing.
    for one, other in ((boxes * 0, scores), (boxes, scores * 0.01), (boxes * [[1], [np.nan]], scores * [[0], [0]])):
        done = extract(folder, tmp_path / "out", told(one, other), overwrite=True)
        assert (done.stored, done.without_regions) == (1, 1)
        assert extract(folder, tmp_path / "out", told(one, other)).without_regions == 1  # and when it is asked again
    done = extract(folder, tmp_path / "out", told(boxes * 64, scores), overwrite=True)
    assert done.without_regions == 0


def test_the_command_says_what_became_of_all_files(
    description: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "store"
    folder.mkdir()
    half_red().save(folder / "a.jpg")
    (folder / "film.mp4").touch()
    command = ["extract", str(folder), str(out), "--extractor", str(description), "--decoder"]
    assert main([*command, "pillow"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"1 pictures: 1 stored in {out}, 0 refused; 1 other files are not read (by suffix: 1 of .mp4)"
    stand_in("raise ImportError('none')", tmp_path, monkeypatch)
    assert main([*command, "dali", "--overwrite"]) == 2
    assert "decoder dali: DALI does not start (ImportError: none): pip install" in capsys.readouterr().err
    save_constant_network(tmp_path / "detector.onnx", yolox_output([]))
    assert main([*command, "pillow", "--overwrite"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert ", 0 refused; in 1 of those stored no region was found; 1 other files" in said


def test_contents_define_an_extractor_and_no_names_of_files(description: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(description.read_text())
    digest = DetectorExtractor(description).description["digest"]
    classes = Path(tree["detector"]["classes"])
    for place in (tree["detector"], tree["detector"]["network"], tree["backbone"]):
        for key in {"classes", "onnx"} & place.keys():
            place[key] = str(shutil.copy(place[key], tmp_path / f"other-{Path(place[key]).name}"))
    moved = tmp_path / "moved.yaml"
    moved.write_text(yaml.safe_dump({**tree, "name": "another name"}))
    assert DetectorExtractor(moved).description["digest"] == digest
    Path(tree["detector"]["classes"]).write_text("\n".join(classes.read_text().split()[::-1]))
    assert DetectorExtractor(moved).description["digest"] != digest
    Path(tree["detector"]["classes"]).write_text(classes.read_text())
    moved.write_text(yaml.safe_dump({**tree, "max_regions": 7}))
    assert DetectorExtractor(moved).description["digest"] != digest


def test_scales(description: Path, tmp_path: Path) -> None:
    """A region's vector is the mean of what extractors of those sizes give it; at one scale nothing is otherwise."""
    save_pooling_network(tmp_path / "backbone.onnx", "side")
    tree = yaml.safe_load(description.read_text())
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (64, 128, 3), np.uint8))

    def extractor(size: int, fit: str, **keys: object) -> DetectorExtractor:
        tree["backbone"]["input"] |= {"height": size, "width": size, "fit": fit}
        description.write_text(yaml.safe_dump({**tree, **keys}))
        return DetectorExtractor(description)

    for fit in ("stretch", "letterbox"):
        apart = [extractor(size, fit)(picture).features for size in (32, 48)]
        assert not np.allclose(*apart)
        both = extractor(32, fit, scales=[1, 1.5])
        np.testing.assert_allclose(both(picture).features, np.mean(apart, axis=0), rtol=1e-6)
        plain, one = extractor(32, fit).description, extractor(32, fit, scales=[1]).description
        assert plain == one
        assert both.description["digest"] != plain["digest"]
    with pytest.raises(UsageError, match="scales is empty"):
        extractor(32, "stretch", scales=[])


def test_a_letterboxed_backbone_pools_under_the_picture(description: Path, tmp_path: Path) -> None:
    """Half of that input is pad: the whole picture's vector is the picture's mean, not the pad's."""
    save_pooling_network(tmp_path / "backbone.onnx", 64)
    tree = yaml.safe_load(description.read_text())
    tree["backbone"]["input"] = {"height": 64, "width": 64, "fit": "letterbox", "pad": 0}
    description.write_text(yaml.safe_dump(tree))
    record = DetectorExtractor(description)(Image.new("RGB", (128, 64), (200, 100, 50)))
    # Samples at the lower edge read half a cell of pad.
    np.testing.assert_allclose(record.features[0], [200, 100, 50], rtol=0.08)
