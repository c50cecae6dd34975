from __future__ import annotations

import numpy as np
import pytest

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.retrieval.mining import mine


def test_mining_finds_the_best_of_the_pool_but_no_match(source: SourceConfig) -> None:
    corpus = Corpus([source])

    def score(images: np.ndarray, captions: np.ndarray) -> np.ndarray:  # the higher the numbers the better
        return (images * 1000 + captions).astype(np.float32)

    mined = mine(score, corpus, pool=200, keep=3, seed=0)
    assert mined.captions.shape == (24, 3)
    assert mined.images.shape == (72, 3)
    assert (corpus.caption_image[mined.captions] != np.arange(24)[:, None]).all()
    assert (mined.images != corpus.caption_image[:, None]).all()
    assert mined.images.min() >= 20  # the best of nearly all of 24 images
    assert all(len(set(row)) == 3 for row in [*mined.captions.tolist(), *mined.images.tolist()])
    with pytest.raises(UsageError, match="only 23 negatives were found where 30"):
        mine(score, corpus, pool=200, keep=30, seed=0)
    with pytest.raises(UsageError, match="keep 5 of a pool of 4"):
        mine(score, corpus, pool=4, keep=5, seed=0)
