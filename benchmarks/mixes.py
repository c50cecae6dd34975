"""Lengths of pairs as corpora have them. Alone in its file: benchmarks of kernels run without LMDB too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPECIALS = 3  # [CLS] and two [SEP]
# Least and most regions, and words: full are the paper's limits; real is any number up to them; short, web pictures.
_RANGES = {
    "full": {"regions": (100, 100), "words": (41, 41)},
    "real": {"regions": (10, 100), "words": (8, 41)},
    "short": {"regions": (16, 16), "words": (12, 12)},
}
MIXES = (*_RANGES, "flickr8k")


def draw_lengths(rng: np.random.Generator, mix: str, kind: str, count: int) -> NDArray[np.int64]:
    """Random numbers of regions, or of words, as they are in `mix`: one of the ranges, or a file in lengths/."""
    if mix in _RANGES:
        least, most = _RANGES[mix][kind]
        return rng.integers(least, most + 1, count)
    histogram = json.loads((Path(__file__).parent / "lengths" / f"{mix}.json").read_text())[kind]
    values, weights = np.array([int(v) for v in histogram]), np.array(list(histogram.values()), float)
    drawn: NDArray[np.int64] = rng.choice(values, count, p=weights / weights.sum())
    return drawn
