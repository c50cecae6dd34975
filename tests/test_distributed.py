"""Ranks that do not meet end with a sentence. Each is a process: a process group is one for the life of a process."""

from __future__ import annotations

import hashlib
import socket
import threading
from typing import Any

import pytest

from imagebert.distributed import come_to_rest, judge_gpus, lost_hosts
from tests import forked
from tests.forked import free_port

MEETS = """
import logging, sys
from imagebert import distributed, meeting
logging.basicConfig(format="%(message)s")
meeting.PATIENCE = 0.5
try:
    distributed.start(float(sys.argv[1]) / 60)
except OSError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(distributed.gather(str(distributed.rank())), distributed.total([1.0]))
"""


def start(rank: int, size: int, port: int, seconds: float, **env: str) -> forked.Forked:
    layout = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return forked.start(MEETS, seconds, **layout, **env)


@pytest.mark.ranks
def test_ranks_meet() -> None:
    port = free_port()
    ranks = [start(rank, 2, port, 60) for rank in (1, 0)]
    for process in ranks:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.split("\n")[0] == "['0', '1'] [2.0]"


@pytest.mark.ranks
def test_who_is_not_met_is_named_and_waited_for_aloud() -> None:
    port = free_port()
    hosts = {"SLURM_STEP_NODELIST": "n[1-3]"}
    ranks = [start(rank, 4, port, 6, SLURMD_NODENAME=f"n{rank + 1}", **hosts) for rank in (0, 1)]
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert f"rank 0 on n1 waits at 127.0.0.1:{port} for ranks 2, 3\n" in errors[0]
    assert f"imagebert: fault on n3: no rank of it came to 127.0.0.1:{port} within 6 s\n" in errors[0]
    for text in errors:
        assert f"OSError: rank 0 on n1 has waited 6 s at 127.0.0.1:{port} for ranks 2, 3: they have not" in text
        assert "Traceback" not in text
        assert "frame #" not in text


@pytest.mark.ranks
def test_a_rank_0_that_is_not_there_is_named() -> None:
    port = free_port()
    process = start(1, 2, port, 3, SLURMD_NODENAME="n2")
    error = process.communicate()[1]
    assert process.returncode == 1
    waits = f"rank 1 on n2 waits for rank 0 at 127.0.0.1:{port} (Connection refused)\n"
    assert error.startswith(waits)
    assert f"OSError: rank 1 on n2 has waited 3 s for rank 0 at 127.0.0.1:{port} (Connection refused): MASTER_ADDR" in (
        error
    )
    assert len(error.splitlines()) == 2, error


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        process = start(0, 2, other.getsockname()[1], 3)
        error = process.communicate()[1]
    assert process.returncode == 1
    assert "export another MASTER_PORT" in error.splitlines()[-1]


def test_threads_at_work_are_waited_for() -> None:
    """Without Python's lock, as gloo's are."""
    done: list[bytes] = []
    thread = threading.Thread(target=lambda: done.append(hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000)))
    thread.start()
    come_to_rest(60)
    assert done


@pytest.mark.parametrize(
    ("hosts", "here", "lost"),
    [
        (["a", "b", "c"], ["a", "b"], ["c"]),
        (["a", "b", "c", "d"], ["a", "b"], []),  # as many are there as not: who knows
        (["a", "b"], ["a"], []),
        (["a", "b", "c"], ["a", "b", "c"], []),
        (["a", "b", "c"], ["a.example", "b.example"], []),  # other names
        ([], ["a"], []),
    ],
)
def test_hosts_that_did_not_come(hosts: list[str], here: list[str], lost: list[str]) -> None:
    assert lost_hosts(hosts, [{"host": host} for host in here]) == lost


def seen(*ranks: tuple[str, int, int]) -> list[dict[str, Any]]:
    return [dict(zip(("host", "gpus", "needed"), rank, strict=True)) for rank in ranks]


@pytest.mark.parametrize(
    ("ranks", "given", "wrong", "faults"),
    [
        (seen(("a", 0, 1), ("b", 0, 1)), 8, "", {}),  # on CPUs
        (seen(("a", 2, 1), ("a", 2, 2)), 2, "", {}),
        (seen(("a", 1, 1), ("b", 1, 1)), 8, "", {}),  # each shown its own
        (seen(("a", 2, 1), ("b", 0, 1)), 0, "", {"b": "0 GPUs are there, and not 2"}),
        (seen(("a", 2, 2), ("b", 1, 1), ("c", 1, 2)), 2, "", {"c": "1 GPUs are there, and not 2"}),
        (seen(("a", 7, 7), ("a", 7, 8)), 8, "", {"a": "7 GPUs are there, and not 8"}),
        (seen(("a", 2, 2), ("a", 2, 3)), 2, "local rank 2 has no GPU: 2 are visible, start as many processes", {}),
        (seen(("a", 2, 3)), 0, "local rank 2 has no GPU: 2 are visible, start as many processes", {}),
    ],
)
def test_ranks_without_a_gpu(ranks: list[dict[str, Any]], given: int, wrong: str, faults: dict[str, str]) -> None:
    assert judge_gpus(ranks, given) == (wrong, faults)
