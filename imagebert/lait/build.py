"""Step 1 for a folder of archives: which there are, and a task for each."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

from imagebert.errors import UsageError
from imagebert.files import walk
from imagebert.lait.engine import Done, Engine, Task, identity_of, run_step
from imagebert.lait.pages import read_archive
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import LaitRecipe
from imagebert.lait.warc import SUFFIXES

_CODE = 1  # raised with a version that finds other things on the same pages, so that they are read anew


def archives_of(paths: list[Path]) -> list[tuple[str, Path]]:
    """The WARC files that were named, and those below folders that were, each with a name, sorted by it.

    Names are the same wherever the crawl lies, and stay when others come to it.

    Raises:
        UsageError: there is none.
    """
    found = dict[Path, str]()
    for path in paths:
        if path.is_dir():
            for file in (place / name for place, names in walk(path) for name in names):
                if file.name[0] != "." and file.name.lower().endswith(SUFFIXES) and file.is_file():
                    found.setdefault(file.absolute(), name_of(file.relative_to(path)))
        elif path.is_file():
            found.setdefault(path.absolute(), name_of(Path(path.name)))
        else:
            raise UsageError(f"{path} is neither a WARC file nor a folder of some")
    if not found:
        raise UsageError(f"{', '.join(map(str, paths))}: there is no .warc and no .warc.gz below")
    return sorted((name, path) for path, name in found.items())


def read_pages(crawl: list[Path], out: Path, recipe: LaitRecipe, engine: Engine) -> Done:
    """Step 1 for every archive: a task each.

    Raises:
        UsageError: there is no archive, or two have one place below the folders that were named.
        OSError: the disk is full or fails, or a process was killed.
    """
    ranker = Ranker()
    tasks = [Task(name, identity_of(archive), (archive, recipe, ranker)) for name, archive in archives_of(crawl)]
    source = [asdict(recipe.pages), asdict(recipe.sentences), ranker.digest, _CODE]
    return run_step("pages", out, read, tasks, source, engine)


def read(archive: Path, recipe: LaitRecipe, ranker: Ranker, out: Path) -> dict[str, int]:
    """Reads one archive into OUT.parquet."""
    return read_archive(archive, out.with_name(f"{out.name}.parquet"), recipe, ranker)


def name_of(place: Path) -> str:
    """A name for an archive by its place below the crawl: the file's, and some digits of the folders' around it.

    Raises:
        UsageError: its name is no text.
    """
    try:
        stem = place.name.split(".warc")[0].encode().decode()[:60]
    except UnicodeEncodeError:
        raise UsageError(f"the name of the archive {str(place)!a} is no text: give it one in UTF-8") from None
    return f"{stem}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
