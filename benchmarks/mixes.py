"""Lengths of pairs as real corpora have them. Alone in its file: benchmarks of kernels run without LMDB too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def draw_lengths(rng: np.random.Generator, mix: str, kind: str, count: int) -> NDArray[np.int64]:
    """Random numbers of regions, or of words, as they are in `mix` (a file in benchmarks/lengths/)."""
    histogram = json.loads((Path(__file__).parent / "lengths" / f"{mix}.json").read_text())[kind]
    values, weights = np.array([int(v) for v in histogram]), np.array(list(histogram.values()), float)
    drawn: NDArray[np.int64] = rng.choice(values, count, p=weights / weights.sum())
    return drawn
