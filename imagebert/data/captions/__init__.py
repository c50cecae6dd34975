"""Captions as projects publish them: COCO and Karpathy's JSON, Flickr's token files, Conceptual Captions, SBU, tables.

The layout is told once for a source (layouts.py). Its reader (tables.py, published.py, tars.py, uniter.py, oscar.py)
gives one Line a caption; what is wrong with one is said in it, so that it can be counted or be an error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

from imagebert.data.captions.layouts import KINDS, layout_of, open_captions
from imagebert.data.captions.line import Columns, Line
from imagebert.data.pairs import Caption, flaw
from imagebert.errors import UsageError

__all__ = ["KINDS", "Captions", "Columns", "Counts", "Line"]

log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What came in, went out, was refused, was of an image that was not asked for, and of one that was not downloaded.

    came is the sum of the rest.
    """

    came: int = 0
    taken: int = 0
    refused: int = 0
    left_out: int = 0
    not_downloaded: int = 0


@dataclass
class Captions:
    """The captions of a file or folder, those that cannot be used left out and counted.

    Args:
        kind: one of KINDS, or auto
        image_key: pattern of the key in the region store: {image} as the file has it, {stem} without folders and
            suffix, {id} its number, {row} of the line, {url}, {crc32} of the URL as ViLBERT's files have it
        image_splits: image as the file has it -> split. Where it is not empty, captions of other images are left out
        strict: the first caption that cannot be used is an error

    Raises:
        UsageError: the file cannot be read, or, with `strict`, a caption cannot be used.
    """

    path: Path
    kind: str = "auto"
    columns: Columns = field(default_factory=Columns)
    image_key: str | None = None
    image_splits: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    counts: Counts = field(default_factory=Counts)
    dataset: str = ""  # as Karpathy's file calls itself, once it was read

    def __iter__(self) -> Iterator[Caption]:
        failed: Counter[str] = Counter()
        for line in self._lines():
            self.counts.came += 1
            if line.status:
                self.counts.not_downloaded += 1
                # Words of a file, of which there could be as many as rows.
                failed[line.status[:40] if len(failed) < 20 else "other"] += 1
                continue
            if self.image_splits and line.image not in self.image_splits and not line.error:
                self.counts.left_out += 1
                continue
            caption = None if line.error else self._caption(line)
            error = line.error or (flaw(caption) if caption else "")
            if caption is None or error:
                if self.strict:
                    raise UsageError(f"{line.where}: {error}")
                self.counts.refused += 1
                log.warning("%s is refused: %s", line.where, error)
                continue
            self.counts.taken += 1
            yield caption
        if failed:
            told = ", ".join(f"{count} {status!r}" for status, count in failed.most_common())
            log.info("%s: images that were not downloaded are left out: %s", self.path, told)

    def refuse(self, caption: Caption) -> None:
        """Counts one that was given as refused, since no word of it is left.

        Raises:
            UsageError: with `strict`.
        """
        error = f"no word piece is left of the caption {caption.text[:80]!r} of image {caption.image!r}"
        if self.strict:
            raise UsageError(f"{self.path}: {error}")
        self.counts.taken -= 1
        self.counts.refused += 1
        log.warning("%s: refused, %s", self.path, error)

    def _lines(self) -> Iterator[Line]:
        said = False
        try:
            layout = layout_of(self.path, self.kind, self.columns)
            if layout.kind == "karpathy" and isinstance(layout.content, dict):
                self.dataset = str(layout.content.get("dataset") or "")
            what, lines = open_captions(self.path, layout, self.columns)
            for line in lines:
                if not (said or line.error or line.status):
                    said = True
                    log.info("%s is read as %s; first: %r, %r", self.path, what, line.image[:80], line.text[:80])
                yield line
        except OSError as error:
            raise UsageError(f"cannot read captions from {self.path}: {error}") from None

    def _caption(self, line: Line) -> Caption:
        has: dict[str, Any] = {"image": line.image, "stem": PurePosixPath(line.image).stem, "id": line.id}
        has |= {"row": line.row, "url": line.url or None, "crc32": crc32(_utf8(line.url)) if line.url else None}
        fields = {name: value for name, value in has.items() if value is not None}
        try:
            key = line.image if self.image_key is None else self.image_key.format_map(fields)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise UsageError(
                f"image_key {self.image_key!r} does not fit {line.where} ({error}): there are "
                + ", ".join(f"{{{name}}}" for name in fields)
            ) from None
        return Caption(key, line.text, self.image_splits.get(line.image) or line.split, line.relevance)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # half a character, from JSON: of no picture, and no error here
