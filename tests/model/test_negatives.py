from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from imagebert.batch import PackedBatch
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import BatchPlan, Cut, Matches, Negatives, Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining
from imagebert.model.losses import group_labels, itm_loss
from imagebert.model.negatives import choose_negatives
from tests.model.test_modeling import SHAPE

LIMITS = Limits(max_regions=6, max_words=8, whole_image=True)
FUSED = {"dual_size": 6, "fusion_layer": 1, "residual_score": True}


def make_samples(corpus: Corpus, pairs: int, block: int, chosen: int, random_steps: int = 0) -> Samples:
    negatives = Negatives(share=0.0, group_size=1, source="similar", chosen=chosen, random_steps=random_steps)
    matches = Matches(corpus.image_class, corpus.caption_class, corpus.caption_image)
    lengths = LIMITS.lengths(corpus)
    cut = Cut(batch_size=pairs, microbatches=1, block=block, contrasted=True)
    plan = BatchPlan(corpus.caption_image, lengths, negatives, cut, key=stage_key(0, "s"), matches=matches)
    return plan.global_batch(0)


def make_batch(corpus: Corpus, samples: Samples, block: int, masking: Masking | None = None) -> PackedBatch:
    return Packer(corpus, LIMITS, group_size=block).pack(samples, Arena(), 0, masking)


def by_hand(logits: np.ndarray, batch: PackedBatch, pair: int, slot: int) -> tuple[int, int]:
    """The image and text of a negative, by the distribution's definition."""
    first = pair // batch.block * batch.block
    other_text = (pair - first + slot) % 2 == 0
    total, weights = 0.0, {}
    for other in range(first, first + batch.block):
        equal = batch.image_class[pair] == batch.image_class[other] or batch.text_class[pair] == batch.text_class[other]
        image, text = (pair, other) if other_text else (other, pair)
        logit = logits[image, text] if batch.negative_draws[pair, slot] < 1 else 0.0
        weights[other] = 0.0 if equal else float(np.exp(logit))
        total += weights[other]
    left = float(batch.negative_draws[pair, slot] % 1) * total
    for other, weight in weights.items():
        left -= weight
        if left < 0:
            return (pair, other) if other_text else (other, pair)
    raise AssertionError


@pytest.mark.parametrize("random_steps", [0, 1])
def test_choice_is_the_distributions_definition(source: SourceConfig, random_steps: int) -> None:
    corpus = Corpus([source])
    batch = make_batch(corpus, make_samples(corpus, 20, 5, 3, random_steps), 5)
    batch.text_class[:2] = batch.text_class[0]  # two texts of the first block are equal
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.randn(20, 6)
    chosen = choose_negatives(vectors, batch)
    logits = (vectors[0] @ vectors[1].T).double().numpy()
    for pair in range(20):
        for slot in range(3):
            wanted = by_hand(logits, batch, pair, slot)
            assert (int(chosen.image_of[pair, slot]), int(chosen.text_of[pair, slot])) == wanted
    assert chosen.found.all()


def test_near_ones_are_chosen_in_proportion(source: SourceConfig) -> None:
    """Over many draws each text's share is softmax of its similarity; its own and equal ones are never chosen."""
    corpus = Corpus([source])
    batch = make_batch(corpus, make_samples(corpus, 6, 6, 1), 6)
    draws = torch.rand(6, 20_000, generator=torch.Generator().manual_seed(1))
    batch = batch._replace(
        negative_draws=draws, image_class=torch.tensor([0, 1, 2, 3, 4, 2]), text_class=torch.arange(6)
    )
    vectors = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)), torch.randn(6, 3)
    chosen = choose_negatives(vectors, batch)
    logits = vectors[0] @ vectors[1].T
    shown = chosen.text_of[2, 0::2]  # at even slots the third pair's text is exchanged
    weights = logits[2].exp()
    weights[[2, 5]] = 0
    share = torch.bincount(shown, minlength=6) / len(shown)
    torch.testing.assert_close(share, weights / weights.sum(), atol=0.015, rtol=0)


def test_a_block_of_one_picture_has_no_negatives(source: SourceConfig) -> None:
    corpus = Corpus([source])
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE, **FUSED)).eval()
    batch = make_batch(corpus, make_samples(corpus, 4, 2, 1), 2)
    batch.image_class[2:] = batch.image_class[2]
    scores = model(batch).result
    assert scores.shape == (4, 2)
    assert (scores[2:, 1] == -1e4).all()
    assert (scores[:2].abs() < 1e3).all()
    itm_loss(scores.flatten(), group_labels(batch).flatten()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("options", [FUSED, {"dual_size": 6, "fusion_layer": 2}, {"dual_size": 6}])
@pytest.mark.parametrize("chosen", [1, 3])
def test_scores_are_those_of_the_chosen_pairs(source: SourceConfig, options: dict[str, Any], chosen: int) -> None:
    """As if each were packed by itself; gradients too."""
    corpus = Corpus([source])
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE, **options)).eval()
    samples = make_samples(corpus, 12, 4, chosen)
    batch = make_batch(corpus, samples, 4)
    output = model(batch)
    negatives = choose_negatives(output.vectors, batch)
    images = np.concatenate([samples.images[:, None], samples.images[negatives.image_of.numpy()]], axis=1).ravel()
    texts = np.concatenate([samples.captions[:, None], samples.captions[negatives.text_of.numpy()]], axis=1).ravel()
    ones = np.ones(len(images), np.int64)
    pairs = Packer(corpus, LIMITS).pack(Samples(images, texts, ones, np.arange(len(images))), Arena())
    expected = model(pairs).result
    torch.testing.assert_close(output.result.flatten(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(len(images), generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    found = torch.autograd.grad((output.result.flatten() * weights).sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_masked_rows_are_learnt_from_in_matched_pairs_only(source: SourceConfig) -> None:
    """Negatives beside them change nothing for words and regions, and matching is learnt from all."""
    corpus = Corpus([source])
    torch.manual_seed(0)
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE, **FUSED)).eval()
    samples = make_samples(corpus, 12, 4, 2)
    masking = Masking(1, words=0.4, regions=0.4, mask_id=4, vocabulary=SHAPE["vocab_size"])
    batch = make_batch(corpus, samples, 4, masking)
    alone = make_batch(corpus, samples._replace(contrast=None), 1, masking)
    losses, plain = model(batch).result, model(alone).result
    for a, b in zip(losses[:3], plain[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert losses.itm > plain.itm
    assert losses.counts(batch).tolist()[3] == 36
