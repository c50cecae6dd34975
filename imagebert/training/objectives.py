"""What a run minimises: named losses with weights, each a sum over rows beside the number of those rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.config import RunConfig
from imagebert.model.losses import PretrainingLosses, RetrievalLosses, retrieval_losses


@dataclass(frozen=True)
class Objective:
    """`losses` turns the model's output into sums; `counts` tells over how many rows, without touching the device."""

    weights: dict[str, float]
    losses: Callable[[Any, PackedBatch], Sequence[Tensor]]
    counts: Callable[[PackedBatch], Sequence[int]]

    def mean(self, sums: Sequence[Tensor], global_counts: Sequence[float]) -> Tensor:
        """This microbatch's part of the weighted sum of global means: a scalar.

        A loss without weight takes part with zero, so that each head has a gradient in every step.
        """
        parts = zip(self.weights.values(), sums, global_counts, strict=True)
        return sum((s * (weight / max(count, 1)) for weight, s, count in parts), sums[0].new_zeros(()))


def make_objective(config: RunConfig) -> Objective:
    if config.task == "pretrain":
        p = config.pretraining
        return Objective(
            {"mlm": p.mlm, "moc": p.moc, "mrfr": p.mrfr, "itm": p.itm},
            lambda output, batch: output,
            PretrainingLosses.counts,
        )
    r = config.retrieval

    def losses(scores: Tensor, batch: PackedBatch) -> RetrievalLosses:
        return retrieval_losses(scores, batch.itm_labels, r.candidates, r.margin)

    def counts(batch: PackedBatch) -> tuple[int, int, int]:
        groups = batch.pairs // r.candidates
        return batch.pairs, groups, groups

    return Objective({"binary": r.binary, "multiclass": r.multiclass, "triplet": r.triplet}, losses, counts)
