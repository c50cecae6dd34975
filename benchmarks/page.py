"""The search page while people send what they like: what ordinary searches wait, and what memory it takes.

    python -m benchmarks.page [--json FILE]

A small model of random weights over 64 rendered scenes is served by `imagebert serve` with its own limits, in a process
of its own, on the same cores as the clients. It is asked by
    --clients (500) people: each asks, waits for the answer, thinks for --think (30) seconds on average (drawn from an
        exponential distribution) and asks again, other words each time, on a new connection
    500 at once: as many connections are opened, and when all are open all ask at the same moment, other words each
alone first, for --seconds, then beside
    --slow (900) half-sent requests: a byte each 2 s, opened again where they are dropped
    --hostile (2) senders, one picture after the other: 1,500 scans, 90 scans, a bomb, cut, malformed EXIF, and flat
        ones of 4 million pixels, which are in order and take the demo's extractor seconds
and what the pictures were answered is counted. Seconds are the clients': from asking to the last byte.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.report import Line, publish
from tests.retrieval.scenes import write_scenes
from tests.test_pictures import MALFORMED_EXIF, many_scans

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("square", "circle", "triangle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--slow", type=int, default=900)
    parser.add_argument("--hostile", type=int, default=2)
    parser.add_argument("--think", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder) / "scenes", images=64)
        command = [sys.executable, "-m", "imagebert", "serve", *scenes.serve, "--port", "0"]
        errors = Path(folder) / "stderr"
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors.open("w"), text=True)
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+) in a browser", process.stdout.readline())
            if found is None:
                raise SystemExit(f"the page did not start: {errors.read_text()}")
            figures = asyncio.run(measure(process.pid, int(found[1]), parsed))
            begun = time.perf_counter()
            process.terminate()
            process.wait(30)
            figures["seconds_to_end"] = time.perf_counter() - begun
        finally:
            process.kill()
        figures["lines_logged"] = len(errors.read_text().splitlines())
    show(figures)
    lines = [
        Line(
            "p95 of a search beside the others, s",
            figures["drives"]["people, beside the others"]["p95"],
            2,
            at_most=True,
        ),
        Line("searches that failed", sum(drive["failed"] for drive in figures["drives"].values()), 0, at_most=True),
        Line(
            "memory of all processes, MB", max(d["memory_mb"] for d in figures["drives"].values()), 2000, at_most=True
        ),
        Line("seconds to end", figures["seconds_to_end"], 5, at_most=True),
    ]
    publish(figures, lines, parsed.json)


async def measure(server: int, port: int, parsed: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(parsed.seed)
    await search(port, "a red square")  # the first one prepares things
    drives = {
        "people, alone": await drive(server, people(port, parsed, rng)),
        "at once, alone": await drive(server, at_once(port, parsed, rng)),
    }
    answers: Counter[str] = Counter()
    others = [asyncio.create_task(half_sent(port, rng.random())) for _ in range(parsed.slow)]
    pictures = hostile()
    others += [asyncio.create_task(send(port, pictures, first, answers)) for first in range(parsed.hostile)]
    await asyncio.sleep(3)
    drives["people, beside the others"] = await drive(server, people(port, parsed, rng))
    drives["at once, beside the others"] = await drive(server, at_once(port, parsed, rng))
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    setting = {name: getattr(parsed, name) for name in ("clients", "think", "seconds", "slow", "hostile", "seed")}
    return {**setting, "drives": drives, "pictures_answered": dict(answers)}


async def drive(server: int, searches: Coroutine[Any, Any, list[float | None]]) -> dict[str, float]:
    """Of some searches: their seconds, how many failed, and the most memory meanwhile."""
    task = asyncio.create_task(searches)
    begun, memory = time.perf_counter(), 0
    while not task.done():
        memory = max(memory, resident(server))
        await asyncio.wait([task], timeout=0.2)
    total = time.perf_counter() - begun
    found = await task
    seconds = [s for s in found if s is not None]
    p50, p95 = np.percentile(seconds or [float("nan")], [50, 95]).tolist()
    return {
        "searches": len(seconds),
        "failed": len(found) - len(seconds),
        "p50": p50,
        "p95": p95,
        "longest": max(seconds, default=0.0),
        "per_second": len(seconds) / total,
        "memory_mb": memory / 1e6,
    }


async def people(port: int, parsed: argparse.Namespace, rng: random.Random) -> list[float | None]:
    end = time.perf_counter() + parsed.seconds
    seconds: list[float | None] = []

    async def one() -> None:
        while True:
            pause = rng.expovariate(1 / parsed.think)
            if time.perf_counter() + pause > end:
                return
            await asyncio.sleep(pause)
            seconds.append(await tried(search(port, words(rng))))

    await asyncio.gather(*(one() for _ in range(parsed.clients)))
    return seconds


async def at_once(port: int, parsed: argparse.Namespace, rng: random.Random) -> list[float | None]:
    together = asyncio.Barrier(parsed.clients)
    return await asyncio.gather(*(tried(search(port, words(rng), together.wait)) for _ in range(parsed.clients)))


async def tried(searching: Coroutine[Any, Any, float]) -> float | None:
    """Its seconds; None where it failed."""
    try:
        return await searching
    except (OSError, TimeoutError):
        return None


def words(rng: random.Random) -> str:
    return f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} and {rng.random()}"


async def search(port: int, words: str, ready: Callable[[], Awaitable[Any]] | None = None) -> float:
    """Seconds of one on a connection of its own; raises where it is not answered with hits."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    finally:
        if ready is not None:
            await ready()
    begun = time.perf_counter()
    query = words.replace(" ", "+")
    writer.write(f"GET /search?q={query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200") or b'"hits":[{' not in answer:
        raise ConnectionError(answer[:40])
    return time.perf_counter() - begun


async def half_sent(port: int, wait: float) -> None:
    await asyncio.sleep(2 * wait)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /search?q=red HTTP/1.1\r\nX: ")
            while not reader.at_eof():
                writer.write(b"a")
                await writer.drain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 2)
            writer.close()
        await asyncio.sleep(0.5)


def hostile() -> dict[str, bytes]:
    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    flat = Image.new("RGB", (2000, 2000), "navy")
    return {
        "1,500 scans": many_scans(saved(flat, "JPEG", progressive=True), 1500),
        "90 scans": many_scans(saved(flat, "JPEG", progressive=True), 90),
        "a bomb": saved(Image.new("1", (30_000, 30_000)), "PNG"),
        "cut": saved(flat, "PNG")[:-2000],
        "malformed EXIF": saved(flat.resize((200, 200)), "JPEG", exif=MALFORMED_EXIF),
        "4 megapixels": saved(flat, "PNG"),
    }


async def send(port: int, pictures: dict[str, bytes], first: int, answers: Counter[str]) -> None:
    """One picture after the other, for ever."""
    names = list(pictures)
    while True:
        name = names[first % len(names)]
        first += 1
        data = pictures[name]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = "POST /captions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = await reader.read()
            writer.close()
            answers[f"{name}: {answer[9:12].decode() or 'closed'}"] += 1
        except OSError:
            answers[f"{name}: closed"] += 1


def resident(process: int) -> int:
    """Bytes of a process and its children."""
    total = 0
    with suppress(OSError):
        total = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    return total


def show(figures: dict[str, Any]) -> None:
    title = f"{figures['clients']} people, {figures['slow']} half-sent requests, {figures['hostile']} hostile senders"
    table = Table("", "p50, s", "p95, s", "longest", "failed", "of", "a second", "memory, MB", title=title)
    for name, row in figures["drives"].items():
        times = (f"{row[key]:.2f}" for key in ("p50", "p95", "longest"))
        counts = (f"{row[key]:,.0f}" for key in ("failed", "searches", "per_second", "memory_mb"))
        table.add_row(name, *times, *counts)
    Console().print(table)
    for answer, count in sorted(figures["pictures_answered"].items()):
        print(f"{count:6} {answer}")
    print(f"{figures['lines_logged']} lines logged; ended in {figures['seconds_to_end']:.1f} s")


if __name__ == "__main__":
    main()
