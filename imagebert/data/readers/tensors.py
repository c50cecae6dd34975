"""PyTorch's files: a dictionary of images, or one image (Oscar, VisualBERT). Tensors and plain data only.

Oscar's X_img_frcnn_feats.pt: image -> [n, 2054], the last six the box as shares. VisualBERT's resnet101_genome.th:
image -> {boxes, features, image_w, image_h, num_boxes}.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, ListedReader, find_files

_SUFFIXES = (".pt", ".pth", ".th")


class TensorReader(ListedReader):
    """A file of one image names it."""

    def __init__(self, sources: Sequence[Path]) -> None:
        files = find_files(sources, _SUFFIXES)
        self._images = [(file, key, found) for file in files for key, found in _images(file)]

    def _item(self, image: tuple[Path, str, Any]) -> tuple[str, str, Callable[[], Any]]:
        file, key, found = image
        return f"{file}, image {key!r}", key, partial(_fields, found)


def _images(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        # Mapped where it can be: such files have gigabytes.
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # of pickle, zipfile, torch's C++, ...
        raise UsageError(
            f"{file} is damaged, or holds more than tensors and plain data ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds {type(found).__name__}, not a dictionary of images")
    if any(isinstance(found.get(name), torch.Tensor) for name in ("features", "boxes")):
        yield file.stem, found
    else:
        yield from ((str(key), value) for key, value in found.items())


def _fields(found: Any) -> dict[str, Any]:
    fields = found if isinstance(found, Mapping) else {"features": found}
    return {str(name): _array(str(name), value) for name, value in fields.items()}


def _array(name: str, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    # A view may say that it is larger than all of its file.
    if not value.is_contiguous() or value.is_sparse or value.numel() * value.element_size() > LARGEST:
        raise BadRecord(f"{name} is no plain tensor of at most {LARGEST} bytes")
    return value.to(torch.float32).numpy() if value.dtype == torch.bfloat16 else value.numpy()
