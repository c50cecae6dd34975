"""A Ray cluster of two nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebert.demo.web import make_web, some_subjects, write_warcs
from imagebert.errors import UsageError
from imagebert.lait.build import read_pages
from imagebert.lait.engine import Engine
from imagebert.lait.ray_cluster import ray_pool
from imagebert.lait.recipe import LaitRecipe

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}:{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
}
with socket.socket() as probe:
    probe.bind(("", 0))
    PORT = probe.getsockname()[1]


def start(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    """A node, as a process in the foreground, with one processor."""
    ray = Path(sys.executable).with_name("ray")
    node = [str(ray), "start", *words, "--num-cpus=1", "--block", "--disable-usage-stats"]
    with (folder / "ray.log").open("ab") as log:
        return subprocess.Popen(node, env=ENV, stdout=log, stderr=log, start_new_session=True)


def end(node: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(node.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    node.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    home = Path("/tmp") / f"ray{os.getpid()}"  # its sockets' names must be short
    head = start("--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={home}", folder=tmp_path)
    other = start(f"--address=127.0.0.1:{PORT}", folder=tmp_path)
    yield [head, other]
    end(other)
    end(head)
    shutil.rmtree(home, ignore_errors=True)


def wait_for(count: int) -> None:
    """Until so many nodes are there."""
    import ray

    for _ in range(120):
        try:
            ray.init(address=f"127.0.0.1:{PORT}", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
            continue
        there = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
        if there == count:
            return
        time.sleep(0.5)
    raise AssertionError(f"{count} nodes did not start")


def test_a_node_that_dies_costs_no_file(
    tmp_path: Path, nodes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    write_warcs(make_web(some_subjects(400, 31), 400, 31), crawl, 8)
    alone = read_pages([crawl], tmp_path / "alone", LaitRecipe(), Engine())
    wait_for(2)
    out = tmp_path / "ray"
    killer = subprocess.Popen(
        [sys.executable, "-c", KILL, str(out), str(nodes[1].pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    done = read_pages([crawl], out, LaitRecipe(), Engine(ray=f"127.0.0.1:{PORT}"))
    assert killer.wait(30) == 0
    assert nodes[1].wait(30) == -signal.SIGKILL  # it was in the middle
    assert done.counts == alone.counts
    assert [path.read_bytes() for path in done.files()] == [path.read_bytes() for path in alone.files()]


# Ends the second node with all its processes when the first result is there.
KILL = """
import os, pathlib, signal, sys, time
out, group = pathlib.Path(sys.argv[1]), int(sys.argv[2])
while not list(out.glob("*.parquet")):
    time.sleep(0.02)
os.killpg(group, signal.SIGKILL)
sys.exit(0 if not (out / "step.json").exists() else 1)
"""


def wrong(out: Path) -> dict[str, int]:
    raise UsageError("it is wrong: mend it")


def failing(out: Path) -> dict[str, int]:
    raise OSError("the disk is full")


def test_what_is_wrong_comes_as_its_sentence(
    nodes: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
    wait_for(2)
    with ray_pool(f"127.0.0.1:{PORT}") as (pool, width):
        assert width == 2
        with pytest.raises(UsageError, match=r"^it is wrong: mend it$"):
            pool.submit(wrong, tmp_path).result(60)
        with pytest.raises(OSError, match=r"^the disk is full$"):
            pool.submit(failing, tmp_path).result(60)


def test_no_cluster_is_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"there is no Ray cluster at 127\.0\.0\.1:1 "), ray_pool("127.0.0.1:1"):
        pass
