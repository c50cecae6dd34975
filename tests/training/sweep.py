"""Worker of test_run.py: trains one recipe several times in this process group, once per setting.

    python -m torch.distributed.run ... tests/training/sweep.py FOLDER REGIONS PAIRS SETTING...

A SETTING is `name:key=value,key=value`; the run goes to FOLDER/name.
"""

from __future__ import annotations

import sys

from imagebert.config import load_recipe
from imagebert.training.run import run


def main() -> None:
    folder, regions, pairs, *settings = sys.argv[1:]
    data = [f"data.sources.0.regions={regions}", f"data.sources.0.pairs={pairs}"]
    for setting in settings:
        name, _, overrides = setting.partition(":")
        run(load_recipe("tests/recipe.yaml", [f"output={folder}/{name}", *data, *filter(None, overrides.split(","))]))


if __name__ == "__main__":
    main()
