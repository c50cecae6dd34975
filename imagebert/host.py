"""What a process asks of the machine that it shares with others, memory that stays and threads that give way; and what
it says when it ends."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

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


def fault_line(host: str, sentence: str) -> str:
    """What is wrong with a machine, in the form by which slurm/ finds it and leaves that machine out."""
    return f"imagebert: fault on {host}: {' '.join(sentence.split())}"


def say_fault(host: str, sentence: str) -> None:
    print(fault_line(host, sentence), file=sys.stderr, flush=True)
