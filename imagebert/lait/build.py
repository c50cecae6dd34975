"""Step 1 for a folder of archives: which there are, and a task for each."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from imagebert.errors import UsageError
from imagebert.lait.engine import Done, Engine, Task, identity_of, run_step
from imagebert.lait.pages import read_archive
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import LaitRecipe
from imagebert.lait.warc import SUFFIXES


def archives_of(paths: list[Path]) -> list[Path]:
    """The WARC files that were named, and those below folders that were, sorted.

    Raises:
        UsageError: there is none.
    """
    found = set[Path]()
    for path in paths:
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES) and file.is_file())
            found |= {file.absolute() for file in below if file.name[0] != "."}
        elif path.is_file():
            found.add(path.absolute())
        else:
            raise UsageError(f"{path} is neither a WARC file nor a folder of some")
    if not found:
        raise UsageError(f"{', '.join(map(str, paths))}: there is no .warc and no .warc.gz below")
    return sorted(found)


def read_pages(crawl: list[Path], out: Path, recipe: LaitRecipe, engine: Engine) -> Done:
    """Step 1 for every archive: a task each, whose name stays when others come to the crawl.

    Raises:
        UsageError: there is no archive.
        OSError: the disk is full or fails, or a process was killed.
    """
    archives = archives_of(crawl)
    ranker = Ranker()
    names = [name_of(archive) for archive in archives]
    tasks = [
        Task(name, identity_of(archive), (archive, recipe, ranker))
        for name, archive in sorted(zip(names, archives, strict=True))
    ]
    source = [asdict(recipe.pages), asdict(recipe.sentences), ranker.digest]
    return run_step("pages", out, read, tasks, source, engine)


def read(archive: Path, recipe: LaitRecipe, ranker: Ranker, out: Path) -> dict[str, int]:
    """Reads one archive into OUT.parquet."""
    return read_archive(archive, out.with_name(f"{out.name}.parquet"), recipe, ranker)


def name_of(archive: Path) -> str:
    """A name of its own, whatever else is in the crawl: the file's, and some digits of where it lies."""
    stem = archive.name.split(".warc")[0][:60]
    return f"{stem}-{hashlib.sha256(str(archive.absolute()).encode()).hexdigest()[:8]}"
