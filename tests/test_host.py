"""What a process asks of its host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagebert.host import cores_beside, give_way

KEPT = """
import torch
from imagebert.host import keep_memory
{first}
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
held = [torch.empty(5_000_000).fill_(1) for _ in range(15)]  # 20 MB each, as forward keeps for backward
del held
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_stays() -> None:
    found = []
    for first in ("", "keep_memory()"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        call = [sys.executable, "-c", KEPT.format(first=first)]
        found.append(int(subprocess.run(call, env=environment, capture_output=True, check=True).stdout))
    given_back, kept = found
    assert given_back < 60e6
    assert kept > 240e6


def test_what_was_asked_for_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        give_way()
        assert os.environ.get("GOMP_SPINCOUNT") == expected
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("0-1,8-9\n", {0, 1, 8}),
        ("5\n", {5}),
        ("32-63\n", set(range(9))),  # a job that has none of those cores
        ("\n", set(range(9))),
        (None, set(range(9))),
    ],
)
def test_cores_beside_a_gpu(tmp_path: Path, listed: str | None, expected: set[int]) -> None:
    if listed is not None:
        (tmp_path / "0000:1b:00.0").mkdir()
        (tmp_path / "0000:1b:00.0/local_cpulist").write_text(listed)
    assert cores_beside("0000:1b:00.0", set(range(9)), tmp_path) == expected
