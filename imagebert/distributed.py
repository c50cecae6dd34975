"""Ranks: who this process is, and the few collectives that are used outside the engine.

The one place where training reads the launcher's environment (torchrun, the deepspeed launcher, mpirun, srun, or none).
Data jobs have their own ranks, which need neither torch nor a rendezvous (workers.py).
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from imagebert.config import UsageError


@dataclass(frozen=True)
class Launch:
    """What the launcher says about this process."""

    rank: int
    world_size: int
    local_rank: int
    launcher: str
    master: tuple[str, int] | None  # address and port of rank 0; None when alone


def discover(env: Mapping[str, str]) -> Launch:
    """Reads rank, size and rendezvous from the environment of torchrun, deepspeed, MPI or Slurm, in that order.

    Raises:
        UsageError: a launcher left its variables half set.
    """
    layouts = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed's launcher sets the same names
        "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    }
    for launcher, names in layouts.items():
        if names[0] not in env or names[1] not in env:
            continue
        try:
            rank, size, local = int(env[names[0]]), int(env[names[1]]), int(env.get(names[2], "0"))
        except ValueError:
            given = {name: env.get(name) for name in names}
            raise UsageError(f"{launcher} set {given}: expected whole numbers") from None
        if not 0 <= rank < size:
            raise UsageError(f"{launcher} says rank {rank} of {size}: start the job again with matching counts")
        if size == 1:
            break
        return Launch(rank, size, local, launcher, _master(env, launcher))
    return Launch(0, 1, 0, "alone", None)


def _master(env: Mapping[str, str], launcher: str) -> tuple[str, int]:
    address, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
    if address is None and launcher == "slurm":
        # The first name of a list such as "node[03-07,9],gpu1".
        first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", env.get("SLURM_STEP_NODELIST", ""))
        address = first and first[1] + (first[2] or "")
    if port is None and "SLURM_JOB_ID" in env:
        port = str(20000 + int(env["SLURM_JOB_ID"]) % 20000)
    if address is None or port is None:
        raise UsageError(f"started by {launcher} without MASTER_ADDR and MASTER_PORT: export both before the launch")
    return address, int(port)


_launch = Launch(0, 1, 0, "alone", None)
_hosts: dist.ProcessGroup | None = None  # a gloo group beside NCCL's; None: the default one is gloo's


def start(timeout_minutes: float = 10) -> Launch:
    """Joins the process group (NCCL on GPUs, gloo elsewhere) and picks this rank's device. Idempotent."""
    global _launch, _hosts
    if dist.is_initialized():
        return _launch
    _launch = discover(os.environ)
    local_device = _launch.local_rank
    if torch.cuda.is_available():
        visible = torch.cuda.device_count()
        local_device = 0 if visible == 1 else local_device  # the scheduler shows each task its own GPU only
        if local_device >= visible:
            raise UsageError(f"local rank {local_device} has no GPU: {visible} are visible, start as many processes")
        torch.cuda.set_device(local_device)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store: Store
    if _launch.master is None:
        store = HashStore()
    else:
        address, port = _launch.master
        # torchrun already keeps a store at this address.
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        owner = _launch.rank == 0 and not agent
        store = TCPStore(address, port, _launch.world_size, owner, timedelta(minutes=timeout_minutes))
        if agent:  # it outlives a failed attempt: the next one must not read the dead one's addresses
            store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # DeepSpeed reads these names itself.
    os.environ.update(RANK=str(_launch.rank), WORLD_SIZE=str(_launch.world_size), LOCAL_RANK=str(local_device))
    dist.init_process_group(
        backend,
        store=store,
        rank=_launch.rank,
        world_size=_launch.world_size,
        timeout=timedelta(minutes=timeout_minutes),
    )
    if backend != "gloo":
        _hosts = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
    # Not sooner: DeepSpeed keeps groups for the life of the process.
    atexit.register(dist.destroy_process_group)
    return _launch


def rank() -> int:
    return _launch.rank


def world_size() -> int:
    return _launch.world_size


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def total(values: Sequence[float]) -> list[float]:
    """The sum of each value over all ranks, exact for whole numbers up to 2^53.

    Hosts talk to hosts: a GPU is neither used nor waited for.
    """
    if _launch.world_size == 1:
        return [float(v) for v in values]
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=_hosts)
    summed: list[float] = tensor.tolist()
    return summed


def total_on_device(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all ranks, in place, on this rank's device: nothing waits but what reads it."""
    if _launch.world_size > 1:
        dist.all_reduce(values)
    return values


@contextmanager
def together() -> Iterator[None]:
    """A block that all ranks leave together: when it fails on one, it fails on all, instead of leaving them waiting."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    (failed,) = total([error is not None])
    if error is not None:
        raise error
    if failed:
        raise OSError("another rank failed: its own message says why")
