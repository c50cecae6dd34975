"""The demo's page: one HTML file with the ladder, the loss curves, and pictures of what retrieval found."""

from __future__ import annotations

import base64
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from imagebert import __version__
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.engine.metrics import read_log
from imagebert.files import write_bytes
from imagebert.pages.page import render
from imagebert.pages.plots import Curve, bars, plot
from imagebert.report.write import LOSSES
from imagebert.retrieval.matrix import ScoreMatrix

_QUERIES = 8


def write_report(out: Path, report: dict[str, Any], matrix: ScoreMatrix, test: SourceConfig, runs: list[str]) -> None:
    """Writes out/report.html from the figures of `report` and the score matrix of the last rung."""
    corpus = Corpus([test])
    pictures = Path(test.regions).parent / "images"
    encoded = [
        base64.b64encode((pictures / corpus.image_key(i)).read_bytes()).decode("ascii") for i in range(corpus.images)
    ]
    # Queries spread over the test set, not picked by how well they went.
    captions = np.linspace(0, len(corpus) - 1, _QUERIES).astype(int)
    images = np.linspace(0, corpus.images - 1, _QUERIES).astype(int)
    by_text = [
        {
            "text": corpus.text(c),
            "found": [
                {"picture": encoded[i], "right": bool(matrix.caption_image[c] == i)}
                for i in np.argsort(-matrix.scores[:, c], kind="stable")[:5]
            ],
        }
        for c in captions
    ]
    by_image = [
        {
            "picture": encoded[i],
            "found": [
                {"text": corpus.text(c), "right": bool(matrix.caption_image[c] == i)}
                for c in np.argsort(-matrix.scores[i], kind="stable")[:5]
            ],
        }
        for i in images
    ]
    page = render(
        "imagebert.demo",
        "report.html.j2",
        report=report,
        ladder=_ladder(report),
        losses=_curves(out, [run for run in runs if run != "finetune"]),
        finetuning=_curves(out, ["finetune"]),
        by_text=by_text,
        by_image=by_image,
        images=corpus.images,
        captions=len(corpus),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        version=__version__,
    )
    write_bytes(out / "report.html", page.encode())


def _ladder(report: dict[str, Any]) -> list[Markup]:
    plots = []
    for way, title in (("ir", "text finds image"), ("tr", "image finds text")):
        rows = [(rung["name"], rung[way]["r1"]) for rung in report["ladder"]]
        plots.append(bars(f"R@1, {title}, % (line: chance)", rows, report["chance"][way]["r1"], most=5))
    return plots


def _curves(out: Path, runs: list[str]) -> list[Markup]:
    """A plot for each part of the loss, or of the whole where it has none that is shown, with a curve a run."""
    logs = {run: read_log(out / run / "log.jsonl") for run in runs}
    logged = {name for lines in logs.values() for line in lines for name in line}
    names = [name for name in ("mlm", "moc", "mrfr", "itm") if f"loss/{name}" in logged] or ["total"]
    plots = []
    for name in names:
        key = f"loss/{name}"  # a step that was skipped has none
        curves = [
            Curve(run, [(line["step"], line[key]) for line in lines if key in line], number)
            for number, (run, lines) in enumerate(logs.items())
        ]
        plots.append(plot(LOSSES[name], curves))
    return plots
