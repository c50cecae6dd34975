"""A page of pictures and the regions that a store has of them: does what the detector found fit what one sees?

It is made of the finished store and the pictures. One file, of HTML without anything from elsewhere.
"""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from imagebert.data.attributes import attributes_of
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.files import check_writable, read_bytes, write_bytes
from imagebert.pages.page import render
from imagebert.pictures import DECODER, FILE_BYTES, LOCAL, UnreadableImage
from imagebert.regions.images import find_images
from imagebert.regions.tar_pictures import list_tar, open_tars

MOST = 200  # pictures
_PIXELS = 480
_CLASSES = 30  # the most frequent ones, that are listed


class Preview(NamedTuple):
    """Counts what a page of regions shows.

    Attributes:
        page: The HTML file.
        pictures: The number of images that it shows.
        missing: The number of those among them whose picture is gone or cannot be read; their boxes are shown alone.
    """

    page: Path
    pictures: int
    missing: int


def page_of(out: Path) -> Path:
    """Where the page of a store lies."""
    return out.parent / f"{out.name}.preview.html"


def write_preview(store: RegionStore, images: Path, page: Path, count: int) -> Preview:
    """Writes the page.

    Args:
        images: what `imagebert extract` was given
        count: of images, spread evenly over the store

    Raises:
        UsageError: the count is none of 1 to 200, the page cannot be written, or a record is damaged.
        OSError: the disk is full or fails, or no decoder can be started.
    """
    if not 1 <= count <= MOST:
        raise UsageError(f"a preview of {count} pictures was asked for: give 1 to {MOST}")
    check_writable(page)
    pictures = _Pictures(images)
    numbers = np.unique(np.linspace(0, len(store) - 1, count).round().astype(np.int64)).tolist()
    records = [store.read(number) for number in numbers]
    shown = [_shown(store, pictures, number, record) for number, record in zip(numbers, records, strict=True)]
    classes = np.concatenate([record.classes for record in records])
    confidences = np.concatenate([record.confidences for record in records])[classes != WHOLE_IMAGE]
    found = Counter(store.class_name(number) for number in classes[classes != WHOLE_IMAGE].tolist())
    html = render(
        "imagebert.regions",
        "preview.html.j2",
        name=store.path.resolve().name,
        of=len(store),
        extractor=str(store.extractor.get("name", "")),
        shown=shown,
        missing=sum(not picture["data"] for picture in shown),
        regions=len(confidences),
        quartiles=np.quantile(confidences, [0.25, 0.5, 0.75]).tolist() if len(confidences) else [],
        classes=found.most_common(_CLASSES),
        kinds=len(found),
    )
    # A file's name need not be text; a page has to be.
    write_bytes(page, html.encode("utf-8", "replace"))
    return Preview(page, len(shown), sum(not picture["data"] for picture in shown))


def _shown(store: RegionStore, pictures: _Pictures, number: int, record: RegionRecord) -> dict[str, Any]:
    key = store.key(number)
    data = pictures.thumbnail(key)
    known = zip(
        record.boxes.tolist(),
        record.classes.tolist(),
        record.confidences.tolist(),
        attributes_of(record, store),
        strict=True,
    )
    return {
        "key": key,
        "data": "" if data is None else base64.b64encode(data).decode("ascii"),
        "width": record.width,
        "height": record.height,
        "regions": [
            {
                "x": round(left, 1),
                "y": round(top, 1),
                "width": round(right - left, 1),
                "height": round(bottom - top, 1),
                "name": store.class_name(kind),
                "whole": kind == WHOLE_IMAGE,
                "confidence": confidence,
                "attribute": attribute,
            }
            for (left, top, right, bottom), kind, confidence, attribute in known
        ],
    }


class _Pictures:
    """Pictures by the keys that `imagebert extract` gave them: files below a folder, and those in its tars."""

    def __init__(self, images: Path) -> None:
        self._images = images
        tars = [images] if images.is_file() else find_images(images).tars if images.is_dir() else []
        self._in_tars = {picture.key: picture for tar in tars for picture in list_tar(tar).pictures}

    def thumbnail(self, key: str) -> bytes | None:
        """A JPEG; None where the picture is gone, or cannot be read any more."""
        path = PurePosixPath(key)
        try:
            if key in self._in_tars:
                with open_tars() as reader:
                    data = reader.read(self._in_tars[key])
            elif path.is_absolute() or ".." in path.parts:  # of a store from elsewhere: what lies below is shown alone
                return None
            else:
                data = read_bytes(self._images / path, FILE_BYTES)
            return DECODER.thumbnail(data, _PIXELS, LOCAL)
        except (UsageError, UnreadableImage):
            return None
