"""Tables of figures that were made up, and who is slow in them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from imagebert.doctor.speed import measure, measure_links, rounds, slow_links, slow_ranks


@pytest.mark.parametrize("hosts", range(1, 17))
def test_all_pairs_talk_once_and_nobody_in_two(hosts: int) -> None:
    found = rounds(hosts)
    for pairs in found:
        assert all(count == 1 for count in Counter(host for pair in pairs for host in pair).values())
    met = [tuple(sorted(pair)) for pairs in found for pair in pairs]
    assert sorted(met) == list(combinations(range(hosts), 2))
    assert len(found) == (hosts - 1 if hosts % 2 == 0 else hosts * (hosts > 1))


@pytest.mark.parametrize("hosts", [17, 18, 33, 128])
def test_of_many_hosts_a_ring_and_some_by_lot(hosts: int) -> None:
    found = rounds(hosts)
    for pairs in found:
        assert max(Counter(host for pair in pairs for host in pair).values()) == 1
        assert all(0 <= host < hosts for pair in pairs for host in pair)
    met = {tuple(sorted(pair)) for pairs in found for pair in pairs}
    assert {tuple(sorted((host, (host + 1) % hosts))) for host in range(hosts)} <= met
    assert len(found) <= 7
    assert found == rounds(hosts)  # all ranks draw alike


def ranks(gpu: str, *products: float, copy: float | None = None) -> list[dict[str, Any]]:
    speeds = [{"product TFLOP/s": product, "copy GB/s": 100.0} for product in products]
    if copy is not None:
        speeds[-1]["copy GB/s"] = copy
    return [{"host": f"n{rank // 2}", "gpu": gpu, "speed": speed} for rank, speed in enumerate(speeds)]


@pytest.mark.parametrize(
    ("found", "notes", "faults"),
    [
        (ranks("8 x H100", 600, 610, 590, 600), [], {}),
        (ranks("8 x H100", 600, 600, 600, 515), [], {}),
        (
            ranks("8 x H100", 600, 600, 600, 505),
            ["rank 3 on n1 is slow: product TFLOP/s 505, the median is 600"],
            {},
        ),
        (
            ranks("8 x H100", 600, 600, 600, 299),
            [],
            {"n1": "the GPU of rank 3 is slow: product TFLOP/s 299, the median is 600"},
        ),
        (
            ranks("8 x H100", 600, 600, 600, 600, copy=40),
            ["rank 3 on n1 is slow: copy GB/s 40, the median is 100"],
            {},
        ),
        # Cores are shared: more is needed for a note, and nothing is a fault.
        (ranks("none", 0.1, 0.1, 0.1, 0.061), [], {}),
        (ranks("none", 0.1, 0.1, 0.1, 0.01), ["rank 3 on n1 is slow: product TFLOP/s 0.01, the median is 0.1"], {}),
    ],
)
def test_slow_ranks(found: list[dict[str, Any]], notes: list[str], faults: dict[str, str]) -> None:
    assert slow_ranks(found) == (notes, faults)


def links(rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of pairs such as "ab", as both of them measured them."""
    found: dict[str, dict[str, float]] = {host: {} for pair in rates for host in pair}
    for (one, other), rate in rates.items():
        found[one][other] = found[other][one] = rate
    return found


@pytest.mark.parametrize(
    ("rates", "slow"),
    [
        ({"ab": 1.0}, ""),  # of two it cannot be told
        ({"ab": 20.0, "ac": 20.0, "bc": 20.0}, ""),
        ({"ab": 20.0, "ac": 2.0, "bc": 2.2}, "c"),
        ({"ab": 20.0, "ac": 11.0, "bc": 11.0}, ""),
        ({"ab": 20.0, "ac": 20.0, "ad": 2.0, "bc": 20.0, "bd": 20.0, "cd": 2.0}, ""),  # one good link
        ({"ab": 20.0, "ac": 20.0, "ad": 2.0, "bc": 20.0, "bd": 3.0, "cd": 2.0}, "d"),
    ],
)
def test_slow_links(rates: dict[str, float], slow: str) -> None:
    notes = slow_links(links(rates))
    assert [note.split()[3] for note in notes] == list(slow)


def test_a_slow_link_has_its_figures() -> None:
    (note,) = slow_links(links({"ab": 20.0, "ac": 2.0, "bc": 2.2}))
    assert note == "the network of c is slow: 2.2 GB/s at most, 20 GB/s is the median between the other hosts"


def test_one_rank_measures_itself() -> None:
    found = measure(quick=True)
    assert all(value > 0 for value in found["speed"].values())
    assert found["all_reduce_gbs"] == 0
    assert measure_links(["a"], quick=True) == {}
