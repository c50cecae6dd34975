"""Rows of a parquet file as lines of JSON, by a process of its own.

A few kilobytes of parquet may say that they are gigabytes, and a damaged file may break its reader. So
`captions/tables.py` runs this file as a script: its memory is bounded, and so is what it writes, by the size of the
file. It imports nothing of ImageBERT. The first line says what there is: the number of rows, the columns that are
read and the number of the choice that fits. Each other is a list of rows; the last may be text instead, which says why
there are no more.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator, Sequence

_MEMORY = 1536 << 20  # of addresses: half is the libraries'
_LINE = 1 << 16  # characters of a line, about
_UNPACKED = 1000  # characters at most for a byte of the file: captions are packed to a third, equal ones to nothing


def lines(path: str, choices: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Iterator[str]:
    """Each row's columns.

    Args:
        choices: what columns there must be, and what others are read where there are such: the first that fits

    Raises:
        Exception: whatever pyarrow raises on a damaged file; a MemoryError where it asks for more than there is.
    """
    from pyarrow import parquet, types

    file = parquet.ParquetFile(path)
    there = file.schema_arrow.names
    fits = next((at for at, choice in enumerate(choices) if set(choice[0]) <= set(there)), len(choices) - 1)
    needed, more = choices[fits]
    missing = sorted(set(needed) - set(there))
    if missing:
        yield json.dumps(f"it has no column {' and no column '.join(missing)}: it has {', '.join(sorted(there))}"[:500])
        return
    left = (1 << 20) + _UNPACKED * os.path.getsize(path)
    rows: list[str] = []
    size = 0
    columns = []
    for name in dict.fromkeys([*needed, *more]):
        if name not in there:
            continue
        kind = file.schema_arrow.field(name).type
        if types.is_struct(kind) and kind.get_field_index("path") >= 0:
            columns.append(f"{name}.path")  # of Hugging Face's images; not their bytes
        elif not (types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)):
            columns.append(name)
        elif name in needed:
            yield json.dumps(f"its column {name} is {kind}, neither text nor images with a path"[:500])
            return
    read = [column.removesuffix(".path") for column in columns]
    yield json.dumps({"rows": file.metadata.num_rows, "columns": read, "choice": fits})
    for batch in file.iter_batches(batch_size=1024, columns=columns, use_threads=False):
        for row in batch.to_pylist():
            rows.append(json.dumps(row, default=str))
            size += len(rows[-1])
            left -= len(rows[-1])
            if left < 0:
                yield json.dumps(f"it unpacks to more than {_UNPACKED} times its size")
                return
            if size > _LINE:
                yield f"[{','.join(rows)}]"
                rows, size = [], 0
    yield f"[{','.join(rows)}]"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others take addresses ahead
    path, choices = sys.argv[1], json.loads(sys.argv[2])
    try:
        for line in lines(path, choices):
            print(line)
    except MemoryError:
        print(json.dumps("reading it takes more memory than any captions do"))
    except Exception as error:
        print(json.dumps(" ".join(f"{type(error).__name__}: {error}".split())[:300]))


if __name__ == "__main__":
    main()
