from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining
from imagebert.retrieval.evaluation import mine, score_corpus
from imagebert.retrieval.scoring import ScoreMatrix, load_scores, model_scores, save_scores, score_all, tiles
from tests.corpora import write_corpus
from tests.model.test_modeling import SHAPE

LIMITS = Limits(max_regions=6, max_words=8, whole_image=True)


def test_tiles_cover_every_pair_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    regions, words = rng.integers(1, 101, 150), rng.integers(1, 42, 70)
    seen = np.zeros((150, 70), int)
    for rows, columns in tiles(regions, words, 2000):
        seen[rows, columns] += 1
        assert (regions[rows] + words[columns] + 3).sum() <= 2000 + 144
    assert (seen == 1).all()


def test_the_matrix_equals_one_pair_at_a_time(source: SourceConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).eval()
    model.save_pretrained(tmp_path / "model")
    corpus = Corpus([source])
    matrix = score_corpus(tmp_path / "model", corpus, LIMITS, images=6)
    assert matrix.scores.shape == (6, 18)
    packer = Packer(corpus, LIMITS)
    for image in range(6):
        for caption in range(0, 18, 5):
            one = Samples(np.array([image]), np.array([caption]), np.ones(1, int), np.zeros(1, int))
            expected = model(packer.pack(one, Arena())).item()
            assert matrix.scores[image, caption] == pytest.approx(expected, abs=1e-5)
    save_scores(tmp_path / "scores", matrix, [corpus.image_key(i) for i in range(6)])
    again = load_scores(tmp_path / "scores")
    np.testing.assert_array_equal(again.scores, matrix.scores)
    np.testing.assert_array_equal(again.caption_image, matrix.caption_image)
    with pytest.raises(UsageError, match="holds no saved scores"):
        load_scores(tmp_path)


def test_zero_shot_scores_with_the_pretrained_head(source: SourceConfig, tmp_path: Path) -> None:
    ImageBertForPreTraining(ImageBertConfig(**SHAPE)).save_pretrained(tmp_path)
    matrix = score_corpus(tmp_path, Corpus([source]), LIMITS, images=3)
    assert np.isfinite(matrix.scores).all()


def test_a_model_of_other_features(tmp_path: Path) -> None:
    ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    wide = write_corpus(tmp_path, images=3, feature_size=20)
    with pytest.raises(UsageError, match="has feature_size 12, the data has 20"):
        score_corpus(tmp_path / "model", Corpus([wide]), LIMITS, images=3)


def test_mining_finds_the_best_of_the_pool_but_no_match(source: SourceConfig) -> None:
    corpus = Corpus([source])
    packer = Packer(corpus, LIMITS)

    def score(samples: Samples) -> np.ndarray:  # the higher the numbers the better
        return (samples.images * 1000 + samples.captions).astype(np.float32)

    mined = mine(score, packer, pool=200, keep=3, seed=0)
    assert mined.captions.shape == (24, 3)
    assert mined.images.shape == (72, 3)
    assert (corpus.caption_image[mined.captions] != np.arange(24)[:, None]).all()
    assert (mined.images != corpus.caption_image[:, None]).all()
    assert mined.images.min() >= 20  # the best of nearly all of 24 images
    assert all(len(set(row)) == 3 for row in [*mined.captions.tolist(), *mined.images.tolist()])
    with pytest.raises(UsageError, match="only 23 negatives were found where 30"):
        mine(score, packer, pool=200, keep=30, seed=0)
    with pytest.raises(UsageError, match="keep 5 of a pool of 4"):
        mine(score, packer, pool=4, keep=5, seed=0)


def test_a_model_on_a_device_scores_in_float32(source: SourceConfig) -> None:
    corpus = Corpus([source])
    packer = Packer(corpus, LIMITS)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).to(torch.bfloat16)
    score = model_scores(model, packer, torch.device("cpu"))
    scores = score_all(score, packer.lengths, np.arange(2), np.arange(4), progress=False)
    assert scores.dtype == np.float32
    assert ScoreMatrix(scores, corpus.caption_image[:4]).scores.shape == (2, 4)
