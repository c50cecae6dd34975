"""Pictures decoded some ahead of their use: ordinary JPEGs by DALI where there is a GPU, all others by Pillow.

DALI's CPU decoder gives Pillow's very pixels (a test compares them); nvJPEG's, on a GPU, may differ by rounding. The
first JPEGs of each kind (how they are coded and sampled) are decoded by both, and a kind that comes out otherwise is
left to Pillow. So is what DALI cannot decode: Pillow's verdict counts, so that the same pictures are refused either
way. Both work in processes that a picture may break (pictures.py, dali_jpegs.py); DALI is given only what it is known
to read well.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageChops

from imagebert.decoder import MAX_SIDE, JpegFacts, jpeg_facts, too_many_scans
from imagebert.errors import UsageError
from imagebert.files import read_bytes
from imagebert.pictures import DECODER, FILE_BYTES, LOCAL, UnreadableImage
from imagebert.regions.dali_jpegs import DaliJpegs, NoDali
from imagebert.regions.tar_pictures import TarPicture, TarReader, open_tars

log = logging.getLogger(__name__)

# Files, their bytes and pixels: two batches of decoded pictures are in memory.
_BATCH, _BATCH_BYTES, _BATCH_PIXELS = 32, 32 << 20, 48_000_000

# DALI's pictures of a kind that are compared with Pillow's, and by how much they may differ: a mean of levels of 255.
_COMPARED, TOLERANCE = 4, 0.5

Decoded = Image.Image | UnreadableImage
Place = TypeVar("Place", bound=Path | TarPicture)  # of a picture: a file, or within a tar


class _File(NamedTuple, Generic[Place]):
    path: Place
    data: bytes
    refused: UnreadableImage | None  # where it cannot even be read
    pixels: int
    kind: bytes | None  # of a JPEG for DALI, how it is coded


@contextmanager
def jpeg_decoder(decoder: str = "auto") -> Iterator[DaliJpegs | None]:
    """DALI for `decode`; None where Pillow decodes all. It is said which, and why.

    Args:
        decoder: pillow, dali, or auto, which is dali where it is installed and there is a GPU

    Raises:
        UsageError: DALI is asked for and cannot be had.
    """
    jpegs, why = None, ""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    if decoder == "dali" or (decoder == "auto" and device is not None):
        try:
            jpegs = DaliJpegs(_BATCH, max(_BATCH_PIXELS, LOCAL.pixels), device)
        except NoDali as error:
            if decoder == "dali":
                raise UsageError(f"decoder dali: {error}: pip install imagebert[dali], or take pillow") from None
            why = f": {error}"
    elif decoder == "auto":
        why = ": there is no GPU"
    where = "the CPU" if device is None else "the GPU"
    log.info("pictures are decoded by %s", f"Pillow{why}" if jpegs is None else f"DALI on {where} and Pillow")
    try:
        yield jpegs
    finally:
        if jpegs is not None:
            jpegs.close()


def decode(paths: Iterable[Place], jpegs: DaliJpegs | None = None) -> Iterator[tuple[Place, Decoded]]:
    """Each picture, upright RGB, or why it cannot be used; in the order of `paths`.

    Args:
        paths: taken one by one, by another thread, two batches ahead at most

    Raises:
        OSError: the disk fails, or no decoder can be started.
    """
    batches = _batches(paths)
    dali = None if jpegs is None else _Dali(jpegs)
    with ThreadPoolExecutor(1, "decoder") as thread, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pillows:

        def next_batch() -> list[tuple[Place, Decoded]]:
            batch = next(batches, [])  # files are read in that thread, too
            by_dali: list[Image.Image | None] = [None] * len(batch) if dali is None else dali.decode(batch)
            by_pillow = pillows.map(_by_pillow, [file for file, image in zip(batch, by_dali, strict=True) if not image])
            return [(file.path, image or next(by_pillow)) for file, image in zip(batch, by_dali, strict=True)]

        ahead = thread.submit(next_batch)
        while found := ahead.result():
            ahead = thread.submit(next_batch)
            yield from found


def _batches(paths: Iterable[Place]) -> Iterator[list[_File[Place]]]:
    batch: list[_File[Place]] = []
    size = pixels = 0
    with open_tars() as tars:
        for path in paths:
            file = _look(path, tars)
            size, pixels = size + len(file.data), pixels + file.pixels
            if batch and (len(batch) == _BATCH or size > _BATCH_BYTES or pixels > _BATCH_PIXELS):
                yield batch
                batch, size, pixels = [], len(file.data), file.pixels
            batch.append(file)
        if batch:
            yield batch


def _look(path: Place, tars: TarReader) -> _File[Place]:
    try:
        data = tars.read(path) if isinstance(path, TarPicture) else read_bytes(path, FILE_BYTES)
    except UsageError as error:
        return _File(path, b"", UnreadableImage(str(error)), 0, None)
    facts = jpeg_facts(data)
    if facts is not None:
        return _File(path, data, None, facts.width * facts.height, _kind(facts, data))
    return _File(path, data, None, _pixels(data), None)


def _pixels(data: bytes) -> int:
    """Of a picture that is no JPEG, where its file cannot lie about it; else as many as a batch may have, or more."""
    if data.startswith(b"\x89PNG") and data[12:16] == b"IHDR" and data.count(b"IHDR") == 1:
        return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) >= 30:
        if data[12:16] == b"VP8X":
            return (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
        sides = int.from_bytes(data[21:25] if data[12:16] == b"VP8L" else data[26:30], "little")
        if data[12:16] == b"VP8L":
            return ((sides & 0x3FFF) + 1) * ((sides >> 14 & 0x3FFF) + 1)
        if data[12:16] == b"VP8 ":
            return (sides & 0x3FFF) * (sides >> 16 & 0x3FFF)
    return _BATCH_PIXELS


def _kind(facts: JpegFacts, data: bytes) -> bytes | None:
    """How a JPEG is coded, if it is an ordinary one: one for DALI."""
    frame, bits, *names = facts.coding[: 2 + facts.components]
    ordinary = (
        frame in (0xC0, 0xC1, 0xC2)
        and bits == 8
        and facts.components in (1, 3)
        and facts.adobe != 0
        and bytes(names) != b"RGB"
        and 0 < facts.width * facts.height <= LOCAL.pixels
        and max(facts.width, facts.height) <= MAX_SIDE
        and facts.ends
        and not too_many_scans(data)
        and _plainly_turned(facts.notes)
    )
    return facts.coding if ordinary else None


# EXIF's orientation as it should be, a SHORT, in both orders of bytes; and its tag wherever it may stand.
_TURN = re.compile(rb"\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x01-\x08]|\x12\x01\x03\x00\x01\x00\x00\x00[\x01-\x08]\x00")
_TURN_TAG = re.compile(rb"\x01\x12|\x12\x01")


def _plainly_turned(notes: Sequence[bytes]) -> bool:
    """Whether DALI and Pillow see one orientation: none, or one in one EXIF. Of two EXIFs DALI has crashed."""
    exif = [note for note in notes if note.startswith(b"Exif")]
    turns = [found for note in exif for found in _TURN_TAG.findall(note)]
    well = [found for note in exif for found in _TURN.findall(note)]
    return len(exif) <= 1 and len(turns) == len(well) <= 1 and not any(b"Orientation" in note for note in notes)


class _Dali:
    """DALI, as far as it gives Pillow's pixels."""

    def __init__(self, jpegs: DaliJpegs) -> None:
        self._jpegs = jpegs
        self._compared = Counter[bytes]()  # kinds
        self._others: set[bytes] = set()  # kinds that come out otherwise

    def decode(self, batch: Sequence[_File[Any]]) -> list[Image.Image | None]:
        """None: for Pillow."""
        jpegs = [file for file in batch if file.kind is not None and file.kind not in self._others]
        found = self._jpegs.decode([file.data for file in jpegs], [str(file.path) for file in jpegs])
        for file, image in zip(jpegs, found, strict=True):
            if image is not None:
                self._compare(file, image)
        images = {file.path: image for file, image in zip(jpegs, found, strict=True) if file.kind not in self._others}
        return [images.get(file.path) for file in batch]

    def _compare(self, file: _File[Any], image: Image.Image) -> None:
        assert file.kind is not None
        if file.kind in self._others or self._compared[file.kind] == _COMPARED:
            return
        self._compared[file.kind] += 1
        if not _alike(image, _by_pillow(file)):
            log.warning("DALI gives other pixels than Pillow of %s: Pillow decodes JPEGs that are coded so", file.path)
            self._others.add(file.kind)


def _alike(one: Image.Image, other: Decoded) -> bool:
    """Of one size, and of the same pixels within rounding."""
    if isinstance(other, UnreadableImage) or one.size != other.size:
        return False
    counts = np.array(ImageChops.difference(one, other).histogram()).reshape(3, 256).sum(axis=0)
    return float(np.average(np.arange(256), weights=counts)) <= TOLERANCE


def _by_pillow(file: _File[Any]) -> Decoded:
    try:
        return file.refused or DECODER.picture(file.data, LOCAL)
    except UnreadableImage as error:
        return error
