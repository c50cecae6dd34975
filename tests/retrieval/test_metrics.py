"""R@K against a count that sorts and looks, one query at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebert.config import UsageError
from imagebert.retrieval.metrics import NAMES, blocks, bootstrap, chance, evaluate, rank, rank_folds


def brute_force(scores: np.ndarray, caption_image: list[int]) -> tuple[list[int], list[int]]:
    """Ranks when ties are put in the least favourable order."""
    images, captions = scores.shape
    image_ranks = []
    for c in range(captions):
        order = sorted(range(images), key=lambda i: (-scores[i, c], i == caption_image[c]))
        image_ranks.append(order.index(caption_image[c]) + 1)
    text_ranks = []
    for i in range(images):
        # Wrong captions first among equals; then the first right one is the best that can be claimed.
        order = sorted(range(captions), key=lambda c: (-scores[i, c], caption_image[c] == i))
        first = next(place for place, c in enumerate(order) if caption_image[c] == i)
        text_ranks.append(first + 1)
    return image_ranks, text_ranks


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_equals_brute_force_with_ties(images: int, most: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    caption_image = np.repeat(np.arange(images), rng.integers(1, most + 1, images))
    rng.shuffle(caption_image)
    scores = rng.integers(0, levels, (images, len(caption_image))).astype(np.float32)
    got = rank(scores, caption_image)
    image_ranks, text_ranks = brute_force(scores, caption_image.tolist())
    assert got.image_retrieval.tolist() == image_ranks
    assert got.text_retrieval.tolist() == text_ranks
    figures = evaluate(scores, caption_image)
    for way, ranks in (("ir", image_ranks), ("tr", text_ranks)):
        for k in (1, 5, 10):
            assert figures[way][f"r{k}"] == pytest.approx(100 * sum(r <= k for r in ranks) / len(ranks))
        assert figures[way]["median_rank"] == np.median(ranks)
        assert figures[way]["mean_rank"] == pytest.approx(np.mean(ranks))
    assert figures["rsum"] == pytest.approx(sum(figures[w][f"r{k}"] for w in ("ir", "tr") for k in (1, 5, 10)))


def test_a_matrix_is_read_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, caption_image = rng.integers(0, 9, (31, 93)).astype(np.float32), np.arange(93) // 3
    whole = rank(scores, caption_image)
    monkeypatch.setattr("imagebert.retrieval.metrics.blocks", lambda s: blocks(s, 4 * s.shape[1]))
    parts = rank(scores, caption_image)
    np.testing.assert_array_equal(parts.image_retrieval, whole.image_retrieval)
    np.testing.assert_array_equal(parts.text_retrieval, whole.text_retrieval)


def test_intervals_cover_what_other_images_give() -> None:
    """Images of one kind again and again: the 95 % intervals hold the true R@1 about so often, for both directions."""
    rng = np.random.default_rng(0)
    caption_image = np.arange(120) // 3

    def draw() -> np.ndarray:
        scores = rng.normal(size=(40, 120))
        # A hard image is hard for all its captions: queries are not independent.
        scores[caption_image, np.arange(120)] += np.repeat(rng.normal(2.0, 1.0, 40), 3)
        return scores

    truth = np.mean([[100 * (r == 1).mean() for r in rank(draw(), caption_image)] for _ in range(500)], axis=0)
    inside = np.zeros(2)
    for _ in range(100):
        figures = evaluate(draw(), caption_image)
        for way, name in enumerate(("ir", "tr")):
            low, high = figures[name]["interval"]["r1"]
            inside[way] += low <= truth[way] <= high
    assert (inside >= 85).all(), inside
    assert (inside <= 100).all()


def test_bootstrap_equals_counting_again() -> None:
    """One draw, counted query by query."""
    rng = np.random.default_rng(0)
    caption_image = np.repeat(np.arange(10), rng.integers(1, 5, 10))
    folds = rank_folds(rng.normal(size=(10, len(caption_image))), caption_image, folds=2)
    found = bootstrap(folds, samples=3, seed=7)
    generator = np.random.default_rng(7)
    expected = np.zeros((3, 6))
    for fold in folds:
        drawn = generator.multinomial(5, np.full(5, 0.2), 3)
        for sample in range(3):
            texts = [
                r for c, r in enumerate(fold.ranks.image_retrieval) for _ in range(drawn[sample][fold.caption_image[c]])
            ]
            images = [r for i, r in enumerate(fold.ranks.text_retrieval) for _ in range(drawn[sample][i])]
            for column, (ranks, k) in enumerate((r, k) for r in (texts, images) for k in (1, 5, 10)):
                expected[sample, column] += 50 * np.mean(np.array(ranks) <= k)
    np.testing.assert_allclose(found[:, :6], expected)
    np.testing.assert_allclose(found[:, 6], expected.sum(axis=1))
    assert len(NAMES) == 7


def test_equal_scores_earn_nothing() -> None:
    figures = evaluate(np.zeros((20, 100), np.float32), np.arange(100) // 5)
    assert figures["ir"]["r10"] == figures["tr"]["r10"] == 0


def test_folds_are_the_mean_of_their_parts() -> None:
    rng = np.random.default_rng(0)
    caption_image = np.arange(100) // 5
    scores = rng.random((20, 100))
    scores[caption_image, np.arange(100)] += 0.3
    folded = evaluate(scores, caption_image, folds=5)
    parts = [evaluate(scores[4 * f : 4 * f + 4, 20 * f : 20 * f + 20], caption_image[:20]) for f in range(5)]
    for way in ("ir", "tr"):
        assert folded[way]["r1"] == pytest.approx(np.mean([p[way]["r1"] for p in parts]))
    assert folded["chance"]["ir"]["r1"] == 25
    with pytest.raises(UsageError, match="20 images cannot be cut into 3"):
        evaluate(scores, caption_image, folds=3)


def test_chance_is_what_random_scores_reach() -> None:
    rng = np.random.default_rng(0)
    caption_image = np.arange(60) // 3
    found = [evaluate(rng.random((20, 60)), caption_image) for _ in range(400)]
    expected = chance(np.full(20, 3))
    for way in ("ir", "tr"):
        for k in ("r1", "r5", "r10"):
            assert np.mean([f[way][k] for f in found]) == pytest.approx(expected[way][k], rel=0.1)


@pytest.mark.parametrize(
    ("scores", "caption_image", "message"),
    [
        (np.full((2, 2), np.nan), [0, 1], "4 of 4 scores are not numbers"),
        (np.zeros((3, 2)), [0, 1], "image 2 .one of 1. has no caption"),
        (np.zeros((2, 3)), [0, 1], "do not fit"),
        (np.zeros((2, 2)), [0, 5], "do not fit"),
    ],
)
def test_what_cannot_be_counted(scores: np.ndarray, caption_image: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rank(scores, np.array(caption_image))
