"""`imagebert extract`: photographs, in folders or tars, to a RegionStore. An unreadable one is named, counted, skipped.

All workers of a job claim pictures piece by piece (imagebert/claims.py), each with a detector of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from PIL import Image

from imagebert.claims import Claims
from imagebert.config import UsageError
from imagebert.data.folder import incomplete
from imagebert.data.records import FeatureType, RegionRecord
from imagebert.data.region_writer import RegionWriter, Target, finished, write_regions
from imagebert.data.regions import RegionStore
from imagebert.data.transfer import describe_files
from imagebert.files import digest_of
from imagebert.log import Progress
from imagebert.pictures import UnreadableImage
from imagebert.regions.decoding import Decoded, decode, jpeg_decoder
from imagebert.regions.extractor import BatchExtractor, DetectorExtractor, Extractor
from imagebert.regions.images import PACKED_TARS, TAR, Found, find_images
from imagebert.regions.networks import in_words, of_the_machine
from imagebert.regions.tar_pictures import Listing, TarPicture, clear_notes, list_tars
from imagebert.workers import ALONE, Workers

log = logging.getLogger(__name__)

Picture = Path | TarPicture

_NAMED = 5  # suffixes


class Extracted(NamedTuple):
    """Counts what an extraction found: pictures are either stored or refused.

    Attributes:
        pictures: The number of pictures below the folder and in its tars, the lost rest of a damaged tar as one.
        stored: The number of pictures whose regions are in the store.
        refused: The number of pictures that could not be read.
        others: The number of other files, of the folder and of its tars, by their suffix. A call that finds the store
            finished does not look into tars again.
        without_regions: The number of stored pictures in which the detector found nothing, so that they have the region
            of the whole image alone.
    """

    pictures: int
    stored: int
    refused: int
    others: Mapping[str, int] = MappingProxyType({})
    without_regions: int = 0

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
    """Extracts every picture below `images` and in the tars below it, or of one tar.

    An image's key is its file's path below that folder, or its name in a tar up to the first dot. A call that was
    killed is made again and goes on; one that ended well leaves what is there.

    Args:
        part: (k, n): of all pictures only every nth, from the kth on
        decoder: see `jpeg_decoder`
        workers: share the pictures; each is told of all

    Raises:
        UsageError: no folder and no tar, no picture in it, none that can be read, two of one key, or DALI is asked for
            and cannot be had.
        OSError: the disk fails, another rank is gone, or ranks do not see the same pictures.
    """
    found = _look_through(images)
    if not found.tars:
        _part_of(images, found.pictures, found.others, part)  # an error is told before anything is begun
    with jpeg_decoder(decoder) as jpegs:
        # nvJPEG's pixels differ by rounding: a store says so, and is not begun with them and gone on with without.
        differs = {"decoder": "nvjpeg"} if jpegs is not None and jpegs.device is not None else {}
        description = {**extractor.description, **differs}
        first = workers.rank == 0
        # The first alone asks whether the job is the same. What else lies there, as this store may, is no part of it.
        sources = [describe_files(images, sorted([*found.pictures, *found.tars]))] if first else []
        attributes = getattr(extractor, "attributes", ())  # which few extractors name
        # What a weights' file is called is no part of it: its digest is.
        made_by = {name: value for name, value in description.items() if name != "weights"}
        names = digest_of([list(extractor.classes), list(attributes)])
        job = {"extract": sources, "extractor": made_by, "names": names, "part": list(part)}
        target = Target(
            *(out, extractor.classes, description, feature_type), overwrite=overwrite, attributes=attributes
        )
        before = finished(target, job) if first and not overwrite else None
        there, refused = workers.total([before is not None, before or 0])
        if there:  # what else its tars hold is not looked up again
            stored = len(RegionStore(out))
            return Extracted(stored + refused, stored, refused, found.others, _without_regions(out))
        if isinstance(extractor, DetectorExtractor):
            extractor.try_out()
        with write_regions(target, job=job, workers=workers) as writer:
            folder = incomplete(out)
            claims = Claims(folder, workers)
            pictures, others = _listed(found, list_tars(found.tars, folder, claims, workers))
            pictures = _part_of(images, pictures, others, part)
            left = _left(images, pictures, writer, workers)
            taken = 0
            with Progress(f"Extracting {images.name}", len(left), "pictures") as progress:
                for taken, (picture, record) in enumerate(_found(decode(claims.pieces(left), jpegs), extractor), 1):
                    _store(writer, picture, _key(images, picture), record)
                    progress.update(taken if workers.size == 1 else claims.reached)
            taken, refused = workers.total([taken, writer.refused])
            if taken != len(left):  # only if another call has meddled: better no store than one that lacks some
                raise OSError(f"{taken} of {len(left)} pictures of {images} were taken: make the call again")
            if refused == len(pictures):
                raise UsageError(f"none of the {refused} pictures in {images} can be read")
            if first:  # a store has no more of them
                claims.clear()
                clear_notes(folder)
    (bare,) = workers.total([_without_regions(out) if first else 0])
    return Extracted(len(pictures), len(pictures) - refused, refused, others, bare)


def _without_regions(out: Path) -> int:
    """How many images of a store have the whole image's region alone."""
    store = RegionStore(out)
    return int((store.whole_image & (store.region_counts == 1)).sum())


def _store(writer: RegionWriter, picture: Picture, key: str, record: RegionRecord | UnreadableImage) -> None:
    """Adds a picture's regions; where that cannot be, it is named and counted."""
    if isinstance(record, UnreadableImage):
        log.warning("%s is skipped: %s", picture, record)
        writer.refused += 1
        return
    try:
        writer.add(key, record)
    except UsageError as error:
        log.warning("%s is refused: %s", picture, error)
        writer.refused += 1


def _found(
    pictures: Iterator[tuple[Picture, Decoded]], extractor: Extractor
) -> Iterator[tuple[Picture, RegionRecord | UnreadableImage]]:
    """The regions of each picture, or why it cannot be used; in the order of the pictures."""
    size = extractor.batch_size if isinstance(extractor, BatchExtractor) else 1
    while batch := list(islice(pictures, size)):
        images = [image for _, image in batch if not isinstance(image, UnreadableImage)]
        records = iter(_regions(images, extractor))
        for picture, image in batch:
            yield picture, image if isinstance(image, UnreadableImage) else next(records)


def _regions(images: Sequence[Image.Image], extractor: Extractor) -> list[RegionRecord | UnreadableImage]:
    """The regions of pictures that are looked at together; where that fails, of each alone, so that one costs itself.

    Raises:
        UsageError: the description is wrong.
        Exception: what no picture brings about.
    """
    try:
        found = extractor.many(images) if isinstance(extractor, BatchExtractor) else map(extractor, images)
        return list(found)
    except UnreadableImage as error:
        failure = error
    except Exception as error:  # what networks and processors raise on an odd picture is no closed list
        if isinstance(error, UsageError) or of_the_machine(error):
            raise
        failure = UnreadableImage(f"the extractor fails on it ({in_words(error)})")
    if len(images) == 1:
        return [failure]
    return [record for image in images for record in _regions([image], extractor)]


# ------------------------------------------------------------------------------------------------------- which pictures


def _look_through(images: Path) -> Found:
    """What a folder holds, or one tar.

    Raises:
        UsageError: there is none, or it is another file.
    """
    if images.is_file():
        if images.name.lower().endswith(PACKED_TARS):
            raise UsageError(f"{images} is packed, and pictures are read at their places: unpack it with gunzip first")
        if images.suffix.lower() != TAR:
            raise UsageError(f"{images} is a file and no .tar: give a folder of pictures or of tars, or one tar")
        return Found([], Counter(), 0, [], [images])
    if not images.is_dir():
        raise UsageError(f"there is no folder of pictures {images}")
    found = find_images(images)
    for error in found.closed:
        log.warning("the folder %s is not read: %s", error.filename, error.strerror)
    if found.links:
        log.info("%d folders below %s are links, and were followed", found.links, images)
    return found


def _listed(found: Found, tars: Sequence[Listing]) -> tuple[list[Picture], Counter[str]]:
    """All pictures, those in files before those in tars, and all other files by suffix."""
    pictures: list[Picture] = [*found.pictures, *(picture for tar in tars for picture in tar.pictures)]
    others = found.others.copy()
    for tar in tars:
        others.update(tar.others)
    return pictures, others


def _key(images: Path, picture: Picture) -> str:
    """A file's path below the folder; in a tar the name up to its first dot, as captions' readers have it."""
    return picture.key if isinstance(picture, TarPicture) else picture.relative_to(images).as_posix()


def _check_keys(images: Path, pictures: Sequence[Picture]) -> None:
    """Raises: UsageError: two pictures have one key, so that captions would mean either."""
    if not any(isinstance(picture, TarPicture) for picture in pictures):
        return  # each file has a path of its own
    places: dict[str, Picture] = {}
    for picture in pictures:
        key = _key(images, picture)
        if key and (other := places.setdefault(key, picture)) is not picture:
            raise UsageError(
                f"two pictures have the key {key!r}, {other} and {picture}, and captions could mean either: extract "
                "them by calls of their own, or name one anew"
            )


def _left(images: Path, pictures: Sequence[Picture], writer: RegionWriter, workers: Workers) -> list[Picture]:
    """What no earlier call wrote: the same at every worker, since all have read all journals.

    Raises:
        OSError: it is not the same.
    """
    left = [picture for picture in pictures if not writer.wrote(_key(images, picture))]
    if workers.rank == 0:  # what there is already is counted once
        writer.accepted += len(pictures) - len(left)
    names = "\0".join(_key(images, picture) for picture in left).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(names).hexdigest()
    if workers.agreed(lambda: digest) != digest:
        raise OSError(f"rank {workers.rank} finds other pictures in {images} than rank 0: do all see the same files?")
    return left


def _part_of(
    images: Path, pictures: Sequence[Picture], others: Mapping[str, int], part: tuple[int, int]
) -> list[Picture]:
    """The pictures of a part.

    Raises:
        UsageError: there is no picture, none in this part, or two have one key.
    """
    if not pictures:
        raise UsageError(
            f"{images} holds no picture: JPEG, PNG, WebP, BMP, GIF, TIFF and AVIF are read"
            + (f"; {other_files(others)}" if others else "")
        )
    _check_keys(images, pictures)
    first, parts = part
    mine = list(pictures[first::parts])
    if not mine:
        raise UsageError(f"part {first} of {parts} has no picture of {images}: take fewer parts")
    return mine


def other_files(others: Mapping[str, int]) -> str:
    """A phrase about what a folder holds and is not read."""
    suffixes = [f"{count} of {suffix}" for suffix, count in Counter(others).most_common(_NAMED)]
    suffixes += ["others"] if len(others) > _NAMED else []
    return f"{sum(others.values())} other files are not read (by suffix: {', '.join(suffixes)})"
