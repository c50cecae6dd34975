"""Step 2: the pictures of the candidates, each address once, in shards of one tar each; fetched, or from archives.

A list of what is wanted is written first, wanted/NNNNN.parquet, so that a shard is a task of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from imagebert.files import file_digest, replacing
from imagebert.lait.engine import Done, Engine, Task, begun_in, check_result, forget, held, read_step, run_step
from imagebert.lait.fetch import FetchLimits, Wanted, fetch_shard
from imagebert.lait.pages import OPTED_OUT
from imagebert.lait.recipe import LaitRecipe
from imagebert.lait.tables import batches, database, files_of
from imagebert.lait.whole import WANTED, write_choice

SCHEMA = pa.schema([("key", pa.string()), ("url", pa.string())])


def fetch_pictures(
    candidates: Path,
    out: Path,
    recipe: LaitRecipe,
    engine: Engine,
    blocked: Sequence[str],
    memory_gib: float,
    again: bool = False,
) -> Done:
    """Fetches the pictures of all candidates into tars.

    Args:
        blocked: hosts that are never asked
        again: whether what could not be fetched is asked for once more, where it may come another time

    Raises:
        UsageError: the step before is not whole.
        OSError: the disk or the network of this machine fails.
    """
    found = read_step(candidates, "imagebert lait pages", "pages")
    settings = asdict(recipe.fetch)
    shard = settings.pop("shard")
    limits = FetchLimits(**settings, side=recipe.filter.side, aspect=recipe.filter.aspect)
    begun_in("fetch", out)
    with listed(found, out, shard, engine, memory_gib) as lists:
        if again and engine.workers.rank == 0:
            for path in lists:
                forget(out, path.stem)
        engine.workers.barrier()
        tasks = [Task(path.stem, file_digest(path), (path, limits, blocked, again)) for path in lists]
        return run_step("fetch", out, fetch, tasks, [asdict(limits), blocked], engine, [found])


def fetch(wanted: Path, limits: FetchLimits, blocked: Sequence[str], again: bool, out: Path) -> Counter[str]:
    """Fetches one shard into OUT.tar and OUT.parquet; how many pictures have each status."""
    rows = parquet.read_table(wanted).to_pylist()
    pictures = [Wanted(row["key"], row["url"]) for row in rows]
    return fetch_shard(pictures, out.with_name(f"{out.name}.tar"), limits, blocked, again)


def candidates_of(found: Done) -> str:
    """The candidates in a query, without those of pages that opted out in any archive; each file is as it was noted."""
    for path in (*found.files(), *found.files(OPTED_OUT)):
        check_result(path)
    rows, gone = files_of(found.files()), files_of(found.files(OPTED_OUT))
    return f"(SELECT rows.* FROM {rows} AS rows ANTI JOIN {gone} AS gone USING (page))"


@contextmanager
def listed(found: Done, out: Path, shard: int, engine: Engine, memory_gib: float) -> Iterator[list[Path]]:
    """The lists of what is wanted, which the first rank writes; no other call writes them while the block runs."""
    folder = out / WANTED
    with held(folder, engine.workers):
        if engine.workers.rank == 0:
            write_wanted(found, folder, shard, memory_gib)
        engine.workers.barrier()
        yield sorted(folder.glob("[0-9]*.parquet"))


def write_wanted(candidates: Done, folder: Path, shard: int, memory_gib: float) -> list[Path]:
    """Writes a list of `shard` pictures for each tar, NNNNN.parquet, in the order of their keys, which mixes hosts.

    Raises:
        OSError: the disk is full or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = candidates_of(candidates)
    written: list[Path] = []
    with database(folder / ".overflow", memory_gib) as connection:
        query = f"SELECT key, min(url) AS url FROM {rows} GROUP BY key ORDER BY key"
        for table in _of_size(batches(connection, query), shard):
            path = folder / f"{len(written):05d}.parquet"
            with replacing(path) as part:
                parquet.write_table(table, part, compression="zstd")
            written.append(path)
    for stale in set(folder.glob("*.parquet")) - set(written):
        stale.unlink()
    write_choice(folder, {})
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
