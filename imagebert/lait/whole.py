"""Whether what the steps of LAIT wrote is as it was: what `imagebert verify` looks at. Needs no package of theirs.

A step's folder has step.json and a note for each task (engine.py); a table of pairs, NAME.parquet, has NAME.json.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from imagebert.errors import UsageError
from imagebert.files import file_digest, read_sealed
from imagebert.lait.engine import NOTE, STEP

TABLE = "pairs.parquet"


def note_of(table: Path) -> Path:
    """What says of a table of pairs what it was made from."""
    return table.with_suffix(".json")


def holds_step(folder: Path, names: Set[str]) -> bool:
    """Whether a folder of these files is a step's, also where its step.json is gone."""
    tables = sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))
    return STEP in names or any(f"{name}.json" in names and _is_note(folder / f"{name}.json") for name in tables)


def _is_note(path: Path) -> bool:
    try:
        return read_sealed(path).keys() == NOTE
    except UsageError:
        return False


def holds_table(names: Set[str]) -> bool:
    """Whether a folder of these files has a table of pairs, also where one of its two files is gone."""
    both = {TABLE, note_of(Path(TABLE)).name}
    return both <= names or (bool(both & names) and "scored" in names)


def check_table(folder: Path) -> int:
    """How many pairs the table of a folder has, after it was compared with its digest.

    Raises:
        UsageError: it or its note has changed, or is gone.
    """
    table, cure = folder / TABLE, "make it again by `imagebert lait pairs`"
    content = read_sealed(note_of(table), cure)
    if content.get("step") != "pairs":
        raise UsageError(f"{note_of(table)} is another file of this program: {cure}")
    if not table.is_file() or content.get("sha256") != file_digest(table):
        raise UsageError(f"{table} has changed since it was written, or is gone: {cure}")
    pairs: int = content["counts"]["pairs"]
    return pairs
