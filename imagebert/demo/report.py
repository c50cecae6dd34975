"""The demo's page: one HTML file with the ladder, the loss curves, and pictures of what retrieval found."""

from __future__ import annotations

import base64
import io
import platform
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jinja2 import Environment, PackageLoader

from imagebert import __version__
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.engine.metrics import read_log
from imagebert.retrieval.matrix import ScoreMatrix

matplotlib.use("Agg")
from matplotlib import pyplot

_LOSSES = {
    "mlm": "masked words (MLM)",
    "moc": "masked object classes (MOC)",
    "mrfr": "masked features (MRFR)",
    "itm": "image-text matching (ITM)",
}
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
    environment = Environment(loader=PackageLoader("imagebert.demo", "."), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        report=report,
        ladder_chart=_ladder(report),
        loss_chart=_curves(out, [run for run in runs if run != "finetune"]),
        finetune_chart=_curves(out, ["finetune"]),
        by_text=by_text,
        by_image=by_image,
        images=corpus.images,
        captions=len(corpus),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        version=__version__,
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _ladder(report: dict[str, Any]) -> str:
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 2.6), sharey=True)
    names = [rung["name"] for rung in report["ladder"]]
    for axis, way, title in ((axes[0], "ir", "text finds image"), (axes[1], "tr", "image finds text")):
        values = [rung[way]["r1"] for rung in report["ladder"]]
        bars = axis.barh(names, values, color=["#b8c4d6"] * (len(names) - 1) + ["#2f6fde"])
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axis.axvline(report["chance"][way]["r1"], color="#c0392b", linewidth=1, linestyle="--")
        axis.set_title(f"R@1, {title} (dashed: chance)", fontsize=9)
        axis.set_xlim(0, max(5, 1.15 * max(values)))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return _svg(figure)


def _curves(out: Path, runs: list[str]) -> str:
    logs = {run: read_log(out / run / "log.jsonl") for run in runs}
    logged = {name for lines in logs.values() for line in lines for name in line}
    names = [f"loss/{n}" for n in _LOSSES if f"loss/{n}" in logged] or ["loss/total"]
    figure, axes = pyplot.subplots(1, len(names), figsize=(2.6 * len(names) + 0.6, 2.3), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for run, lines in logs.items():
            lines = [line for line in lines if name in line]  # a step that was skipped has none
            if not lines:
                continue
            steps, values = [line["step"] for line in lines], np.array([line[name] for line in lines])
            window = max(1, min(9, len(values) // 8))
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axis.plot(steps[window - 1 :], smooth, label=run, linewidth=1.2)
        axis.set_title(_LOSSES.get(name.removeprefix("loss/"), "fine-tuning loss"), fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    if axes[0][0].has_data():
        axes[0][0].legend(fontsize=7)
    return _svg(figure)


def _svg(figure: Any) -> str:
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
