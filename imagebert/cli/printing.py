"""What commands print, as tables, and write as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def is_first() -> bool:
    """Whether this process is rank 0, or alone: the one that prints what all found."""
    from imagebert.log import place

    return place().rank == 0


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row for each mapping, a column for each of the first one's keys."""
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    _console(None if sys.stdout.isatty() else 10_000).print(table)  # a file has no width


def print_report(title: str, figures: Mapping[str, Any]) -> None:
    """A row for each figure."""
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    _console().print(table)


def print_tables(tables: Sequence[Any]) -> None:
    """Tables of rich, as they are."""
    console = _console(None if sys.stdout.isatty() else 130)  # a file has no width
    for table in tables:
        console.print(table)


def print_transferred(done: Any, out: Path) -> None:
    """What became of the images that came, where this process is the first."""
    if is_first():
        padding = f", {done.padding} rows of padding left out" if done.padding else ""
        print(f"{done.came} images: {done.stored} stored in {out}, {done.refused} refused{padding}")


def print_recall(figures: Mapping[str, Any]) -> None:
    """R@K both ways, with what chance, two steps and the paper have."""
    from rich.table import Table

    cutoffs, paper = ("r1", "r5", "r10"), figures.get("paper")
    folds = f", mean of {figures['folds']} folds" if figures["folds"] > 1 else ""
    title = f"{figures['images']} images, {figures['captions']} captions{folds}; R-sum {figures['rsum']:.1f}"
    table = Table("", "R@1", "R@5", "R@10", "median", "mean rank", title=title)
    for way, name in (("ir", "text finds image"), ("tr", "image finds text")):
        row, luck = figures[way], figures["chance"][way]
        table.add_row(name, *(f"{row[k]:.1f}" for k in cutoffs), f"{row['median_rank']:.0f}", f"{row['mean_rank']:.1f}")
        table.add_row("  95 % interval", *("{:.1f}-{:.1f}".format(*row["interval"][k]) for k in cutoffs), "", "")
        table.add_row("  by chance", *(f"{luck[k]:.1f}" for k in cutoffs), "", "")
        two_step = figures.get("two_step", {})
        for name, found in (("two steps", two_step), ("vectors alone", two_step.get("vectors"))):
            if found and (name != "two steps" or "speed_up" in two_step):  # else it is the row above
                ranks = f"{found[way]['median_rank']:.0f}", f"{found[way]['mean_rank']:.1f}"
                table.add_row(f"  {name}", *(f"{found[way][k]:.1f}" for k in cutoffs), *ranks)
        if paper:
            table.add_row("  the paper", *(f"{paper[way][k]:.1f}" for k in cutoffs), "", "")
    _console().print(table)
    if "two_step" in figures:
        two = figures["two_step"]
        beside = "; no other pairs are scored"
        if "speed_up" in two:
            recall = " and ".join(f"{two[way]['recall_of_exact_top_10']:.1f} %" for way in ("ir", "tr"))
            beside = f", {two['speed_up']:.1f} times as fast; {recall} of the exact top 10 are among them"
        print(f"with {two['candidates']} candidates a query: {two['pairs']:,} pairs, {two['seconds']:.1f} s{beside}")


def print_plan(plan: Any) -> None:
    """What work takes on a cluster (imagebert.api.ClusterEstimate), what more GPUs bring, what was taken on trust."""
    from rich.table import Table

    table = Table("", "", "", title=plan.title)
    for group, rows in plan.figures.items():
        if isinstance(rows, dict):
            for number, (name, value) in enumerate(rows.items()):
                shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
                table.add_row(group * (number == 0), name, shown)
            table.add_section()
    print_tables([table, *([_table_of_sizes(plan.sizes)] if plan.sizes else [])])
    if plan.sizes and plan.knee is None:
        print(f"up to {plan.sizes[-1].gpus:,} GPUs twice as many are at least 1.2 times as fast")
    elif plan.sizes:
        print(f"from {plan.knee:,} GPUs on more do not pay: twice as many gain less than 20 %")
    for note in plan.notes:
        print(f"note: {note}")


def _table_of_sizes(sizes: Sequence[Any]) -> Any:
    from rich.table import Table

    training = sizes[0].milliseconds > 0
    table = Table("GPUs", "hours", "efficiency", title="the same on more GPUs")
    for name in ("a step, ms", "microbatches a GPU", "memory") if training else ():
        table.add_column(name)
    for size in sizes:
        efficiency = sizes[0].hours * sizes[0].gpus / (size.hours * size.gpus)
        step = f"{size.milliseconds:,.4g}", f"{size.microbatches}", "fits" if size.fits else "is too small"
        table.add_row(f"{size.gpus:,}", f"{size.hours:,.4g}", f"{efficiency:.0%}", *(step if training else ()))
    return table


def check_json(path: Path | None) -> None:
    """Before long work: can the file be written that its figures go into?

    Raises:
        UsageError: it cannot.
    """
    from imagebert.files import check_writable

    if path is not None:
        check_writable(path)


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes figures, where a file for them is named.

    Raises:
        UsageError: it cannot be written.
    """
    from imagebert import files

    if path is not None:
        check_json(path)
        files.write_json(path, figures)


def _console(width: int | None = None) -> Any:
    """Where tables are printed: names and words from outside stand there as they are."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # it is called where that is caught; rich would end the process

    return Plain(width=width, markup=False, emoji=False, highlight=False)
