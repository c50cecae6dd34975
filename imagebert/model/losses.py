"""The losses of pre-training (paper, section 4) and of fine-tuning for retrieval (paper, section 5.3).

Those of masked words and regions are one operation with their head (modeling.py), so that no predictions are stored.

Each returns a *sum* in float32 over this microbatch; whoever trains divides by the count over the global batch, so
that ranks and accumulation do not change the result. A sum over no rows is a zero that still has a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagebert.batch import PackedBatch


class PretrainingLosses(NamedTuple):
    """Sums: over masked words, masked regions, masked regions, pairs."""

    mlm: Tensor
    moc: Tensor
    mrfr: Tensor
    itm: Tensor

    @staticmethod
    def counts(batch: PackedBatch) -> Tensor:
        """What each is divided by [4]."""
        words, regions, pairs = batch.counts
        return torch.stack([words, regions, regions, pairs])


class RetrievalLosses(NamedTuple):
    """Sums: over pairs, groups, groups."""

    binary: Tensor
    multiclass: Tensor
    triplet: Tensor


def _promoted(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def itm_loss(logits: Float[Tensor, " B"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of matched or not; a label of -1 is fill."""
    each = F.binary_cross_entropy_with_logits(_promoted(logits), labels.clamp(min=0), reduction="none")
    return torch.where(labels >= 0, each, 0).sum()


def retrieval_losses(
    logits: Float[Tensor, " B"], labels: Float[Tensor, " B"], candidates: int, margin: float
) -> RetrievalLosses:
    """The three losses over groups of P = `candidates` pairs that lie one behind the other, the positive first.

    binary: cross-entropy of each pair; multiclass: cross-entropy of the positive among its group; triplet:
    max(0, margin + highest negative - positive), on probabilities as the paper scores them.
    """
    logits = _promoted(logits)
    whole = len(logits) // candidates * candidates  # fill need not end with a group
    groups, real = logits[:whole].view(-1, candidates), labels[:whole:candidates] >= 0  # [G, P], [G]
    scores = torch.sigmoid(groups)
    multiclass = torch.logsumexp(groups, dim=1) - groups[:, 0]
    triplet = torch.relu(margin + scores[:, 1:].amax(dim=1) - scores[:, 0])
    return RetrievalLosses(
        binary=itm_loss(logits, labels),
        multiclass=torch.where(real, multiclass, 0).sum(),
        triplet=torch.where(real, triplet, 0).sum(),
    )
