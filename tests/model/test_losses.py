from __future__ import annotations

import math

import pytest
import torch

from imagebert.model.losses import Contrasted, contrastive_loss, itm_loss, matched_count, retrieval_losses


def test_retrieval_losses_by_hand() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0, 0.5, 0.7, -3.0], dtype=torch.float64)  # two groups of three
    labels = torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=torch.float64)
    got = retrieval_losses(logits, labels, group_size=3, margin=0.2)

    def probability(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    values = logits.tolist()
    binary = -sum(math.log(probability(v) if y else 1 - probability(v)) for v, y in zip(values, labels, strict=True))
    multiclass = sum(math.log(sum(math.exp(v) for v in group)) - group[0] for group in (values[:3], values[3:]))
    triplet = sum(max(0, 0.2 + probability(max(g[1:])) - probability(g[0])) for g in (values[:3], values[3:]))
    assert [float(x) for x in got] == pytest.approx([binary, multiclass, triplet])


def test_low_precision_logits_are_promoted() -> None:
    logits = torch.randn(4).to(torch.bfloat16)
    assert itm_loss(logits, torch.ones(4)).dtype == torch.float32
    torch.testing.assert_close(
        itm_loss(logits, torch.ones(4)).double(), itm_loss(logits.double(), torch.ones(4).double())
    )


def test_contrast_within_blocks_pair_by_pair() -> None:
    """Blocks of 4, one without a match, one with all; and fill behind them."""
    torch.manual_seed(0)
    images, texts = torch.randn(14, 5, dtype=torch.float64), torch.randn(14, 5, dtype=torch.float64)
    images.requires_grad_()
    labels = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, -1, -1], dtype=torch.float64)
    image_class = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])  # in the first block two equal images,
    text_class = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 11, 12, 13])  # in the last one two equal texts

    def blocks(first: int, end: int) -> Contrasted:
        whole = (images[:12], texts[:12], labels[:12] == 1, image_class[:12], text_class[:12])
        return Contrasted(*(each.view(3, 4, *each.shape[1:])[:, first:end] for each in whole))

    whole = blocks(0, 4)
    loss = contrastive_loss(whole, whole)
    # Cut into rows as ranks would be.
    parts = contrastive_loss(blocks(0, 1), whole) + contrastive_loss(blocks(1, 4), whole, 1)
    assert parts.item() == pytest.approx(loss.item(), rel=1e-12)
    expected = torch.zeros((), dtype=torch.float64)
    for start in (0, 4, 8):
        matched = [row for row in range(start, start + 4) if labels[row] == 1]
        for row in matched:
            others = [
                other
                for other in matched
                if other == row or (image_class[other] != image_class[row] and text_class[other] != text_class[row])
            ]
            own = images[row] @ texts[row]
            by_image = torch.stack([images[row] @ texts[other] for other in others])
            by_text = torch.stack([images[other] @ texts[row] for other in others])
            expected = expected + (by_image.logsumexp(0) + by_text.logsumexp(0)) / 2 - own
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, images)
    (wanted,) = torch.autograd.grad(expected, images)
    torch.testing.assert_close(gradient, wanted)
    assert matched_count(labels) == 7
