"""Which layout a source of captions has: told by its content, once, before its first caption is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.data.captions.line import Columns, Line
from imagebert.data.captions.published import (
    SBU,
    coco,
    conceptual,
    conceptual_layout,
    flickr,
    is_flickr,
    karpathy,
    sbu,
)
from imagebert.data.captions.tables import (
    JSON_LINES,
    delimited_rows,
    json_line_rows,
    lines_of,
    list_columns,
    list_rows,
    parquet_lines,
)
from imagebert.errors import UsageError
from imagebert.files import open_regular, parse_json, read_json, text_lines

KINDS = {
    "table": "a table",
    "list": "a JSON list of objects",
    "coco": "COCO's JSON",
    "karpathy": "Karpathy's JSON",
    "flickr": "Flickr's captions",
    "cc": "Conceptual Captions",
    "sbu": "SBU",
    "img2dataset": "img2dataset's Parquet",
}
_DELIMITED = (".token", ".txt", ".tsv", ".csv")
_JSON_BYTES = 1 << 29  # of a collection: the largest published ones have half


class Layout(NamedTuple):
    kind: str
    content: Any = None  # of a JSON that was read to tell
    is_lines: bool = False  # JSON in each line


def layout_of(path: Path, kind: str, columns: Columns) -> Layout:
    """What is there.

    Raises:
        UsageError: it is no layout that is known, or cannot be read.
    """
    if os.path.isdir(path):
        if (path / "data.mdb").is_file():
            raise UsageError(f"{path} is an LMDB, such as UNITER's txt_db: give the captions' own JSON instead")
        if kind == "auto":
            kind = "sbu" if (path / SBU.format("captions")).is_file() else "img2dataset"
        if kind not in ("sbu", "img2dataset"):
            raise UsageError(f"{path} is a folder: --format {kind} reads a file")
        return Layout(kind)
    with open_regular(path) as file:
        start = file.read(1 << 16)
    if path.suffix == ".parquet" or start[:4] == b"PAR1":
        if kind not in ("auto", "table", "img2dataset"):
            raise UsageError(f"{path} is Parquet: --format {kind} reads another kind of file")
        return Layout("parquet:" + kind)
    if kind == "table":
        return Layout(kind, is_lines=_is_lines(path, start))
    if kind in ("list", "coco", "karpathy", "sbu"):
        return Layout(kind, _load(path))
    if kind == "img2dataset":
        raise UsageError(f"{path} is no Parquet: --format img2dataset reads those, or a folder of them")
    return Layout(kind) if kind != "auto" else _found(path, start, columns)


def _found(path: Path, start: bytes, columns: Columns) -> Layout:
    if _is_lines(path, start):
        return Layout("table", is_lines=True)
    # A caption of a table may begin with a bracket.
    if path.suffix == ".json" or (path.suffix not in _DELIMITED and _begins_json(start)):
        content = _load(path)
        if isinstance(content, list):
            return Layout("list", content)
        if not isinstance(content, dict):
            raise UsageError(f"{path} holds {type(content).__name__}, not an object as the published files do")
        kinds = {"annotations": "coco", "image_urls": "sbu"}
        return Layout(next((kind for name, kind in kinds.items() if name in content), "karpathy"), content)
    if path.suffix == ".token":
        return Layout("flickr")
    if columns.names is not None:
        return Layout("table")
    first = next((line.text for line in text_lines(path) if line.text and not line.error), "")
    if is_flickr(first):
        return Layout("flickr")
    return Layout("cc" if conceptual_layout(first) else "table")


def _begins_json(start: bytes) -> bool:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _is_lines(path: Path, start: bytes) -> bool:
    """Whether a file has a JSON object in each line, whatever it is called."""
    if path.suffix in JSON_LINES:
        return True
    if not _begins_json(start) or b"\n" not in start:
        return False
    first, more = start.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)
    try:
        return isinstance(parse_json(first, "it"), dict) and bool(more.strip())
    except UsageError:
        return False


def _load(path: Path) -> Any:
    try:
        return read_json(path, _JSON_BYTES)
    except (OSError, UsageError) as error:
        raise UsageError(f"cannot read captions from {path}: {error}") from None


def read_lines(path: Path, layout: Layout, columns: Columns) -> Iterator[Line]:
    """What a source holds, in its order."""
    kind, content, is_lines = layout
    if kind == "img2dataset" or kind.startswith("parquet:"):
        yield from parquet_lines(path, columns, kind.removeprefix("parquet:"))
    elif kind == "table":
        yield from lines_of(json_line_rows(path) if is_lines else delimited_rows(path, columns), columns)
    elif kind == "list":
        yield from lines_of(list_rows(path, content), list_columns(content, columns))
    elif kind in ("flickr", "cc"):
        yield from {"flickr": flickr, "cc": conceptual}[kind](path)
    else:
        yield from {"coco": coco, "karpathy": karpathy, "sbu": sbu}[kind](path, content)
