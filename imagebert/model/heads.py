"""Heads of the four pre-training tasks: what of the hidden states they read, to losses and scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imagebert.batch import PackedBatch
from imagebert.model.configuration import ImageBertConfig
from imagebert.model.losses import promoted
from imagebert_kernels import classification_loss, region_regression_loss


class Classifier(nn.Linear):
    """A linear layer and its cross-entropy as one operation: logits are nowhere else."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "*Q H"], rows: Int[Tensor, " M"] | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The loss of `labels` [M], summed; without them the logits [*Q, C]."""
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        return classification_loss(hidden, rows, self.weight, self.bias, labels)


def classify(
    head: nn.Module, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"] | None, labels: Int[Tensor, " M"]
) -> Float[Tensor, ""]:
    """A classifier's loss, also where an adapter wraps it."""
    if type(head) is Classifier:
        return head(hidden, rows, labels)
    logits = head(hidden if rows is None else hidden[rows.abs()])
    return F.cross_entropy(promoted(logits), labels, reduction="sum", ignore_index=-1)


class Regressor(nn.Linear):
    """A linear layer and its squared distance to stored features as one operation."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"] | None = None, batch: PackedBatch | None = None
    ) -> Tensor:
        """The loss of those rows, summed; without `batch` the predictions [Q, F]."""
        if rows is None or batch is None:
            return F.linear(hidden, self.weight, self.bias)
        stored = batch.region_features, batch.region_scales, batch.masked_regions
        return region_regression_loss(hidden, rows, self.weight, self.bias, *stored)


def regress(
    head: nn.Module, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"], batch: PackedBatch
) -> Float[Tensor, ""]:
    """A regressor's loss, also where an adapter wraps it."""
    if type(head) is Regressor:
        return head(hidden, rows, batch)
    predictions, regions = promoted(head(hidden[rows.abs()])), batch.masked_regions
    targets = batch.region_features[regions].to(predictions.dtype) * batch.region_scales[regions][:, None]
    return ((predictions - targets).square().mean(1) * (rows >= 0)).sum()


class MlmHead(nn.Module):
    """BERT's: transform, then the word table again."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = Classifier(config.hidden_size, config.vocab_size)

    def forward(
        self, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"], labels: Int[Tensor, " M"]
    ) -> Float[Tensor, ""]:
        return classify(self.decoder, self.transformed(hidden[rows]), None, labels)

    def transformed(self, hidden: Float[Tensor, "*M H"]) -> Float[Tensor, "*M H"]:
        """What the word table is applied to."""
        result: Tensor = self.layer_norm(F.gelu(self.transform(hidden)))
        return result


class Score(nn.Linear):
    """In float32 at least: in bf16 high scores would tie, and ties are lost (retrieval/metrics.py)."""

    def forward(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class ItmHead(nn.Module):
    """[CLS] to one score (paper, section 4), through BERT's pooler where the configuration says so."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.use_pooler else None
        self.score = Score(config.hidden_size, 1)

    def forward(self, cls: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit of each pair matching."""
        if self.pooler is not None:
            cls = torch.tanh(self.pooler(cls))
        logits: Tensor = self.score(cls)
        return logits[:, 0]
