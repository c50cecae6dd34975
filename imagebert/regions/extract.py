"""`imagebert extract`: a folder of photographs to a RegionStore. An unreadable picture is named, counted, skipped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.progress import track

from imagebert.config import UsageError
from imagebert.data.records import FeatureType
from imagebert.data.region_writer import finished, write_regions
from imagebert.data.transfer import describe_sources
from imagebert.pictures import UnreadableImage
from imagebert.regions.decoding import decode
from imagebert.regions.extractor import Extractor
from imagebert.regions.images import find_images

log = logging.getLogger(__name__)

_NAMED = 5  # suffixes


class Extracted(NamedTuple):
    """What came in, went out and was refused; the three add up."""

    pictures: int
    stored: int
    refused: int


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
        decoder: see `decode`

    Raises:
        UsageError: no folder, no picture in it, or none that can be read.
    """
    if not images.is_dir():
        raise UsageError(f"there is no folder of pictures {images}")
    files, others, links = find_images(images)
    suffixes = ", ".join(f"{count} of {suffix}" for suffix, count in others.most_common(_NAMED))
    if not files:
        raise UsageError(
            f"{images} holds no picture: JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF are read"
            + (f", and its {others.total()} files are other ones (by suffix: {suffixes})" if others else "")
        )
    if others:
        log.info("%d files of %s are no pictures and not read (by suffix: %s)", others.total(), images, suffixes)
    if links:
        log.info("%d folders below %s are links, and were followed", links, images)
    files = files[part::parts]
    if not files:
        raise UsageError(f"part {part} of {parts} has no picture of {images}: take fewer parts")
    job = {"extract": describe_sources([images]), "extractor": extractor.description, "part": [part, parts]}
    if not overwrite and (before := finished(out, job, feature_type)) is not None:
        return Extracted(len(files), len(files) - before, before)
    with write_regions(
        out, extractor.classes, extractor.description, feature_type, overwrite=overwrite, job=job
    ) as writer:
        keys = {file: file.relative_to(images).as_posix() for file in files}
        left = [file for file in files if not writer.has(keys[file])]
        for file, image in track(decode(left, decoder), f"Extracting {escape(images.name)}", total=len(left)):
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
    return Extracted(len(files), len(files) - writer.refused, writer.refused)
