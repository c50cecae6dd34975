from __future__ import annotations

import math

import pytest
import torch

from imagebert.model.losses import itm_loss, retrieval_losses


def test_retrieval_losses_by_hand() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0, 0.5, 0.7, -3.0], dtype=torch.float64)  # two groups of three
    labels = torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=torch.float64)
    got = retrieval_losses(logits, labels, candidates=3, margin=0.2)

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
