"""Rows of a Parquet or Arrow file as arrays, by a process of its own.

A few kilobytes may say that they are gigabytes, and a damaged file may break its reader. So `tables.py` runs this file
as a script: its memory is bounded. It imports nothing of ImageBERT. Each row is a line of JSON, {column: value, or
{"dtype", "shape"}}, and behind it the bytes of the row's arrays. A line of text instead says why there are no more.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

_MEMORY = 3 << 30  # of addresses: half a gigabyte is the libraries', a row may have one


def batches(path: str, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Record batches that hold rows from `start` to `stop`, and the number of each one's first row."""
    import pyarrow as pa

    with open(path, "rb") as file:
        magic = file.read(6)
    first = 0
    if magic[:4] == b"PAR1":
        from pyarrow import parquet

        opened = parquet.ParquetFile(path)
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:
                at = first
                for batch in opened.iter_batches(batch_size=64, row_groups=[group], use_threads=False):
                    yield at, batch
                    at += batch.num_rows
            first += rows
        return
    source = pa.OSFile(path)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(source)
        found = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        found = iter(pa.ipc.open_stream(source))
    for batch in found:
        if first < stop and first + batch.num_rows > start:
            yield first, batch
        first += batch.num_rows


def count(path: str) -> int:
    last = 0
    for first, batch in batches(path, 0, sys.maxsize):
        last = first + batch.num_rows
    return last


def value_of(scalar: Any) -> Any:
    """A number or a text as it is; lists of numbers, and lists of such lists of one length, as an array."""
    if not scalar.is_valid or not _is_list(scalar.type):
        found = scalar.as_py()
        return found.decode("ascii") if isinstance(found, bytes) else found
    values = scalar.values
    shape = [len(values)]
    while _is_list(values.type):
        inner = values.flatten()
        if shape[-1] == 0 or len(inner) % shape[-1] or len({len(one) for one in values}) > 1:
            raise ValueError("its rows differ in length")
        shape.append(len(inner) // shape[-1])
        values = inner
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others take addresses ahead
    path, start, stop, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), set(json.loads(sys.argv[4]))
    out = sys.stdout.buffer
    try:
        if start == stop:
            out.write(json.dumps(count(path)).encode() + b"\n")
            return
        for first, batch in batches(path, start, stop):
            columns = {name: batch.column(name) for name in batch.schema.names if name in wanted}
            for row in range(max(0, start - first), min(batch.num_rows, stop - first)):
                told, arrays = {}, []
                for name, column in columns.items():
                    value = value_of(column[row])
                    if hasattr(value, "dtype"):
                        if value.dtype.kind not in "fiub":
                            raise ValueError(f"{name} holds {value.dtype}")
                        arrays.append(value.tobytes())
                        value = {"dtype": str(value.dtype), "shape": value.shape}
                    told[name] = value
                out.write(json.dumps(told, default=str).encode() + b"\n" + b"".join(arrays))
    except MemoryError:
        out.write(json.dumps("reading it takes more memory than any image's regions do").encode() + b"\n")
    except Exception as error:
        out.write(json.dumps(" ".join(f"{type(error).__name__}: {error}".split())[:300]).encode() + b"\n")


if __name__ == "__main__":
    main()
