"""The table of a run that trains, as a terminal shows it: how far it is, and its figures with their trends."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imagebert.log import trend

_KEPT = 4096  # values of a figure at most


class _Row(NamedTuple):
    name: str
    form: str
    scale: float = 1


class _Figure:
    """A figure's values in order: all, or of more than `_KEPT` every second, every fourth, and so on."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.last = 0.0
        self._every, self._seen = 1, 0

    def add(self, value: float) -> None:
        self.last = value
        if self._seen % self._every == 0:
            self.values.append(value)
        self._seen += 1
        if len(self.values) > _KEPT:
            del self.values[1::2]
            self._every *= 2


_RATES = {
    "rate/pairs_per_second": _Row("pairs a second", ",.0f"),
    "rate/tokens_per_second": _Row("tokens a second", ",.0f"),
    "rate/share_of_matmul": _Row("MFU, %", ".1f", 100),
    "rate/share_waiting_for_data": _Row("waiting for data, %", ".1f", 100),
}
_RECALLS = {
    "recall/ir_r1": _Row("R@1, text finds image", ".1f"),
    "recall/tr_r1": _Row("R@1, image finds text", ".1f"),
    "recall/rsum": _Row("R-sum", ".1f"),
}


class RunTable:
    """What is known of a run in training; told by the loop's thread, drawn by another.

    Args:
        name: of the run
        start: steps done before
        total: of the whole run
    """

    def __init__(self, name: str, start: int, total: int) -> None:
        self._name, self._step, self._total = name, start, total
        self._left: float | None = None
        self._figures: dict[str, _Figure] = {}
        self._evaluated = 0
        self._skipped = 0.0
        self._lock = threading.Lock()

    def step(self) -> None:
        """A step more is done."""
        with self._lock:
            self._step += 1

    def add(self, line: Mapping[str, float], left: float) -> None:
        """A line of the log, and the seconds that are left by what went before."""
        with self._lock:
            self._step, self._left = int(line["step"]), left
            self._skipped = line.get("skipped_updates", 0.0)
            for name, value in line.items():
                if (name.startswith("loss/") or name in _RATES or name in _RECALLS) and math.isfinite(value):
                    self._figures.setdefault(name, _Figure()).add(value)
            if "recall/rsum" in line:
                self._evaluated = self._step

    def draw(self) -> RenderableType:
        with self._lock:
            left = "" if self._left is None else f", {_clock(self._left)} left"
            head = Table.grid()
            head.add_row(Text(f"{self._name}: step {self._step:,} of {self._total:,}{left}"))
            head.add_row(ProgressBar(total=self._total, completed=self._step, width=60))
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column()
            table.add_column(justify="right")
            table.add_column(no_wrap=True)
            losses = {name: _Row(name.removeprefix("loss/"), ".4f") for name in self._figures if name[:5] == "loss/"}
            for name, row in {**losses, **_RATES, **_RECALLS}.items():
                if figure := self._figures.get(name):
                    at = f" at step {self._evaluated:,}" if name in _RECALLS else ""
                    table.add_row(row.name, f"{row.scale * figure.last:{row.form}}", trend(figure.values) + at)
            if self._skipped:
                table.add_row("skipped updates", f"{self._skipped:,.0f}", "")
        return Group(head, table)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
