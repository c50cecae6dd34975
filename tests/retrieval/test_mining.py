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


def test_what_is_equal_to_a_match_is_not_mined(source: SourceConfig) -> None:
    """Pictures and texts that occur again and again: no pair that was mined is a true one by what it holds."""
    corpus = Corpus([source])
    pictures, texts = np.arange(corpus.images) // 2, np.arange(len(corpus)) % 20
    corpus.image_class, corpus.caption_class = pictures, texts
    true = set(zip(pictures[corpus.caption_image].tolist(), texts.tolist(), strict=True))

    def score(images: np.ndarray, captions: np.ndarray) -> np.ndarray:  # takes the true ones, if it is asked
        pairs = zip(pictures[images].tolist(), texts[captions].tolist(), strict=True)
        return np.array([float(pair in true) for pair in pairs], np.float32)

    mined = mine(score, corpus, pool=200, keep=3, seed=0)
    images, captions = np.arange(corpus.images)[:, None], np.arange(len(corpus))[:, None]
    assert (score(*(a.ravel() for a in np.broadcast_arrays(images, mined.captions))) == 0).all()
    assert (score(*(a.ravel() for a in np.broadcast_arrays(mined.images, captions))) == 0).all()
