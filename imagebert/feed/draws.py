"""Random numbers that are a pure function of what they are for: no state, so any of them can be asked for directly.

SplitMix64 (Steele et al. 2014) chained over the counters: 64-bit multiplications, shifts and xors only, so that the
same bits can be had from NumPy, from torch's int64 and in a GPU kernel.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Purpose(IntEnum):
    """What a draw decides; two purposes never share a number."""

    NEGATIVE = 1
    DIRECTION = 2
    PARTNER = 3
    HARD = 4
    WORD_MASK = 5
    WORD_CHANGE = 6
    WORD_ID = 7
    REGION_MASK = 8
    REGION_CHANGE = 9
    DROPOUT = 10
    PHASE = 11
    CHOICE = 12


def stage_key(seed: int, stage: str) -> int:
    """64 bits that stand for a stage of a run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:8], "little")


def draw(key: int, purpose: Purpose, *counters: ArrayLike) -> NDArray[np.uint64]:
    """64 uniform bits for each element of the broadcast counters (whole numbers below 2^63)."""
    state = np.asarray(key, np.uint64)
    with np.errstate(over="ignore"):
        for counter in (int(purpose), *counters):
            state = _mix(state ^ _mix(np.asarray(counter).astype(np.uint64)))
    return np.asarray(state)


def uniform(key: int, purpose: Purpose, *counters: ArrayLike) -> NDArray[np.float64]:
    """A number in [0, 1) for each element, of 53 random bits."""
    bits: NDArray[np.float64] = (draw(key, purpose, *counters) >> np.uint64(11)).astype(np.float64)
    return bits * 2.0**-53


def below(bound: int, key: int, purpose: Purpose, *counters: ArrayLike) -> NDArray[np.int64]:
    """A whole number in [0, bound) for each element; bound up to 2^32, biased by less than bound / 2^32."""
    high = draw(key, purpose, *counters) >> np.uint64(32)
    return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
