"""Ranks that are slower than the others: found by the time of each rank's own work, in which it waits for nobody.

Own work is the forward passes of a step and the wait for its data: neither has a collective in it, but under ZeRO-3,
whose forward gathers weights. On a GPU it is the device's own time, between CUDA events that are read when the run
logs and the device is waited for anyway.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from imagebert import distributed

log = logging.getLogger(__name__)

BEHIND = 0.10  # of the others' time
GATHERINGS = 5  # in a row


def behind(seconds: Sequence[float]) -> list[float]:
    """How far each rank is behind the median of all, as a share of that; of two, behind the other one."""
    usual = [seconds[1], seconds[0]] if len(seconds) == 2 else [statistics.median(seconds)] * len(seconds)
    return [s / u - 1 if u > 0 else 0.0 for s, u in zip(seconds, usual, strict=True)]


class Stragglers:
    """Who is slow, from gathering to gathering; a pure function of them."""

    def __init__(self, ranks: int) -> None:
        self._rows = [0] * ranks  # gatherings in a row that each was behind in

    def look(self, seconds: Sequence[float]) -> dict[int, float]:
        """Ranks that now have been behind for GATHERINGS in a row, and by how much: each once until it recovers."""
        found = {}
        for rank, share in enumerate(behind(seconds)):
            self._rows[rank] = self._rows[rank] + 1 if share > BEHIND else 0
            if self._rows[rank] == GATHERINGS:
                found[rank] = share
        return found


class OwnTime:
    """A stopwatch of this rank's own work; collective where it is gathered."""

    def __init__(self) -> None:
        self._seconds, self._steps = 0.0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._on_gpu = distributed.device().type == "cuda"
        self._stragglers = Stragglers(distributed.world_size())

    def step(self, waited: float) -> None:
        """A step begins, whose data was waited for so long."""
        self._steps += 1
        self._seconds += waited

    @contextmanager
    def running(self) -> Iterator[None]:
        """Own work of the device."""
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun

    def gather(self) -> dict[str, float]:
        """Of the steps since the last call: the median's and the slowest rank's seconds a step; names who is slow.

        Waits for the device.
        """
        if self._events:
            self._events[-1][1].synchronize()
        mine = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        mine /= max(1, self._steps)
        self._seconds, self._steps, self._events = 0.0, 0, []
        ranks = distributed.world_size()
        if ranks == 1:
            return {}
        places = [0.0] * ranks
        places[distributed.rank()] = mine
        seconds = distributed.total(places)
        for rank, share in self._stragglers.look(seconds).items():
            log.info(
                "rank %d on %s is slow: its own work takes %.0f %% longer than the %s's for %d gatherings in a row",
                *(rank, distributed.hosts()[rank], 100 * share, "other rank" if ranks == 2 else "median rank"),
                GATHERINGS,
            )
        return {"time/own_median": statistics.median(seconds), "time/own_slowest": max(seconds)}
