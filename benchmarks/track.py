"""R@K beside throughput: training runs against steps, hours and GPU-hours, and the time that each took to a given R@K.

    python -m benchmarks.track RUN [RUN ...] [--figure ir_r1] [--target 30] [--plot track.png] [--keep FILE.json]

A RUN is a run's folder whose recipe has `evaluation.sources`, or a FILE.json that --keep wrote: so a change can be set
beside what was measured at another commit. Hours are those of training: evaluation and the writing of checkpoints stop
that clock. GPU-hours are hours times ranks, cores' where a CPU trains.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from benchmarks.report import environment
from imagebert.config import UsageError
from imagebert.engine.metrics import read_log

matplotlib.use("Agg")
from matplotlib import pyplot

FIGURES = [f"{way}_r{k}" for way in ("ir", "tr") for k in (1, 5, 10)] + ["rsum"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--figure", choices=FIGURES, default="rsum", help="(%(default)s)")
    parser.add_argument("--target", type=float, help="that it is to reach (the least of the runs' best)")
    parser.add_argument("--plot", type=Path, default=Path("track.png"), help="(%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FILE.json", help="write all curves here, with commit and machine")
    parsed = parser.parse_args()
    try:
        curves = [curve for path in parsed.runs for curve in read(path)]
    except UsageError as error:
        parser.error(str(error))
    target = parsed.target or min(max(p[parsed.figure] for p in curve["points"]) for curve in curves)
    rows = [summary(curve, parsed.figure, target) for curve in curves]
    show(rows, parsed.figure, target)
    draw(curves, parsed.figure, target, parsed.plot)
    print(f"curves in {parsed.plot}")
    if parsed.keep:
        parsed.keep.write_text(json.dumps({"curves": curves, "summary": rows}, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The curves of a run, or those that were kept.

    Raises:
        UsageError: there are none.
    """
    if path.is_file():
        try:
            kept: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["curves"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} holds no curves ({error}): keep some with --keep") from None
        return kept
    points, gpu_hours, before = [], 0.0, 0.0
    rates: dict[str, list[float]] = {}
    for line in read_log(path / "log.jsonl"):
        if "time/seconds" not in line:
            continue
        gpu_hours += (line["time/seconds"] - before) / 3600 * line.get("time/ranks", 1)
        before = line["time/seconds"]
        for name, value in line.items():
            if name.startswith("rate/"):
                rates.setdefault(name.removeprefix("rate/"), []).append(value)
        if all(f"recall/{name}" in line for name in (*FIGURES, "seconds")):
            figures = {name: line[f"recall/{name}"] for name in FIGURES}
            spent = {"step": line["step"], "hours": before / 3600, "gpu_hours": gpu_hours}
            points.append({**spent, **figures, "seconds_evaluating": line["recall/seconds"]})
    if not points:
        raise UsageError(f"{path} has no R@K in its log: name a run whose recipe has evaluation.sources")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    where = environment()
    machine = {key: where[key] for key in ("commit", "date", "processor", "gpu", "versions")}
    return [{"name": path.name, "points": points, "rates": medians, **machine}]


def summary(curve: dict[str, Any], figure: str, target: float) -> dict[str, Any]:
    """One run in a row: how fast it is, how good, and how long it took to the target."""
    points, rates = curve["points"], curve["rates"]
    reached = next((p for p in points if p[figure] >= target), None)
    return {
        "run": curve["name"],
        "commit": curve["commit"][:8],
        "pairs/s": rates.get("pairs_per_second"),
        "of matmul": rates.get("share_of_matmul"),
        "waiting": rates.get("share_waiting_for_data"),
        "evaluating": sum(p["seconds_evaluating"] for p in points) / (3600 * points[-1]["hours"]),
        "best": max(p[figure] for p in points),
        "last": points[-1][figure],
        "hours": points[-1]["hours"],
        "steps to target": reached and reached["step"],
        "hours to target": reached and reached["hours"],
        "GPU-hours to target": reached and reached["gpu_hours"],
    }


def show(rows: list[dict[str, Any]], figure: str, target: float) -> None:
    table = Table(*rows[0], title=f"{figure}, target {target:.1f}; shares are of the time of training")
    for row in rows:
        table.add_row(*map(_text, row.keys(), row.values()))
    Console(width=150).print(table)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "not reached" if "target" in name else ""
    if name in ("of matmul", "waiting", "evaluating"):
        return f"{value:.1%}"
    if name == "pairs/s":
        return f"{value:,.0f}"
    if name in ("best", "last"):
        return f"{value:.1f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(curves: list[dict[str, Any]], figure: str, target: float, path: Path) -> None:
    panels, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), sharey=True)
    for axis, against in zip(axes, ("step", "hours", "gpu_hours"), strict=True):
        for curve in curves:
            points = curve["points"]
            label = f"{curve['name']} ({curve['commit'][:8]})"
            axis.plot([p[against] for p in points], [p[figure] for p in points], marker=".", label=label)
        axis.axhline(target, color="#888888", linewidth=0.8, linestyle="--")
        axis.set_xlabel(against.replace("_", "-"))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(figure)
    axes[0].legend(fontsize=7)
    panels.tight_layout()
    panels.savefig(path, dpi=120)
    pyplot.close(panels)


if __name__ == "__main__":
    main()
