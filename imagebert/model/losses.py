"""The losses of pre-training (paper, section 4) and of fine-tuning for retrieval (paper, section 5.3).

Each returns a *sum* in float32 over this microbatch; whoever trains divides by the count over the global batch, so
that ranks and accumulation do not change the result. A sum over no rows is a zero that still has a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imagebert.batch import PackedBatch


class PretrainingLosses(NamedTuple):
    """Sums: over masked words, masked regions, masked regions, pairs."""

    mlm: Tensor
    moc: Tensor
    mrfr: Tensor
    itm: Tensor

    @staticmethod
    def counts(batch: PackedBatch) -> tuple[int, int, int, int]:
        regions = batch.masked_regions.shape[0]
        return batch.mlm_labels.shape[0], regions, regions, batch.pairs


class RetrievalLosses(NamedTuple):
    """Sums: over pairs, groups, groups."""

    binary: Tensor
    multiclass: Tensor
    triplet: Tensor


def _promoted(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def mlm_loss(logits: Float[Tensor, "M V"], labels: Int[Tensor, " M"]) -> Float[Tensor, ""]:
    """Cross-entropy to the original word pieces."""
    return F.cross_entropy(_promoted(logits), labels, reduction="sum")


def moc_loss(logits: Float[Tensor, "M C"], labels: Int[Tensor, " M"]) -> Float[Tensor, ""]:
    """Cross-entropy to the detector's top classes."""
    return F.cross_entropy(_promoted(logits), labels, reduction="sum")


def mrfr_loss(
    predictions: Float[Tensor, "M F"],
    features: Float[Tensor, "M F"] | Int[Tensor, "M F"],
    scales: Float[Tensor, " M"],
) -> Float[Tensor, ""]:
    """Squared distance to the detector's features, mean over feature dimensions (our choice; the paper is silent)."""
    predictions = _promoted(predictions)
    targets = features.to(predictions.dtype) * scales[:, None]
    return (predictions - targets).square().mean(dim=1).sum()


def itm_loss(logits: Float[Tensor, " B"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of matched or not."""
    return F.binary_cross_entropy_with_logits(_promoted(logits), labels, reduction="sum")


def retrieval_losses(
    logits: Float[Tensor, " B"], labels: Float[Tensor, " B"], candidates: int, margin: float
) -> RetrievalLosses:
    """The three losses over groups of P = `candidates` pairs that lie one behind the other, the positive first.

    binary: cross-entropy of each pair; multiclass: cross-entropy of the positive among its group; triplet:
    max(0, margin + highest negative - positive), on probabilities as the paper scores them.
    """
    logits = _promoted(logits)
    groups = logits.view(-1, candidates)  # [G, P]
    scores = torch.sigmoid(groups)
    return RetrievalLosses(
        binary=itm_loss(logits, labels),
        multiclass=F.cross_entropy(groups, groups.new_zeros(len(groups), dtype=torch.long), reduction="sum"),
        triplet=torch.relu(margin + scores[:, 1:].amax(dim=1) - scores[:, 0]).sum(),
    )
