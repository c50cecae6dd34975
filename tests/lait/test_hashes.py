"""Perceptual hashes, and groups of near ones against a comparison of all with all."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray
from PIL import Image

from imagebert.errors import UsageError
from imagebert.lait import hashes as lait_hashes
from imagebert.lait.hashes import hash_of, near


def by_comparing_all(hashes: NDArray[np.uint64], most: int) -> list[int]:
    """For each the smallest index that it is connected with: what is reached step by step."""
    numbers = [int(value) for value in hashes]
    group = [-1] * len(numbers)
    for start in range(len(numbers)):
        reached = [start] if group[start] < 0 else []
        while reached:
            at = reached.pop()
            group[at] = start
            reached += [
                other
                for other, value in enumerate(numbers)
                if group[other] < 0 and (value ^ numbers[at]).bit_count() <= most and other not in reached
            ]
    return group


def around(rng: np.random.Generator, centres: int, each: int, flips: int) -> NDArray[np.uint64]:
    """Hashes that lie around some, in chains."""
    made = []
    for _ in range(centres):
        value = int(rng.integers(0, 2**63)) * 2 + 1
        for _ in range(each):
            for bit in rng.integers(0, 64, int(rng.integers(0, flips + 1))).tolist():
                value ^= 1 << bit
            made.append(value)
    return rng.permutation(np.array(made, np.uint64))


@given(
    seed=some.integers(0, 2**32),
    most=some.integers(0, 6),
    centres=some.integers(1, 8),
    each=some.integers(1, 30),
    flips=some.integers(0, 9),
)
def test_groups_are_those_of_comparing_all(seed: int, most: int, centres: int, each: int, flips: int) -> None:
    hashes = around(np.random.default_rng(seed), centres, each, flips)
    assert near(hashes, most).tolist() == by_comparing_all(hashes, most)


@given(some.lists(some.integers(0, 2**64 - 1)), some.integers(0, 16))
def test_any_hashes(numbers: list[int], most: int) -> None:
    hashes = np.array(numbers, np.uint64)
    assert near(hashes, most).tolist() == by_comparing_all(hashes, most)


@pytest.mark.parametrize("most", [1, 3])
def test_where_very_many_share_a_band(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All differ in the same few bits only: each band is shared by more than are compared with each other."""
    monkeypatch.setattr(lait_hashes, "_FEW", 8)
    rng = np.random.default_rng(most)
    spread = np.array([sum(1 << bit * 3 for bit in range(20) if n >> bit & 1) for n in rng.integers(0, 2**20, 700)])
    hashes = np.concatenate([spread, spread[:50]]).astype(np.uint64)
    expected = by_comparing_all(hashes, most)
    assert len(set(expected)) > 5
    assert near(hashes, most).tolist() == expected


def test_many_that_are_all_near() -> None:
    hashes = np.arange(1 << 12, dtype=np.uint64)[::-1] << np.uint64(9)
    assert (near(hashes, 1) == 0).all()
    assert (near(hashes, 12) == 0).all()


def test_equal_hashes_are_a_group_whatever_else_there_is() -> None:
    hashes = np.array([7, 0, 0, 2**64 - 1, 0], np.uint64)
    assert near(hashes, 0).tolist() == [0, 1, 1, 3, 1]
    assert near(hashes, 3).tolist() == [0, 0, 0, 3, 0]
    assert near(np.zeros(300_000, np.uint64)).max() == 0
    assert near(hashes[:0]).tolist() == []


def test_in_how_many_bits_they_may_differ_is_bounded() -> None:
    for most in (-1, 17):
        with pytest.raises(UsageError, match=f"at most {most} bits: give 0 to 16"):
            near(np.zeros(1, np.uint64), most)


def picture(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return np.asarray(small.resize((320, 240), Image.Resampling.BICUBIC))


def by_its_definition(pixels: NDArray[np.uint8]) -> int:
    """The 8x8 lowest frequencies of 32x32 greys by the sums that define them, in float64."""
    grey = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    waves = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)
    lowest = waves @ np.asarray(grey, float) @ waves.T
    return int("".join("1" if above else "0" for above in (lowest > np.median(lowest)).flat), 2)


def test_a_hash_is_the_signs_of_the_lowest_frequencies() -> None:
    for seed in range(5):
        assert hash_of(picture(seed)) == by_its_definition(picture(seed))


def test_the_same_picture_resized_and_compressed_is_near_and_another_is_not() -> None:
    hashes = []
    for seed in range(20):
        image, buffer = Image.fromarray(picture(seed)), io.BytesIO()
        image.resize((200, 140)).save(buffer, "JPEG", quality=50)
        hashes += [hash_of(picture(seed)), hash_of(np.asarray(Image.open(buffer)))]
    assert near(np.array(hashes, np.uint64)).tolist() == [index // 2 * 2 for index in range(40)]
