"""Pictures decoded some ahead of their use: ordinary JPEGs by DALI where it is installed, all others by Pillow.

DALI's CPU decoder gives Pillow's very pixels (a test compares them); on a GPU, nvJPEG's may differ by rounding. What
DALI cannot decode goes to Pillow, whose verdict counts, so that the same pictures are refused either way. Pillow works
in processes that a picture may break (pictures.py); DALI in this one, so it is given only what it is known to read
well. A gate of DALI, as feed/dali.py is.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from imagebert.decoder import MAX_SIDE, jpeg_facts, too_many_scans
from imagebert.errors import UsageError
from imagebert.files import read_bytes
from imagebert.pictures import DECODER, FILE_BYTES, LOCAL, UnreadableImage

log = logging.getLogger(__name__)

# Files, their bytes and pixels: two batches of decoded pictures are in memory.
_BATCH, _BATCH_BYTES, _BATCH_PIXELS = 32, 32 << 20, 48_000_000

Decoded = Image.Image | UnreadableImage


class _File(NamedTuple):
    path: Path
    data: bytes
    refused: UnreadableImage | None  # where it cannot even be read
    pixels: int
    ordinary: bool  # a JPEG for DALI


def decode(paths: Sequence[Path], dali: bool | None = None) -> Iterator[tuple[Path, Decoded]]:
    """Each picture, upright RGB, or why it cannot be used; in the order of `paths`.

    Args:
        dali: whether to use it; None: where it is installed

    Raises:
        ImportError: DALI is to be used and is not installed.
        OSError: the disk fails, or no decoder can be started.
    """
    jpegs = None
    if dali is not False:
        try:
            jpegs = _DaliJpegs()
        except ImportError:
            if dali:
                raise
    log.info("pictures are decoded by %s", "Pillow" if jpegs is None else f"DALI on the {jpegs.device} and Pillow")
    batches = _batches(paths)
    with ThreadPoolExecutor(1, "decoder") as thread, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pillows:

        def next_batch() -> list[tuple[Path, Decoded]]:
            batch = next(batches, [])  # files are read in that thread, too
            return list(zip((file.path for file in batch), _decode_batch(batch, jpegs, pillows), strict=True))

        ahead = thread.submit(next_batch)
        while found := ahead.result():
            ahead = thread.submit(next_batch)
            yield from found


def _batches(paths: Sequence[Path]) -> Iterator[list[_File]]:
    batch: list[_File] = []
    size = pixels = 0
    for file in map(_look, paths):
        size, pixels = size + len(file.data), pixels + file.pixels
        if batch and (len(batch) == _BATCH or size > _BATCH_BYTES or pixels > _BATCH_PIXELS):
            yield batch
            batch, size, pixels = [], len(file.data), file.pixels
        batch.append(file)
    if batch:
        yield batch


def _look(path: Path) -> _File:
    try:
        data = read_bytes(path, FILE_BYTES)
    except UsageError as error:
        return _File(path, b"", UnreadableImage(str(error)), 0, False)
    facts = jpeg_facts(data)
    if facts is not None:
        pixels = facts.width * facts.height
        ordinary = (
            facts.components in (1, 3)
            and 0 < pixels <= LOCAL.pixels
            and max(facts.width, facts.height) <= MAX_SIDE
            and not too_many_scans(data)
            and _plainly_turned(facts.notes)
        )
        return _File(path, data, None, pixels, ordinary)
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        return _File(path, data, None, int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]), False)
    return _File(path, data, None, _BATCH_PIXELS, False)  # unknown: a batch of its own


# EXIF's orientation as it should be, a SHORT, in both orders of bytes; and its tag wherever it may stand.
_TURN = re.compile(rb"\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x01-\x08]|\x12\x01\x03\x00\x01\x00\x00\x00[\x01-\x08]\x00")
_TURN_TAG = re.compile(rb"\x01\x12|\x12\x01")


def _plainly_turned(notes: Sequence[bytes]) -> bool:
    """Whether DALI and Pillow see one orientation: none, or one in one EXIF. Of two EXIFs DALI has crashed."""
    exif = [note for note in notes if note.startswith(b"Exif")]
    turns = [found for note in exif for found in _TURN_TAG.findall(note)]
    well = [found for note in exif for found in _TURN.findall(note)]
    return len(exif) <= 1 and len(turns) == len(well) <= 1 and not any(b"Orientation" in note for note in notes)


def _decode_batch(batch: Sequence[_File], jpegs: _DaliJpegs | None, pillows: ThreadPoolExecutor) -> Iterator[Decoded]:
    found: dict[Path, Image.Image] = {}
    if jpegs is not None:
        ordinary = [file for file in batch if file.ordinary]
        found = dict(zip((f.path for f in ordinary), jpegs.decode([f.data for f in ordinary]), strict=False))
    others = pillows.map(_by_pillow, [file for file in batch if file.path not in found])
    return (found[file.path] if file.path in found else next(others) for file in batch)


def _by_pillow(file: _File) -> Decoded:
    try:
        return file.refused or DECODER.picture(file.data, LOCAL)
    except UnreadableImage as error:
        return error


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

    def decode(self, jpegs: Sequence[bytes]) -> list[Image.Image]:
        """All of them; or none, where one is damaged: then Pillow tells which."""
        if not jpegs:
            return []
        try:
            (images,) = self._pipeline.run(files=[np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        except RuntimeError:
            self._pipeline = self._build()  # after an error a pipeline is not to be used again
            return []
        return [Image.fromarray(np.array(images[place])) for place in range(len(jpegs))]
