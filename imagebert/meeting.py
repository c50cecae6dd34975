"""Ranks of a data job that no MPI connects, as under srun or torchrun: they meet where training does, in torch's store.

Rank 0's process has the store; each rank writes what it has to say under a name of its own and looks for the others'.
Nobody waits or works for nothing: a rank that fails leaves its sentence there and all end, as by MPI's abort; one that
says nothing for a minute, since it was killed or its node has gone, ends the others. What is exchanged is text, never
a pickle.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagebert.errors import UsageError
from imagebert.launch import Launch, host_name

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

Plain = TypeVar("Plain")

log = logging.getLogger(__name__)

PATIENCE = 15.0  # seconds until a wait for others is told
_BEAT, _SILENT = 5.0, 60.0  # seconds
_PAUSE = 0.5  # between two looks, at most
_LAST_WORDS = 10.0  # for which rank 0 waits for the others when it fails


def join(launch: Launch, address: str, port: int, seconds: float) -> Store:
    """The store at which all ranks meet, which rank 0 keeps, or torchrun's agent.

    Raises:
        OSError: it cannot be reached in so many seconds, or rank 0 cannot listen at that port.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    limit = timedelta(seconds=seconds)
    size = launch.world_size
    if launch.rank == 0 and not agent:
        try:  # by its own network, whatever others call it
            return TCPStore("127.0.0.1", port, size, True, limit, wait_for_workers=False)
        except RuntimeError as error:
            raise OSError(
                f"rank 0 on {host_name(os.environ)} cannot listen at port {port} ({first_line(error)}): export "
                "another MASTER_PORT"
            ) from None
    _reach(launch, address, port, seconds)
    try:
        store: Store = TCPStore(address, port, size, False, limit, wait_for_workers=False)
    except RuntimeError as error:
        raise OSError(f"rank {launch.rank} lost rank 0 at {address}:{port} ({first_line(error)})") from None
    if agent:  # it outlives a failed attempt: the next one must not read the dead one's addresses
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store


def _reach(launch: Launch, address: str, port: int, seconds: float) -> None:
    """Waits until something listens there. PyTorch's own client shows the frames of its C++ for each try."""
    who = f"rank {launch.rank} on {host_name(os.environ)}"
    began, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            waited, reason = time.monotonic() - began, error.strerror or error
        if waited > seconds:
            raise OSError(
                f"{who} has waited {waited:.0f} s for rank 0 at {address}:{port} ({reason}): MASTER_ADDR has to be the "
                "host of rank 0, by a name that all hosts resolve and reach; if it is, rank 0 has not started, or has "
                "ended, and its own message says why"
            )
        if waited > PATIENCE and not told:
            log.warning("%s waits for rank 0 at %s:%d (%s)", who, address, port, reason)
            told = True
        time.sleep(0.2)


def first_line(error: Exception) -> str:
    """Of what PyTorch says, which has frames of C++ behind it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Meeting:
    """What Workers asks of MPI's communicator, for ranks that have none."""

    def __init__(self, launch: Launch, minutes: float = 10) -> None:
        assert launch.master is not None
        self.rank, self.size = launch.rank, launch.world_size
        self._store = join(launch, *launch.master, 60 * minutes)
        self._calls, self._over = 0, False
        self._beats = {rank: (0, time.monotonic()) for rank in range(self.size)}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="meeting", daemon=True)
        self._thread.start()
        # Python unwinds a daemon thread that asks the store, in C++, when it ends: that aborts the process.
        atexit.register(self._end)

    def Barrier(self) -> None:
        self._exchange("")

    def Allreduce(self, mine: NDArray[np.int64], summed: NDArray[np.int64]) -> None:
        summed[:] = sum(np.array(json.loads(text), np.int64) for text in self._exchange(json.dumps(mine.tolist())))

    def agreed(self, make: Callable[[], Plain]) -> Plain:
        """What every rank makes, which has to be the same.

        Raises:
            OSError: it is not.
        """
        found = make()
        texts = self._exchange(repr(found))
        differing = [rank for rank, text in enumerate(texts) if text != texts[0]]
        if differing:
            raise OSError(f"rank {differing[0]} finds other input than rank 0: do all see the same files?")
        return found

    def leave(self) -> None:
        """The end, for all: rank 0 stays until nobody asks it any more."""
        self._exchange("")
        self._over = True
        left = f"left/{self._calls}"
        if self.rank > 0:
            self._ask("add", left, 1)
        while self.rank == 0 and self._ask("add", left, 0) < self.size - 1:
            self._look()
            time.sleep(0.01)

    def fail(self, error: str) -> None:
        """Tells the others, who end with a sentence about it. Does not fail itself."""
        self._over = True
        try:
            if not self._store.check(["failed"]):  # else it fails since another one has
                self._store.set("failed", f"rank {self.rank} on {socket.gethostname()}: {error}")
            until = time.monotonic() + _LAST_WORDS
            if self.rank > 0:
                self._store.add("read", 1)
            while self.rank == 0 and self._store.add("read", 0) < self.size - 1 and time.monotonic() < until:
                time.sleep(0.05)
        except RuntimeError:  # rank 0 has gone before
            pass

    def _exchange(self, text: str) -> list[str]:
        """What each rank says, by rank. Called by all."""
        self._calls += 1
        self._over = False
        names = [f"{self._calls}/{rank}" for rank in range(self.size)]
        self._ask("set", names[self.rank], text)
        pause, looked = 0.002, time.monotonic()
        while not self._ask("check", names):
            if time.monotonic() - looked > 1:
                self._look()
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(1.5 * pause, _PAUSE)
        return [self._ask("get", name).decode() for name in names]

    def _look(self) -> None:
        if self._ask("check", ["failed"]):
            raise OSError(f"another rank failed: {self._ask('get', 'failed').decode()}")
        now = time.monotonic()
        for rank, (beat, since) in self._beats.items():
            found = self._ask("add", f"beat/{rank}", 0)
            if found != beat or rank == self.rank:
                self._beats[rank] = found, now
            elif now - since > _SILENT:
                raise OSError(
                    f"rank {rank} has not been heard of for {_SILENT:.0f} s: it was killed, or its node has gone"
                )

    def _end(self) -> None:
        """The process is at its end."""
        self._ended.set()
        self._thread.join(5)  # seconds: the store may be gone

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, what)(*arguments)
        except RuntimeError as error:
            reason = first_line(error)
            raise OSError(f"rank {self.rank} lost rank 0 ({reason}): its own message says why") from None

    def _live(self) -> None:
        """Says that this rank is there, and ends it, whatever it is at, when another one has failed.

        It has a beat's time to end by itself, where it waits for the others.
        """
        error, warned = "", False
        while not (warned and not self._over):
            warned = bool(error)
            try:
                self._store.add(f"beat/{self.rank}", 1)
                if self._store.check(["failed"]):
                    error = f"another rank failed: {self._store.get('failed').decode()}"
            except RuntimeError:
                error = f"rank {self.rank} lost rank 0: its own message says why"
            if self._ended.wait(_BEAT):
                return
        print(f"imagebert: the work failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def is_known(error: BaseException) -> bool:
    """Whether a sentence says all of an error."""
    return isinstance(error, UsageError | OSError | KeyboardInterrupt)
