"""The page of a run, or of two side by side: facts, curves by step, attempts, R@K, and how the recipes differ."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from imagebert.files import check_writable, write_bytes
from imagebert.pages.page import render
from imagebert.pages.plots import Curve, plot
from imagebert.report.folder import CUTOFFS, WAYS, Evaluated, Run, differing

FILE = "report.html"
LOSSES = {
    "total": "weighted sum of the losses",
    "mlm": "masked words (MLM)",
    "moc": "masked object classes (MOC)",
    "attributes": "masked attributes of regions",
    "mrfr": "masked features (MRFR)",
    "itm": "image-text matching (ITM)",
    "binary": "binary classification",
    "multiclass": "multi-class classification",
    "triplet": "triplet",
    "dual": "dual head, contrastive",
}


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


class _Panel(NamedTuple):
    """A plot of figures of the log: their names, and how each is called where there are several."""

    title: str
    names: dict[str, str]
    form: Callable[[float], str] = "{:.4g}".format
    zero: bool = True
    scale: float = 1


_SPEED = (
    _Panel("pairs a second", {"rate/pairs_per_second": ""}, _whole),
    _Panel("tokens a second", {"rate/tokens_per_second": ""}, _whole),
    _Panel("share of the matmul rate (MFU), %", {"rate/share_of_matmul": ""}, "{:.3g}".format, scale=100),
    _Panel("time spent waiting for data, %", {"rate/share_waiting_for_data": ""}, "{:.2g}".format, scale=100),
    _Panel("peak memory of rank 0, GiB", {"memory/host_peak_gib": "host", "memory/gpu_peak_gib": "GPU"}),
    _Panel(
        "seconds of a checkpoint",
        {"checkpoint/seconds_paused": "training stands still", "checkpoint/seconds": "whole save"},
    ),
    _Panel("own seconds a step", {"time/own_median": "median rank", "time/own_slowest": "slowest rank"}),
)
_UPDATES = (
    _Panel("learning rate", {"learning_rate": ""}, "{:.3g}".format),
    _Panel("gradient norm", {"gradient_norm": ""}),
    _Panel("skipped updates", {"skipped_updates": ""}, _whole),
    _Panel("damaged records", {"damaged_records": ""}, _whole),
)
_RECALL = (
    *(
        _Panel(f"{title}, %", {f"recall/{way}_r{k}": f"R@{k}" for k in (1, 5, 10)}, "{:.1f}".format)
        for way, title in (("ir", "text finds image"), ("tr", "image finds text"))
    ),
    _Panel("R-sum", {"recall/rsum": ""}, "{:.1f}".format),
)


def write_report(runs: Sequence[Run], out: Path) -> None:
    """Writes the page of one run or two.

    Raises:
        UsageError: it cannot be written there.
        OSError: the disk is full or fails.
    """
    check_writable(out)
    write_bytes(out, page_of(runs).encode())


def page_of(runs: Sequence[Run]) -> str:
    """The HTML."""
    labels = [run.folder.resolve().name for run in runs]
    if len(set(labels)) < len(runs):
        labels = [str(run.folder) for run in runs]
    logged = [name.removeprefix("loss/") for run in runs for line in run.lines for name in line if name[:5] == "loss/"]
    kinds = [*(name for name in LOSSES if name in logged), *sorted(set(logged) - set(LOSSES))]
    losses = [_Panel(LOSSES.get(name, name), {f"loss/{name}": ""}, zero=False) for name in kinds]
    groups = (("Losses", losses), ("R@K while training", _RECALL), ("Speed", _SPEED), ("Updates", _UPDATES))
    plots = [(title, [drawn for panel in panels if (drawn := _draw(panel, runs, labels))]) for title, panels in groups]
    return render(
        "imagebert.report",
        "report.html.j2",
        title=" and ".join(labels),
        labels=labels,
        runs=runs,
        facts=list(_facts(runs)),
        groups=[(title, those) for title, those in plots if those],
        recalls=_recalls(runs, labels),
        differences=[_from_shipped(run) for run in runs],
        between=differing(runs[0].recipe, runs[1].recipe) if len(runs) > 1 else [],
    )


def _draw(panel: _Panel, runs: Sequence[Run], labels: Sequence[str]) -> Markup:
    """A plot: a run a colour where there are two, else a figure a colour."""
    curves = []
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        for index, (name, called) in enumerate(panel.names.items()):
            points = [(step, panel.scale * value) for step, value in run.points(name)]
            if len(runs) > 1:
                curves.append(Curve(" ".join(filter(None, (label, called))), points, number, index))
            else:
                curves.append(Curve(called or "last", points, index))
    if panel.title == "damaged records" and not any(value for curve in curves for _, value in curve.points):
        return Markup()
    again = [float(a.start["step"]) for a in runs[0].attempts[1:] if isinstance(a.start.get("step"), int)]
    span = (0.0, float(max(run.steps for run in runs)))
    return plot(panel.title, curves, form=panel.form, zero=panel.zero, span=span, marks=again * (len(runs) == 1))


def _facts(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Rows of the table at the head: a name, and of each run what there is to say."""

    def start(run: Run) -> dict[str, Any]:
        return next((dict(a.start) for a in reversed(run.attempts) if a.start), {})

    rows: dict[str, Callable[[Run], str]] = {
        "state": lambda run: run.state,
        "steps": lambda run: f"{run.steps:,}" + (f" of {run.total:,}" if run.total else ""),
        "recipe": lambda run: f"nearest of those that ship: {run.shipped[0]}" if run.shipped else "",
        "task, stage": lambda run: ", ".join(str(run.recipe[k]) for k in ("task", "stage") if k in run.recipe),
        "version, commit": lambda run: ", ".join(
            str(v)[:12] for k in ("version", "commit") if (v := start(run).get(k))
        ),
        "ranks": lambda run: (
            "{ranks} on {hosts}".format(**start(run)) if {"ranks", "hosts"} <= start(run).keys() else ""
        ),
        "training": lambda run: _duration(run.last("time/seconds")),
        "waiting for data": _waited,
        "pairs a second, median": lambda run: _median(run, "rate/pairs_per_second", _whole),
        "tokens a second, median": lambda run: _median(run, "rate/tokens_per_second", _whole),
        "share of the matmul rate (MFU), median": lambda run: _median(run, "rate/share_of_matmul", _percent),
        "peak memory of rank 0": lambda run: ", ".join(
            f"{value:.2f} GiB {of}"
            for of in ("host", "gpu")
            if (value := run.last(f"memory/{of}_peak_gib")) is not None
        ).replace("gpu", "GPU"),
        "skipped updates": lambda run: _last(run, "skipped_updates", _whole),
        "damaged records": lambda run: _last(run, "damaged_records", _whole),
        "loss, last": lambda run: _last(run, "loss/total", "{:.4f}".format),
        "R-sum while training, last": lambda run: _last(run, "recall/rsum", "{:.1f}".format),
    }
    for name, say in rows.items():
        if any(cells := [say(run) for run in runs]):
            yield name, cells


def _last(run: Run, name: str, form: Callable[[float], str]) -> str:
    value = run.last(name)
    return "" if value is None else form(value)


def _median(run: Run, name: str, form: Callable[[float], str]) -> str:
    values = [value for _, value in run.points(name)]
    return form(statistics.median(values)) if values else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _waited(run: Run) -> str:
    """Seconds over the run: each line's share of the time since the line before."""
    waited = before = 0.0
    for line in run.lines:
        if "time/seconds" in line:
            waited += line.get("rate/share_waiting_for_data", 0.0) * max(0.0, line["time/seconds"] - before)
            before = line["time/seconds"]
    return f"{waited:.1f} s, {_percent(waited / before)}" if before else ""


def _recalls(runs: Sequence[Run], labels: Sequence[str]) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Of each set that was evaluated its name, the figures of chance, and a row for each evaluation of it."""
    tables: dict[tuple[Any, ...], list[tuple[int, Evaluated]]] = {}
    for number, run in enumerate(runs):
        for evaluated in run.evaluations:
            tables.setdefault(evaluated.of, []).append((number, evaluated))
    found = []
    for (split, images, captions, folds), those in tables.items():
        name = f"{split or 'all'}: {images:,} images, {captions:,} captions"
        rows = [
            {"label": labels[n], "color": n, "name": one.name, "rsum": one.figures["rsum"], "cells": list(_cells(one))}
            for n, one in those
        ]
        many = f", mean of {folds} folds" if folds > 1 else ""
        found.append((name + many, those[0][1].figures["chance"], rows))
    return found


def _cells(evaluated: Evaluated) -> Iterator[tuple[float, str]]:
    """The recalls of a row, each with its 95 % interval where that is told."""
    for way in WAYS:
        for k in CUTOFFS:
            shown = ""
            with suppress(KeyError, TypeError, ValueError, OverflowError):  # of an older version
                low, high = evaluated.figures[way]["interval"][k]
                shown = f"{float(low):.1f}\N{EN DASH}{float(high):.1f}"
            yield evaluated.figures[way][k], shown


def _from_shipped(run: Run) -> list[tuple[str, Any, Any]]:
    return differing(run.shipped[1], run.recipe) if run.shipped else []
