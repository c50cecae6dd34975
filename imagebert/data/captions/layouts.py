"""Which layout a source of captions has: told by its content, once, before its first caption is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.data.captions.line import PATIENCE, Columns, Found, suffix_of
from imagebert.data.captions.oscar import oscar
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
from imagebert.data.captions.tables import JSON_LINES, delimited, has_header, json_lines, json_list, parquet
from imagebert.data.captions.tars import tars
from imagebert.data.captions.uniter import uniter
from imagebert.errors import UsageError
from imagebert.files import parse_json, read_packed_json, text_lines, unpacked

KINDS = ("table", "list", "coco", "karpathy", "flickr", "cc", "sbu", "img2dataset", "webdataset")
_DELIMITED = (".token", ".txt", ".tsv", ".csv")
_JSON_BYTES = 1 << 29  # of a collection: the largest published ones have half
_JSON: dict[str, Callable[[Path, Any], Found]] = {"coco": coco, "karpathy": karpathy, "sbu": sbu}
# What begins files that hold no text, though captions may lie in them.
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
_FILES = {"parquet": "Parquet", "webdataset": "tar", "uniter": "LMDB", "oscar": "torch.save's"}


class Layout(NamedTuple):
    kind: str
    content: Any = None  # of a JSON that was read to tell
    is_lines: bool = False  # JSON in each line


def layout_of(path: Path, kind: str, columns: Columns) -> Layout:
    """What is there.

    Raises:
        UsageError: it is no layout that is known, not that of `kind`, or cannot be read.
    """
    if os.path.isdir(path):
        return Layout(_of_folder(path, kind))
    with unpacked(path) as (file, _):
        start = file.read(1 << 16)
    if binary := _of_bytes(path, start):
        fits = {"parquet": ("table", "img2dataset")}.get(binary, (binary,))
        if kind != "auto" and kind not in fits:
            raise UsageError(f"{path} is {_FILES[binary]}: format {kind} reads another kind of file")
        return Layout(f"parquet:{kind}" if binary == "parquet" else binary)
    if kind in ("img2dataset", "webdataset"):
        raise UsageError(f"{path} is neither Parquet nor a tar: format {kind} reads such, or a folder of them")
    if kind == "list" or kind in _JSON:
        return Layout(kind, _load(path))
    layout = Layout(kind, is_lines=kind == "table" and _is_lines(path, start))
    if kind == "auto":
        layout = _of_text(path, start, columns)
    # Of an old Mac. In a longer text a CR is part of a caption.
    if layout.content is None and b"\n" not in start and start.count(b"\r") > 1:
        raise UsageError(f"{path}: its lines end in CR alone: save it with LF or CRLF")
    return layout


def _of_folder(path: Path, kind: str) -> str:
    kinds = {
        "uniter": (path / "data.mdb").is_file(),
        "sbu": (path / SBU.format("captions")).is_file(),
        "parquet": any(path.glob("*.parquet")),
        "webdataset": any(path.glob("*.tar")),
    }
    # img2dataset's folders have both of the last.
    found = kind if kinds.get(kind) else next((name for name, is_there in kinds.items() if is_there), "")
    fits = {"parquet": ("auto", "table", "img2dataset")}.get(found, ("auto", found))
    if not found:
        raise UsageError(
            f"{path} has no .parquet and no .tar, as img2dataset writes them, no texts of SBU, no data.mdb of UNITER: "
            "give the captions' own file"
        )
    if kind not in fits:
        raise UsageError(f"{path} is a folder of {found}: format {kind} reads something else")
    return f"parquet:{kind}" if found == "parquet" else found


def _of_bytes(path: Path, start: bytes) -> str:
    """The kind of a file that is no text; "" for one that may be."""
    suffix = suffix_of(path)
    if suffix == ".parquet" or start[:4] == b"PAR1":
        return "parquet"
    if suffix == ".mdb":
        return "uniter"
    if suffix == ".tar" or start[257:262] == b"ustar":
        return "webdataset"
    if suffix in (".pt", ".pth"):
        return "oscar"
    if start[:4] == b"PK\3\4":
        raise UsageError(f"{path} is a zip: unpack it, and give what it holds")
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise UsageError(f"{path} is a pickle, which may hold a program: give the captions as JSON or a table")
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise UsageError(f"{path} is packed by {what}: unpack it first")
    return ""


def _of_text(path: Path, start: bytes, columns: Columns) -> Layout:
    suffix = suffix_of(path)
    if _is_lines(path, start):
        return Layout("table", is_lines=True)
    # A caption of a table may begin with a bracket.
    if suffix == ".json" or (suffix not in _DELIMITED and _begins_json(start)):
        content = _load(path)
        if not isinstance(content, dict | list):
            raise UsageError(f"{path} holds {type(content).__name__}, not an object as the published files do")
        kinds = {"annotations": "coco", "image_urls": "sbu", "images": "karpathy"}
        has = content if isinstance(content, dict) else {}
        return Layout(next((kind for name, kind in kinds.items() if name in has), "list"), content)
    if suffix == ".token":
        return Layout("flickr")
    first = [line.text for line in islice(text_lines(path), PATIENCE) if line.text and not line.error]
    if columns.names is not None or (first and has_header(path, first[0], columns)):
        return Layout("table")
    if any(map(is_flickr, first)):
        return Layout("flickr")
    return Layout("cc" if any(map(conceptual_layout, first)) else "table")


def _begins_json(start: bytes) -> bool:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _is_lines(path: Path, start: bytes) -> bool:
    """Whether a file has a JSON object in each line, whatever it is called."""
    if suffix_of(path) in JSON_LINES:
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
        return read_packed_json(path, _JSON_BYTES)
    except (OSError, UsageError) as error:
        raise UsageError(f"cannot read captions from {path}: {error}") from None


def open_captions(path: Path, layout: Layout, columns: Columns) -> Found:
    """What a source is, and its captions.

    Raises:
        UsageError: it cannot be read, here or later.
    """
    kind, content, is_lines = layout
    if kind.startswith("parquet:"):
        return parquet(path, columns, kind.removeprefix("parquet:"))
    if kind == "table":
        return json_lines(path, columns) if is_lines else delimited(path, columns)
    if kind == "list":
        return json_list(path, content, columns)
    if kind in _JSON:
        return _JSON[kind](path, content)
    of_path = {"flickr": flickr, "cc": conceptual, "webdataset": tars, "uniter": uniter, "oscar": oscar}
    return of_path[kind](path)
