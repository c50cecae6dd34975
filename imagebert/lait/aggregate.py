"""Step 5: scored sentences to pairs (paper, section 4, aggregation).

Sentences below the threshold go. A sentence that too many pictures share goes from all of them: equal ones, those that
differ in digits, case and signs only, and of long ones those that differ in some words, as a shop's do. Of what is left
each picture keeps its best. What comes out is a table as img2dataset writes them, which `imagebert pairs` reads as it
is: `key` names the picture in the kept tars.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from imagebert.data.folder import lock_of, make_folder
from imagebert.errors import UsageError
from imagebert.files import file_digest, replacing, write_sealed
from imagebert.lait.engine import STEP, check_result, read_step
from imagebert.lait.recipe import PairsRecipe
from imagebert.lait.tables import batches, database, files_of
from imagebert.lait.whole import note_of
from imagebert.lock import lock

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "url", "caption", "status", "error_message", "page", "source")),
        ("relevance", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)

# Near duplicates are found by MinHash (Broder, 1997) of a text's runs of words: two are one where in any of the orders
# of all runs, grouped by ROWS, they have the same first ones: with a share s of runs in common, 1 - (1 - s^4)^8 are.
_RUN, _GROUPS, _ROWS = 3, 8, 4  # nearly all at nine runs of ten, six in a hundred at three of ten


def write_pairs_table(scored: Path, out: Path, recipe: PairsRecipe, memory_gib: float) -> dict[str, int]:
    """Writes the pairs, and beside pairs.parquet pairs.json, which says what they were made from and what went.

    Args:
        out: the Parquet file

    Raises:
        UsageError: the step before is not whole, or the file is to be none of Parquet, or one of a step.
        OSError: the disk is full or fails.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"{out} is to be a table of pairs: give it a name that ends in .parquet")
    if (out.parent / STEP).is_file():
        raise UsageError(f"{out.parent} is the folder of a step, whose files a table of pairs is none of: name another")
    step = read_step(scored, "imagebert lait score", "score")
    for path in step.files():
        check_result(path)
    make_folder(out.parent)
    overflow = out.with_name(f".{out.name}.overflow")
    with lock(lock_of(out), out), database(overflow, memory_gib) as connection:
        rows = files_of(step.files())
        # Sorted once by what decides; windows are streamed, so that only their sorting takes memory.
        query = f"""
            WITH good AS (
                SELECT *, trim(regexp_replace(lower(sentence), '[^\\p{{L}}]+', ' ', 'g')) AS plain
                FROM {rows} WHERE relevance >= {recipe.relevance}
            ), texts AS (
                SELECT DISTINCT plain, key FROM good
            ), signed AS (
                SELECT plain, key, unnest({_signs()}) AS sign FROM (
                    SELECT *, list_transform(
                        range(1, len(words) - {_RUN - 2}), lambda first: hash(words[first : first + {_RUN - 1}])
                    ) AS runs
                    FROM (SELECT *, string_split(plain, ' ') AS words FROM texts)
                    WHERE len(words) >= {max(_RUN, recipe.long)}
                )
            ), shared AS (
                SELECT plain FROM texts GROUP BY plain HAVING count(*) > {recipe.sharing}
                UNION
                SELECT plain FROM signed SEMI JOIN (
                    SELECT sign FROM (SELECT DISTINCT sign, key FROM signed)
                    GROUP BY sign HAVING count(*) > {recipe.sharing}
                ) USING (sign)
            ), ranked AS (
                SELECT good.*, row_number() OVER (PARTITION BY key ORDER BY relevance DESC, sentence) AS place
                FROM good ANTI JOIN shared USING (plain)
            )
            SELECT key, url, sentence AS caption, 'success' AS status, NULL::VARCHAR AS error_message, page, source,
                relevance, width, height
            FROM ranked WHERE place = 1 ORDER BY key"""
        pairs = 0
        note_of(out).unlink(missing_ok=True)  # until both are of this call
        with replacing(out) as part, parquet.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
            for batch in batches(connection, query):
                writer.write_table(pa.Table.from_batches([batch]).cast(SCHEMA))
                pairs += batch.num_rows
        counts = _counts(connection, rows, recipe, pairs)
        content: dict[str, Any] = {
            "step": "pairs",
            "made_from": step.digest,
            "recipe": asdict(recipe),
            "counts": counts,
        }
        write_sealed(note_of(out), {**content, "sha256": file_digest(out)})
    return counts


def _signs() -> str:
    """What near duplicates have in common, of their runs' hashes, in SQL: a list with a number for each group."""
    orders = [int.from_bytes(hashlib.sha256(b"%d" % n).digest()[:8], "big") for n in range(_GROUPS * _ROWS)]
    firsts = [f"list_min(list_transform(runs, lambda run: xor(run, {order}::UBIGINT)))" for order in orders]
    groups = [", ".join(firsts[n * _ROWS : (n + 1) * _ROWS]) for n in range(_GROUPS)]
    return "[" + ", ".join(f"hash({n}, {group})" for n, group in enumerate(groups)) + "]"


def _counts(connection: Any, rows: str, recipe: PairsRecipe, pairs: int) -> dict[str, int]:
    ((sentences, pictures, good, able),) = connection.execute(
        "SELECT coalesce(sum(here), 0)::BIGINT, count(*), coalesce(sum(above), 0)::BIGINT, count(*) FILTER (above > 0) "
        f"FROM (SELECT count(*) AS here, count(*) FILTER (relevance >= {recipe.relevance}) AS above "
        f"FROM {rows} GROUP BY key)"
    ).fetchall()
    return {
        "sentences": sentences,
        "sentences: below the threshold": sentences - good,
        "pictures": pictures,
        "pictures: no sentence above the threshold": pictures - able,
        "pictures: only sentences that too many share": able - pairs,
        "pairs": pairs,
    }
