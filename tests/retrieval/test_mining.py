from __future__ import annotations

import numpy as np
import pytest

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.retrieval.mining import mine, mine_by_vectors
from imagebert.retrieval.vectors import Embeddings


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


@pytest.mark.parametrize("block", [7, 1024])
def test_by_vectors_the_nearest_are_mined(source: SourceConfig, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with a count one by one, where some texts and pictures come again and again."""
    monkeypatch.setattr("imagebert.retrieval.mining._SEARCHED", block)
    monkeypatch.setattr("imagebert.retrieval.mining._MATCHES", 1)
    corpus, rng = Corpus([source]), np.random.default_rng(0)
    corpus.image_class, corpus.caption_class = np.arange(24) // 2, np.arange(72) % 20
    vectors = Embeddings(*(rng.normal(size=(count, 8)).astype(np.float32) for count in (24, 72)))
    true = set(zip((corpus.caption_image // 2).tolist(), corpus.caption_class.tolist(), strict=True))
    mined = mine_by_vectors(vectors, corpus, keep=3)
    for image in range(24):
        products = {c: vectors.images[image] @ vectors.captions[c] for c in range(72)}
        order = sorted((c for c in products if (image // 2, c % 20) not in true), key=lambda c: -products[c])
        assert mined.captions[image].tolist() == order[:3]
    for caption in range(72):
        products = {i: vectors.images[i] @ vectors.captions[caption] for i in range(24)}
        order = sorted((i for i in products if (i // 2, caption % 20) not in true), key=lambda i: -products[i])
        assert mined.images[caption].tolist() == order[:3]
    with pytest.raises(UsageError, match="negatives are there where 24 are to be kept: lower `keep`"):
        mine_by_vectors(vectors, corpus, keep=24)
