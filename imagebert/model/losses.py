"""The losses of pre-training (paper, section 4) and of fine-tuning for retrieval (paper, section 5.3).

Those of masked words and regions are one operation with their head (modeling.py), so that no predictions are stored.

Each returns a *sum* in float32 over this microbatch; whoever trains divides by the count over the global batch, so
that ranks and accumulation do not change the result. A sum over no rows is a zero that still has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
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
        chosen = batch.negative_draws.shape[1]
        return torch.stack([words, regions, regions, pairs * (1 + chosen) if chosen else pairs])


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


def group_labels(batch: PackedBatch) -> Float[Tensor, "B slots"]:
    """Of each pair and of the negatives that are chosen for it: 1 matched, 0 not, -1 fill."""
    own = batch.itm_labels[:, None]
    if not batch.negative_draws.shape[1]:
        return own
    others = torch.where(own >= 0, 0.0, -1.0).expand(-1, batch.negative_draws.shape[1])
    return torch.cat([own, others], dim=1)


class Contrasted(NamedTuple):
    """Groups of pairs that are contrasted with each other."""

    images: Tensor  # [G, n, D] vectors, scaled so that an image's and a text's product is a logit
    texts: Tensor  # [G, n, D]
    matched: Tensor  # [G, n] bool: which are pairs that belong together; the others are left out
    image_class: Tensor  # [G, n] equal numbers: equal images
    text_class: Tensor  # [G, n]

    @classmethod
    def of(cls, vectors: Sequence[Float[Tensor, "B D"]], batch: PackedBatch) -> Contrasted:
        """The blocks of a batch; fill, which need not end with one, is left out."""
        whole = batch.pairs // batch.block * batch.block
        pairs = (*vectors, batch.itm_labels == 1, batch.image_class, batch.text_class)
        return cls(*(each[:whole].view(-1, batch.block, *each.shape[1:]) for each in pairs))

    def equal(self, columns: Contrasted) -> Bool[Tensor, "G n m"]:
        """Which pairs of `columns` show or say the same as each of these: they are none of its negatives."""
        images = self.image_class[:, :, None] == columns.image_class[:, None]
        return images | (self.text_class[:, :, None] == columns.text_class[:, None])


def contrastive_loss(rows: Contrasted, columns: Contrasted, first: int = 0) -> Float[Tensor, ""]:
    """Cross-entropy of each matched pair's own other side among those of all matched pairs of its group, both ways.

    Not the paper's: it trains the vectors by which candidates are found, as CLIP's (Radford et al., 2021, figure 3).

    Args:
        rows: [G, n] the pairs whose loss this is
        columns: [G, m] those that they are contrasted with, among them the rows themselves, from the `first` on
    """
    equal = rows.equal(columns)
    own = torch.arange(first, first + rows.matched.shape[1], device=equal.device).expand_as(rows.matched)[..., None]
    out = (equal | ~columns.matched[:, None]).scatter(2, own, ~rows.matched[..., None])  # [G, n, m]
    ways = (rows.images, columns.texts), (rows.texts, columns.images)
    logits = torch.stack([promoted(a) @ promoted(b).transpose(1, 2) for a, b in ways])  # [2, G, n, m]
    # Not minus infinity: a row that is left out has no finite logit.
    logits = logits.masked_fill(out, -1e4)
    each = torch.logsumexp(logits, dim=3) - logits.gather(3, own.expand(2, *own.shape))[..., 0]  # [2, G, n]
    return torch.where(rows.matched, each, 0).sum() / 2


def matched_count(labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    return (labels == 1).sum().float()


def retrieval_losses(
    logits: Float[Tensor, " B"], labels: Float[Tensor, " B"], group_size: int, margin: float
) -> RetrievalLosses:
    """Computes the three losses of fine-tuning over groups of P pairs, each summed.

    They are the cross-entropy of each pair (binary), the cross-entropy of the positive among its group (multiclass),
    and max(0, margin + highest negative - positive) on probabilities, as the paper scores them (triplet).

    Args:
        logits: The logit of each pair, [B]. The pairs of a group lie one behind the other, the positive first.
        labels: Whether each pair is matched, [B]: 1 or 0, and -1 for fill.
        group_size: The number P of pairs of a group.
        margin: The margin of the triplet loss.
    """
    logits = promoted(logits)
    whole = len(logits) // group_size * group_size  # fill need not end with a group
    groups, real = logits[:whole].view(-1, group_size), labels[:whole:group_size] >= 0  # [G, P], [G]
    scores = torch.sigmoid(groups)
    multiclass = torch.logsumexp(groups, dim=1) - groups[:, 0]
    triplet = torch.relu(margin + scores[:, 1:].amax(dim=1) - scores[:, 0])
    return RetrievalLosses(
        binary=itm_loss(logits, labels),
        multiclass=torch.where(real, multiclass, 0).sum(),
        triplet=torch.where(real, triplet, 0).sum(),
    )
