from __future__ import annotations

import math

import pytest
import torch

from imagebert.model.losses import itm_loss, mlm_loss, mrfr_loss, retrieval_losses


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


def test_mrfr_dequantises_its_targets() -> None:
    features = torch.tensor([[127, -64, 0], [10, 20, 30]], dtype=torch.int8)
    scales = torch.tensor([0.01, 0.5])
    targets = features.double() * scales.double()[:, None]
    predictions = torch.randn(2, 3, dtype=torch.float64)
    expected = ((predictions - targets) ** 2).mean(1).sum()
    torch.testing.assert_close(mrfr_loss(predictions, features, scales), expected, rtol=1e-6, atol=0)


def test_low_precision_logits_are_promoted() -> None:
    logits = torch.randn(4, 9).to(torch.bfloat16)
    labels = torch.tensor([0, 3, 8, 8])
    assert mlm_loss(logits, labels).dtype == torch.float32
    torch.testing.assert_close(mlm_loss(logits, labels).double(), mlm_loss(logits.double(), labels), rtol=1e-5, atol=0)
    assert itm_loss(logits[:, 0], torch.ones(4)).dtype == torch.float32
