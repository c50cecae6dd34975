"""What looks at everything at once, asked of Parquet files within a bound of memory. The gate of DuckDB.

What does not fit into memory goes to a folder beside the results. Whatever is written has an order of its own, so that
it is the same bytes with any number of threads.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from imagebert.errors import UsageError

_ROWS = 100_000  # that are in Python at once


@contextmanager
def database(overflow: Path, memory_gib: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database without tables of its own, whose overflow lies in a folder of its own while it is open.

    Args:
        overflow: that folder, in one that this process has locked

    Raises:
        OSError: the disk is full, or there is too little memory.
    """
    shutil.rmtree(overflow, ignore_errors=True)
    threads = len(os.sched_getaffinity(0))
    config: dict[str, Any] = {
        "memory_limit": f"{memory_gib}GiB",
        "temp_directory": str(overflow),
        "threads": threads,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    connection = duckdb.connect(config=config)
    try:
        connection.execute("SET enable_progress_bar = false")  # it would stand in what a command prints
        yield connection
    except duckdb.OutOfMemoryException as error:
        raise OSError(f"DuckDB has too little memory ({_line(error)}): give it more") from None
    except duckdb.IOException as error:
        raise OSError(f"DuckDB's disk fails ({_line(error)}): is {overflow.parent} full?") from None
    except duckdb.Error as error:
        raise UsageError(f"the tables do not fit together ({_line(error)}): make the step before again") from None
    finally:
        connection.close()
        shutil.rmtree(overflow, ignore_errors=True)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]


def files_of(paths: Sequence[Path]) -> str:
    """Files as DuckDB reads them in a query, which takes *, ? and [ for patterns."""
    quoted = ", ".join("'" + glob.escape(str(path)).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{quoted}], union_by_name = true)"


def batches(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    """What a query finds, some rows at a time."""
    found: Iterator[pa.RecordBatch] = connection.sql(query).to_arrow_reader(_ROWS)
    yield from found
