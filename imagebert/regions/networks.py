"""Frozen networks that look at pictures: an ONNX file, or a torch module named in the description. Inference only.

The gate of onnxruntime: no other file imports it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagebert.config import UsageError
from imagebert.files import file_digest, open_regular

_LARGEST_SIDE = 1 << 13

_TOLD = 300  # characters of what a network says
# How frameworks tell a lack of memory and faults of a GPU, which have no class of their own.
_MACHINE = re.compile(r"alloc|out of memory|\bCUDA|cuDNN|cuBLAS", re.I)

Network = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


def of_the_machine(error: Exception) -> bool:
    """Whether an error is of memory, a disk, a GPU or a missing package, and no picture's or description's."""
    return isinstance(error, MemoryError | OSError | ImportError) or _MACHINE.search(str(error)) is not None


def in_words(error: Exception) -> str:
    """What a network's error is, and says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_TOLD]}"


class FeatureMap(NamedTuple):
    """What a backbone makes of a picture."""

    values: torch.Tensor  # [channels, h, w] float32
    extent: tuple[float, float]  # x and y of what the map covers, in the picture's pixels; more than it where padded


class Candidates(NamedTuple):
    """What a detector finds in a picture, before the best are kept."""

    boxes: NDArray[np.float32]  # [A, 4] xyxy in the picture's pixels
    classes: NDArray[np.int64]  # [A]
    confidences: NDArray[np.float32]  # [A]
    feature_map: FeatureMap | None = None  # of the detector's own backbone, where it is asked for


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a picture becomes the network's input [1, 3, height, width]: (pixel * scale - mean) / std.

    Fits: `stretch`; `letterbox` keeps the aspect, top left, and pads the rest; `as_is` keeps the picture's own size.
    """

    height: int = 0
    width: int = 0
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fit: Literal["stretch", "letterbox", "as_is"] = "stretch"
    pad: int = 114

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if self.fit == "as_is" and side:
                raise UsageError(f"input.{name} is {side}, and fit as_is keeps the picture's size: give one of both")
            if self.fit != "as_is" and not 0 < side <= _LARGEST_SIDE:
                raise UsageError(f"input.{name} is {side}: give 1 to {_LARGEST_SIDE}")
        if 0 in self.std:
            raise UsageError("input.std has a 0: give what pixels are divided by")
        if not 0 <= self.pad <= 255:
            raise UsageError(f"input.pad is {self.pad}: give 0 to 255")

    @property
    def sides(self) -> str:
        """The size that a network sees."""
        return "as_is" if self.fit == "as_is" else f"height {self.height} and width {self.width}"


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Give `onnx`, a file; or `module`, a `package.module:callable` that returns a torch module."""

    onnx: str | None = None
    module: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # of the callable
    method: str = "forward"  # of the module
    weights: str | None = None  # a safetensors file for the module
    input: InputSpec


def prepare(image: Image.Image, spec: InputSpec) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """The input array [1, 3, h, w] and its scale: input pixels per picture pixel along (x, y)."""
    if spec.fit == "letterbox":
        ratio = min(spec.height / image.height, spec.width / image.width)
        size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        canvas = Image.new("RGB", (spec.width, spec.height), (spec.pad,) * 3)
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR))
        scale = (ratio, ratio)
    elif spec.fit == "as_is":
        canvas, scale = image, (1.0, 1.0)
    else:
        canvas = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        scale = (spec.width / image.width, spec.height / image.height)
    pixels: NDArray[np.float32] = np.asarray(canvas, np.float32)
    if spec.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    pixels = (pixels * np.float32(spec.scale) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), scale


def load_network(spec: NetworkSpec, listed: bool = False) -> tuple[Network, str]:
    """A callable from input array to output arrays, and the SHA-256 of what defines it.

    Args:
        listed: the module is given a list of pictures [3, h, w] and gives [{boxes, labels, scores}], as torchvision's

    Raises:
        UsageError: a file or callable that is not there or does not work.
    """
    if (spec.onnx is None) == (spec.module is None):
        raise UsageError("a network has to name either onnx (a file) or module (package.module:callable)")
    return _load_onnx(Path(spec.onnx)) if spec.onnx else _load_module(spec, listed)


def _load_onnx(path: Path) -> tuple[Network, str]:
    import onnxruntime

    try:
        open_regular(path).close()
    except UsageError as error:
        raise UsageError(f"ONNX file: {error}; correct its name in the extractor's description") from None
    options = onnxruntime.SessionOptions()
    # As many as PyTorch's, so that workers beside each other share the cores; who waits leaves its core to others.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime raises its own classes, with no common base but Exception
        raise UsageError(f"{path} is no ONNX network that can be run: {error}") from None
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array}), file_digest(path)


def _load_module(spec: NetworkSpec, listed: bool) -> tuple[Network, str]:
    assert spec.module is not None
    package, _, attribute = spec.module.partition(":")
    try:
        factory: Any = importlib.import_module(package)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(f"module {spec.module!r} cannot be imported: {error}") from None
    try:
        module = factory(**spec.arguments).eval()
    except Exception as error:  # whatever that callable raises
        raise UsageError(f"{spec.module} cannot be made ({type(error).__name__}: {error})") from error
    if spec.weights:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        open_regular(Path(spec.weights)).close()
        try:
            module.load_state_dict(load_file(spec.weights))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UsageError(f"weights {spec.weights} do not fit {spec.module}: {error}") from None
    call = getattr(module, spec.method, None)
    if not callable(call):
        raise UsageError(f"{spec.module} gives no network with a method {spec.method!r}")

    def run(array: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            outputs = call(list(torch.from_numpy(array)) if listed else torch.from_numpy(array))
        return _arrays(outputs, f"{spec.module}.{spec.method}")

    # The weights that were really loaded, wherever the callable took them from.
    digest = hashlib.sha256(spec.module.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return run, digest.hexdigest()


def _arrays(outputs: Any, where: str) -> list[NDArray[np.float32]]:
    """Of a tensor, of several, or of torchvision's [{boxes, labels, scores}], in this order.

    Raises:
        UsageError: it is none of them.
    """
    if isinstance(outputs, torch.Tensor):
        outputs = [outputs]
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], Mapping):
        outputs = [outputs[0].get(name) for name in ("boxes", "labels", "scores")]
    if not isinstance(outputs, list | tuple) or not all(isinstance(output, torch.Tensor) for output in outputs):
        raise UsageError(
            f"{where} gives a {type(outputs).__name__} of no tensors: it has to give tensors, or torchvision's list of"
            " one dictionary of boxes, labels and scores"
        )
    return [output.float().numpy() for output in outputs]
