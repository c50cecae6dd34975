"""What a run minimises: named losses with weights, each a sum over rows beside the number of those rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imagebert import distributed
from imagebert.batch import PackedBatch
from imagebert.config import RunConfig
from imagebert.model import PackedOutput
from imagebert.model.losses import (
    Contrasted,
    PretrainingLosses,
    RetrievalLosses,
    contrastive_loss,
    group_labels,
    matched_count,
    retrieval_losses,
)


@dataclass(frozen=True)
class Objective:
    """`losses` turns the model's output into sums; `counts` tells over how many rows, as a tensor beside the batch."""

    weights: dict[str, float]
    losses: Callable[[Any, PackedBatch], Sequence[Tensor]]
    counts: Callable[[PackedBatch], Tensor]

    def mean(self, sums: Sequence[Tensor], global_counts: Tensor) -> Tensor:
        """This microbatch's part of the weighted sum of global means: a scalar.

        A loss without weight takes part with zero, so that each head has a gradient in every step.
        """
        parts = zip(self.weights.values(), sums, global_counts.clamp(min=1), strict=True)
        return sum((s * (weight / count) for weight, s, count in parts), sums[0].new_zeros(()))

    def values(self, global_sums: Tensor, global_counts: Tensor, skipped: bool) -> dict[str, float]:
        """The losses to log; none of a step that was skipped. Synchronises.

        Raises:
            FloatingPointError: a loss is not finite although the gradient was.
        """
        if skipped:
            return {}
        means = (global_sums / global_counts.clamp(min=1)).tolist()
        values = {f"loss/{name}": mean for name, mean in zip(self.weights, means, strict=True)}
        values["loss/total"] = sum(w * m for w, m in zip(self.weights.values(), means, strict=True))
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"a loss is not finite although the gradient was: {values}")
        return values


def make_objective(config: RunConfig) -> Objective:
    if config.task == "pretrain":
        p = config.pretraining
        plain = Objective(
            {"mlm": p.mlm, "moc": p.moc, "mrfr": p.mrfr, "itm": p.itm},
            lambda output, batch: output.result,
            PretrainingLosses.counts,
        )
        if p.attributes:
            plain = Objective(
                {**plain.weights, "attributes": p.attributes},
                lambda output, batch: (*output.result, output.attributes),
                lambda batch: torch.cat([PretrainingLosses.counts(batch), batch.counts[1:2]]),
            )
        return _with_dual(plain, p.dual, p.contrast_over == "step") if config.model.dual_size else plain
    r = config.retrieval

    def losses(output: PackedOutput, batch: PackedBatch) -> RetrievalLosses:
        labels = group_labels(batch) if r.negatives_from == "similar" else batch.itm_labels
        return retrieval_losses(output.result.flatten(), labels.flatten(), r.group_size, r.margin)

    def counts(batch: PackedBatch) -> Tensor:
        groups = batch.counts[2] * (1 + batch.negative_draws.shape[1]) / r.group_size
        return torch.stack([groups * r.group_size, groups, groups])

    plain = Objective({"binary": r.binary, "multiclass": r.multiclass, "triplet": r.triplet}, losses, counts)
    if config.aligns:
        plain = Objective({}, lambda output, batch: (), lambda batch: batch.counts[:0])
    return _with_dual(plain, r.dual, r.contrast_over == "step") if config.model.dual_size else plain


def _with_dual(plain: Objective, weight: float, over_step: bool) -> Objective:
    """The same with the dual head's loss behind, over matched pairs.

    Args:
        over_step: pairs are contrasted with those of all ranks, not with those of their block
    """

    def dual(output: PackedOutput, batch: PackedBatch) -> Tensor:
        if not over_step:
            blocks = Contrasted.of(output.vectors, batch)
            return contrastive_loss(blocks, blocks)
        rows = Contrasted(
            *(t[None] for t in (*output.vectors, batch.itm_labels == 1, batch.image_class, batch.text_class))
        )
        columns, first = distributed.gather_rows([t[0] for t in rows])
        return contrastive_loss(rows, Contrasted(*(t[None] for t in columns)), first)

    return Objective(
        {**plain.weights, "dual": weight},
        lambda output, batch: (*plain.losses(output, batch), dual(output, batch)),
        lambda batch: torch.cat([plain.counts(batch), matched_count(batch.itm_labels)[None]]),
    )
