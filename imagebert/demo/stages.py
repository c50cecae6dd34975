"""The demo's stages as one table of a terminal: the corpus and each rung, done, running or waiting, with its figures.

The rungs are trained by other processes (side_by_side.py): what is said of them is what their folders hold. The lines
that they print go into demo.log, and the last ones of a run that failed to the terminal.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self

from rich.console import RenderableType
from rich.table import Table

from imagebert.engine.metrics import read_log
from imagebert.errors import UsageError
from imagebert.files import read_json
from imagebert.ladder import Ladder
from imagebert.log import Board, say, trend
from imagebert.side_by_side import chains
from imagebert.strict_yaml import read_yaml

FILE = "demo.log"
_SECONDS = 2.0  # between looks into the folders
_TAIL = 15  # lines of a run that failed


class _Stage(NamedTuple):
    state: str
    figures: str = ""
    losses: str = ""


WAITING = _Stage("waiting")


class Stages:
    """Shows the table while it is entered.

    Args:
        out: the demo's folder, which is there
        pictures: of the corpus, all sets together
    """

    def __init__(self, out: Path, ladder: Ladder, pictures: int) -> None:
        self._out, self._ladder, self._pictures = out, ladder, pictures
        self._corpus_done = False
        self._done: dict[str, _Stage] = {}
        self._looked, self._table = -float("inf"), Table()
        self._chain = {rung.run: chain[-1].run for chain in chains(ladder) for rung in chain}  # whose lines a run's are
        self._tails: dict[str, deque[str]] = {}
        self._scoring: dict[str, str] = {}  # what was last said of that, if it was the last that was said
        self._board = Board(self._draw)

    def __enter__(self) -> Self:
        self._file: IO[str] = (self._out / FILE).open("a", encoding="utf-8")
        self._board.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._looked = -float("inf")  # the table that stays is the last state
        self._board.stop()
        self._file.close()
        for run, lines in self._tails.items():
            if f"{run} with " in str(error):
                say("\n".join(lines))

    def corpus_is_done(self) -> None:
        self._corpus_done = True
        self._looked = -float("inf")

    def tell(self, line: str) -> None:
        """A line that a run printed, its name before it."""
        chain = line.partition(":")[0]
        self._tails.setdefault(chain, deque(maxlen=_TAIL)).append(line)
        self._scoring[chain] = line.partition(" Scoring: ")[2]
        with suppress(OSError, ValueError):  # a full disk costs these lines only
            self._file.write(line + "\n")
            self._file.flush()

    def _draw(self) -> RenderableType:
        if time.monotonic() - self._looked < _SECONDS:
            return self._table
        table = Table("", "", "R@1 both ways, or how far", "loss", title=f"imagebert demo, lines in {self._out / FILE}")
        corpus = _Stage("done" if self._corpus_done else "running", f"{self._pictures:,} pictures")
        table.add_row("corpus", *corpus)
        for rung in self._ladder.rungs:
            table.add_row(rung.name, *self._look(rung.run))
        self._table, self._looked = table, time.monotonic()
        return table

    def _look(self, run: str) -> _Stage:
        if run in self._done:
            return self._done[run]
        try:
            stage = _look(self._out / run)
        except (UsageError, OSError, KeyError, TypeError, ValueError):  # half written, or of another call that will say
            return _Stage("running")
        if stage.state == "done":
            self._done[run] = stage
        if stage.figures == "evaluates" and (scored := self._scoring.get(self._chain[run])):
            return stage._replace(figures=f"evaluates: {scored}")
        return stage


def _look(folder: Path) -> _Stage:
    lines = read_log(folder / "log.jsonl")
    losses = [line["loss/total"] for line in lines if "loss/total" in line]
    shown = f"{losses[-1]:.3f} {trend(losses)}" if losses else ""
    if found := sorted(folder.glob("evaluation/*/recall.json")):
        figures = read_json(found[-1])
        return _Stage("done", f"{figures['ir']['r1']:.1f}, {figures['tr']['r1']:.1f}", shown)
    if not lines:
        return _Stage("running", "starts") if (folder / "config.yaml").exists() else WAITING
    steps, step = read_yaml(folder / "config.yaml")["schedule"]["steps"], int(lines[-1]["step"])
    if step == steps:
        return _Stage("running", "evaluates", shown)
    return _Stage("running", f"step {step} of {steps}, {lines[-1]['rate/pairs_per_second']:,.0f} pairs/s", shown)
