"""Pictures decoded some ahead of their use: ordinary JPEGs by DALI where there is a GPU, all others by Pillow.

DALI's CPU decoder gives Pillow's very pixels (a test compares them); on a GPU, nvJPEG's may differ by rounding, which
is looked at on the first ones. What DALI cannot decode goes to Pillow, whose verdict counts, so that the same pictures
are refused either way. Both work in processes that a picture may break (pictures.py, dali_jpegs.py); DALI is given only
what it is known to read well.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from imagebert.decoder import MAX_SIDE, jpeg_facts, too_many_scans
from imagebert.errors import UsageError
from imagebert.files import read_bytes
from imagebert.pictures import DECODER, FILE_BYTES, LOCAL, UnreadableImage
from imagebert.regions.dali_jpegs import DaliJpegs

log = logging.getLogger(__name__)

# Files, their bytes and pixels: two batches of decoded pictures are in memory.
_BATCH, _BATCH_BYTES, _BATCH_PIXELS = 32, 32 << 20, 48_000_000

# DALI's pictures that are compared with Pillow's, and by how much they may differ: a mean of levels of 255.
_COMPARED, TOLERANCE = 4, 0.5

Decoded = Image.Image | UnreadableImage


class _File(NamedTuple):
    path: Path
    data: bytes
    refused: UnreadableImage | None  # where it cannot even be read
    pixels: int
    ordinary: bool  # a JPEG for DALI


def decode(paths: Sequence[Path], decoder: str = "auto") -> Iterator[tuple[Path, Decoded]]:
    """Each picture, upright RGB, or why it cannot be used; in the order of `paths`.

    Args:
        decoder: pillow, dali, or auto, which is dali where it is installed and there is a GPU; on CPUs it is no faster

    Raises:
        UsageError: DALI is asked for and cannot be had.
        OSError: the disk fails, or no decoder can be started.
    """
    jpegs, why = None, ""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    if decoder == "dali" or (decoder == "auto" and device is not None):
        where = "the CPU" if device is None else "the GPU"
        try:
            jpegs = DaliJpegs(_BATCH, device)
        except ImportError as error:
            if decoder == "dali":
                raise UsageError(f"--decoder dali: {error}: pip install imagebert[dali], or take pillow") from None
            why = f", since {error}"
    log.info("pictures are decoded by %s", f"Pillow{why}" if jpegs is None else f"DALI on {where} and Pillow")
    batches = _batches(paths)
    try:
        with ThreadPoolExecutor(1, "decoder") as thread, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pillows:

            def next_batch(first: bool = False) -> list[tuple[Path, Decoded]]:
                batch = next(batches, [])  # files are read in that thread, too
                found = _decode_batch(batch, jpegs, pillows, compare=first)
                return list(zip((file.path for file in batch), found, strict=True))

            ahead = thread.submit(next_batch, True)
            while found := ahead.result():
                ahead = thread.submit(next_batch)
                yield from found
    finally:
        if jpegs is not None:
            jpegs.close()


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


def _decode_batch(
    batch: Sequence[_File], jpegs: DaliJpegs | None, pillows: ThreadPoolExecutor, compare: bool
) -> Iterator[Decoded]:
    """`compare`: whether DALI's pictures are looked at beside Pillow's, and it is left out where they differ."""
    found: dict[Path, Image.Image] = {}
    if jpegs is not None:
        ordinary = [file for file in batch if file.ordinary]
        decoded = jpegs.decode([file.data for file in ordinary], [str(file.path) for file in ordinary])
        found = dict(zip((file.path for file in ordinary), decoded, strict=False))
        if compare and not all(_alike(found[f.path], _by_pillow(f)) for f in ordinary[:_COMPARED] if f.path in found):
            log.warning("DALI gives other pixels than Pillow on this machine: Pillow decodes")
            found = {}
            jpegs.close()
    others = pillows.map(_by_pillow, [file for file in batch if file.path not in found])
    return (found[file.path] if file.path in found else next(others) for file in batch)


def _alike(one: Image.Image, other: Decoded) -> bool:
    """Of one size, and of the same pixels within rounding."""
    if isinstance(other, UnreadableImage) or one.size != other.size:
        return False
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean()) <= TOLERANCE


def _by_pillow(file: _File) -> Decoded:
    try:
        return file.refused or DECODER.picture(file.data, LOCAL)
    except UnreadableImage as error:
        return error
