"""RUN/jobs.jsonl: of each attempt of a run one line when it began and one when it ended, and why.

    {"event": "start", "time": ..., "job": "1234", "attempt": 1, "hosts": "node[1-2]", "ranks": 16, "step": 300, ...}
    {"event": "end", "time": ..., "job": "1234", "attempt": 1, "exit": 75, "why": "stopped at step 420"}

Rank 0 writes; a job script appends the end of an attempt that Python could not write. A line is one write behind what
is there, be that cut short, so no writer spoils another's.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagebert import __version__, distributed
from imagebert.endings import ending_of
from imagebert.errors import UsageError
from imagebert.files import open_regular, parse_json, write_bytes
from imagebert.header import commit, short_list
from imagebert.host import STOPPED
from imagebert.launch import find_job

log = logging.getLogger(__name__)

FILE = "jobs.jsonl"
_MOST = 1 << 20  # bytes of the file: when it has more, the older half goes
_LONGEST = 1 << 13  # bytes of a line


class Attempt:
    """This start of a run.

    Attributes:
        end: how it ended, when it ended as it should: exit code and why
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._enabled = distributed.rank() == 0
        self._began = False
        self.end: tuple[int, str] = (0, "")

    def begin(self, step: int, total: int | None = None) -> None:
        """Training starts at a step, of so many where that is known."""
        self._began = True
        place = {"hosts": short_list(distributed.hosts())[:1000], "ranks": distributed.world_size()}
        self._append("start", {**place, "step": step, "of": total, "version": __version__, "commit": commit()})

    def finish(self, code: int, why: str) -> None:
        # A call that was wrong, where there never was a run, leaves nothing.
        if self._began or self._path.exists():
            self._append("end", {"exit": code, "why": why[:1000]})

    def _append(self, event: str, what: dict[str, Any]) -> None:
        if not self._enabled:
            return
        job, attempt = find_job(os.environ)
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json.dumps({"event": event, "time": now, "job": job, "attempt": attempt + 1, **what}).encode() + b"\n"
        try:
            append(self._path, line)
        except OSError as error:
            log.warning("cannot write %s (%s)", self._path, error.strerror)


def append(path: Path, line: bytes) -> None:
    """Writes a line behind what is there; the older half of a file that is too long goes.

    Raises:
        OSError: the disk is full or cannot be written, or it is no file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path, flags, 0o666)
    try:
        size = os.fstat(file).st_size
        if size > _MOST:
            kept = os.pread(file, _MOST // 2, size - _MOST // 2).partition(b"\n")[2]
            write_bytes(path, kept + (b"" if kept.endswith(b"\n") else b"\n") + line)
            return
        cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, b"\n" * cut + line)
    finally:
        os.close(file)


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The good lines of a run's jobs.jsonl; none, where it cannot be read."""
    lines = []
    try:
        with open_regular(folder / FILE) as file:
            while text := file.readline(_LONGEST):
                try:
                    line = parse_json(text, "a line")
                except UsageError:
                    continue
                if isinstance(line, dict) and line.get("event") in ("start", "end"):
                    lines.append(line)
    except (UsageError, OSError):
        return []
    return lines


@contextmanager
def attempt(folder: Path) -> Iterator[Attempt]:
    """Writes the end of what runs in it, however that comes."""
    this = Attempt(folder)
    try:
        yield this
    except BaseException as error:
        ending = ending_of(error)
        this.finish(ending.code, ending.sentence)
        raise
    this.finish(*this.end)


def ended(step: int, finished: bool) -> tuple[int, str]:
    """How training that was not disturbed ends."""
    return (0, f"finished after step {step}") if finished else (STOPPED, f"stopped at step {step}")
