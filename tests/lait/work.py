"""A step of small tasks: what the engine's tests have done here, in other processes, and by ranks."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from imagebert.files import replacing
from imagebert.lait.engine import Done, Engine, Task, run_step
from imagebert.workers import workers

# Ranks and processes: folder, notes, tasks, processes; then what it is killed at, if anything.
CODE = "from tests.lait.work import main; main()"
NAMES = ("00000", "00000.more", "b[1]", "c'd", "crawl-é", "*")  # as files may be called


def task(number: int, name: str, notes: Path) -> Task:
    return Task(name, ["input", number], (number, notes))


def tasks(count: int, notes: Path) -> list[Task]:
    names = [*NAMES, *(f"{number:05d}" for number in range(len(NAMES), count))][:count]
    return sorted(task(number, name, notes) for number, name in enumerate(names))


def contents(number: int, name: str) -> dict[str, bytes]:
    """The files of a task's result."""
    return {f"{name}.parquet": b"%d\n" % number * 100, f"{name}.tar": name.encode() * (number + 1)}


def work(number: int, notes: Path, out: Path) -> dict[str, int]:
    """Writes the result, and a line of `notes`, where what is to happen at a task stands in a file of its name."""
    with (notes / "done").open("a") as lines:
        lines.write(f"{out.name}\n")
    _happen(notes / f"at {out.name}", notes)
    for name, data in contents(number, out.name).items():
        with replacing(out.with_name(name)) as part:
            part.write_bytes(data)
    return {"things": number, "odd things": number % 2}


def _happen(order: Path, notes: Path) -> None:
    try:
        what = order.read_text()
    except FileNotFoundError:
        return
    if what == "kill":
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fail":
        raise OSError(errno.EIO, "Input/output error", "disk")
    if (notes / "waiting").exists():  # once
        return
    (notes / "waiting").write_text(str(os.getpid()))
    while order.exists():
        time.sleep(0.01)


def run(folder: Path, notes: Path, count: int, engine: Engine | None = None, source: Any = 0.5) -> Done:
    return run_step("test", folder, work, tasks(count, notes), source, engine or Engine())


def killed_at(number: int) -> None:
    """SIGKILL in place of the nth time that anything is made lasting, renamed or removed."""
    times = 0

    def counted(name: str) -> None:
        before = getattr(os, name)

        def instead(*arguments: Any, **more: Any) -> Any:
            nonlocal times
            times += 1
            if times == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(*arguments, **more)

        setattr(os, name, instead)

    for name in ("fsync", "replace", "unlink", "mkdir"):
        counted(name)


def main() -> None:
    folder, notes, count, processes, *kill = sys.argv[1:]
    if kill:
        killed_at(int(kill[0]))
    with workers() as team:
        done = run(Path(folder), Path(notes), int(count), Engine(team, int(processes)))
    builtins.print(*sorted(done.counts.items()))
