"""Rows of Parquet or Arrow files as arrays, by a process of its own.

A few kilobytes may say that they are gigabytes, and a damaged file may break its reader. So `tables.py` runs this file
as a script: its memory is bounded. It imports nothing of ImageBERT.

    count FILE ...           a line of JSON a file: {"rows", "heads": {column of bytes: how its first value begins}}
    read FILE START STOP ... each row: a line of JSON, {column: value}, and behind it the bytes of its arrays and texts,
                             whose values are {"dtype", "shape"} and {"bytes"}; {"type"} where it is none of these

A line of text instead says why a file has no more.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

# Of what is allocated; a mapped file does not count. Half a gigabyte is the libraries', a row may have one.
_MEMORY = 3 << 30
_LARGEST = 1 << 30  # bytes of a row
_SMALL = 64 << 20  # bytes that any file may unpack to
_UNPACKED = 1000  # bytes at most for a byte of the file: features are packed to a half, zeros to nothing
_BATCH = 64  # rows of Parquet that are unpacked at once
_AHEAD = 1 << 20  # bytes of a column that are read at once
_SHORT = 256  # characters of a text that stands in the line itself
_HEAD = 64  # bytes that tell what is in a column of bytes


class Table:
    """A file: `parts` are row groups of Parquet or batches of Arrow, each with its number of rows and what reads it.

    Raises:
        Exception: whatever pyarrow raises on a damaged file; a MemoryError where it asks for more than there is.
    """

    parts: Iterator[tuple[int, Callable[[list[str] | None], Iterable[Any]]]]

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        with open(path, "rb") as file:
            magic = file.read(6)
        opened: Any
        if magic[:4] == b"PAR1":
            from pyarrow import parquet

            # Otherwise a column's part of a row group is read whole.
            opened = parquet.ParquetFile(path, buffer_size=_AHEAD, pre_buffer=False)
            self.schema = opened.schema_arrow
            self.parts = (
                (opened.metadata.row_group(group).num_rows, partial(_of_group, opened, group))
                for group in range(opened.num_row_groups)
            )
            return
        opened = pa.memory_map(path)
        if magic == b"ARROW1":
            opened = pa.ipc.open_file(opened)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            opened = batches = pa.ipc.open_stream(opened)
        self.schema = opened.schema
        self.parts = ((batch.num_rows, partial(_of_batch, batch)) for batch in batches)

    def batches(self, start: int, stop: int, columns: list[str] | None = None) -> Iterator[tuple[int, Any]]:
        """Those that hold rows from `start` to `stop`, and the number of each one's first row."""
        first = 0
        for rows, read in self.parts:
            if first >= stop:
                return
            at = first
            for batch in read(columns) if first + rows > start else ():
                if at >= stop:
                    return
                yield at, batch
                at += batch.num_rows
            first += rows


def _of_group(file: Any, group: int, columns: list[str] | None) -> Iterable[Any]:
    batches: Iterable[Any] = file.iter_batches(_BATCH, [group], columns, use_threads=False)
    return batches


def _of_batch(batch: Any, columns: list[str] | None) -> Iterable[Any]:
    batch = batch if columns is None else batch.select(columns)
    batch.validate(full=True)
    return [batch]


def count(path: str) -> Iterator[list[bytes]]:
    rows = [rows for rows, _ in Table(path).parts]
    if min(rows, default=0) < 0 or sum(rows) > os.path.getsize(path):
        raise ValueError(f"it says {sum(rows)} rows and has {os.path.getsize(path)} bytes")
    yield [_line({"rows": sum(rows), "heads": heads(Table(path))})]


def heads(table: Table) -> dict[str, str]:
    """How the first value of each column of bytes begins, in hexadecimal."""
    from pyarrow import types

    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    names = [field.name for field in table.schema if any(kind(field.type) for kind in kinds)]
    found: dict[str, str] = {}
    for _, batch in table.batches(0, _BATCH, names) if names else ():
        for name in names:
            first = next((value for one in batch.column(name) if (value := one.as_py())), None)
            if first is not None:
                found.setdefault(name, first[:_HEAD].hex())
    return found


def read(path: str, start: int, stop: int) -> Iterator[list[Any]]:
    """Each row: its line, and what stands behind it."""
    left = _SMALL + _UNPACKED * os.path.getsize(path)
    for first, batch in Table(path).batches(start, stop):
        columns = {name: values_of(batch.column(number)) for number, name in enumerate(batch.schema.names)}
        if len(columns) < batch.num_columns:
            raise ValueError("two of its columns have one name")
        for row in range(max(0, start - first), min(batch.num_rows, stop - first)):
            told, behind = {}, []
            for name, value_of in columns.items():
                value = value_of(row)
                if isinstance(value, bytes):
                    behind.append(value)
                    value = {"bytes": len(value)}
                elif hasattr(value, "dtype"):
                    behind.append(value.data.cast("B"))
                    value = {"dtype": value.dtype.str, "shape": value.shape}
                told[name] = value
            size = sum(map(len, behind))
            left -= size
            if size > _LARGEST or left < 0:
                raise ValueError(f"it has a row of {size} bytes, or unpacks to more than {_UNPACKED} times its size")
            yield [_line(told), *behind]
        start = min(batch.num_rows, stop - first) + first
    if start < stop:
        raise ValueError(f"it ends before row {start}")


def values_of(column: Any) -> Callable[[int], Any]:
    """What gives the value of a row: an array of numbers as such, bytes and long text as bytes."""
    import numpy as np
    from pyarrow import compute, types

    other = {"type": str(column.type)[:200]}
    if not _is_list(column.type):
        return lambda row: _plain(column[row].as_py(), other)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    lengths = []
    while _is_list(column.type):
        lengths.append(compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
        column = column.flatten()
    if not (types.is_integer(column.type) or types.is_floating(column.type)):
        return lambda row: other
    numbers = column.to_numpy(zero_copy_only=False)
    ends = [np.concatenate([[0], np.cumsum(sides, dtype=np.int64)]) for sides in lengths]

    def array(row: int) -> Any:
        if missing[row]:
            return None
        start, stop, shape = row, row + 1, []
        for sides, end in zip(lengths, ends, strict=True):
            mine = sides[start:stop]
            if len(mine) == 0 or (mine != mine[0]).any():
                return {"type": "lists of different lengths"}
            shape.append(int(mine[0]))
            start, stop = end[start], end[stop]
        return numbers[start:stop].reshape(shape)

    return array


def _plain(value: Any, other: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _SHORT else value.encode()
    return value if value is None or isinstance(value, bool | int | float | bytes) else other


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _line(told: Any) -> bytes:
    return json.dumps(told).encode() + b"\n"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.RLIM_INFINITY))
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others take addresses ahead
    out = sys.stdout.buffer
    what, *arguments = sys.argv[1:]
    if what == "count":
        files = [count(path) for path in arguments]
    else:
        each = zip(arguments[::3], arguments[1::3], arguments[2::3], strict=True)
        files = [read(path, int(start), int(stop)) for path, start, stop in each]
    for file in files:
        for parts in or_why_not(file):
            out.writelines(parts)
        out.flush()  # all that it says of this file, should the next one break it


def or_why_not(file: Iterator[list[Any]]) -> Iterator[list[Any]]:
    try:
        yield from file
    except MemoryError:
        yield [_line("it takes more memory than any image's regions do")]
    except Exception as error:
        yield [_line(" ".join(f"{type(error).__name__}: {error}".split())[:300])]


if __name__ == "__main__":
    main()
