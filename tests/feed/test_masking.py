from __future__ import annotations

import numpy as np
import pytest

from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking, mask_regions, mask_words

MASKING = Masking(key=stage_key(0, "s"), words=0.15, regions=0.15, mask_id=4, vocabulary=1000)
COUNT = 200_000
PAIR, PLACE = np.arange(COUNT) // 40, np.arange(COUNT) % 40


def test_words_are_masked_as_in_bert() -> None:
    pieces = np.full(COUNT, 500)
    seen, masked = mask_words(MASKING, 3, pieces, PAIR, PLACE)
    assert masked.mean() == pytest.approx(0.15, abs=0.005)
    assert (seen[~masked] == 500).all()
    assert (seen[masked] == 4).mean() == pytest.approx(0.8, abs=0.01)
    assert (seen[masked] == 500).mean() == pytest.approx(0.1, abs=0.01)
    random = seen[masked & (seen != 4) & (seen != 500)]
    assert len(np.unique(random)) > 900
    assert (seen < 1000).all()


def test_regions_lose_nine_of_ten_features() -> None:
    maskable = np.arange(COUNT) % 5 != 0
    masked, zeroed = mask_regions(MASKING, 3, maskable, PAIR, PLACE)
    assert not masked[~maskable].any()
    assert masked[maskable].mean() == pytest.approx(0.15, abs=0.005)
    assert (zeroed <= masked).all()
    assert zeroed[masked].mean() == pytest.approx(0.9, abs=0.01)


def test_a_pure_function_of_step_pair_and_place() -> None:
    pieces = np.full(COUNT, 500)
    seen, _ = mask_words(MASKING, 3, pieces, PAIR, PLACE)
    order = np.random.default_rng(0).permutation(COUNT)[:5000]
    again, _ = mask_words(MASKING, 3, pieces[order], PAIR[order], PLACE[order])
    np.testing.assert_array_equal(again, seen[order])
    other, _ = mask_words(MASKING, 4, pieces, PAIR, PLACE)
    assert (other != seen).mean() > 0.2
