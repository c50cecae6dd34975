"""Claims of several workers, which are threads here; real ranks are in test_extract.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.claims import Claims
from imagebert.workers import ALONE, Workers

Result = TypeVar("Result")


class World:
    """What Workers asks of MPI's communicator, for threads."""

    def __init__(self, size: int) -> None:
        self.barrier, self.lock = threading.Barrier(size, timeout=30), threading.Lock()
        self.sum: Any = 0

    def Barrier(self) -> None:
        self.barrier.wait()

    def Allreduce(self, mine: NDArray[np.int64], summed: NDArray[np.int64]) -> None:
        with self.lock:
            self.sum = self.sum + mine
        self.barrier.wait()
        summed[:] = self.sum


def together(size: int, work: Callable[[Workers], Result]) -> list[Result]:
    """What `work` gives at each of so many workers."""
    world = World(size)
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(work, [Workers(rank, size, world) for rank in range(size)]))


@pytest.mark.parametrize("count", [0, 1, 7, 100, 5000, 40_000])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_everything_is_claimed_once(count: int, size: int, tmp_path: Path) -> None:
    mine = together(size, lambda workers: list(Claims(tmp_path, workers).pieces(range(count))))
    assert sorted(number for found in mine for number in found) == list(range(count))
    assert all(found == sorted(found) for found in mine)
    pieces = len(list(tmp_path.glob("claims-*/*")))
    assert pieces <= 129 * size if count > 10_000 else pieces <= max(count, 1)


def test_a_slow_worker_holds_up_a_piece(tmp_path: Path) -> None:
    done = threading.Event()

    def work(workers: Workers) -> list[int]:
        found = []
        for number in Claims(tmp_path, workers).pieces(range(1000)):
            found.append(number)
            if workers.rank == 0:
                done.wait(30)  # until the other one has nothing left to do
        done.set()
        return found

    slow, fast = together(2, work)
    assert len(slow) in (0, 62)  # none where the other one was done before it began
    assert sorted(slow + fast) == list(range(1000))


def test_a_later_call_has_claims_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "job.json").touch()
    earlier = together(2, lambda workers: Claims(tmp_path, workers))
    assert earlier[0].take("x")
    assert not earlier[1].take("x")
    later = together(2, lambda workers: Claims(tmp_path, workers))
    with pytest.raises(OSError, match="is gone: a later call has begun, or it was removed; make the call again"):
        earlier[1].take("y")
    assert later[1].take("x")
    later[0].clear()
    assert [file.name for file in tmp_path.iterdir()] == ["job.json"]


def test_who_is_alone_leaves_no_file(tmp_path: Path) -> None:
    claims = Claims(tmp_path, ALONE)
    assert claims.take("x")
    assert list(claims.pieces("abc")) == ["a", "b", "c"]
    assert claims.reached == 3
    assert list(tmp_path.iterdir()) == []
