"""Parquet and Arrow: a row an image, arrays as lists. Hugging Face's LXMERT writes such (extracting_data.py).

`table_rows.py` reads them, in a process that a file may break.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, Item, find_files, share_of
from imagebert.data.readers.layout import NAMES
from imagebert.files import parse_json

_SUFFIXES = (".parquet", ".arrow", ".datasets")
_LONGEST = 1 << 20  # bytes of the line before a row's arrays
_WANTED = sorted(name for names in NAMES.values() for name in names)


class TableReader:
    """Shares are runs of rows."""

    beside: Sequence[Path] = ()

    def __init__(self, sources: Sequence[Path]) -> None:
        self._files = find_files(sources, _SUFFIXES)
        self._rows = [_count(file) for file in self._files]

    def size(self, share: int, shares: int) -> int:
        return len(share_of(sum(self._rows), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        mine = share_of(sum(self._rows), share, shares)
        before = 0
        for file, rows in zip(self._files, self._rows, strict=True):
            start, stop = max(mine.start - before, 0), min(mine.stop - before, rows)
            if start < stop:
                for row, told, data in _read(file, start, stop):
                    load = partial(_fields, told, data)
                    yield Item(f"{file}, row {row}", "", load, before + row + 1 - mine.start)
            before += rows


def _count(file: Path) -> int:
    with _process(file, 0, 0) as process:
        assert process.stdout is not None
        found = _line(process.stdout, file)
    if not isinstance(found, int):
        raise UsageError(f"cannot read {file}: {found or 'its reader broke'}")
    return found


def _read(file: Path, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any], bytes]]:
    """Each row's number, what is told of it, and the bytes of its arrays."""
    with _process(file, start, stop) as process:
        assert process.stdout is not None
        try:
            for row in range(start, stop):
                told = _line(process.stdout, file)
                if not isinstance(told, dict):
                    raise UsageError(f"cannot read {file} from row {row} on: {told or 'its reader broke'}")
                size = sum(_size(value) for value in told.values() if isinstance(value, dict))
                if size > LARGEST:
                    raise UsageError(f"{file}, row {row}, has {size} bytes")
                data = process.stdout.read(size)
                if len(data) != size:
                    raise UsageError(f"cannot read {file} from row {row} on: its reader broke")
                yield row, told, data
        finally:
            process.kill()


def _process(file: Path, start: int, stop: int) -> subprocess.Popen[bytes]:
    script = str(Path(__file__).with_name("table_rows.py"))
    return subprocess.Popen(
        [sys.executable, "-P", script, str(file.absolute()), str(start), str(stop), json.dumps(_WANTED)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _line(stream: IO[bytes], file: Path) -> Any:
    line = stream.readline(_LONGEST)
    return parse_json(line, str(file)) if line else None


def _size(described: dict[str, Any]) -> int:
    return math.prod(described["shape"]) * np.dtype(described["dtype"]).itemsize


def _fields(told: dict[str, Any], data: bytes) -> dict[str, Any]:
    fields, at = {}, 0
    for name, value in told.items():
        if isinstance(value, dict):
            array = np.frombuffer(data, value["dtype"], math.prod(value["shape"]), at).reshape(value["shape"])
            at += array.nbytes
            # Hugging Face's LXMERT writes class numbers as floats.
            value = _whole(name, array) if name in NAMES["classes"] and array.dtype.kind == "f" else array
        fields[name] = value
    return fields


def _whole(name: str, array: Any) -> Any:
    if not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise BadRecord(f"{name} has numbers that are not whole")
    return array.astype(np.int64)
