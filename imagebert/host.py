"""What a process asks of the machine that it shares with others, memory that stays and threads that give way; and what
it says when it ends."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

STOPPED = 75  # EX_TEMPFAIL: what schedulers requeue

# mallopt's parameters (malloc.h), and the most that glibc takes as the first's value.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST = -1, -3, 32 << 20


def give_way() -> None:
    """OpenMP's threads wait by turning for microseconds, then asleep. To be called before PyTorch is imported.

    By default they turn for milliseconds. Where other processes want the cores, the thread that is waited for does not
    get one meanwhile: on two cores beside six busy processes a small model trained at a thirtieth of its rate.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def keep_memory() -> None:
    """What glibc has got for tensors of up to 32 MiB it does not give back, so that their pages are touched once.

    A step on a CPU makes hundreds of tensors of some megabytes, which glibc maps afresh each time: a fault a page.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def cores_beside(device: str, allowed: Set[int], devices: Path = Path("/sys/bus/pci/devices")) -> set[int]:
    """Of the cores that a process may use, those of a PCI device's NUMA node; all where none is, or nobody knows.

    Args:
        device: its address, as 0000:1b:00.0.
    """
    try:
        text = (devices / device / "local_cpulist").read_text().strip()
    except OSError:
        return set(allowed)
    beside: set[int] = set()
    for part in filter(None, text.split(",")):  # 0-15,32-47
        first, _, last = part.partition("-")
        beside.update(range(int(first), int(last or first) + 1))
    return beside.intersection(allowed) or set(allowed)


def fault_line(host: str, sentence: str) -> str:
    """What is wrong with a machine, in the form by which slurm/ finds it and leaves that machine out."""
    return f"imagebert: fault on {host}: {' '.join(sentence.split())}"


def say_fault(host: str, sentence: str) -> None:
    print(fault_line(host, sentence), file=sys.stderr, flush=True)
