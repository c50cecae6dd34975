"""Ranks of training: their process group, and the few collectives that are used outside the engine.

Data jobs have their own ranks, which need neither torch nor a rendezvous (workers.py).
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from imagebert import meeting, workers
from imagebert.config import UsageError
from imagebert.errors import LostRank
from imagebert.header import announce_machines
from imagebert.host import cores_beside, say_fault
from imagebert.launch import Launch, discover, expand_hosts, host_name
from imagebert.log import place

log = logging.getLogger(__name__)

_launch = Launch(0, 1, 0, "alone", None)
_store: Store | None = None
_queues = 0  # so many were begun, on every rank
_names: list[str] = []  # of the hosts, by rank
_hosts: dist.ProcessGroup | None = None  # a gloo group beside NCCL's; None: the default one is gloo's


def start(timeout_minutes: float = 10) -> Launch:
    """Joins the process group (NCCL on GPUs, gloo elsewhere) and picks this rank's device. Idempotent.

    Raises:
        UsageError: the launcher's variables do not make sense, or more processes were started than there are GPUs.
        OSError: the ranks do not meet in time, or a machine of theirs lacks a GPU, which is said as its fault.
    """
    global _launch, _hosts, _store, _names
    if dist.is_initialized():
        return _launch
    _launch = discover(os.environ)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # The scheduler may show each task its own GPU only.
    local_device = 0 if visible == 1 else _launch.local_rank
    master = _launch.master
    if _launch.world_size > 1 and master is None:
        master = workers.rendezvous()
    if master is None:
        _store = HashStore()
    else:
        _store = meeting.join(_launch, *master, timeout_minutes * 60)
        needed = _launch.local_rank + 1 if visible != 1 else 1
        mine = {"host": host_name(os.environ), "gpus": visible, "needed": needed}
        _meet(_store, mine, "{}:{}".format(*master), timeout_minutes * 60)
    if visible:
        torch.cuda.set_device(local_device)
        if os.environ.get("IMAGEBERT_BIND") == "gpu":
            _bind(local_device)
    backend = "nccl" if visible else "gloo"
    # DeepSpeed reads these names itself.
    os.environ.update(RANK=str(_launch.rank), WORLD_SIZE=str(_launch.world_size), LOCAL_RANK=str(local_device))
    limit = timedelta(minutes=timeout_minutes)
    try:
        dist.init_process_group(backend, store=_store, rank=_launch.rank, world_size=_launch.world_size, timeout=limit)
        if backend != "gloo":
            _hosts = dist.new_group(backend="gloo", timeout=limit)
    except RuntimeError as error:
        if _launch.world_size == 1:
            raise
        raise OSError(
            f"rank {_launch.rank} on {host_name(os.environ)} met the others but does not connect to them "
            f"({meeting.first_line(error)}): export GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME with the name of a "
            "network that all hosts are on"
        ) from None
    # Not sooner: DeepSpeed keeps groups for the life of the process.
    atexit.register(_leave)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    _names, gpus = map(list, zip(*(text.split("\t") for text in gather(f"{place().host}\t{gpu}")), strict=True))
    announce_machines(_names, gpus)
    return _launch


def _bind(device: int) -> None:
    """This process, and threads and workers that it starts, to the cores of its GPU's NUMA node; memory follows."""
    of: Any = torch.cuda.get_device_properties(device)
    address = f"{of.pci_domain_id:04x}:{of.pci_bus_id:02x}:{of.pci_device_id:02x}.0"
    cores = cores_beside(address, os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores)
    log.info("bound to %d cores beside GPU %s", len(cores), address)


def _leave() -> None:
    """At the end of the process: leaves the group, whose threads may not be at work any more when Python ends.

    gloo's threads take Python's lock to let go of a collective's tensors, perhaps long after those who waited for it
    went on. Python ends a thread that asks for it too late, within C++, which ends the process by SIGABRT.
    """
    dist.destroy_process_group()
    come_to_rest()


def come_to_rest(seconds: float = 2.0) -> None:
    """Waits until all other threads of this process sleep, or so long."""
    until, idle = time.monotonic() + seconds, 0
    while idle < 2 and time.monotonic() < until:  # twice: one may have slept for want of Python's lock
        time.sleep(0.002)
        idle = 0 if any(_runs(task) for task in Path("/proc/self/task").iterdir()) else idle + 1


def _runs(task: Path) -> bool:
    try:
        return int(task.name) != threading.get_native_id() and ") S" not in (task / "stat").read_text()
    except OSError:  # it has ended
        return False


def _meet(store: Store, mine: Mapping[str, object], place: str, seconds: float) -> None:
    """Waits until all ranks are here, on machines that have what they need. Rank 0 looks, and tells the others."""
    store.set(f"here/{_launch.rank}", json.dumps(mine))
    if _launch.rank == 0:
        verdict = _roll_call(store, place, seconds)
        store.set("verdict", verdict)
        if not verdict.startswith("met"):
            time.sleep(1)  # the store ends with this process
    else:
        try:  # rank 0 gives up first
            store.wait(["verdict"], timedelta(seconds=seconds + 30))
            verdict = store.get("verdict").decode()
        except RuntimeError as error:
            raise OSError(
                f"rank {_launch.rank} lost rank 0 at {place} ({meeting.first_line(error)}): its own message says why"
            ) from None
    kind, _, sentence = verdict.partition(" ")
    if kind != "met":
        raise UsageError(sentence) if kind == "wrong" else OSError(sentence)


def _roll_call(store: Store, place: str, seconds: float) -> str:
    """One word, met, wrong or failed, and a sentence behind it; machines that are at fault are said."""
    began, told = time.monotonic(), False
    absent = list(range(_launch.world_size))
    here: dict[int, dict[str, Any]] = {}
    while True:
        for number in [number for number in absent if store.check([f"here/{number}"])]:
            here[number] = json.loads(store.get(f"here/{number}"))
            absent.remove(number)
        if not absent:
            break
        waited = time.monotonic() - began
        waits = f"rank 0 on {here[0]['host']} {{}} at {place} for {_some(absent, 'rank')}"
        if waited > seconds:
            for host in lost_hosts(expand_hosts(os.environ.get("SLURM_STEP_NODELIST", "")), here.values()):
                say_fault(host, f"no rank of it came to {place} within {waited:.0f} s")
            return (
                f"failed {waits.format(f'has waited {waited:.0f} s')}: they have not started, have ended (their own "
                "messages say why), or do not reach that address: export MASTER_ADDR, a name of rank 0's host on a "
                "network that all hosts are on"
            )
        if waited > meeting.PATIENCE and not told:
            log.warning("%s", waits.format("waits"))
            told = True
        time.sleep(0.05)
    wrong, faults = judge_gpus(list(here.values()), int(os.environ.get("SLURM_GPUS_ON_NODE") or 0))
    for host, sentence in faults.items():
        say_fault(host, sentence)
    if wrong:
        return f"wrong {wrong}"
    return f"failed {' and '.join(faults)}: not all GPUs are there" if faults else "met"


def lost_hosts(hosts: Sequence[str], here: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of a step's hosts those without any rank here; none where they are not the fewer, for then it is the address."""
    found = {facts["host"] for facts in here}
    lost = [host for host in dict.fromkeys(hosts) if host not in found]
    return lost if found <= set(hosts) and 2 * len(lost) < len(set(hosts)) else []


def judge_gpus(ranks: Sequence[Mapping[str, Any]], given: int) -> tuple[str, dict[str, str]]:
    """What is wrong with the call, or else with some hosts, where ranks have no GPU of their own.

    Args:
        ranks: host of each rank, the GPUs that it sees, and those that it and the ranks before it there need
        given: GPUs a host by Slurm; 0: it does not say
    """
    most = max(int(facts["gpus"]) for facts in ranks)
    short = [facts for facts in ranks if most and facts["gpus"] < facts["needed"]]
    expected = max(most, given)
    for facts in short:
        if facts["gpus"] == expected:
            return f"local rank {facts['needed'] - 1} has no GPU: {most} are visible, start as many processes", {}
    return "", {facts["host"]: f"{facts['gpus']} GPUs are there, and not {expected}" for facts in short}


def _some(numbers: Sequence[int], name: str) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"{name}{'s' * (len(numbers) > 1)} {shown}"


def rank() -> int:
    return _launch.rank


def world_size() -> int:
    return _launch.world_size


def hosts() -> list[str]:
    """The hosts' names, by rank."""
    return _names or [place().host]


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def total(values: Sequence[float]) -> list[float]:
    """The sum of each value over all ranks, exact for whole numbers up to 2^53.

    Hosts talk to hosts: a GPU is neither used nor waited for.

    Raises:
        LostRank: another rank is gone or does not answer in time.
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


def gather_rows(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], int]:
    """The rows of all ranks one behind the other, rank by rank, of each tensor; and which of them is this rank's first.

    The gradient is exact: a row's is the sum of what all ranks made of it. Ranks may have different numbers of rows.

    Args:
        tensors: [n, ...] of equally many rows; gradients flow through those that require them
    """
    if _launch.world_size == 1:
        return list(tensors), 0
    sizes = [0] * _launch.world_size
    sizes[_launch.rank] = len(tensors[0])
    sizes = [int(size) for size in total(sizes)]
    first = sum(sizes[: _launch.rank])
    return [
        _GatheredRows.apply(tensor, sizes, first)  # type: ignore[no-untyped-call]
        for tensor in tensors
    ], first


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, sizes: list[int], first: int) -> torch.Tensor:
        ctx.rows = slice(first, first + len(mine))
        sent = mine.to(torch.uint8) if mine.dtype == torch.bool else mine
        sent = torch.cat([sent, sent.new_zeros(max(sizes) - len(mine), *mine.shape[1:])])
        parts = [torch.empty_like(sent) for _ in sizes]
        with _naming_lost_ranks():
            dist.all_gather(parts, sent)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(mine.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return total_on_device(gradient.clone())[ctx.rows], None, None


def exchange(peer: int, sent: torch.Tensor, received: torch.Tensor) -> None:
    """Sends to another rank what it receives, and the other way, at the same time, on this rank's device."""
    with _naming_lost_ranks():
        both = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
        for work in dist.batch_isend_irecv(both):
            work.wait()


@contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise LostRank(
            f"lost another rank ({reason}): its own last line says why, if it left one; the same command goes on "
            "from the last checkpoint"
        ) from error


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
        raise LostRank("lost another rank (it failed): its own last line says why")
