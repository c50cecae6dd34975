"""What a run tells: a JSON-lines log, a live table or lines now and then, and DeepSpeed's monitors.

Every line of the log carries the step, so that a resumed run can drop the lines that it is about to write again, and a
checksum, so that a figure that was changed is none.
Rates cover the time since the line before; evaluation and checkpoints stop that clock.

A log is worth less than its run: what is damaged in it is left out, and what a full disk does not take waits.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from imagebert.engine.table import RunTable
from imagebert.errors import UsageError
from imagebert.files import open_regular, parse_json, write_bytes
from imagebert.log import Board, has_board, say

log = logging.getLogger(__name__)

_QUIET_SECONDS = 10  # between console lines where there is no terminal to rewrite
_LONGEST = 1 << 20  # bytes of a line
_WAITING = 10_000  # lines at most that wait in memory for the disk
_MOST = 2**53


class Meter:
    """Rank 0's book-keeping of a run; on other ranks `enabled` is off and nothing is written.

    Args:
        seconds: of training before this start
        ranks: that train
        peak_share: what one pair a second is of the matmul rate of all ranks; 0: not known

    Attributes:
        last: checksum of the last line, for a checkpoint, which tells its log by it; None: there is none

    Raises:
        OSError: the log cannot be written at the start.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        total_steps: int,
        seconds: float,
        enabled: bool,
        ranks: int = 1,
        peak_share: float = 0.0,
    ) -> None:
        self.total_steps = total_steps
        self._ranks, self._peak_share = ranks, peak_share
        self.seconds = seconds  # of training, over all restarts
        self._pairs = self._tokens = self._seconds_data = 0.0
        self._since = time.perf_counter()
        self._elapsed = 0.0
        self._log: _Log | None = None
        self.last: int | None = None
        self._table: RunTable | None = None
        self._board: Board | None = None
        self._printed = -float("inf")
        if enabled:
            self._log = _Log(folder / "log.jsonl", start_step)
            self.last = self._log.last
            if has_board():
                self._table = RunTable(str(folder), start_step, total_steps)
                self._board = Board(self._table.draw)

    def count(self, pairs: float, tokens: float, seconds_data: float) -> None:
        """Adds a step's pairs and tokens over all ranks, and this rank's wait for data."""
        self._pairs += pairs
        self._tokens += tokens
        self._seconds_data += seconds_data
        if self._table is not None and self._board is not None:
            self._table.step()
            self._board.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock of the rates."""
        self._stop_clock()
        yield
        self._since = time.perf_counter()

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self._elapsed += now - self._since
        self.seconds += now - self._since
        self._since = now

    def write(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Logs `values` of the state after `step` steps, with the rates since the line before."""
        self._stop_clock()
        elapsed = max(self._elapsed, 1e-9)
        line = {
            "step": step,
            **values,
            "rate/pairs_per_second": self._pairs / elapsed,
            "rate/tokens_per_second": self._tokens / elapsed,
            "rate/share_waiting_for_data": self._seconds_data / elapsed,
            "time/seconds": self.seconds,
            "time/ranks": self._ranks,
            **_peak_memory(),
        }
        if self._peak_share:
            line["rate/share_of_matmul"] = self._peak_share * line["rate/pairs_per_second"]
        self._pairs = self._tokens = self._seconds_data = self._elapsed = 0.0
        self.last = line_checksum(line)
        if self._log is not None:
            self._log.write(line)
            with suppress(OSError):  # it may go to a file on a full disk
                self._show(line)
        return line

    def _show(self, line: dict[str, float]) -> None:
        step = int(line["step"])
        left = self.seconds / max(step, 1) * (self.total_steps - step)
        losses = "  ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in line.items() if k.startswith("loss/"))
        if "recall/rsum" in line:
            losses += f"  R@1 {line['recall/ir_r1']:.1f} {line['recall/tr_r1']:.1f}  R-sum {line['recall/rsum']:.1f}"
        text = (
            f"step {step}/{self.total_steps}  {losses}  {line['rate/pairs_per_second']:.0f} pairs/s  "
            f"{line['rate/tokens_per_second']:.0f} tokens/s  {int(left) // 60}:{int(left) % 60:02d} left"
        )
        if self._table is not None:
            self._table.add(line, left)
        elif self.seconds - self._printed > _QUIET_SECONDS or step == self.total_steps or "recall/rsum" in line:
            say(text)
            self._printed = self.seconds

    def close(self) -> None:
        if self._board is not None:
            self._board.stop()
        if self._log is not None:
            self._log.close()


def _peak_memory() -> dict[str, float]:
    """The most that this process had so far, in GiB: of the host's memory, and of the GPU's where it has one."""
    peak = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # it is in KiB
    if torch.cuda.is_available():
        peak["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


class _Log:
    """The file of a run's lines: those of steps up to the start are kept, others come behind."""

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        lines, damaged = examine_log(path)
        kept = [line for line in lines if line["step"] <= start_step]
        self.last = line_checksum(kept[-1]) if kept else None
        text = b"".join(map(_with_checksum, kept))
        try:
            if damaged:
                aside = _put_aside(path)
                log.warning("%s is damaged: it is kept as %s, and its good lines stay", path, aside)
            write_bytes(path, text)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            raise OSError(f"cannot write {path} ({reason}): free some space, then the same command goes on") from None
        self._waiting: deque[bytes] = deque(maxlen=_WAITING)
        self._told = False

    def write(self, line: dict[str, float]) -> None:
        self._waiting.append(_with_checksum(line))
        try:
            before, data = os.fstat(self._file.fileno()).st_size, b"".join(self._waiting)
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                self._file.truncate(before)  # of a part of a line
                raise
        except OSError as error:
            if not self._told:
                log.warning("cannot write %s (%s): its lines wait until it can be", self.path, error.strerror)
            self._told = True
        else:
            self._waiting.clear()
            self._told = False

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        if self._waiting:
            log.warning("the last %d lines of %s could not be written", len(self._waiting), self.path)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl, those that are damaged or cut short left out; none, where it cannot be read.

    Raises:
        OSError: the disk fails.
    """
    return examine_log(path)[0]


def examine_log(path: Path) -> tuple[list[dict[str, float]], bool]:
    """The good lines of a log, and whether there is something else; a last line that a crash cut short is nothing."""
    if not os.path.lexists(path):
        return [], False
    lines, damaged, seen = list[dict[str, float]](), False, set[tuple[float, int]]()
    try:
        with open_regular(path) as file:
            while text := file.readline(_LONGEST):
                try:
                    line = parse_json(text, "a line")
                except UsageError:
                    damaged |= text.endswith(b"\n") or len(text) == _LONGEST
                    continue
                checksum = line.pop("crc32", None) if _is_line(line) else -1
                # Earlier versions had none. No step takes the same time twice.
                if checksum is None or (checksum == line_checksum(line) and (line["step"], checksum) not in seen):
                    lines.append(line)
                    seen.add((line["step"], line_checksum(line)))
                else:
                    damaged = True
    except UsageError:  # it is no file, or may not be read
        damaged = True
    return lines, damaged


def _with_checksum(line: dict[str, float]) -> bytes:
    return json.dumps({**line, "crc32": line_checksum(line)}).encode() + b"\n"


def line_checksum(line: dict[str, float]) -> int:
    """CRC-32 of a line of the log."""
    return zlib.crc32(json.dumps(line).encode())


def _is_line(line: Any) -> bool:
    """Whether it is a step with numbers."""
    return (
        isinstance(line, dict)
        and type(line.get("step")) is int
        and line["step"] >= 0
        and all(type(v) is float or (type(v) is int and abs(v) < _MOST) for v in line.values())
    )


def _put_aside(path: Path) -> Path:
    """Gives what stands at `path` another name that is free, and leaves it there too where that is possible."""
    names = (path.with_name(f"{path.name}.damaged{n}") for n in ("", *map(str, range(2, 1000))))
    aside = next(name for name in names if not os.path.lexists(name) or _is_same(name, path))
    if os.path.lexists(aside):  # a start before this one came so far
        return aside
    try:
        os.link(path, aside)  # so that a disk that is full now costs nothing
    except OSError:  # a folder; or there are no links on this disk
        os.replace(path, aside)
    return aside


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # a link to nothing
        return False
