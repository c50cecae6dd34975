"""What commands print, as tables, and write as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from imagebert.errors import UsageError


def tables_console(width: int | None = None) -> Any:
    """Where tables are printed: names and words from outside stand there as they are."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # it is called where that is caught; rich would end the process

    return Plain(width=width, markup=False, emoji=False, highlight=False)


def print_recall(figures: dict[str, Any], paper: dict[str, dict[str, float]] | None) -> None:
    from rich.table import Table

    cutoffs = ("r1", "r5", "r10")
    folds = f", mean of {figures['folds']} folds" if figures["folds"] > 1 else ""
    title = f"{figures['images']} images, {figures['captions']} captions{folds}; R-sum {figures['rsum']:.1f}"
    table = Table("", "R@1", "R@5", "R@10", "median", "mean rank", title=title)
    for way, name in (("ir", "text finds image"), ("tr", "image finds text")):
        row, luck = figures[way], figures["chance"][way]
        table.add_row(name, *(f"{row[k]:.1f}" for k in cutoffs), f"{row['median_rank']:.0f}", f"{row['mean_rank']:.1f}")
        table.add_row("  95 % interval", *("{:.1f}-{:.1f}".format(*row["interval"][k]) for k in cutoffs), "", "")
        table.add_row("  by chance", *(f"{luck[k]:.1f}" for k in cutoffs), "", "")
        if "two_step" in figures:
            two = figures["two_step"][way]
            ranks = f"{two['median_rank']:.0f}", f"{two['mean_rank']:.1f}"
            table.add_row("  two steps", *(f"{two[k]:.1f}" for k in cutoffs), *ranks)
        if paper:
            table.add_row("  the paper", *(f"{paper[way][k]:.1f}" for k in cutoffs), "", "")
    tables_console().print(table)


def print_report(title: str, figures: dict[str, Any], path: Path | None) -> None:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    tables_console().print(table)
    write_json(path, figures)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    tables_console(None if sys.stdout.isatty() else 10_000).print(table)  # a file has no width


def check_writable(path: Path | None) -> None:
    """Before long work: can the file that it ends in be written?"""
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without waiting for whoever would read from a pipe.
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        check_writable(path)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
