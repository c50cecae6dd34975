"""The Visual Genome detector: converted, and compared with what others published."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagebert.errors import UsageError
from imagebert.regions.vg import VisualGenome as VisualGenome

if TYPE_CHECKING:
    from PIL import Image

    from imagebert.data.records import RegionRecord
    from imagebert.data.regions import RegionStore
    from imagebert.regions.vg.checking import CheckedPicture

PathLike = str | os.PathLike[str]


class Converted(NamedTuple):
    """Describes a detector that was written as one file.

    Attributes:
        path: The file.
        variant: The port whose rules it follows: "caffe" or "detectron2".
        classes: The number of object classes.
        attributes: The number of attributes.
        sha256: The digest of its tensors.
    """

    path: Path
    variant: str
    classes: int
    attributes: int
    sha256: str


def convert_detector(
    weights: PathLike, out: PathLike, *, classes: PathLike | None = None, attributes: PathLike | None = None
) -> Converted:
    """Writes the published weights of a Visual Genome detector as one safetensors file, with its rules and names.

    Args:
        weights: The file or folder, as MILVLG, airsplay or transformers publish it (docs/detector.md).
        out: The file to write, which ends in .safetensors.
        classes: A file of the classes' names, one a line, such as objects_vocab.txt. None numbers them.
        attributes: A file of the attributes' names, one a line, such as attributes_vocab.txt. None numbers them.

    Returns:
        What was written.

    Raises:
        UsageError: The weights are missing, damaged or not whole, or the names are not as many as there are classes.
        OSError: The disk is full or fails.
    """
    from imagebert.regions.vg.weights import convert_detector as convert

    names = (None if given is None else Path(given) for given in (classes, attributes))
    detector = convert(Path(weights), Path(out), *names)
    counts = len(detector.classes), len(detector.attributes)
    return Converted(Path(out), detector.rules.variant, *counts, detector.digest)


@dataclass(frozen=True)
class Checked:
    """Says whether the weights of a detector fit published regions.

    Attributes:
        fits: Whether they do.
        verdict: A sentence that says so, and how near they come.
        pictures: The figures of each picture.
        missing: The number of published pictures that are not in the folder, or cannot be read.
    """

    fits: bool
    verdict: str
    pictures: list[CheckedPicture]
    missing: int


def check_detector(
    detector: PathLike | VisualGenome, published: PathLike, images: PathLike, *, most: int = 10
) -> Checked:
    """Compares the regions that a detector finds with those that somebody published of the same pictures.

    Args:
        detector: The weights, or those with what is asked of them.
        published: A region store that `imagebert.api.import_features` made of the published regions.
        images: The folder of the pictures. A picture is named by its key, with or without a suffix.
        most: The number of pictures to compare at most.

    Returns:
        Whether they fit, and how near they come.

    Raises:
        UsageError: The weights or the store are wrong, their features are of another size, or there is no such folder
            or no picture in it.
    """
    from imagebert.data.regions import RegionStore
    from imagebert.regions.vg.checking import check, verdict
    from imagebert.regions.vg.extractor import VisualGenomeExtractor

    if not Path(images).is_dir():
        raise UsageError(f"{images} is no folder: give the folder of the published pictures, and unpack a tar of them")
    given = detector if isinstance(detector, VisualGenome) else VisualGenome(weights=os.fspath(detector))
    store = RegionStore(Path(published))
    boxes = given.boxes or str(int(store.region_counts.max()))
    extractor = VisualGenomeExtractor.of(replace(given, boxes=boxes))
    if extractor.network.feature_size != store.feature_size:
        raise UsageError(
            f"{published} has features of {store.feature_size} numbers, the detector {extractor.network.feature_size}"
        )
    found = list(check(extractor, _pictures(store, Path(images), most), store.has_classes))
    if not found:
        raise UsageError(f"none of the pictures that {published} has regions of can be read in {images}")
    fits, sentence = verdict(found)
    return Checked(fits, sentence, found, min(most, len(store)) - len(found))


def _pictures(store: RegionStore, images: Path, most: int) -> Iterator[tuple[str, Image.Image, RegionRecord]]:
    from imagebert.files import read_bytes
    from imagebert.pictures import DECODER, FILE_BYTES, LOCAL, UnreadableImage
    from imagebert.regions.images import find_images

    by_name: dict[str, Path] = {}
    for file in find_images(images).pictures:
        name = file.relative_to(images)
        by_name |= {name.as_posix(): file, name.with_suffix("").as_posix(): file, name.stem: file}
    for number in range(min(most, len(store))):
        key = store.key(number)
        if key not in by_name:
            continue
        try:
            yield key, DECODER.picture(read_bytes(by_name[key], FILE_BYTES), LOCAL), store.read(number)
        except UnreadableImage:
            continue
