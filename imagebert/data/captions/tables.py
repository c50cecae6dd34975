"""Captions in rows: CSV, TSV, JSON lines, a JSON list of objects, Parquet, and folders of it, such as img2dataset's."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from imagebert import files
from imagebert.data.captions.line import PATIENCE, Columns, Found, Line, id_of, suffix_of
from imagebert.data.scripts import started
from imagebert.errors import UsageError
from imagebert.files import TextLine, open_regular, parse_json, text_lines

JSON_LINES = (".jsonl", ".jsonline", ".jsonlines", ".ndjson")
_DOWNLOADED = ["url", "caption", "key", "status", "error_message"]  # img2dataset's columns
_ROW_BYTES = 1 << 24  # of JSON that a row of Parquet becomes

# A caption of any length is read to its end; `pairs.py` refuses it by its line. The module's own bound has no line.
csv.field_size_limit(files.LINE_BYTES)

Row = dict[str, Any] | str  # values by column, or why there are none


def lines_of(rows: Iterator[tuple[str, Row]], columns: Columns) -> Iterator[Line]:
    """Rows as captions, one a caption where a row has a list of them."""
    for number, (where, row) in enumerate(rows):
        if isinstance(row, str):
            yield Line(where, "", "", number, error=row)
            continue
        image, captions, relevance = (row.get(name) for name in (columns.image, columns.caption, columns.relevance))
        line = Line(where, "", "", number, id_of(row.get("image_id")), str(row.get(columns.split) or "train"))
        if isinstance(row.get("url"), str):
            line = line._replace(url=row["url"])
        if isinstance(image, dict) and "path" in image:  # Hugging Face's column of images
            image = image["path"]
        if image is None or (isinstance(image, str | int) and not isinstance(image, bool)):
            line = line._replace(image="" if image is None else str(image))
        else:
            line = line._replace(error=f"its image is {type(image).__name__}, no name")
        try:
            line = line._replace(relevance=math.nan if relevance in (None, "") else float(relevance))
        except (TypeError, ValueError, OverflowError):
            line = line._replace(error=f"relevance {relevance!r:.80} is no number")
        for text in captions if isinstance(captions, list) else [captions]:
            if text is None or isinstance(text, str | int | float):
                yield line._replace(text="" if text is None else str(text))
            else:
                yield line._replace(error=line.error or f"its caption is {type(text).__name__}, no text")


# ----------------------------------------------------------------------------------------------------------- delimited


def delimiter_of(path: Path, header: str, columns: Columns) -> str:
    """What stands between the fields: what gives both columns in the header line, else what the suffix says."""
    usual = "," if suffix_of(path) == ".csv" else "\t"
    if columns.names is None:
        for delimiter in (usual, "\t", ","):
            if {columns.image, columns.caption} <= set(_split(header, delimiter)):
                return delimiter
    return usual


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), []) if delimiter == "," else line.split(delimiter)
    except csv.Error:
        return []


def has_header(path: Path, first: str, columns: Columns) -> bool:
    """Whether a line names the columns of image and caption."""
    return {columns.image, columns.caption} <= set(_split(first, delimiter_of(path, first, columns)))


def delimited(path: Path, columns: Columns) -> Found:
    """CSV, or fields between tabs."""
    first = next(text_lines(path), None)
    if first is None:
        raise UsageError(f"{path} is empty")
    if first.error:
        raise UsageError(f"{path}, line 1: {first.error}")
    delimiter = delimiter_of(path, first.text, columns)
    names = list(columns.names or _split(first.text, delimiter))
    missing = {columns.image, columns.caption} - set(names)
    if missing:
        raise UsageError(
            f"{path} has no column {' and no column '.join(sorted(missing))}: name the columns of a file without a "
            "header line as `columns`, such as image,caption, and those of another name one by one"
        )
    between = "commas" if delimiter == "," else "tabs"
    what = f"a table in UTF-8, {', '.join(columns.read(names))} between {between}"
    return Found(what, lines_of(_delimited(path, columns, names, delimiter), columns))


def _delimited(path: Path, columns: Columns, names: list[str], delimiter: str) -> Iterator[tuple[str, Row]]:
    lines = islice(text_lines(path), int(columns.names is None), None)
    last = max(names.index(columns.image), names.index(columns.caption))
    for number, fields, error in _fields(path, lines, delimiter):
        where = f"{path}, line {number}"
        row = dict(zip(names, fields, strict=False))
        if error:
            yield where, error
        elif (row.get(columns.image), row.get(columns.caption)) == (columns.image, columns.caption):
            raise UsageError(f"{where}: is a header line, leave `columns` out")
        elif len(fields) <= last:
            yield where, "it has no caption beside its image"
        elif len(fields) > len(names):
            yield where, "it has too many fields: quote a caption with commas"
        else:
            yield where, row


def _fields(path: Path, lines: Iterator[TextLine], delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """Fields of each row that is not empty, the number of its last line, and why it cannot be used."""
    for line in lines:
        # Tab-separated captions hold quotation marks that are not CSV's quotes, and the csv module ends a row at a CR.
        if delimiter != "," or '"' not in line.text:
            if line.text:
                yield line.number, line.text.split(delimiter), line.error
            continue
        taken = [line]
        try:
            fields = next(csv.reader(_until(path, line, lines, taken), strict=True))
        except csv.Error as error:
            if "end of data" in str(error):
                raise UsageError(f"{path}, line {line.number}: a quotation mark opens there that none closes") from None
            for each in taken:
                yield each.number, [], f"it is no CSV ({error})"
            continue
        yield taken[-1].number, fields, next((each.error for each in taken if each.error), "")


def _until(path: Path, line: TextLine, lines: Iterator[TextLine], taken: list[TextLine]) -> Iterator[str]:
    """Lines for a row whose quotes are open, and the ends that they had, as LF."""
    yield line.text + "\n"
    size = len(line.text)
    for more in lines:
        taken.append(more)
        size += len(more.text) + 1
        if size > files.LINE_BYTES:
            raise UsageError(f"{path}, line {line.number}: a quotation mark opens there that none closes")
        yield more.text + "\n"


# ---------------------------------------------------------------------------------------------------------------- JSON


def json_lines(path: Path, columns: Columns) -> Found:
    rows, there = _looked_at(path, _json_line_rows(path), columns)
    return Found(f"a table in UTF-8, JSON lines with {', '.join(columns.read(there))}", lines_of(rows, columns))


def _json_line_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for number, text, error in text_lines(path):
        where = f"{path}, line {number}"
        if error:
            yield where, error
            continue
        try:
            row = parse_json(text, "it")
        except UsageError as wrong:
            yield where, str(wrong)
            continue
        yield where, row if isinstance(row, dict) else f"it holds {type(row).__name__}, not an object"


def json_list(path: Path, content: Any, columns: Columns) -> Found:
    """A list of objects, or an object of texts, or lists of them, under their images' names."""
    if isinstance(content, dict) and content and _is_texts(next(iter(content.values()))):
        rows: Iterator[tuple[str, Row]] = (
            (f"{path}, {image[:80]!r}", {columns.image: image, columns.caption: texts, "image_id": image})
            for image, texts in content.items()
        )
        return Found(f"captions of {len(content):,} images", lines_of(rows, columns))
    if not isinstance(content, list):
        raise UsageError(
            f"{path} holds {type(content).__name__}, not a list: it is of another format: say which with `format`"
        )
    columns = _list_columns(content, columns)
    rows, there = _looked_at(path, _list_rows(path, content), columns)
    what = f"a JSON list of {len(content):,} objects with {', '.join(columns.read(there))}"
    return Found(what, lines_of(rows, columns))


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _list_rows(path: Path, content: list[Any]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(content):
        where = f"{path}, entry {number}"
        yield where, row if isinstance(row, dict) else f"it holds {type(row).__name__}, not an object"


def _list_columns(content: list[Any], columns: Columns) -> Columns:
    """The image's name, or its id where the first entries have no name (VinVL's, Oscar's)."""
    first = [entry for entry in content[:PATIENCE] if isinstance(entry, dict)]
    if any("image_id" in entry for entry in first) and not any(columns.image in entry for entry in first):
        return Columns("image_id", columns.caption, columns.split, columns.relevance)
    return columns


def _looked_at(
    path: Path, rows: Iterator[tuple[str, Row]], columns: Columns
) -> tuple[Iterator[tuple[str, Row]], list[str]]:
    """The same rows, and the columns that the first of them have.

    Raises:
        UsageError: they are objects of which none has an image and a caption.
    """
    ahead = list(islice(rows, PATIENCE))
    objects = [row for _, row in ahead if isinstance(row, dict)]
    if objects and not any(columns.image in row and columns.caption in row for row in objects):
        raise UsageError(
            f"{path} has no objects with {columns.image} and {columns.caption}, the first has "
            f"{', '.join(map(str, objects[0]))[:200]}: name the others as `columns`"
        )
    return chain(ahead, rows), [str(name) for row in objects for name in row]


# ------------------------------------------------------------------------------------------------------------- parquet


def parquet(path: Path, columns: Columns, kind: str) -> Found:
    """Rows of a table, or of what img2dataset writes beside its pictures: a file, or a folder of them.

    Args:
        kind: table, img2dataset, or auto: the columns of the first file decide

    Raises:
        UsageError: there is no such file, or one cannot be read.
    """
    table = [[columns.image, columns.caption], [columns.split, columns.relevance, "url", "image_id"]]
    downloaded = [[*_DOWNLOADED, columns.caption], [columns.split, columns.relevance]]
    choices = {"table": [table], "img2dataset": [downloaded], "auto": [downloaded, table]}[kind]
    if not path.is_dir():
        paths = [path]
    elif not (paths := sorted(path.glob("*.parquet"))):
        raise UsageError(f"{path} has no .parquet: give the captions' own file")
    first = _parquet_rows(paths[0], choices)
    head = next(first)
    choice = choices[head["choice"]]
    is_download = choice is downloaded
    if is_download:
        columns = Columns("key", columns.caption, columns.split, columns.relevance)
    of = f" of {len(paths):,} files" if path.is_dir() else f" of {head['rows']:,} rows"
    what = f"{'img2dataset' if is_download else 'a table'}, Parquet{of}, {', '.join(columns.read(head['columns']))}"
    return Found(what, _parquet(paths, first, choice, columns, is_download))


def _parquet(
    paths: list[Path], first: Iterator[Any], choice: list[list[str]], columns: Columns, is_download: bool
) -> Iterator[Line]:
    row = 0
    for number, path in enumerate(paths):
        rows = first if number == 0 else islice(_parquet_rows(path, [choice]), 1, None)
        for where, values in rows:
            for line in lines_of(iter([(where, values)]), columns):
                status = str(values["status"]) if is_download else "success"
                yield line._replace(row=row, status="" if status == "success" else status)
            row += 1


def _parquet_rows(path: Path, choices: list[list[list[str]]]) -> Iterator[Any]:
    """What `parquet_rows.py` says of it: first of all its rows, then each with its place."""
    open_regular(path).close()
    script = Path(__file__).parents[1] / "parquet_rows.py"
    with started(script, str(path.absolute()), json.dumps(choices)) as (output, end):
        number = 0
        while line := output.readline(_ROW_BYTES):
            rows = parse_json(line, f"{path}, from row {number} on,")
            if isinstance(rows, dict):
                yield rows
                continue
            if isinstance(rows, str):
                raise UsageError(f"cannot read captions from {path}: {rows}")
            for row in rows:
                yield f"{path}, row {number}", row
                number += 1
        if code := end():
            raise UsageError(f"cannot read captions from {path}: its reader broke ({code})")
