"""One shape for all microbatches, so that a step can be compiled once or replayed as a graph.

The sizes are chosen from the plan before training: what a microbatch of a sample of steps has at most, and a little
more. What is left over is fill behind the pairs. A rare microbatch that does not fit keeps its own shape.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from imagebert.feed.plan import SPECIAL_TOKENS, BatchPlan, Lengths, Samples

_SAMPLED_STEPS = 16
_SPARE = 1.02
_MULTIPLE = 64  # tiles of products are that tall
_DEVIATIONS = 6  # of the number of masked rows: one batch in a billion has more, and the rest is not learnt from
_SPREAD = 3  # deviations of what chance decides in a microbatch: one in a thousand has more, and keeps its own shape


class Sizes(NamedTuple):
    """What a microbatch has room for."""

    pairs: int
    regions: int
    texts: int  # words and specials
    masked: tuple[int, int] | None = None  # words, regions; None: what there is
    # Words and regions of matched pairs at most, whose masked ones `masked` holds; None: any number
    matched: tuple[int, int] | None = None

    def hold(self, lengths: Lengths, samples: Samples) -> bool:
        found, rooms = [*contents(lengths, samples)], [*self[:3]]
        if self.matched is not None:
            found, rooms = [*found, *matched(lengths, samples)], [*rooms, *self.matched]
        return all(f <= room for f, room in zip(found, rooms, strict=True))


def contents(lengths: Lengths, samples: Samples) -> tuple[int, int, int]:
    """Pairs, regions, and words with specials of a microbatch."""
    pairs = len(samples.images)
    words = int(lengths.words[samples.captions].sum())
    return pairs, int(lengths.regions[samples.images].sum()), words + pairs * SPECIAL_TOKENS


def matched(lengths: Lengths, samples: Samples) -> tuple[int, int]:
    """Words and regions of a microbatch's matched pairs: rows masked in others are no rows of a loss."""
    real = samples.labels == 1
    return int(lengths.words[samples.captions][real].sum()), int(lengths.regions[samples.images][real].sum())


def room_for_masked(items: int, rate: float) -> int:
    """Rows that hold the masked ones of `items`, each masked at `rate`, but for one in a billion batches."""
    spread = _DEVIATIONS * math.sqrt(items * rate * (1 - rate))
    return min(items, _rounded(items * rate + spread))


def choose_sizes(plan: BatchPlan, words: float, regions: float) -> Sizes:
    """The sizes that nearly every microbatch of a plan fits into.

    Args:
        words: share of words that is masked
        regions: the same of regions
    """
    steps = np.unique(np.linspace(0, plan.steps(1.0) - 1, _SAMPLED_STEPS).astype(int))
    microbatches = [microbatch for step in steps for microbatch in plan.step(step, 0, 1)]
    found = np.array([contents(plan.lengths, microbatch) for microbatch in microbatches])
    pairs, *most = _SPARE * found.max(0)
    region_room, text_room = map(_rounded, most)
    if not words and not regions:
        return Sizes(math.ceil(pairs), region_room, text_room, (0, 0))
    # Which pairs match is chance, pair by pair: it varies more than what they hold.
    learnt = np.array([matched(plan.lengths, microbatch) for microbatch in microbatches])
    learnt_most = np.maximum(learnt.max(0), learnt.mean(0) + _SPREAD * learnt.std(0))
    word_most, region_most = (math.ceil(_SPARE * most) for most in learnt_most)
    masked = room_for_masked(word_most, words), room_for_masked(region_most, regions)
    return Sizes(math.ceil(pairs), region_room, text_room, masked, (word_most, region_most))


def first_held(plan: BatchPlan, sizes: Sizes, rank: int, world: int) -> Samples:
    """The first microbatch of a rank that has the shape that was chosen for all: any step's may be an exception."""
    microbatches = (microbatch for step in itertools.count() for microbatch in plan.step(step, rank, world))
    return next(microbatch for microbatch in microbatches if sizes.hold(plan.lengths, microbatch))


def _rounded(number: float) -> int:
    return math.ceil(number / _MULTIPLE) * _MULTIPLE
