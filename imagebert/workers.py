"""Workers of a data job: MPI's ranks when started by mpirun or srun, otherwise this process alone. The gate of mpi4py.

Data jobs share work out by rank and meet at its end; training has its own ranks (distributed.py).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagebert.config import UsageError

# What launchers tell the processes of a job: Open MPI, MPICH and Intel MPI, PMIx, Slurm.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Workers:
    """This process' place among those that share a job."""

    rank: int = 0
    size: int = 1
    world: Any = None  # MPI's communicator

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


ALONE = Workers()


@contextmanager
def workers() -> Iterator[Workers]:
    """The workers of this job. When one fails, MPI ends the others, which would wait for it for ever.

    Raises:
        UsageError: several processes were started, and MPI does not connect them.
    """
    size = next((int(os.environ[name]) for name in _SIZES if os.environ.get(name, "1") != "1"), 1)
    if size == 1:
        yield ALONE
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UsageError(
            f"{size} processes were started and mpi4py is missing ({error}): install it and an MPI"
        ) from None
    world = MPI.COMM_WORLD
    if world.Get_size() != size:
        raise UsageError(
            f"{size} processes were started and MPI connects {world.Get_size()}: use mpirun, or srun --mpi=pmix"
        )
    try:
        yield Workers(world.Get_rank(), size, world)
    except BaseException as error:
        known = isinstance(error, UsageError | OSError | KeyboardInterrupt)
        print(f"imagebert: rank {world.Get_rank()}: {error}" if known else traceback.format_exc(), file=sys.stderr)
        sys.stderr.flush()
        world.Abort(2 if isinstance(error, UsageError) else 1)
