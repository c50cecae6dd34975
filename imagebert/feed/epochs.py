"""Epochs: which pairs each of them has, and in what order, all on one line of pairs, or of their tokens.

A pair of weight w comes floor((e + 1) w + u) - floor(e w + u) times in epoch e, where its phase u, 0 <= u < 1, stays
the same. So between any two epochs it comes within one of its share, and how often it came before an epoch follows from
the epoch's number alone; so does where the epoch begins, which is one sum over the pairs. Nothing is carried from one
epoch to the next.

The phases of a source's N pairs are (k + 1/2) / N, in a random order. Where all have one weight w, e epochs then have
e N w of them, rounded: floor(x + k / N), summed over k < N, is floor(N x) (Hermite's identity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from imagebert.feed.draws import Purpose, draw

_KEPT = 64  # beginnings of epochs; a step asks for those of the few that it lies in


class Epochs:
    """The pairs of a corpus in their order, epoch after epoch.

    Args:
        key: of the stage
        sizes: [N] int64, what each pair takes of the line: 1, or its tokens
        weights: how many times each comes in an epoch, on average, 0 or more; one array a source, as the pairs lie one
            source behind the other. None: once, all of them

    Attributes:
        size: what an epoch takes of the line, on average
        pairs: that an epoch has, on average
        begin: where an epoch of some number begins on the line
    """

    def __init__(
        self, key: int, sizes: NDArray[np.int64], weights: Sequence[NDArray[np.float64]] | None = None
    ) -> None:
        self._key, self._sizes = key, sizes
        self._weights: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None  # and phases, [N] each
        self.size, self.pairs = float(sizes.sum()), float(len(sizes))
        if weights is not None:
            every = np.concatenate(weights)
            self._weights = every, np.concatenate([_phases(key, s, len(own)) for s, own in enumerate(weights)])
            # Exact sums: all ranks must have the same number of steps, whatever order their machines add in.
            self.size, self.pairs = math.fsum(every * sizes), math.fsum(every)
        self.begin = lru_cache(_KEPT)(self._begin)
        self._order = lru_cache(1)(self._find_order)

    def window(self, first: int, last: int) -> NDArray[np.int64]:
        """The pairs that end in (first, last] of the line, in their order."""
        epoch = int(first / self.size)
        # Epochs differ a little in size.
        while self.begin(epoch) > first:
            epoch -= 1
        while self.begin(epoch + 1) <= first:
            epoch += 1
        found = []
        while (begin := self.begin(epoch)) < last:
            order, ends = self._order(epoch)
            found.append(order[slice(*np.searchsorted(ends, [first - begin, last - begin], side="right"))])
            epoch += 1
        return np.concatenate(found)

    def _begin(self, epoch: int) -> int:
        return int(self._came(epoch) @ self._sizes)

    def _came(self, epoch: int) -> NDArray[np.int64]:
        """How often each pair came before an epoch [N]."""
        if self._weights is None:
            return np.full(len(self._sizes), epoch)
        weights, phases = self._weights
        return np.floor(epoch * weights + phases).astype(np.int64)

    def _find_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """An epoch's pairs in their order, and where each ends, from the epoch's beginning on."""
        pairs = np.repeat(np.arange(len(self._sizes)), self._came(epoch + 1) - self._came(epoch))
        generator = np.random.Generator(np.random.Philox(key=np.array([self._key, epoch], np.uint64)))
        order = pairs[generator.permutation(len(pairs))]
        return order, np.cumsum(self._sizes[order])


def _phases(key: int, source: int, pairs: int) -> NDArray[np.float64]:
    """The phases of a source's pairs: spread evenly over 0 to 1, in a random order."""
    return (np.argsort(draw(key, Purpose.PHASE, source, np.arange(pairs)), kind="stable") + 0.5) / pairs
