"""What a rank's device and a host's links give, measured by all at once as in training, and which of them are slow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from imagebert import distributed

_ALL_PAIRS = 16  # hosts up to which each link is measured
_RANDOM_ROUNDS = 4
_SLOW_GPU, _SLOW_CPU = 0.15, 0.4  # below the median; cores are shared
_BROKEN_GPU = 0.5  # of the median
_SLOW_LINK = 0.5

Round = list[tuple[int, int]]


def measure(quick: bool) -> dict[str, Any]:
    """This rank's product in TFLOP/s, copies in GB/s, and its all-reduce's. Collective."""
    device = distributed.device()
    gpu = device.type == "cuda"
    size, times = (8192 if gpu else 512), (8 if quick else 40)
    a, b = (torch.ones(size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32) for _ in range(2))
    out = torch.empty_like(a)
    speed = {"product TFLOP/s": 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out), times) / 1e12}
    # Larger than caches; a copy reads and writes.
    source = torch.ones((256 if gpu else 32) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    speed["copy GB/s"] = 2 * len(source) / _seconds(lambda: target.copy_(source), times) / 1e9
    if gpu:
        pinned = torch.ones(64 << 20, dtype=torch.uint8).pin_memory()
        part = target[: len(pinned)]
        speed["to GPU GB/s"] = len(pinned) / _seconds(lambda: part.copy_(pinned, non_blocking=True), times) / 1e9
    return {"speed": speed, "all_reduce_gbs": _all_reduce(4 << 20 if quick else 64 << 20, 3 if quick else 10)}


def measure_links(hosts: Sequence[str], quick: bool) -> dict[str, float]:
    """GB/s each way between this rank's host and others, by their names, while other pairs talk too. Collective.

    Args:
        hosts: of each rank; the first rank of each speaks, the others have no links
    """
    speakers = [hosts.index(host) for host in dict.fromkeys(hosts)]
    links = {}
    sent = torch.zeros((4 if quick else 64) << 20, dtype=torch.uint8, device=distributed.device())
    received = torch.empty_like(sent)
    for pairs in rounds(len(speakers)):
        distributed.total([1])  # no pair begins while those of the round before talk
        for one, other in pairs:
            places = [speakers[one], speakers[other]]
            if distributed.rank() in places:
                peer = places[1 - places.index(distributed.rank())]
                seconds = _seconds(lambda peer=peer: distributed.exchange(peer, sent, received), 3)  # type: ignore[misc]
                links[hosts[peer]] = len(sent) / seconds / 1e9
    return links


def rounds(hosts: int) -> list[Round]:
    """Pairs of hosts that talk at the same time, each host in one of them at most.

    All pairs, each once; of many hosts a ring, and some rounds by lot.
    """
    if hosts > _ALL_PAIRS:
        even = [(host, host + 1) for host in range(0, hosts - 1, 2)]
        odd = [(host, host + 1) for host in range(1, hosts - 1, 2)]
        closing = (hosts - 1, 0)
        ring = [even, [*odd, closing]] if hosts % 2 == 0 else [even, odd, [closing]]
        lot = random.Random(hosts)  # the same on all ranks
        drawn = (lot.sample(range(hosts), hosts) for _ in range(_RANDOM_ROUNDS))
        return [*ring, *([*zip(order[::2], order[1::2], strict=False)] for order in drawn)]
    if hosts < 2:
        return []
    # The first stays in its place and the others go round; with an odd number one waits.
    circle = list(range(hosts + hosts % 2))
    found = []
    for _ in range(len(circle) - 1):
        pairs = zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True)
        found.append([(one, other) for one, other in pairs if max(one, other) < hosts])
        circle[1:] = [circle[-1], *circle[1:-1]]
    return found


def slow_ranks(ranks: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """Notes on ranks that are slow beside the others, and what is wrong with hosts whose GPU is not half as fast."""
    notes, faults = [], {}
    for name in ranks[0]["speed"]:
        values = [(number, facts, facts["speed"][name]) for number, facts in enumerate(ranks) if name in facts["speed"]]
        middle = median(value for *_, value in values)
        for number, facts, value in values:
            gpu = facts["gpu"] != "none"
            figures = f"{value:.3g}, the median is {middle:.3g}"
            if gpu and name.startswith("product") and value < _BROKEN_GPU * middle:
                faults[facts["host"]] = f"the GPU of rank {number} is slow: {name} {figures}"
            elif value < (1 - (_SLOW_GPU if gpu else _SLOW_CPU)) * middle:
                notes.append(f"rank {number} on {facts['host']} is slow: {name} {figures}")
    return notes, faults


def slow_links(links: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Notes on hosts all of whose links are below half of the median link between the others.

    Args:
        links: GB/s by host and host; each measured by both, of which the slower counts
    """
    notes = []
    for host, own in links.items():
        others = [rate for one, rates in links.items() for other, rate in rates.items() if host not in (one, other)]
        if own and others and max(own.values()) < _SLOW_LINK * (middle := median(others)):
            notes.append(
                f"the network of {host} is slow: {max(own.values()):.3g} GB/s at most, {middle:.3g} GB/s is the median "
                "between the other hosts"
            )
    return notes


def _all_reduce(size: int, times: int) -> float:
    """Bytes a second and rank that an all-reduce moves on the wire, in GB/s; 0 when alone."""
    ranks = distributed.world_size()
    if ranks == 1:
        return 0.0
    values = torch.zeros(size // 4, device=distributed.device())
    seconds = _seconds(lambda: distributed.total_on_device(values), times)
    return 2 * (ranks - 1) / ranks * size / seconds / 1e9


def _seconds(work: Callable[[], object], times: int) -> float:
    """The median of so many, after one that is not counted."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return max(median(seconds[1:]), 1e-9)
