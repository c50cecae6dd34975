"""What a program says while it works: one logger, one progress line, one form of a line, one table that is live.

At a terminal, alone, a line is as its author wrote it, progress is a bar, and long work may show a table (`Board`)
below the lines. Elsewhere (several ranks, a Slurm job, a file) each line begins with the time, and with rank and host
where there are several ranks: `23:03:13 [3 node7] ...`; progress is a line now and then. What all ranks find alike
rank 0 says alone.

A command's answer goes to stdout and has no prefix, nor has the line that a process ends with (endings.py).
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from imagebert.launch import rank_and_size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
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


def has_board() -> bool:
    """Whether a table can be live here: at a terminal, alone, that moves its cursor."""
    return not is_told_by_lines() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


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


class Board:
    """What is shown at a terminal while long work goes on: drawn anew four times a second, and left there at the end.

    Lines that are said meanwhile stand above it, progress that begins meanwhile is a line below it. There is one at a
    time, and only where `has_board`.

    Args:
        draw: what is to be seen now; called in a thread of its own
    """

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw = draw
        self._live: Live | None = None
        self._below: list[Progress] = []

    def start(self) -> None:
        """Shows it; again does nothing."""
        global _board
        if self._live is not None:
            return
        from rich.live import Live

        console = _terminal()
        self._live = Live(console=console, get_renderable=self._all, redirect_stdout=_shares_terminal())
        self._live.start()
        console.show_cursor(True)
        _board = self

    def stop(self) -> None:
        """Draws it for the last time; what is said from now on stands below. Without a start does nothing."""
        global _board
        if self._live is not None:
            _board, live, self._live = None, self._live, None
            with suppress(OSError):  # a terminal that is gone
                live.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _all(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        return Group(self._draw(), *(Text(f"{p.what}: {p.told()}", no_wrap=True) for p in self._below))


_board: Board | None = None  # what this process' terminal shows


def _terminal() -> Console:
    """Standard error; names from outside stand there as they are.

    rich hides the cursor until its end, which who is killed does not come to: whoever starts a display shows it again.
    """
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def _shares_terminal() -> bool:
    """Whether what is printed comes to a terminal too; a file has to get it."""
    return sys.stdout is not None and sys.stdout.isatty()


_LEVELS = "▁▂▃▄▅▆▇█"


def trend(values: Sequence[float], width: int = 24) -> str:
    """Values from first to last as blocks between their least and their largest, means where they are many."""
    if not values:
        return ""
    width = min(width, len(values))
    cuts = [len(values) * n // width for n in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    if not high - low > 0:
        return _LEVELS[0] * width
    return "".join(_LEVELS[min(7, int(8 * (mean - low) / (high - low)))] for mean in means)


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
        self._board: Board | None = None
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
        elif _board is not None:
            self._board = _board
            self._board._below.append(self)
        else:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            plain = TextColumn("{task.fields[text]}", markup=False)
            name = TextColumn("{task.description}", markup=False)
            self._bar = Progress(
                *(name, BarColumn(), plain, TimeRemainingColumn()),
                console=_terminal(),
                redirect_stdout=_shares_terminal(),
            )
            self._bar.start()
            self._bar.console.show_cursor(True)
            self._task = self._bar.add_task(self.what, total=self.total, text="")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board._below.remove(self)

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

    def told(self) -> str:
        """`text` of the time since it was entered."""
        return self.text(time.perf_counter() - self._begun)

    def _tell(self) -> None:
        while not self._ended.wait(_SECONDS):
            with suppress(OSError, ValueError):
                say(f"{self.what}: {self.told()}")


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
