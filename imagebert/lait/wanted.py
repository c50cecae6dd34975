"""Which pictures are to be fetched: each address of the candidates once, in shards of one tar each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from imagebert.files import replacing
from imagebert.lait.engine import Done
from imagebert.lait.tables import batches, database, files_of

SCHEMA = pa.schema([("key", pa.string()), ("url", pa.string())])


def write_wanted(candidates: Done, folder: Path, shard: int, memory_gib: float) -> list[Path]:
    """Writes a list of `shard` pictures for each tar, NNNNN.parquet, in the order of their keys, which mixes hosts.

    Raises:
        OSError: the disk is full or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with database(folder, memory_gib) as connection:
        query = f"SELECT key, min(url) AS url FROM {files_of(candidates.files())} GROUP BY key ORDER BY key"
        for table in _of_size(batches(connection, query), shard):
            path = folder / f"{len(written):05d}.parquet"
            with replacing(path) as part:
                parquet.write_table(table, part, compression="zstd")
            written.append(path)
    for stale in set(folder.glob("*.parquet")) - set(written):
        stale.unlink()
    return written


def _of_size(found: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The rows in tables of one size; the last may be smaller."""
    held, rows = list[pa.RecordBatch](), 0
    for batch in found:
        while rows + batch.num_rows >= size:
            held.append(batch.slice(0, size - rows))
            batch = batch.slice(size - rows)
            yield pa.Table.from_batches(held, SCHEMA).combine_chunks()
            held, rows = [], 0
        held.append(batch)
        rows += batch.num_rows
    if rows:
        yield pa.Table.from_batches(held, SCHEMA).combine_chunks()
