"""Which words and regions are masked, and with what (paper, section 4): a pure function of (key, step, pair, place)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.feed.draws import Purpose, below, uniform

# Of the masked words 80 % become [MASK], 10 % a random piece, 10 % stay (Devlin et al. 2019, section 3.1).
_WORD_TO_MASK, _WORD_TO_RANDOM = 0.8, 0.9
# Of the masked regions 90 % lose their feature, 10 % keep it (paper, section 4).
_REGION_ZEROED = 0.9


class Masking(NamedTuple):
    """Rates and vocabulary; `key` from draws.stage_key."""

    key: int
    words: float
    regions: float
    mask_id: int
    vocabulary: int


def mask_words(
    masking: Masking, step: int, pieces: NDArray[np.int64], pair: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Word pieces [W] as the model sees them, and which are masked.

    Args:
        pair: [W] the pair's place in the global batch
        place: [W] the word's place in its caption
    """
    masked = uniform(masking.key, Purpose.WORD_MASK, step, pair, place) < masking.words
    change = uniform(masking.key, Purpose.WORD_CHANGE, step, pair, place)
    other = below(masking.vocabulary, masking.key, Purpose.WORD_ID, step, pair, place)
    seen = np.where(masked & (change < _WORD_TO_MASK), masking.mask_id, pieces)
    return np.where(masked & (change >= _WORD_TO_MASK) & (change < _WORD_TO_RANDOM), other, seen), masked


def mask_regions(
    masking: Masking, step: int, maskable: NDArray[np.bool_], pair: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which regions [R] are masked, and of which the model sees a feature of zeros."""
    masked = maskable & (uniform(masking.key, Purpose.REGION_MASK, step, pair, place) < masking.regions)
    change = uniform(masking.key, Purpose.REGION_CHANGE, step, pair, place)
    return masked, masked & (change < _REGION_ZEROED)
