"""Whether what the steps of LAIT wrote is as it was: what `imagebert verify` looks at. Needs no package of theirs.

A step's folder has step.json and a note for each task (engine.py); a table of pairs, NAME.parquet, has NAME.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from imagebert.errors import UsageError
from imagebert.files import file_digest, read_sealed, write_sealed
from imagebert.lait.engine import NOTE, STEP, read_step

TABLE = "pairs.parquet"
# Folders in those of steps, and the file there that says what theirs are.
WANTED, CHOSEN, CHOICE = "wanted", "chosen", "choice.json"
# What each folder of a build is made from, of what lies beside it.
_MADE_FROM = {
    "pictures": ("candidates",),
    "kept/looked": ("pictures",),
    "kept": ("candidates", "kept/looked"),
    "scored": ("kept",),
}


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


def write_choice(folder: Path, content: Mapping[str, Any]) -> None:
    """Says what the tables of a folder are."""
    files = {path.name: file_digest(path) for path in sorted(folder.glob("*.parquet"))}
    write_sealed(folder / CHOICE, {**content, "files": files})


def check_choice(folder: Path) -> int:
    """How many tables a folder has that a step has written for itself, each compared with its digest.

    Raises:
        UsageError: one has changed or is gone.
    """
    if not (folder / CHOICE).is_file():
        return 0
    files: dict[str, str] = read_sealed(folder / CHOICE, "make the step again")["files"]
    for name, digest in files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise UsageError(f"{folder / name} has changed since it was written, or is gone: make the step again")
    return len(files)


def check_build(out: Path) -> None:
    """Compares each step of a build with what it was made from, as far as both are there.

    Raises:
        UsageError: one was made from another than lies there now.
    """
    steps = {name: read_step(out / name) for name in ("candidates", *_MADE_FROM) if (out / name / STEP).is_file()}
    made = [(name, before, steps[name].before) for name in steps for before in _MADE_FROM.get(name, ())]
    if note_of(out / TABLE).is_file():
        content = read_sealed(note_of(out / TABLE), "make it again")
        made.append((TABLE, "scored", (str(content.get("made_from")),)))
    for name, before, digests in made:
        if before in steps and digests and steps[before].digest not in digests:
            raise UsageError(f"{out / name} was made from another {before} than lies there now: make it again")


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
