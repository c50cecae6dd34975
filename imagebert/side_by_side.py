"""A ladder's runs side by side: as many processes as cores, of one thread each.

Small models gain little from several threads, and lose nearly everything where others want the cores; and one thread
adds up in the same order on every machine. Runs that start from each other are one process's; a process that is left
without work takes the next. All trains into the folders that `climb` looks into.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from imagebert.host import STOPPED
from imagebert.ladder import Ladder, Rung

_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def chains(ladder: Ladder) -> list[list[Rung]]:
    """The rungs in sets whose runs start from each other, the longest first; within a set in the ladder's order."""
    first: dict[str, str] = {}  # of each run, the run that its chain begins with
    for name, run in ladder.runs.items():
        first[name] = name if run.start is None else first[run.start]
    found: dict[str, list[Rung]] = {}
    for rung in ladder.rungs:
        found.setdefault(first[rung.run], []).append(rung)
    return sorted(found.values(), key=len, reverse=True)


def train_side_by_side(
    name: str, ladder: Ladder, out: Path, data: Path, jobs: int, overrides: Sequence[str], say: Callable[[str], None]
) -> bool:
    """Trains and evaluates all rungs of one seed, in `jobs` processes; False if asked to stop.

    Args:
        name: the ladder's file or its name in the package
        say: is given each line that a process prints, the run's name before it

    Raises:
        OSError: a process failed; its own message is among the lines.
    """
    running: list[subprocess.Popen[str]] = []
    lock = threading.Lock()
    stop = threading.Event()

    def train(chain: list[Rung]) -> int:
        only = [word for rung in chain for word in ("--only", rung.name)]
        call = ["ladder", name, "--data", str(data), "--out", str(out), *only, *overrides]
        with lock:
            if stop.is_set():
                return STOPPED
            process = subprocess.Popen(
                [sys.executable, "-m", "imagebert", *call],
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches this process alone
                preexec_fn=_die_with_parent,
            )
            running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            say(f"{chain[-1].run}: {line.rstrip()}")
        return process.wait()

    def ask_to_stop() -> None:
        stop.set()
        for process in running:
            if process.poll() is None:
                process.terminate()  # which asks for a stop at the next step

    with _on_signals(ask_to_stop), ThreadPoolExecutor(jobs) as pool:
        work = {pool.submit(train, chain): chain for chain in chains(ladder)}
        ends = {chain[-1].run: future.result() for future, chain in work.items()}
    failed = [f"{run} with {end}" for run, end in ends.items() if end not in (0, STOPPED)]
    if failed and not stop.is_set():
        raise OSError(f"training failed: {', '.join(failed)}; its message is above, and the same command goes on")
    return all(end == 0 for end in ends.values())


def _die_with_parent() -> None:
    """Nobody writes into a run's folder whose parent was killed and is perhaps started again."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@contextmanager
def _on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call instead of ending this process."""
    before = {s: signal.signal(s, lambda *_: call()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
