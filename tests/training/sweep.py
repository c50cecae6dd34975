"""Several runs of tests/recipe.yaml in one process group over gloo: a start costs more than a run.

`train_all` starts the ranks, and `main` is what they do. SKEWED_RANK names a rank whose clock is an hour ahead.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imagebert.config import SourceConfig, load_recipe
from imagebert.training.run import run
from tests.forked import finish, start_ranks


class Training(NamedTuple):
    """One of the runs: the folder it goes to, in that of all, what differs from the recipe, and where it stops."""

    name: str
    settings: list[str]
    stop_at: int | None = None


def train_all(ranks: int, folder: Path, source: SourceConfig, trainings: Iterable[Training], **env: str) -> None:
    code = "from tests.training.sweep import main; main()"
    given = json.dumps(list(trainings))
    finish(start_ranks(ranks, code, folder, source.regions, source.pairs, given, **env), timeout=540)


def main() -> None:
    folder, regions, pairs, given = sys.argv[1:]
    if os.environ.get("SKEWED_RANK") == os.environ["RANK"]:
        true_time = time.time
        time.time = lambda: true_time() + 3600
    data = [f"data.sources.0.regions={regions}", f"data.sources.0.pairs={pairs}"]
    for name, settings, stop_at in json.loads(given):
        run(load_recipe("tests/recipe.yaml", [f"output={folder}/{name}", *data, *settings]), stop_at=stop_at)
