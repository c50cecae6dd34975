"""The demo: corpus, the paper's ladder of pre-training (Table 3) at small scale, fine-tuning, exact R@K, a report.

The rungs are the recipes demo_*.yaml of the package. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imagebert.config import SourceConfig, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.demo.corpus import build
from imagebert.demo.report import write_report
from imagebert.feed.packer import Limits
from imagebert.retrieval.evaluation import score_corpus
from imagebert.retrieval.metrics import evaluate
from imagebert.retrieval.scoring import ScoreMatrix
from imagebert.training.run import run

# A rung: its run folder, what it is, its recipe, the sets it trains on, further settings ({out}: the demo's folder).
_RUNGS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("stage1", "after stage 1 only (weak pairs)", "demo_stage1", ("weak",), ()),
    (
        "stage2_only",
        "after stage 2 only (clean pairs)",
        "demo_stage2",
        ("clean",),
        ("model.preset=tiny", "model.initialize_from=null", "stage=demo-stage2-only"),
    ),
    ("mixed", "after both mixed in one stage", "demo_mixed", ("weak", "clean"), ()),
    ("stage2", "after both, in two stages", "demo_stage2", ("clean",), ("model.initialize_from={out}/stage1",)),
    ("finetune", "two stages, then fine-tuned", "demo_finetune", ("train",), ("model.initialize_from={out}/stage2",)),
)
LIMITS = Limits(max_regions=8, max_words=41, whole_image=True)


def run_demo(out: Path, seed: int) -> dict[str, Any] | None:
    """Runs the whole demo into `out`; returns what it also writes as report.json, or None if it was asked to stop.

    `seconds` are those of this call: less than the whole where an earlier call had got somewhere.
    """
    console = Console(stderr=True)
    begun = time.perf_counter()
    console.rule("Corpus: rendered scenes, their regions, their captions")
    build(out / "data", seed)

    ladder: list[dict[str, Any]] = []
    test = SourceConfig(regions=str(out / "data/test/regions"), pairs=str(out / "data/test/pairs"), split="test")
    matrix: ScoreMatrix | None = None
    for name, title, recipe, sets, settings in _RUNGS:
        console.rule(f"{name}: {title}")
        started = time.perf_counter()
        overrides = [f"output={out / name}", f"seed={seed}", *(o.format(out=out) for o in settings)]
        for number, data in enumerate(sets):
            overrides += [f"data.sources.{number}.{kind}={out}/data/{data}/{kind}" for kind in ("regions", "pairs")]
        config = load_recipe(recipe, overrides)
        if not run(config).finished:
            return None
        corpus = Corpus([test])
        matrix = score_corpus(out / name / "model", corpus, LIMITS, corpus.images)
        figures = evaluate(matrix.scores, matrix.caption_image)
        ladder.append(
            {
                "name": title,
                "ir": figures["ir"],
                "tr": figures["tr"],
                "steps": config.schedule.steps,
                "seconds": time.perf_counter() - started,
            }
        )
        chance = figures["chance"]
    assert matrix is not None
    report = {"chance": chance, "ladder": ladder, "seconds": time.perf_counter() - begun, "seed": seed}
    write_report(out, report, matrix, test, [name for name, *_ in _RUNGS])
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(_table(report))
    console.print(f"{report['seconds']:.0f} s. Open {out / 'report.html'} in a browser.")
    return report


def _table(report: dict[str, Any]) -> Table:
    table = Table(title="100 test images, 500 captions: R@1 / R@5 / R@10, percent")
    for column in ("", "text to image", "image to text"):
        table.add_column(column, justify="left" if not column else "right")
    for rung in [{"name": "chance", **report["chance"]}, *report["ladder"]]:
        cells = (" / ".join(f"{rung[way][k]:.1f}" for k in ("r1", "r5", "r10")) for way in ("ir", "tr"))
        table.add_row(rung["name"], *cells)
    return table
