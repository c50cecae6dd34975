"""What a program says while it works: one logger, one progress line, one form of a line.

At a terminal, alone, a line is as its author wrote it, and progress is a bar. Elsewhere (several ranks, a Slurm job, a
file) each line begins with the time, and with rank and host where there are several ranks: `23:03:13 [3 node7] ...`;
progress is a line now and then. What all ranks find alike rank 0 says alone.

A command's answer goes to stdout and has no prefix, nor has the line that a process ends with (endings.py).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from imagebert.launch import rank_and_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Item = TypeVar("Item")

# For a warning's `extra`: all ranks find it alike, and rank 0 says it.
BY_RANK_0 = {"by_rank_0": True}

_SECONDS = 30.0  # between lines of progress


class Place(NamedTuple):
    """Where a process is among those of its job."""

    rank: int
    ranks: int
    host: str
    in_job: bool  # of Slurm

    @property
    def shared(self) -> bool:
        """Whether a line has to say whose it is."""
        return self.ranks > 1 or self.in_job


def place(env: Mapping[str, str] = os.environ) -> Place:
    rank, ranks = rank_and_size(env)
    return Place(rank, ranks, env.get("SLURMD_NODENAME") or socket.gethostname(), "SLURM_JOB_ID" in env)


def is_told_by_lines() -> bool:
    """Whether lines have prefixes: elsewhere than at a terminal, alone."""
    return place().shared or sys.stderr is None or not sys.stderr.isatty()


def prefix() -> str:
    if not is_told_by_lines():
        return ""
    here = place()
    return time.strftime("%H:%M:%S ") + (f"[{here.rank} {here.host}] " if here.ranks > 1 else "")


def say(text: str) -> None:
    """Writes a line of progress to stderr.

    Raises:
        OSError: it goes to a file on a full disk.
    """
    before = prefix()
    sys.stderr.write("".join(f"{before}{line}\n" for line in text.splitlines()))
    sys.stderr.flush()


def set_up() -> None:
    """From now on what modules log is said; again does nothing."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Handler()], format="%(message)s")
    logging.getLogger("imagebert").setLevel(logging.INFO)
    if is_told_by_lines():
        logging.captureWarnings(True)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        common = record.levelno < logging.WARNING or getattr(record, "by_rank_0", False)
        if common and place().rank > 0:
            return
        with suppress(OSError, ValueError):  # a full disk, a stream that is closed
            say(self.format(record))


class Progress:
    """How far long work is: a bar at a terminal, elsewhere a line every half minute, though no item should end.

    Args:
        what: a word or two, such as Scoring
        total: of the units; None: not known
        unit: that is counted
        scale: of one unit shown, such as 1e9 where bytes are counted and GB shown
        enabled: off on ranks that need not tell

    Attributes:
        done: units so far
        note: what stands behind them
    """

    def __init__(
        self, what: str, total: float | None, unit: str = "", *, scale: float = 1, enabled: bool = True
    ) -> None:
        self.what, self.total, self.unit, self._scale = what, total, unit, scale
        self.done, self.note = 0.0, ""
        self._enabled = enabled and place().rank == 0
        self._first: float | None = None
        self._bar: Bar | None = None
        self._task: Any = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        self._first = self.done
        if not self._enabled:
            return self
        if is_told_by_lines():
            self._thread = threading.Thread(target=self._tell, daemon=True)
            self._thread.start()
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            plain = TextColumn("{task.fields[text]}", markup=False)
            name = TextColumn("{task.description}", markup=False)
            self._bar = Progress(name, BarColumn(), plain, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, text="")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, note: str = "") -> None:
        self.done, self.note = done, note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self.text(time.perf_counter() - self._begun, False))

    def text(self, seconds: float, left: bool = True) -> str:
        """Count of total, a second, time left, after so many seconds."""
        scale = self._scale
        shown = ".2f" if scale != 1 else ".0f"
        of = f" of {self.total / scale:,{shown}}" if self.total is not None else ""
        rate = (self.done - (self._first or 0)) / max(seconds, 1e-9)
        text = f"{self.done / scale:,{shown}}{of}{' ' * bool(self.unit)}{self.unit}, {_figures(rate / scale)} a second"
        if left and self.total is not None and rate > 0:
            rest = int(max(0.0, self.total - self.done) / rate)
            text += f", {rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d} left"
        return text + (f", {self.note}" if self.note else "")

    def _tell(self) -> None:
        while not self._ended.wait(_SECONDS):
            with suppress(OSError, ValueError):
                say(f"{self.what}: {self.text(time.perf_counter() - self._begun)}")


def _figures(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def track(items: Iterable[Item], what: str, unit: str = "", total: int | None = None) -> Iterator[Item]:
    """The items, while it is shown how many have been taken."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, unit) as progress:
        for number, item in enumerate(items, 1):
            yield item
            progress.update(number)
