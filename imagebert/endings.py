"""How a process ends: what its last line says, with which exit code, and how it ends when it is asked to.

    imagebert: fault on HOST: SENTENCE            a fault of this machine: exit code 1; another machine may do it
    imagebert: cause: rank N on HOST: SENTENCE    anything else: 2 the call is wrong, 1 the work failed
    imagebert: SENTENCE                           the same, alone and in no Slurm job

A process writes one such line, as its last, from the first column on, so that a script finds it. A rank that ends since
another one is gone says `cause: rank N on HOST: lost another rank (...)`: the other's line is the cause. Where its
threads stood lies in a file that the line names.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from imagebert.errors import LostRank, MachineFault, UsageError
from imagebert.extras import cure
from imagebert.host import STOPPED, fault_line
from imagebert.launch import find_job
from imagebert.log import Place, place, say

# What a disk or a file server that is gone says. A full disk is none: it is so for every machine that shares it.
_OF_THE_MACHINE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO)
# cudaErrorString of what no program causes: neither a device-side assert, an illegal access, nor a lack of memory.
_OF_THE_GPU = re.compile(
    r"uncorrectable (ECC|NVLink) error|hardware (stack )?error|no CUDA-capable device|device\S* \S+ busy "
    r"or unavailable|system not yet initialized|driver initialization failed|unsupported display driver|"
    r"CUDA error: (unknown error|initialization error|device not ready)|No CUDA GPUs are available|GPU is lost|"
    r"fallen off the bus|CUDA driver version is insufficient",
    re.I,
)
# What gloo, NCCL and torch's stores say when the other end is gone, or does not answer.
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|closed by peer|broken pipe|socket (timeout|closed)|"
    r"remote process exited|timed out waiting|wait timeout|NCCL (error|communicator was aborted)|gloo|"
    r"failed to (recv|send)|watchdog caught collective",
    re.I,
)
_OF_TORCH = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}

_tracebacks: Path | None = None


class Ending(NamedTuple):
    """Exit code, what happened as one sentence, and of which kind it is."""

    code: int
    sentence: str
    machine: bool = False  # a fault of this machine
    lost: bool = False  # another rank is gone: this one is not the cause
    unexpected: bool = False  # nothing that was foreseen: its traceback is wanted


def ending_of(error: BaseException) -> Ending:
    """What an exception says about how a process ends."""
    sentence = " ".join(str(error).split())[:1000] or type(error).__name__
    if isinstance(error, UsageError):
        return Ending(2, sentence)
    if isinstance(error, ModuleNotFoundError) and (missing := cure(error)):
        return Ending(2, missing)
    if isinstance(error, KeyboardInterrupt):
        return Ending(1, "interrupted")
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return Ending(code, "stopped before the first step, as asked" if code == STOPPED else f"exit code {code}")
    if isinstance(error, LostRank) or _is_loss(error):
        return Ending(
            1, sentence if sentence.startswith("lost another") else f"lost another rank ({sentence[:200]})", lost=True
        )
    if isinstance(error, MachineFault) or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE):
        return Ending(1, sentence, machine=True)
    if isinstance(error, RuntimeError) and _OF_THE_GPU.search(sentence):
        return Ending(1, sentence.split(" CUDA kernel errors might")[0], machine=True)
    if isinstance(error, OSError | FloatingPointError):
        return Ending(1, f"the work failed: {sentence}")
    return Ending(1, f"{type(error).__name__}: {sentence}", unexpected=True)


def last_line(ending: Ending, here: Place) -> str:
    """The line that a process ends with; see the top of this file."""
    if ending.machine:
        return fault_line(here.host, ending.sentence)
    if here.shared:
        return f"imagebert: cause: rank {here.rank} on {here.host}: {ending.sentence}"
    return f"imagebert: {ending.sentence}"


def keep_tracebacks(folder: Path) -> None:
    """From now on tracebacks of ranks that lost others are written into this folder."""
    global _tracebacks
    _tracebacks = folder


def tell(error: BaseException) -> int:
    """Says why this process ends; returns its exit code.

    A survivor's traceback goes into a file; that of what was not foreseen into the log, before the last line.
    """
    ending, here = ending_of(error), place()
    if ending.lost:
        ending = ending._replace(sentence=f"{ending.sentence}{_put_away(error, here)}")
    elif ending.unexpected:
        with suppress(OSError):
            say("".join(traceback.format_exception(error)))
    print(last_line(ending, here), file=sys.stderr, flush=True)
    return ending.code


def _put_away(error: BaseException, here: Place) -> str:
    """Writes a traceback to a file; where that is, as the end of a sentence."""
    text = "".join(traceback.format_exception(error))
    job, attempt = find_job(os.environ)
    name = f"{job.replace('/', '-') or 'local'}-{attempt + 1}-rank{here.rank}-{here.host}.txt"
    if _tracebacks is not None:
        with suppress(OSError):
            _tracebacks.mkdir(parents=True, exist_ok=True)
            (_tracebacks / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            return f"; where it stood is in {_tracebacks / name}"
    with suppress(OSError):
        say(text)
    return ""


def _is_loss(error: BaseException) -> bool:
    """Whether a collective failed since another rank is gone or silent. Asked without importing torch."""
    if place().ranks == 1:
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ConnectionResetError | TimeoutError):
        return True
    text = str(error)
    if isinstance(error, RuntimeError) and _OF_THE_GPU.search(text):
        return False
    return bool(names & _OF_TORCH) or (type(error) is RuntimeError and _LOST.search(text) is not None)


class Stop:
    """A wish that this process stop.

    Attributes:
        asked: somebody wishes it
        at_once: nothing is to be saved yet, so that it ends where it is
        begun: a step was done
    """

    def __init__(self) -> None:
        self.asked, self.at_once, self.begun = False, True, False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.at_once or self.asked):
            raise KeyboardInterrupt
        self.asked = True
        if self.at_once:
            raise SystemExit(STOPPED)


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """SIGTERM and SIGUSR1 end the process with 75 at once, until `at_once` is off: then whoever asks sees them.

    Ctrl-C interrupts at once as well, and later asks; a second one interrupts.
    """
    stop = Stop()
    before = {s: signal.signal(s, stop._ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
