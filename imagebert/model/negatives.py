"""Mismatched pairs that are chosen within a step, by the vectors of the very weights that then learn from them.

An image's negatives are texts of its own block that lie near it, drawn in proportion to their similarity (Li et al.,
2021, ALBEF, section 3.1); and likewise a text's. Sides are there already: a chosen pair costs the fused layers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.model.losses import Contrasted


class Chosen(NamedTuple):
    """Which image and which text each negative is made of: pairs of the batch, by their numbers."""

    image_of: Tensor  # [B, N']
    text_of: Tensor  # [B, N']
    found: Tensor  # [B] bool; False: all of the block shows, or says, the same


@torch.no_grad()
def choose_negatives(vectors: Sequence[Float[Tensor, "B D"]], batch: PackedBatch) -> Chosen:
    """For each pair another text for its image and another image for its text, alternately.

    What is chosen follows from the vectors and from batch.negative_draws alone, so it is the same for any cut of a step
    into ranks and microbatches that leaves blocks whole.

    Args:
        vectors: of images and texts, scaled so that their product is a logit
    """
    block, pairs = batch.block, batch.pairs
    blocks = Contrasted.of([v.double() for v in vectors], batch)
    logits = blocks.images @ blocks.texts.transpose(1, 2)  # [G, n, n]
    allowed = ~blocks.equal(blocks)
    found = allowed.view(pairs, block).any(1)
    place = torch.arange(pairs, device=logits.device)
    first = place // block * block
    image_of, text_of = [], []
    for number, draws in enumerate(batch.negative_draws.double().unbind(1)):
        other_text = (number + place - first) % 2 == 0  # [B]: the text is exchanged, or the image
        weights = torch.where(other_text.view(-1, block, 1), logits, logits.transpose(1, 2))
        weights = torch.where(draws.view(-1, block, 1) < 1, weights, 0)
        weights = weights.masked_fill(~allowed, -torch.inf).view(pairs, block)
        sums = torch.where(found[:, None], weights, 0).softmax(dim=1).cumsum(dim=1)
        at = torch.searchsorted(sums, (draws % 1 * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=block - 1)
        image_of.append(torch.where(other_text, place, first + at))
        text_of.append(torch.where(other_text, first + at, place))
    return Chosen(torch.stack(image_of, dim=1), torch.stack(text_of, dim=1), found)


def rows_of_pairs(
    side_cu_seqlens: Int[Tensor, " ends"], image_of: Int[Tensor, " N"], text_of: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " T"], Int[Tensor, " N1"]]:
    """The tokens of pairs that are made of other pairs' sides, one behind the other, and their cumulative counts [N+1].

    Synchronises: how many tokens there are follows from what was chosen.
    """
    sides = torch.stack([2 * image_of, 2 * text_of + 1], dim=1).flatten()
    starts, lengths = side_cu_seqlens[sides].long(), side_cu_seqlens.diff()[sides].long()
    ends = lengths.cumsum(0)
    offsets = torch.repeat_interleave(starts - (ends - lengths), lengths)
    rows = torch.arange(len(offsets), device=offsets.device) + offsets
    return rows, torch.cat([ends.new_zeros(1), ends[1::2]]).int()
