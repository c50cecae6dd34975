"""Ranks of training: their process group, and the few collectives that are used outside the engine.

Data jobs have their own ranks, which need neither torch nor a rendezvous (workers.py).
"""

from __future__ import annotations

import atexit
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from imagebert import meeting, workers
from imagebert.config import UsageError
from imagebert.launch import Launch, discover

_launch = Launch(0, 1, 0, "alone", None)
_store: Store | None = None
_queues = 0  # so many were begun, on every rank
_hosts: dist.ProcessGroup | None = None  # a gloo group beside NCCL's; None: the default one is gloo's


def start(timeout_minutes: float = 10) -> Launch:
    """Joins the process group (NCCL on GPUs, gloo elsewhere) and picks this rank's device. Idempotent."""
    global _launch, _hosts, _store
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
    master = _launch.master
    if _launch.world_size > 1 and master is None:
        master = workers.rendezvous()
    store: Store = HashStore() if master is None else meeting.connect(_launch, master, timeout_minutes)
    _store = store
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

    Raises:
        OSError: another rank is gone or does not answer in time.
    """
    if _launch.world_size == 1:
        return [float(v) for v in values]
    tensor = torch.tensor(values, dtype=torch.float64)
    with _naming_lost_ranks():
        dist.all_reduce(tensor, group=_hosts)
    summed: list[float] = tensor.tolist()
    return summed


def gather(text: str) -> list[str]:
    """What each rank says, by rank. Hosts talk to hosts."""
    if _launch.world_size == 1:
        return [text]
    data = text.encode()
    longest = torch.tensor([len(data)])
    dist.all_reduce(longest, dist.ReduceOp.MAX, group=_hosts)
    mine = torch.zeros(int(longest), dtype=torch.uint8)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = [torch.empty_like(mine) for _ in range(_launch.world_size)]
    dist.all_gather(parts, mine, group=_hosts)
    return [bytes(part.tolist()).rstrip(b"\0").decode() for part in parts]


def queue() -> Iterator[int]:
    """0, 1, 2, ... without end, each number on one rank only: work for whoever is free. Called by all ranks."""
    global _queues
    _queues += 1
    return itertools.count() if _launch.world_size == 1 else _shared_count(f"queue/{_queues}")


def _shared_count(key: str) -> Iterator[int]:
    assert _store is not None
    while True:
        with _naming_lost_ranks():
            number = _store.add(key, 1) - 1
        yield number


def total_on_device(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all ranks, in place, on this rank's device: nothing waits but what reads it."""
    if _launch.world_size > 1:
        with _naming_lost_ranks():
            dist.all_reduce(values)
    return values


@contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise OSError(
            f"rank {rank()} lost another one ({reason}): its own message says why, if it could leave one. The same "
            "command goes on from the last checkpoint"
        ) from None


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
