"""`imagebert extract`: a folder of photographs to a RegionStore. An unreadable picture is named, counted, skipped."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from imagebert.config import UsageError
from imagebert.data.records import FeatureType
from imagebert.data.region_writer import finished, write_regions
from imagebert.data.transfer import describe_sources
from imagebert.log import track
from imagebert.pictures import UnreadableImage
from imagebert.regions.decoding import decode, jpeg_decoder
from imagebert.regions.extractor import Extractor
from imagebert.regions.images import find_images

log = logging.getLogger(__name__)

_NAMED = 5  # suffixes


class Extracted(NamedTuple):
    """What came in, went out and was refused; the three add up. And what else the folder holds, by suffix."""

    pictures: int
    stored: int
    refused: int
    others: Mapping[str, int] = MappingProxyType({})


def extract(
    images: Path,
    out: Path,
    extractor: Extractor,
    feature_type: FeatureType = "int8",
    overwrite: bool = False,
    part: int = 0,
    parts: int = 1,
    decoder: str = "auto",
) -> Extracted:
    """Extracts every picture below `images`; an image's key is its path below that folder.

    A call that was killed is made again and goes on; one that ended well leaves what is there.

    Args:
        part, parts: of all pictures only every `parts`th, from the `part`th on
        decoder: see `jpeg_decoder`

    Raises:
        UsageError: no folder, no picture in it, none that can be read, or DALI is asked for and cannot be had.
    """
    if not images.is_dir():
        raise UsageError(f"there is no folder of pictures {images}")
    files, others, links, closed = find_images(images)
    for error in closed:
        log.warning("the folder %s is not read: %s", error.filename, error.strerror)
    if not files:
        raise UsageError(
            f"{images} holds no picture: JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF are read"
            + (f"; {other_files(others)}" if others else "")
        )
    if links:
        log.info("%d folders below %s are links, and were followed", links, images)
    files = files[part::parts]
    if not files:
        raise UsageError(f"part {part} of {parts} has no picture of {images}: take fewer parts")
    with jpeg_decoder(decoder) as jpegs:
        # nvJPEG's pixels differ by rounding: a store says so, and is not begun with them and gone on with without.
        differs = {"decoder": "nvjpeg"} if jpegs is not None and jpegs.device is not None else {}
        description = {**extractor.description, **differs}
        job = {"extract": describe_sources([images]), "extractor": description, "part": [part, parts]}
        if not overwrite and (before := finished(out, job, feature_type)) is not None:
            return Extracted(len(files), len(files) - before, before, others)
        with write_regions(out, extractor.classes, description, feature_type, overwrite=overwrite, job=job) as writer:
            keys = {file: file.relative_to(images).as_posix() for file in files}
            left = [file for file in files if not writer.has(keys[file])]
            for file, image in track(decode(left, jpegs), f"Extracting {images.name}", "pictures", len(left)):
                if isinstance(image, UnreadableImage):
                    log.warning("%s is skipped: %s", file, image)
                    writer.refused += 1
                    continue
                record = extractor(image)
                try:
                    writer.add(keys[file], record)
                except UsageError as error:
                    log.warning("%s is refused: %s", file, error)
                    writer.refused += 1
            if writer.refused == len(files):
                raise UsageError(f"none of the {len(files)} pictures in {images} can be read")
    return Extracted(len(files), len(files) - writer.refused, writer.refused, others)


def other_files(others: Mapping[str, int]) -> str:
    """A phrase about what a folder holds and is not read."""
    suffixes = [f"{count} of {suffix}" for suffix, count in Counter(others).most_common(_NAMED)]
    suffixes += ["others"] if len(others) > _NAMED else []
    return f"{sum(others.values())} other files are not read (by suffix: {', '.join(suffixes)})"
