"""One shape for all microbatches, so that a step can be compiled once or replayed as a graph.

The sizes are chosen from the plan before training: what a microbatch of a sample of steps has at most, and a little
more. What is left over is fill behind the pairs. A rare microbatch that does not fit keeps its own shape.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from imagebert.feed.plan import SPECIAL_TOKENS, Lengths, Plan, Samples

_SAMPLED_STEPS = 16
_SPARE = 1.02
_MULTIPLE = 64  # tiles of products are that tall
_DEVIATIONS = 6  # of the number of masked rows: one batch in a billion has more, and the rest is not learnt from


class Sizes(NamedTuple):
    """What a microbatch has room for."""

    pairs: int
    regions: int
    texts: int  # words and specials
    masked: tuple[int, int] | None = None  # words, regions; None: what there is

    def hold(self, lengths: Lengths, samples: Samples) -> bool:
        found = contents(lengths, samples)
        return all(f <= room for f, room in zip(found, self[:3], strict=True))


def contents(lengths: Lengths, samples: Samples) -> tuple[int, int, int]:
    """Pairs, regions, and words with specials of a microbatch."""
    pairs = len(samples.images)
    words = int(lengths.words[samples.captions].sum())
    return pairs, int(lengths.regions[samples.images].sum()), words + pairs * SPECIAL_TOKENS


def room_for_masked(items: int, rate: float) -> int:
    """Rows that hold the masked ones of `items`, each masked at `rate`, but for one in a billion batches."""
    spread = _DEVIATIONS * math.sqrt(items * rate * (1 - rate))
    return min(items, _rounded(items * rate + spread))


def choose_sizes(plan: Plan, words: float, regions: float) -> Sizes:
    """The sizes that nearly every microbatch of a plan fits into.

    Args:
        words: share of words that is masked
        regions: the same of regions
    """
    steps = np.unique(np.linspace(0, plan.steps(1.0) - 1, _SAMPLED_STEPS).astype(int))
    found = np.array([contents(plan.lengths, part) for step in steps for part in plan.step(step, 0, 1)])
    pairs, *most = _SPARE * found.max(0)
    region_room, text_room = map(_rounded, most)
    masked = room_for_masked(text_room, words), room_for_masked(region_room, regions)
    return Sizes(math.ceil(pairs), region_room, text_room, masked)


def _rounded(number: float) -> int:
    return math.ceil(number / _MULTIPLE) * _MULTIPLE
