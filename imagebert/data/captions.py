"""Captions as projects publish them: COCO and Karpathy's JSON, Flickr's token files, Conceptual Captions, SBU, tables.

Each reader gives one Line a caption; what is wrong with one is said in it, so that it can be counted or be an error.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from imagebert.config import UsageError
from imagebert.data.pairs import Caption, flaw
from imagebert.files import open_regular, parse_json, read_json

log = logging.getLogger(__name__)

_JSON_BYTES = 1 << 29  # of a collection: the largest published ones have half
_LONGEST = 1 << 24  # characters of a line


class Line(NamedTuple):
    """One caption as it was found, and what its image may be called after."""

    where: str
    image: str  # file name, URL or id; "" where there is none
    text: str
    row: int
    id: int | None = None
    split: str = "train"
    relevance: float = math.nan
    error: str = ""  # why it cannot be used


@dataclass
class Counts:
    """What came in, went out, was refused, and was of an image that was not asked for; came is the sum of the rest."""

    came: int = 0
    taken: int = 0
    refused: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; `names` are all of them, for a file without a header line."""

    image: str = "image"
    caption: str = "caption"
    split: str = "split"
    relevance: str = "relevance"
    names: tuple[str, ...] | None = None


@dataclass
class Captions:
    """The captions of a file, those that cannot be used left out and counted.

    Args:
        kind: table, coco, karpathy, flickr, cc, sbu, or auto
        image_key: pattern of the key in the region store: {image} as the file has it, {stem} without folders and
            suffix, {id} its number, {row} of the line
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
        for line in self._lines():
            self.counts.came += 1
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

    def _lines(self) -> Iterator[Line]:
        kind = _kind_of(self.path) if self.kind == "auto" else self.kind
        try:
            if kind == "table":
                yield from _table(self.path, self.columns)
            else:
                readers = {"coco": _coco, "karpathy": self._karpathy, "flickr": _flickr, "cc": _conceptual, "sbu": _sbu}
                yield from readers[kind](self.path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"cannot read captions from {self.path}: {error}") from None

    def _karpathy(self, path: Path) -> Iterator[Line]:
        content = _load(path)
        self.dataset = str(content.get("dataset") or "")
        yield from _karpathy(_list(content, "images", path), path)

    def _caption(self, line: Line) -> Caption:
        fields = {"image": line.image, "stem": PurePosixPath(line.image).stem, "id": line.id, "row": line.row}
        try:
            key = line.image if self.image_key is None else self.image_key.format_map(fields)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise UsageError(
                f"--image-key {self.image_key!r} does not fit {line.where} ({error}): there are "
                + ", ".join(f"{{{name}}}" for name, value in fields.items() if value is not None)
            ) from None
        return Caption(key, line.text, self.image_splits.get(line.image) or line.split, line.relevance)


def _kind_of(path: Path) -> str:
    if os.path.isdir(path):
        return "sbu"
    if path.suffix == ".token":
        return "flickr"
    if path.suffix != ".json":
        return "table"
    content = _load(path)
    if "annotations" in content:
        return "coco"
    return "sbu" if "image_urls" in content else "karpathy"


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, _JSON_BYTES)
    except (OSError, UsageError) as error:
        raise UsageError(f"cannot read captions from {path}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}, not an object as the published files do")
    return content


# ------------------------------------------------------------------------------------------------------------- tables


def _table(path: Path, columns: Columns) -> Iterator[Line]:
    if path.suffix in (".jsonl", ".ndjson"):
        rows = _jsonl_rows(path)
    elif path.suffix == ".parquet":
        rows = _parquet_rows(path, columns)
    else:
        rows = _delimited_rows(path, columns)
    for number, (where, row) in enumerate(rows):
        if isinstance(row, str):
            yield Line(where, "", "", number, error=row)
            continue
        captions = row.get(columns.caption)
        relevance = row.get(columns.relevance)
        line = Line(where, str(row.get(columns.image) or ""), "", number, split=str(row.get(columns.split) or "train"))
        try:
            line = line._replace(relevance=math.nan if relevance in (None, "") else float(relevance))
        except (TypeError, ValueError, OverflowError):
            line = line._replace(error=f"relevance {relevance!r} is no number")
        for text in captions if isinstance(captions, list) else [captions]:
            yield line._replace(text="" if text is None else str(text))


def _delimited_rows(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any] | str]]:
    delimiter = "," if path.suffix == ".csv" else "\t"
    with closing(_lines(path, "", "utf-8-sig")) as file:
        # Tab-separated captions hold quotation marks that are not CSV's quotes.
        rows: csv.DictReader[str] = csv.DictReader(
            file,
            columns.names,
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
            strict=True,
        )
        if rows.fieldnames is None:
            raise UsageError(f"{path} is empty")
        missing = {columns.image, columns.caption} - set(rows.fieldnames)
        if missing:
            raise UsageError(
                f"{path} has no column {' and no column '.join(sorted(missing))}: name the columns of a file without a "
                "header line with --columns image,caption, those of another name with --image-column, --caption-column"
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if (row[columns.image], row[columns.caption]) == (columns.image, columns.caption):
                raise UsageError(f"{where}: is a header line, leave --columns out")
            if row[columns.caption] is None:
                yield where, "it has no caption beside its image"
            elif None in row:
                yield where, "it has too many fields: quote a caption with commas"
            else:
                yield where, dict(row)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    for where, _, line in _text_lines(path):
        try:
            row = parse_json(line, "it")
        except UsageError as error:
            yield where, str(error)
            continue
        yield where, row if isinstance(row, dict) else f"it holds {type(row).__name__}, not an object"


def _parquet_rows(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """What `parquet_rows.py` says of it."""
    open_regular(path).close()
    needed = [columns.image, columns.caption]
    script, wanted = str(Path(__file__).with_name("parquet_rows.py")), [*needed, columns.split, columns.relevance]
    with subprocess.Popen(
        [sys.executable, "-P", script, str(path.absolute()), json.dumps(needed), json.dumps(wanted)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            number = 0
            while line := process.stdout.readline(_LONGEST):
                rows = parse_json(line, f"{path}, from row {number} on,")
                if isinstance(rows, str):
                    raise UsageError(f"cannot read captions from {path}: {rows}")
                for row in rows:
                    yield f"{path}, row {number}", row
                    number += 1
            if process.wait():
                raise UsageError(f"cannot read captions from {path}: its reader broke ({process.returncode})")
        finally:
            process.kill()


# -------------------------------------------------------------------------------------------------------- collections


def _coco(path: Path) -> Iterator[Line]:
    content = _load(path)
    images = {}
    for image in _list(content, "images", path):
        if isinstance(image, dict) and isinstance(image.get("id"), int):
            images[image["id"]] = image.get("file_name")
    for row, annotation in enumerate(_list(content, "annotations", path)):
        where = f"{path}, annotation {row}"
        number = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(number, int) or number not in images:
            yield Line(where, "", "", row, error=f"its image_id {number!r} is not among the images")
        else:
            yield Line(where, str(images[number] or ""), str(annotation.get("caption") or ""), row, number)


def _karpathy(images: list[Any], path: Path) -> Iterator[Line]:
    row = 0
    for place, image in enumerate(images):
        where = f"{path}, image {place}"
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
            yield Line(where, "", "", row, error="it has no sentences")
            continue
        # The 30,504 validation images that Karpathy & Fei-Fei moved to training are called restval.
        split = {"restval": "train"}.get(str(image.get("split")), str(image.get("split") or "train"))
        number = image.get("cocoid", image.get("imgid"))
        for at, sentence in enumerate(image["sentences"]):
            text = sentence.get("raw") if isinstance(sentence, dict) else None
            yield Line(f"{where}, sentence {at}", str(image.get("filename") or ""), str(text or ""), row, number, split)
            row += 1


def _flickr(path: Path) -> Iterator[Line]:
    for where, row, text in _text_lines(path):
        name, tab, caption = text.partition("\t")
        image, sharp, number = name.rpartition("#")
        if not (tab and sharp and number.isdigit()):
            yield Line(where, "", "", row, error="it is not IMAGE#NUMBER, tab, caption")
        else:
            yield Line(where, image, caption, row)


def _conceptual(path: Path) -> Iterator[Line]:
    for where, row, text in _text_lines(path):
        caption, tab, url = text.rpartition("\t")
        if not tab or "://" not in url:  # CC12M's URL comes first
            yield Line(where, "", "", row, error="it is not caption, tab, URL")
        else:
            yield Line(where, f"{row:08d}", caption, row, row)


def _sbu(path: Path) -> Iterator[Line]:
    pairs: Iterable[tuple[Any, Any]]
    if os.path.isdir(path):
        urls, captions = (
            [text for _, _, text in _text_lines(path / f"SBU_captioned_photo_dataset_{name}.txt")]
            for name in ("urls", "captions")
        )
    else:
        content = _load(path)
        urls, captions = _list(content, "image_urls", path), _list(content, "captions", path)
    if len(urls) != len(captions):
        raise UsageError(f"{path} has {len(urls)} URLs and {len(captions)} captions: it is not whole")
    pairs = zip(urls, captions, strict=True)
    for row, (url, caption) in enumerate(pairs):
        yield Line(f"{path}, entry {row}", PurePosixPath(str(url)).name, str(caption), row, row)


def _text_lines(path: Path) -> Iterator[tuple[str, int, str]]:
    # A line ends where its writer ended it: captions hold lone carriage returns and Unicode's line separators.
    for row, line in enumerate(_lines(path, "\n", "utf-8")):
        yield f"{path}, line {row + 1}", row, line.rstrip("\r\n")


def _lines(path: Path, newline: str, encoding: str) -> Generator[str, None, None]:
    """The lines of a text, each of bounded length; see `io.TextIOWrapper`."""
    with io.TextIOWrapper(open_regular(path), encoding, newline=newline) as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if len(line) == _LONGEST:
                raise UsageError(f"{path}, line {number}: it has more than {_LONGEST:,} characters: is it a text?")
            yield line


def _list(content: dict[str, Any], name: str, path: Path) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list):
        raise UsageError(f"{path} has no list of {name}: it is of another format, see --format")
    return value
