from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks.ridge import Ridge, caption_vectors, image_features, recall
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus


def test_weights_are_the_minimum_of_what_ridge_regression_minimises() -> None:
    """No step away from them makes squared errors plus shrunk weights less."""
    rng = np.random.default_rng(0)
    features, vectors = rng.normal(3, 2, (40, 6)), rng.normal(size=(40, 4))
    ridge = Ridge(features, vectors, 5.0)
    x = (features - features.mean(0)) / features.std(0)

    def cost(weights: np.ndarray) -> float:
        return float(np.square(x @ weights + vectors.mean(0) - vectors).sum() + 5 * np.square(weights).sum())

    found = cost(ridge._weights)
    for _ in range(50):
        assert cost(ridge._weights + rng.normal(0, 1e-3, (6, 4))) > found
    np.testing.assert_allclose(np.linalg.norm(ridge(features), axis=1), 1)


def test_a_linear_relation_is_found() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(300, 8)).astype(np.float32)
    vectors = features @ rng.normal(size=(8, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ridge = Ridge(features[:200], vectors[:200], 1.0)
    figures = recall(ridge, features[200:], vectors[200:], np.arange(100))
    assert figures["ir"]["r1"] > 80
    assert recall(ridge, features[200:], np.roll(vectors[200:], 1, 0), np.arange(100))["ir"]["r1"] < 10


def test_captions_are_mean_states_of_each_by_itself(source: SourceConfig, tmp_path: Path) -> None:
    corpus = Corpus([source])
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=len(corpus.tokenizer), **size)).eval()
    bert.save_pretrained(tmp_path)
    captions = np.arange(7)
    vectors = caption_vectors(corpus, captions, tmp_path)
    for caption in captions.tolist():
        pieces = corpus.first_pieces(np.array([caption]), corpus.caption_words[[caption]]).tolist()
        ids = torch.tensor([[corpus.tokenizer.cls_id, *pieces, corpus.tokenizer.sep_id]])
        with torch.no_grad():
            mean = bert(ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vectors[caption], (mean / mean.norm()).numpy(), atol=1e-5)
    assert image_features(corpus, 3).shape == (3, corpus.feature_size)
