"""Workers of a data job: the ranks that a launcher started, otherwise this process alone. The gate of mpi4py.

Data jobs share work out by rank and meet at its end; training has its own ranks (distributed.py). MPI's own launchers
connect ranks by MPI. Under srun or torchrun they meet where training would (meeting.py): there may be no MPI, or one
that takes each process for a world of its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from imagebert.config import UsageError
from imagebert.endings import tell
from imagebert.launch import Launch, discover
from imagebert.meeting import Meeting, is_known

Plain = TypeVar("Plain")


@dataclass(frozen=True)
class Workers:
    """This process' place among those that share a job."""

    rank: int = 0
    size: int = 1
    world: Any = None  # MPI's communicator, or a Meeting

    def barrier(self) -> None:
        if self.world is not None:
            self.world.Barrier()

    def total(self, values: Sequence[int]) -> list[int]:
        """The sum of each value over all workers."""
        if self.world is None:
            return list(values)
        mine, summed = np.array(values, np.int64), np.empty(len(values), np.int64)
        self.world.Allreduce(mine, summed)
        return summed.tolist()

    def agreed(self, make: Callable[[], Plain]) -> Plain:
        """What the first worker makes, which others are told, or all make alike: plain data."""
        if self.world is None:
            return make()
        if isinstance(self.world, Meeting):
            return self.world.agreed(make)
        found: Plain = self.world.bcast(make() if self.rank == 0 else None)
        return found


ALONE = Workers()


@contextmanager
def workers() -> Iterator[Workers]:
    """The workers of this job, who leave the block together. When one fails, the others end too.

    Raises:
        UsageError: several processes were started, and MPI does not connect them.
        OSError: another one failed, or is gone.
    """
    launch = discover(os.environ)
    if launch.world_size == 1:
        yield ALONE
        return
    if not launch.by_mpi:
        world = _meeting(launch)
        try:
            yield Workers(world.rank, world.size, world)
            world.leave()
        except BaseException as error:
            world.fail(str(error) if is_known(error) else repr(error))
            raise
        return
    mpi = _world()
    try:
        yield Workers(mpi.Get_rank(), mpi.Get_size(), mpi)
    except BaseException as error:  # the others would wait for it for ever
        mpi.Abort(tell(error))


@cache
def _meeting(launch: Launch) -> Meeting:
    """One a process: a second block of the same job goes on in it."""
    return Meeting(launch)


def rendezvous() -> tuple[str, int]:
    """An address and a free port of rank 0's host, the same on all ranks, agreed on through MPI.

    Raises:
        UsageError: MPI does not connect the processes.
    """
    world = _world()
    free = None
    if world.Get_rank() == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            free = socket.gethostname(), probe.getsockname()[1]
    hosts = world.allgather(socket.gethostname())
    address, port = world.bcast(free)
    # A host's own name need not resolve where it is alone.
    return ("127.0.0.1" if len(set(hosts)) == 1 else address), port


def _world() -> Any:
    """MPI's communicator of all processes that the launcher started."""
    size = discover(os.environ).world_size
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UsageError(
            f"{size} processes were started and mpi4py is missing ({error}): install it and an MPI, or, to train, "
            "export MASTER_ADDR and MASTER_PORT"
        ) from None
    world = MPI.COMM_WORLD
    if world.Get_size() != size:
        raise UsageError(
            f"{size} processes were started and MPI connects {world.Get_size()}: use mpirun, or srun --mpi=pmix"
        )
    return world
