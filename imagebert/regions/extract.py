"""`imagebert extract`: a folder of photographs to a RegionStore. An unreadable picture is named, counted, skipped.

All workers of a job share the pictures out, each with a detector of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from imagebert.config import UsageError
from imagebert.data.records import FeatureType, RegionRecord
from imagebert.data.region_writer import Target, finished, write_regions
from imagebert.data.transfer import describe_sources
from imagebert.log import track
from imagebert.pictures import UnreadableImage
from imagebert.regions.decoding import Decoded, decode, jpeg_decoder
from imagebert.regions.extractor import BatchExtractor, Extractor
from imagebert.regions.images import find_images
from imagebert.workers import ALONE, Workers

log = logging.getLogger(__name__)

_NAMED = 5  # suffixes


class Extracted(NamedTuple):
    """Counts what an extraction found: pictures are either stored or refused.

    Attributes:
        pictures: The number of pictures below the folder.
        stored: The number of pictures whose regions are in the store.
        refused: The number of pictures that could not be read.
        others: The number of the folder's other files by their suffix.
    """

    pictures: int
    stored: int
    refused: int
    others: Mapping[str, int] = MappingProxyType({})

    @property
    def other_files(self) -> str:
        """Describes in a phrase which other files the folder holds."""
        return other_files(self.others)


def extract(
    images: Path,
    out: Path,
    extractor: Extractor,
    feature_type: FeatureType = "int8",
    overwrite: bool = False,
    part: tuple[int, int] = (0, 1),
    decoder: str = "auto",
    workers: Workers = ALONE,
) -> Extracted:
    """Extracts every picture below `images`; an image's key is its path below that folder.

    A call that was killed is made again and goes on; one that ended well leaves what is there.

    Args:
        part: (k, n): of all pictures only every nth, from the kth on
        decoder: see `jpeg_decoder`
        workers: share the pictures; each is told of all

    Raises:
        UsageError: no folder, no picture in it, none that can be read, or DALI is asked for and cannot be had.
    """
    files, others = _pictures(images, part)
    with jpeg_decoder(decoder) as jpegs:
        # nvJPEG's pixels differ by rounding: a store says so, and is not begun with them and gone on with without.
        differs = {"decoder": "nvjpeg"} if jpegs is not None and jpegs.device is not None else {}
        description = {**extractor.description, **differs}
        first = workers.rank == 0
        sources = describe_sources([images]) if first else []  # the first alone asks whether the job is the same
        job = {"extract": sources, "extractor": description, "part": list(part)}
        attributes = getattr(extractor, "attributes", ())  # which few extractors name
        target = Target(
            *(out, extractor.classes, description, feature_type), overwrite=overwrite, attributes=attributes
        )
        before = finished(target, job) if first and not overwrite else None
        there, refused = workers.total([before is not None, before or 0])
        if there:
            return Extracted(len(files), len(files) - refused, refused, others)
        keys = {file: file.relative_to(images).as_posix() for file in files}
        names = "\0".join(keys.values()).encode("utf-8", "surrogateescape")
        workers.agreed(lambda: hashlib.sha256(names).hexdigest())
        files = files[workers.rank :: workers.size]
        with write_regions(target, job=job, workers=workers) as writer:
            left = [file for file in files if not writer.has(keys[file])]
            what = f"Extracting {images.name}"
            for file, record in track(_found(decode(left, jpegs), extractor), what, "pictures", len(left)):
                if isinstance(record, UnreadableImage):
                    log.warning("%s is skipped: %s", file, record)
                    writer.refused += 1
                    continue
                try:
                    writer.add(keys[file], record)
                except UsageError as error:
                    log.warning("%s is refused: %s", file, error)
                    writer.refused += 1
            (refused,) = workers.total([writer.refused])
            if refused == len(keys):
                raise UsageError(f"none of the {len(keys)} pictures in {images} can be read")
    return Extracted(len(keys), len(keys) - refused, refused, others)


def _found(
    pictures: Iterator[tuple[Path, Decoded]], extractor: Extractor
) -> Iterator[tuple[Path, RegionRecord | UnreadableImage]]:
    """The regions of each picture, or why it cannot be used; in the order of the pictures."""
    size = extractor.batch_size if isinstance(extractor, BatchExtractor) else 1
    while batch := list(islice(pictures, size)):
        images = [image for _, image in batch if not isinstance(image, UnreadableImage)]
        records = iter(extractor.many(images) if isinstance(extractor, BatchExtractor) else map(extractor, images))
        for file, image in batch:
            yield file, image if isinstance(image, UnreadableImage) else next(records)


def _pictures(images: Path, part: tuple[int, int]) -> tuple[list[Path], Mapping[str, int]]:
    """Those of a part, and what else the folder holds, by suffix.

    Raises:
        UsageError: no folder, no picture in it, or none in this part.
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
    first, parts = part
    files = files[first::parts]
    if not files:
        raise UsageError(f"part {first} of {parts} has no picture of {images}: take fewer parts")
    return files, others


def other_files(others: Mapping[str, int]) -> str:
    """A phrase about what a folder holds and is not read."""
    suffixes = [f"{count} of {suffix}" for suffix, count in Counter(others).most_common(_NAMED)]
    suffixes += ["others"] if len(others) > _NAMED else []
    return f"{sum(others.values())} other files are not read (by suffix: {', '.join(suffixes)})"
