"""Masks drawn by kernels against the feed's own, in NumPy: the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imagebert.feed.draws import Purpose, draw, stage_key
from imagebert.feed.masking import Masking
from imagebert.feed.masking import mask_regions as expected_regions
from imagebert.feed.masking import mask_words as expected_words
from imagebert_kernels.masking import mask_regions, mask_words
from tests.kernels.numerics import DEVICE

COUNT = 3000


def states(key: int, step: int, *purposes: Purpose) -> list[int]:
    return [int(draw(key, purpose, step)) for purpose in purposes]


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 7), (2, 2**40)])
@pytest.mark.parametrize("rate", [0.0, 0.15, 1.0])
def test_equal_bit_for_bit(seed: int, step: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    masking = Masking(stage_key(seed, "stage"), words=rate, regions=rate, mask_id=103, vocabulary=30522)
    words, samples = rng.integers(0, 30522, COUNT), rng.integers(0, 2**33, COUNT)
    places = np.arange(COUNT) % 144
    on_device = [torch.from_numpy(a).to(DEVICE) for a in (words, samples, places)]

    seen, masked = mask_words(
        *on_device,
        states(masking.key, step, Purpose.WORD_MASK, Purpose.WORD_CHANGE, Purpose.WORD_ID),
        (rate, 0.8, 0.9),
        masking.mask_id,
        masking.vocabulary,
    )
    right_seen, right_masked = expected_words(masking, step, words, samples, places)
    np.testing.assert_array_equal(seen.cpu().numpy(), right_seen)
    np.testing.assert_array_equal(masked.cpu().numpy(), right_masked)
    assert right_masked.mean() == pytest.approx(rate, abs=0.03)

    purposes = (Purpose.REGION_MASK, Purpose.REGION_CHANGE)
    masked, zeroed = mask_regions(*on_device[1:], states(masking.key, step, *purposes), (rate, 0.9))
    everywhere = np.ones(COUNT, bool)
    right_masked, right_zeroed = expected_regions(masking, step, everywhere, samples, places)
    np.testing.assert_array_equal(masked.cpu().numpy(), right_masked)
    np.testing.assert_array_equal(zeroed.cpu().numpy(), right_zeroed)


def test_nothing_to_mask() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert [len(t) for t in mask_words(none, none, none, [1, 2, 3], (0.15, 0.8, 0.9), 103, 30522)] == [0, 0]
    assert [len(t) for t in mask_regions(none, none, [1, 2], (0.15, 0.9))] == [0, 0]
