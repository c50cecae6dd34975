"""Pictures decoded some ahead of their use: ordinary JPEGs by DALI where it is installed, all others by Pillow.

DALI's CPU decoder gives Pillow's very pixels (a test compares them); on a GPU, nvJPEG's may differ by rounding. What
DALI cannot decode goes to Pillow, whose verdict counts, so that the same pictures are refused either way. A gate of
DALI, as feed/dali.py is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagebert.regions.images import MAX_PIXELS, UnreadableImage, load_image

log = logging.getLogger(__name__)

_BATCH, _BATCH_BYTES = 32, 32 << 20  # files, and their bytes: two batches of decoded pictures are in memory

Decoded = Image.Image | UnreadableImage


def decode(paths: Sequence[Path], dali: bool | None = None) -> Iterator[tuple[Path, Decoded]]:
    """Each picture, upright RGB, or why it cannot be used; in the order of `paths`.

    Args:
        dali: whether to use it; None: where it is installed

    Raises:
        ImportError: DALI is to be used and is not installed.
    """
    jpegs = None
    if dali is not False:
        try:
            jpegs = _DaliJpegs()
        except ImportError:
            if dali:
                raise
    log.info("pictures are decoded by %s", "Pillow" if jpegs is None else f"DALI on the {jpegs.device} and Pillow")
    batches = list(_batches(paths))
    with ThreadPoolExecutor(1, "decoder") as thread:
        ahead = thread.submit(_decode_batch, batches[0], jpegs) if batches else None
        for number, batch in enumerate(batches):
            assert ahead is not None
            found = ahead.result()
            if number + 1 < len(batches):
                ahead = thread.submit(_decode_batch, batches[number + 1], jpegs)
            yield from zip(batch, found, strict=True)


def _batches(paths: Sequence[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for path in paths:
        size += path.stat().st_size
        if batch and (len(batch) == _BATCH or size > _BATCH_BYTES):
            yield batch
            batch, size = [], path.stat().st_size
        batch.append(path)
    if batch:
        yield batch


def _decode_batch(paths: Sequence[Path], jpegs: _DaliJpegs | None) -> list[Decoded]:
    found: dict[Path, Image.Image] = {}
    if jpegs is not None:
        ordinary = [path for path in paths if _is_ordinary_jpeg(path)]
        found = dict(zip(ordinary, jpegs.decode(ordinary), strict=False))
    return [found[path] if path in found else _by_pillow(path) for path in paths]


def _by_pillow(path: Path) -> Decoded:
    try:
        return load_image(path)
    except UnreadableImage as error:
        return error


def _is_ordinary_jpeg(path: Path) -> bool:
    """By its header: grey or three colours, and no bomb."""
    try:
        with Image.open(path) as image:
            return image.format == "JPEG" and image.mode in ("L", "RGB") and image.width * image.height <= MAX_PIXELS
    except Exception:  # whatever is wrong with it, Pillow will say it again
        return False


class _DaliJpegs:
    """A pipeline that decodes a batch of JPEGs. Raises ImportError where DALI is not installed."""

    def __init__(self) -> None:
        self.device = "GPU" if torch.cuda.is_available() else "CPU"
        self._pipeline = self._build()

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        gpu = self.device == "GPU"
        pipeline = Pipeline(
            batch_size=_BATCH,
            num_threads=4,
            device_id=torch.cuda.current_device() if gpu else None,
            prefetch_queue_depth=1,
        )
        with pipeline:
            files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(files, device="mixed" if gpu else "cpu", output_type=types.RGB)
            pipeline.set_outputs(images.cpu() if gpu else images)
        pipeline.build()
        return pipeline

    def decode(self, paths: Sequence[Path]) -> list[Image.Image]:
        """All of them; or none, where one is damaged: then Pillow tells which."""
        if not paths:
            return []
        try:
            (images,) = self._pipeline.run(files=[np.fromfile(path, np.uint8) for path in paths])
        except (RuntimeError, OSError):
            self._pipeline = self._build()  # after an error a pipeline is not to be used again
            return []
        return [Image.fromarray(np.array(images[place])) for place in range(len(paths))]
