"""Worker of test_run.py: trains one recipe several times in this process group, once per setting.

    sweep.py FOLDER REGIONS PAIRS SETTING...

A SETTING is `name:key=value,key=value`; the run goes to FOLDER/name. `name@12:...` stops after 12 steps.
SKEWED_RANK names a rank whose clock is an hour ahead.
"""

from __future__ import annotations

import os
import sys
import time

from imagebert.config import load_recipe
from imagebert.training.run import run


def main() -> None:
    folder, regions, pairs, *settings = sys.argv[1:]
    if os.environ.get("SKEWED_RANK") == os.environ["RANK"]:
        true_time = time.time
        time.time = lambda: true_time() + 3600
    data = [f"data.sources.0.regions={regions}", f"data.sources.0.pairs={pairs}"]
    for setting in settings:
        target, _, overrides = setting.partition(":")
        name, _, stop = target.partition("@")
        settings = [f"output={folder}/{name}", *data, *filter(None, overrides.split(","))]
        run(load_recipe("tests/recipe.yaml", settings), stop_at=int(stop) if stop else None)


if __name__ == "__main__":
    main()
