"""The demo: corpus, the paper's ladder of pre-training (Table 3) at small scale, fine-tuning, exact R@K, a report.

The rungs are those of ladders/demo.yaml, side by side on the cores that there are. Stopped at any point, the same
command goes on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from imagebert.config import SourceConfig
from imagebert.demo.corpus import SETS, build
from imagebert.demo.report import write_report
from imagebert.demo.stages import Stages
from imagebert.files import write_json
from imagebert.ladder import climb, last_matrix, load_ladder, tables
from imagebert.log import has_board
from imagebert.retrieval.matrix import load_scores
from imagebert.side_by_side import train_side_by_side


def run_demo(out: Path, seed: int, overrides: Sequence[str] = (), web: bool = False) -> dict[str, Any] | None:
    """Runs the whole demo into `out`; returns what it also writes as report.json, or None if it was asked to stop.

    `seconds` are those of this call: less than the whole where an earlier call had got somewhere.

    Args:
        overrides: key=value for every run
        web: the weak set is built from pages, as LAIT is
    """
    console = Console(stderr=True, markup=False, emoji=False)  # the folder's name comes from outside
    begun = time.perf_counter()
    ladder, settings, data = load_ladder("demo"), [f"seed={seed}", *overrides], out / "data"
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        tell: Callable[[str], None] = partial(print, file=sys.stderr)
        stages: Stages | None = None
        if has_board():
            out.mkdir(parents=True, exist_ok=True)
            stages = stack.enter_context(Stages(out, ladder, sum(images for images, _ in SETS.values())))
            tell = stages.tell
        else:
            console.rule("Corpus: rendered scenes, their regions, their captions")
        build(data, seed, web)
        if stages is not None:
            stages.corpus_is_done()
        if not train_side_by_side("demo", ladder, out, data, cores, settings, tell):
            return None
    figures = climb(ladder, out, data, [seed], overrides)  # all is trained and scored: it is put together
    if figures is None:
        return None
    rungs = [
        {"name": rung["name"], "run": rung["run"], **{key: rung["seeds"][0][key] for key in ("ir", "tr", "steps")}}
        for rung in figures["rungs"]
    ]
    report = {
        "chance": figures["chance"],
        "ladder": rungs,
        "seconds": time.perf_counter() - begun,
        "seed": seed,
        "web": web,
    }
    test = SourceConfig(regions=str(out / "data/test/regions"), pairs=str(out / "data/test/pairs"), split="test")
    write_report(out, report, load_scores(last_matrix(figures)), test, [rung["run"] for rung in rungs])
    write_json(out / "report.json", report)
    for table in tables(figures):
        console.print(table)
    console.print(f"{report['seconds']:.0f} s. Open {out / 'report.html'} in a browser.")
    return report
