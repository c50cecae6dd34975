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
    """Holds the losses of pre-training, each a sum.

    Attributes:
        mlm: The sum over masked words.
        moc: The sum over masked regions, for their classes.
        mrfr: The sum over masked regions, for their features.
        itm: The sum over pairs.
    """

    mlm: Tensor
    moc: Tensor
    mrfr: Tensor
    itm: Tensor

    @staticmethod
    def counts(batch: PackedBatch) -> Tensor:
        """Counts the rows that each loss is a sum over, by which it is divided.

        Returns:
            The four counts, [4], in the order of the losses.
        """
        words, regions, pairs = batch.counts
        return torch.stack([words, regions, regions, pairs])


class RetrievalLosses(NamedTuple):
    """Sums: over pairs, groups, groups."""

    binary: Tensor
    multiclass: Tensor
    triplet: Tensor


def promoted(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def itm_loss(logits: Float[Tensor, " B"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of matched or not; a label of -1 is fill."""
    each = F.binary_cross_entropy_with_logits(promoted(logits), labels.clamp(min=0), reduction="none")
    return torch.where(labels >= 0, each, 0).sum()


def contrastive_loss(
    vectors: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]], labels: Float[Tensor, " B"], block: int
) -> Float[Tensor, ""]:
    """Cross-entropy of each matched pair's own other side among those of all matched pairs in its block, both ways.

    Not the paper's: it trains the vectors by which candidates are found, as CLIP's (Radford et al., 2021, figure 3).

    Args:
        vectors: of images and texts, scaled so that their product is a logit
        block: pairs that lie one behind the other and stay together however a batch is cut (feed/plan.py)
    """
    whole = len(labels) // block * block  # fill need not end with a block
    images, texts = (promoted(v[:whole]).view(-1, block, v.shape[1]) for v in vectors)
    matched = (labels[:whole] == 1).view(-1, block)  # [G, n]
    logits = images @ texts.transpose(1, 2)  # [G, n, n]
    both = torch.stack([logits, logits.transpose(1, 2)])  # [2, G, n, n]
    # Not minus infinity: a row of a block without a match would have no finite logit.
    both = both.masked_fill(~matched[:, None, :], -1e4)
    each = torch.logsumexp(both, dim=3) - both.diagonal(dim1=2, dim2=3)  # [2, G, n]
    return torch.where(matched, each, 0).sum() / 2


def matched_count(labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    return (labels == 1).sum().float()


def retrieval_losses(
    logits: Float[Tensor, " B"], labels: Float[Tensor, " B"], candidates: int, margin: float
) -> RetrievalLosses:
    """Computes the three losses of fine-tuning over groups of P pairs, each summed.

    They are the cross-entropy of each pair (binary), the cross-entropy of the positive among its group (multiclass),
    and max(0, margin + highest negative - positive) on probabilities, as the paper scores them (triplet).

    Args:
        logits: The logit of each pair, [B]. The pairs of a group lie one behind the other, the positive first.
        labels: Whether each pair is matched, [B]: 1 or 0, and -1 for fill.
        candidates: The number P of pairs of a group.
        margin: The margin of the triplet loss.
    """
    logits = promoted(logits)
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
