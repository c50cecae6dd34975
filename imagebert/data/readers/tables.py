"""Parquet and Arrow: a row an image, arrays as lists or as bytes. Hugging Face's LXMERT writes such.

extracting_data.py, a stream of Arrow: img_id, roi_features [36, F], boxes [36, 4] as shares, obj_ids, obj_probs [36],
preds_per_image, which says how many of the 36 are no padding; sizes, which are those of the resized picture and no
image's. A folder that `datasets` saved names its files in state.json.

A column of bytes holds NumPy's .npz or .npy, base64, or an array's own bytes: its first value tells which, for all.
`table_rows.py` reads the files, in a process that a file may break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pybase64
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import (
    LARGEST,
    BadRecord,
    Item,
    Part,
    check_files,
    find_files,
    lost,
    parts_of,
    share_of,
)
from imagebert.data.readers.folders import flat, read_npy, read_npz
from imagebert.data.readers.layout import NAMES
from imagebert.data.scripts import started
from imagebert.files import parse_json, read_json
from imagebert.strict_yaml import shown

_SUFFIXES = (".parquet", ".arrow", ".datasets")
_SCRIPT = Path(__file__).with_name("table_rows.py")
_LONGEST = 1 << 20  # bytes of the line before a row's arrays
_TOGETHER = 100  # files that a process reads
_BROKE = "its reader broke, so it is damaged"
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


class _Table(NamedTuple):
    file: Path
    rows: int  # 1 where it cannot be read: what is lost is named once
    heads: Mapping[str, str] = {}  # how its columns of bytes begin
    problem: str = ""


class TableReader:
    """Shares are runs of rows. A file that is damaged is named, and the others are read."""

    beside: Sequence[Path] = ()

    def __init__(self, sources: Sequence[Path]) -> None:
        self._tables = list(_counted(_files(sources)))
        self._rows = [table.rows for table in self._tables]
        first = self._tables[0]
        if all(table.problem for table in self._tables):
            raise UsageError(f"cannot read {first.file}: {first.problem}")
        self._decoders: dict[str, _Decoder] = {}  # by column
        for table in self._tables:
            for name, head in table.heads.items():
                self._decoders.setdefault(name, _decoder(bytes.fromhex(head)))

    def size(self, share: int, shares: int) -> int:
        return len(share_of(sum(self._rows), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        parts = []
        for part in parts_of(self._rows, share, shares):
            file, _, _, problem = self._tables[part.number]
            if problem:
                yield lost(str(file), problem, 0)
            else:
                parts.append((file, part))
        for file, part, row, told, data in _read(parts):
            done = part.done + row + 1
            if isinstance(told, str):
                yield lost(f"{file}, rows {row} to {part.stop - 1}", told, done)
            else:
                yield Item(f"{file}, row {row}", "", partial(_fields, told, data, self._decoders), done)


def _files(sources: Sequence[Path]) -> list[Path]:
    """A folder that `datasets` saved holds caches, too, and its order is its own."""
    states = [state for source in sources if source.is_dir() for state in sorted(source.rglob("state.json"))]
    saved = {state.parent: _named(state) for state in states}
    files = [file for file in find_files(sources, _SUFFIXES) if file in sources or file.parent not in saved]
    files += [folder / name for folder, names in saved.items() for name in names]
    check_files(files)
    return files


def _named(state: Path) -> list[str]:
    found = read_json(state)
    if not isinstance(found, dict) or found.get("_indices_data_files") or found.get("_indices_files"):
        raise UsageError(f"{state} chooses rows of its tables: save the data set after flatten_indices()")
    listed = found.get("_data_files")
    names = [str(one.get("filename")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if not names or not all(Path(name).name == name for name in names):  # nor any that leads elsewhere
        raise UsageError(f"{state} is not as `datasets` saves it: {shown(listed)} names no files")
    return names


# ----------------------------------------------------------------------------------------------------- the process


def _counted(files: Sequence[Path]) -> Iterator[_Table]:
    at = 0
    while at < len(files):
        some = files[at : at + _TOGETHER]
        with started(_SCRIPT, "count", *(str(file.absolute()) for file in some)) as (output, _):
            for file in some:
                at += 1
                found = _line(output)
                if isinstance(found, dict):
                    yield _Table(file, **found)
                    continue
                yield _Table(file, 1, problem=found or _BROKE)
                if found is None:  # then another process goes on with the next file
                    break


def _read(parts: Sequence[tuple[Path, Part]]) -> Iterator[tuple[Path, Part, int, Any, bytes]]:
    """Of each row, what is told of it and the bytes behind it. Text instead says why a part has no more."""
    at = 0
    while at < len(parts):
        some = parts[at : at + _TOGETHER]
        arguments = [str(one) for file, part in some for one in (file.absolute(), part.start, part.stop)]
        with started(_SCRIPT, "read", *arguments) as (output, _):
            for file, part in some:
                at += 1
                found: Any = {}
                for row in range(part.start, part.stop):
                    found = _line(output)
                    size = sum(map(_size, found.values())) if isinstance(found, dict) else 0
                    data = output.read(size) if size <= LARGEST else b""
                    if len(data) != size:
                        found = None
                    yield file, part, row, found or _BROKE, data
                    if not isinstance(found, dict):
                        break
                if found is None:  # as above
                    break


def _line(output: IO[bytes]) -> Any:
    """None: the process broke."""
    line = output.readline(_LONGEST)
    return parse_json(line, "what is told of it") if line.endswith(b"\n") else None


def _size(told: Any) -> int:
    """Bytes behind the line that a value has."""
    if not isinstance(told, dict):
        return 0
    if "bytes" in told:
        return int(told["bytes"])
    return math.prod(told["shape"]) * np.dtype(told["dtype"]).itemsize if "dtype" in told else 0


# ----------------------------------------------------------------------------------------------------------- columns

_Decoder = Callable[[str, bytes], Mapping[str, Any]]


def _decoder(head: bytes) -> _Decoder:
    """What is in a column of bytes, told by how its first value begins."""
    if head.startswith(b"PK\3\4"):
        return lambda name, data: read_npz(data)
    if head.startswith(b"\x93NUMPY"):
        return lambda name, data: flat({name: read_npy(BytesIO(data), len(data))})
    if set(head) <= _BASE64:
        return _as_it_is
    return lambda name, data: {name: pybase64.b64encode(data)}  # as all other layouts have it


def _as_it_is(name: str, data: bytes) -> Mapping[str, Any]:
    return {name: data}


def _fields(told: Mapping[str, Any], data: bytes, decoders: Mapping[str, _Decoder]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    inner: dict[str, Any] = {}  # of an .npz in a column; what is a column itself counts more
    at = 0
    for name, value in told.items():
        size = _size(value)
        if isinstance(value, dict):
            if "bytes" in value:
                decode = decoders.get(name, _as_it_is)  # a text is base64
                found = dict(decode(name, data[at : at + size]))
                value = found.pop(name, None)
                inner |= found
            elif "dtype" in value:
                value = np.frombuffer(data, value["dtype"], math.prod(value["shape"]), at).reshape(value["shape"])
            else:
                value = np.array(value["type"])  # whoever needs it says what it is
        at += size
        if value is not None:
            fields[name] = value
    return _shaped({**inner, **fields})


def _shaped(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists behind each other as tables; class numbers that were written as floats as whole ones.

    Raises:
        BadRecord: they are none.
    """
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray) and value.ndim}
    boxes = next((arrays[name] for name in NAMES["boxes"] if name in arrays), None)
    number = next((fields[name] for name in NAMES["number"] if isinstance(fields.get(name), int)), 0)
    rows = number if boxes is None else len(boxes) // 4 if boxes.ndim == 1 else len(boxes)
    for what in ("features", "boxes", "probabilities"):
        for name in NAMES[what]:
            value = arrays.get(name)
            if value is not None and value.ndim == 1 and value.dtype.kind == "f" and len(value) != rows:
                if rows < 1 or len(value) % rows:
                    raise BadRecord(f"{name} has {len(value)} numbers, which are no table of {rows} regions")
                fields[name] = value.reshape(rows, -1)
    for name in NAMES["classes"]:
        if name in arrays and arrays[name].dtype.kind == "f":
            fields[name] = _whole(name, arrays[name])
    return fields


def _whole(name: str, numbers: NDArray[Any]) -> NDArray[np.int64]:
    if not (np.abs(numbers) < 1 << 31).all() or (numbers != np.rint(numbers)).any():
        raise BadRecord(f"{name} has numbers that are not whole")
    return numbers.astype(np.int64)
