"""Who this process is among those that a launcher started: the one place that reads launchers' variables.

torchrun, the deepspeed launcher, mpirun (Open MPI, MPICH, Intel MPI, MVAPICH), srun, or none. Training (distributed.py)
and data jobs (workers.py) both ask here.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from imagebert.config import UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Launch:
    """What the launcher says about this process."""

    rank: int
    world_size: int
    local_rank: int
    launcher: str
    master: tuple[str, int] | None  # address and port of rank 0; None when alone, or where MPI has to tell

    @property
    def by_mpi(self) -> bool:
        """Whether an MPI's own launcher started it, whose ranks can ask each other."""
        return self.launcher in ("openmpi", "mvapich", "mpich")


# Rank, size and local rank, by launcher. Open MPI's own come before Slurm's, which its daemons inherit from their srun.
_LAYOUTS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # deepspeed's launcher sets the same names
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "mvapich": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    "mpich": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # and Intel MPI's
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}


def rank_and_size(env: Mapping[str, str]) -> tuple[int, int]:
    """Rank and number of ranks, for what is said about this process; 0 of 1 where a launcher did not tell."""
    with suppress(UsageError):
        rank, size, _ = placed(env)
        return rank, size
    return 0, 1


def discover(env: Mapping[str, str]) -> Launch:
    """Reads rank, size and rendezvous from the environment.

    Raises:
        UsageError: a launcher left its variables half set.
    """
    rank, size, launcher = placed(env)
    if size == 1:
        return Launch(0, 1, 0, "alone", None)
    local = env.get(_LAYOUTS[launcher][2], "0")
    if not local.isdecimal():
        raise _half_set(env, launcher)
    return Launch(rank, size, int(local), launcher, _master(env, launcher))


def placed(env: Mapping[str, str]) -> tuple[int, int, str]:
    """Rank, size and launcher, whether or not there is a rendezvous.

    Raises:
        UsageError: a launcher left its variables half set.
    """
    for launcher, names in _LAYOUTS.items():
        if names[0] not in env or names[1] not in env:
            continue
        if launcher == "mpich" and env.get("SLURM_STEP_NUM_TASKS") == env["PMI_SIZE"]:
            continue  # srun --mpi=pmi2 sets these beside its own, and its own tell the nodes
        try:
            rank, size = int(env[names[0]]), int(env[names[1]])
        except ValueError:
            raise _half_set(env, launcher) from None
        if not 0 <= rank < size:
            raise UsageError(f"{launcher} says rank {rank} of {size}: start the job again with matching counts")
        if size == 1:  # what another launcher says counts more: these are left behind by any training in a process
            continue
        return rank, size, launcher
    return 0, 1, "alone"


def _half_set(env: Mapping[str, str], launcher: str) -> UsageError:
    given = {name: env.get(name) for name in _LAYOUTS[launcher]}
    return UsageError(f"{launcher} set {given}: expected whole numbers")


def see_own_gpu() -> None:
    """Where all tasks of a node are shown all its GPUs, this one sees its own from now on; before CUDA begins."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(shown) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = shown[discover(os.environ).local_rank % len(shown)]


def find_job(env: Mapping[str, str]) -> tuple[str, int]:
    """The Slurm job that this process is of, and how often it was requeued; an empty name outside one."""
    job = env.get("SLURM_JOB_ID", "")
    if job and "SLURM_ARRAY_JOB_ID" in env:  # as people know it
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    if job and "SLURM_CLUSTER_NAME" in env:  # clusters that share a file system count alike
        job = f"{env['SLURM_CLUSTER_NAME']}/{job}"
    attempt = env.get("SLURM_RESTART_COUNT", "0")
    return job, int(attempt) if attempt.isdecimal() else 0


def host_name(env: Mapping[str, str]) -> str:
    """This machine, as Slurm calls it where it runs this process: what its `--exclude` understands."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def expand_hosts(text: str) -> list[str]:
    """The hosts of one of Slurm's lists, such as "node[03-07,9]-ib,gpu1", in its order; numbers keep their zeros."""
    hosts = []
    for entry in re.findall(r"(?:[^\[\],]|\[[^\]]*\])+", text):
        parts = re.split(r"\[([^\]]*)\]", entry)  # what is outside brackets, and inside, in turn
        inside = [_numbers(part) if place % 2 else [part] for place, part in enumerate(parts)]
        hosts += ["".join(chosen) for chosen in product(*inside)]
    return hosts


def _numbers(ranges: str) -> list[str]:
    numbers = []
    for entry in ranges.split(","):
        first, dash, last = entry.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        else:
            numbers.append(entry)
    return numbers


def _master(env: Mapping[str, str], launcher: str) -> tuple[str, int] | None:
    address, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
    hosts = expand_hosts(env.get("SLURM_STEP_NODELIST", "")) if launcher == "slurm" else []
    nodes = len(hosts) or _count(env.get("SLURM_JOB_NUM_NODES"))
    if address is not None and launcher != "torchrun" and nodes > 1 and _is_loopback(address):
        # Left behind in the shell that submitted: each host would wait for itself.
        if env.get(_LAYOUTS[launcher][0]) == "0":
            log.warning("MASTER_ADDR=%s means another host on each of %d nodes: not taken", address, nodes)
        address = port = None
    if address is None and hosts:
        address = hosts[0]
    if port is None and "SLURM_JOB_ID" in env:
        # A requeued job keeps its number: what is left of the attempt before must not be met again.
        attempt = 101 * int(env.get("SLURM_RESTART_COUNT", "0")) + 17 * int(env.get("SLURM_STEP_ID", "0"))
        port = str(20000 + (int(env["SLURM_JOB_ID"]) + attempt) % 20000)
    if address is not None and port is not None:
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"MASTER_PORT is {port!r}: export a port, 1 to 65535, or none")
        return address, int(port)
    if launcher in ("openmpi", "mvapich", "mpich"):
        return None  # its ranks can ask each other
    raise UsageError(f"started by {launcher} without MASTER_ADDR and MASTER_PORT: export both before the launch")


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 1


def _is_loopback(address: str) -> bool:
    return address.startswith(("localhost", "127.", "ip6-l")) or address in ("::1", "0.0.0.0", "::")
