from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.feed.epochs import Epochs

EPOCHS = 50


def drawn(seed: int) -> list[NDArray[np.float64]]:
    """Four sources: whole and broken weights of one number each, and scores of all kinds, some of them 0."""
    rng = np.random.default_rng(seed)
    scores = rng.gamma(0.5, 1.0, 60) * (rng.random(60) < 0.9)
    return [np.ones(37), np.full(53, 0.3), np.full(29, 2.5), scores / scores.mean()]


def history(epochs: Epochs, captions: int) -> NDArray[np.int64]:
    """How often each pair came in each epoch [epochs, N], read from the line."""
    parts = [epochs.window(epochs.begin(e), epochs.begin(e + 1)) for e in range(EPOCHS)]
    return np.array([np.bincount(part, minlength=captions) for part in parts])


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_comes_within_one_of_its_share_between_any_two_epochs(seed: int) -> None:
    weights = drawn(seed)
    every = np.concatenate(weights)
    came = history(Epochs(seed, np.ones(len(every), np.int64), weights), len(every))
    before = np.concatenate([np.zeros((1, len(every)), int), np.cumsum(came, axis=0)])
    for one, weight in enumerate(every.tolist()):
        for first in range(EPOCHS):
            counts = (before[first + 1 :, one] - before[first, one]).tolist()
            assert all(abs(n - (e + 1) * Fraction(weight)) < 1 for e, n in enumerate(counts))
    assert (came[:, :37] == 1).all()
    assert set(came[:, 90:119].ravel().tolist()) == {2, 3}
    # No epoch leaves out what another does.
    assert len({tuple(row) for row in came[:10, 37:90].tolist()}) == 10


@pytest.mark.parametrize("weight", [0.001, 0.25, 1 / 3, 0.7, 1.5, 7.2])
def test_epochs_have_as_many_of_a_source_as_its_weight_says(weight: float) -> None:
    """To within half a pair over any number of them, whatever else there is."""
    weights = [np.full(11, 0.9), np.full(87, weight)]
    came = history(Epochs(5, np.ones(98, np.int64), weights), 98)[:, 11:].sum(axis=1).cumsum()
    exact = 87 * weight * np.arange(1, EPOCHS + 1)
    assert np.abs(came - exact).max() < 0.5 + 1e-9


def test_phases_of_scores_are_fair() -> None:
    """Each pair's first coming is where chance puts it: not the high scores first, nor those stored first."""
    rng = np.random.default_rng(0)
    weights = [rng.random(20_000) * 0.2]
    first = np.bincount(Epochs(1, np.ones(20_000, np.int64), weights).window(0, 2000 - 50), minlength=20_000)
    assert (weights[0][first > 0]).mean() == pytest.approx((weights[0] ** 2).mean() / weights[0].mean(), rel=0.03)
    assert np.flatnonzero(first).mean() == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("by_tokens", [False, True])
def test_windows_are_cut_from_one_line_and_can_be_asked_for_in_any_order(by_tokens: bool) -> None:
    weights = drawn(0)
    total = sum(map(len, weights))
    sizes = np.random.default_rng(1).integers(5, 140, total) if by_tokens else np.ones(total, np.int64)
    epochs = Epochs(3, sizes, weights)
    share = 997 if by_tokens else 13
    # The whole line by brute force: the epochs' orders, one behind the other.
    line = np.concatenate([epochs.window(epochs.begin(e), epochs.begin(e + 1)) for e in range(EPOCHS)])
    ends = np.cumsum(sizes[line])
    assert ends[-1] == epochs.begin(EPOCHS) == pytest.approx(EPOCHS * epochs.size, rel=0.01)
    assert len(line) == pytest.approx(EPOCHS * epochs.pairs, rel=0.01)
    steps = int(ends[-1] // share)
    expected = [line[(ends > s * share) & (ends <= (s + 1) * share)] for s in range(steps)]
    for s in [*np.random.default_rng(2).permutation(steps).tolist(), *range(steps)]:
        # As after a restart: one that was asked for nothing before.
        fresh = Epochs(3, sizes, weights) if s % 40 == 0 else epochs
        np.testing.assert_array_equal(fresh.window(s * share, (s + 1) * share), expected[s])
    orders = [line[epochs.begin(e) : epochs.begin(e + 1)].tolist() for e in range(3)] if not by_tokens else []
    assert all(a != b for a, b in pairwise(orders))


def test_epochs_that_have_no_pair() -> None:
    """Of a hundredth of ten pairs: one epoch in ten has one."""
    epochs = Epochs(0, np.full(10, 3, np.int64), [np.full(10, 0.01)])
    begins = [epochs.begin(e) for e in range(101)]
    assert begins[0] == 0
    assert begins[100] == 30
    assert {b - a for a, b in pairwise(begins)} == {0, 3}
    assert sorted(epochs.window(0, 30)) == list(range(10))
    assert [len(epochs.window(3 * n, 3 * n + 3)) for n in range(30)] == [1] * 30


def test_weights_of_one_change_nothing() -> None:
    """Nor is an epoch anything but one permutation, that of runs before there were weights."""
    sizes = np.random.default_rng(0).integers(1, 99, 70)
    plain, same = Epochs(9, sizes), Epochs(9, sizes, [np.ones(30), np.ones(40)])
    assert (plain.size, plain.pairs) == (same.size, same.pairs)
    for epoch in (0, 1, 5):
        generator = np.random.Generator(np.random.Philox(key=np.array([9, epoch], np.uint64)))
        once = plain.window(plain.begin(epoch), plain.begin(epoch + 1))
        np.testing.assert_array_equal(once, generator.permutation(70))
    for first in range(0, 20_000, 771):
        np.testing.assert_array_equal(plain.window(first, first + 771), same.window(first, first + 771))
