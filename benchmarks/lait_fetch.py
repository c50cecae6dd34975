"""Fetching pictures from hosts of which a third misbehaves in every known way at random, all on this machine.

    python -m benchmarks.lait_fetch [--pictures 10000] [--hosts 2000] [--bad 0.3] [--json FILE]

The server is the one of the tests (tests/lait/hostile.py), in a process of its own; each of its hosts is an address of
127.0.0.0/8, has a robots.txt and is asked politely, two requests at once and a pause between any two. The client is a
process of its own, too, so its memory and its processor's time are its own. It is measured beside good hosts alone.
What each picture is to end in is known: one that ends otherwise, or has other bytes, is counted as wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import Line, publish
from imagebert.lait.shards import Row, read_rows
from tests.lait.hostile import WAYS, fits, hostile_server, key_of, picture

SECONDS = 10.0  # for a picture: as long as those take that never come
GOOD = ("jpeg", "png", "webp", "chunked", "redirected")
CLIENT = """
import json, re, sys, time
from pathlib import Path
from imagebert.lait.fetch import FetchLimits, Wanted, fetch_shard
wanted, shard, limits = json.load(sys.stdin)
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, begun, used = peak(), time.perf_counter(), time.process_time()
fetch_shard([Wanted(*each) for each in wanted], Path(shard), FetchLimits(**limits))
print(json.dumps({
    "seconds": time.perf_counter() - begun,
    "seconds_of_processor": time.process_time() - used,
    "mib_before": before,
    "mib_at_most": peak(),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--hosts", type=int, default=2_000)
    parser.add_argument("--bad", type=float, default=0.3, help="share of pictures asked for in any way at random")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    figures: dict[str, Any] = {name: getattr(parsed, name) for name in ("pictures", "hosts", "bad")}
    figures["runs"] = [measure(parsed.pictures, parsed.hosts, bad) for bad in (parsed.bad, 0.0)]
    show(figures)
    lines = [
        *(Line(f"wrong of {run['bad']:.0%} bad", run["wrong"], 0, at_most=True) for run in figures["runs"]),
        *(Line(f"MiB of {run['bad']:.0%} bad", run["mib"], 512, at_most=True) for run in figures["runs"]),
    ]
    publish(figures, lines, parsed.json)


def measure(pictures: int, hosts: int, bad: float) -> dict[str, Any]:
    rng = random.Random(1)
    ways = [rng.choice(list(WAYS) if rng.random() < bad else GOOD) for _ in range(pictures)]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    wanted = [(key_of(n), f"http://{address(n % hosts)}:{port}/{way}/{n}") for n, way in enumerate(ways)]
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "00000.tar")
        limits = {"seconds": SECONDS, "picture_bytes": 2 << 20, "allow_private": True}
        done = subprocess.run(
            [sys.executable, "-c", CLIENT],
            input=json.dumps([wanted, str(shard), limits]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows = read_rows(shard)
    ours.send("stop")
    server.join(10)
    figures = json.loads(done.stdout)
    counted = Counter(row.status for row in rows)
    wrong = Counter(
        f"{way}: {row.status}"
        for n, (row, way) in enumerate(zip(rows, ways, strict=True))
        if not is_right(row, way, str(n))
    )
    return {
        "bad": bad,
        "statuses": dict(sorted(counted.items())),
        "good": sum(WAYS[way] == "success" for way in ways),
        "wrong": sum(wrong.values()),
        "wrong_as": dict(wrong),
        "mib": figures["mib_at_most"],
        "pictures_a_second": counted["success"] / figures["seconds"],
        "milliseconds_of_processor_a_picture": 1e3 * figures["seconds_of_processor"] / len(rows),
        **figures,
    }


def address(number: int) -> str:
    return f"127.{1 + number // 65_000}.{number // 250 % 250}.{1 + number % 250}"


def serve(pipe: Connection) -> None:
    with hostile_server() as server:
        pipe.send(server.port)
        pipe.recv()


def is_right(row: Row, way: str, name: str) -> bool:
    if not fits(way, row.status):
        return False
    sent = picture(way if way in ("png", "webp", "gif", "avif", "far") else "jpeg", name)
    return row.status != "success" or row.sha256 == hashlib.sha256(sent).hexdigest()


def show(figures: dict[str, Any]) -> None:
    table = Table(
        "bad", "good", "come", "wrong", "s", "come / s", "s of processor", "ms a picture", "MiB", "MiB before"
    )
    for run in figures["runs"]:
        table.add_row(
            *(f"{run['bad']:.0%}", f"{run['good']:,}", f"{run['statuses']['success']:,}", str(run["wrong"])),
            *(f"{run['seconds']:.1f}", f"{run['pictures_a_second']:,.0f}", f"{run['seconds_of_processor']:.1f}"),
            *(f"{run['milliseconds_of_processor_a_picture']:.2f}", f"{run['mib']:.0f}", f"{run['mib_before']:.0f}"),
        )
    Console().print(table)
    for run in figures["runs"]:
        print(f"{run['bad']:.0%} bad: " + ", ".join(f"{name} {count:,}" for name, count in run["statuses"].items()))
        if run["wrong"]:
            print(f"wrong: {run['wrong_as']}")


if __name__ == "__main__":
    main()
