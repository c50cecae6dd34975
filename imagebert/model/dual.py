"""Images and texts each to a vector of its own, by which candidates are found (not the paper's)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imagebert.batch import PackedBatch
from imagebert.model.configuration import ImageBertConfig


class Projection(nn.Linear):
    """A side's mean state to its vector. Where the sizes are equal it begins as the identity.

    So the vectors of a text model that was trained for its mean states, such as MiniLM, are good from the first step.
    """


class Gate(nn.Linear):
    """What a token weighs in its side's mean. Behind layers it begins at zero, so that all weigh alike."""


class Shortcut(nn.Module):
    """The feature of the whole image straight to what is added to its vector, past the Transformer.

    A photograph's own feature says most of what a short vector can hold, and a wide hidden layer with much dropout
    learns it from few pairs, where layers that began as a text model's need many.
    """

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.feature_size, config.dual_shortcut)
        self.output = nn.Linear(config.dual_shortcut, config.dual_size)
        self.dropout = config.dual_shortcut_dropout

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """What the image's projected mean state is added to."""
        seen = F.dropout(features.to(self.hidden.weight.dtype), self.dropout, self.training)
        result: Tensor = self.output(F.dropout(F.gelu(self.hidden(seen)), self.dropout, self.training))
        return result


def whole_image_features(batch: PackedBatch) -> Float[Tensor, "B F"]:
    """Of each pair the feature of the whole image; without such a region, the mean of its regions'. In float32."""
    pairs, marked = batch.pairs, torch.zeros_like(batch.region_scales).index_fill(0, batch.global_regions, 1)
    pair = pair_of(batch.region_rows, batch.cu_seqlens)
    is_marked = marked.new_zeros(pairs + 1).index_add(0, pair, marked) > 0
    weight = torch.where(is_marked[pair], marked, 1)
    scale = weight * batch.region_scales.masked_fill(batch.region_zeroed, 0)
    total = scale.new_zeros(pairs + 1, batch.region_features.shape[1])
    total = total.index_add(0, pair, batch.region_features.float() * scale[:, None])
    return (total / scale.new_zeros(pairs + 1).index_add(0, pair, weight).clamp(min=1)[:, None])[:pairs]


def pair_of(rows: Int[Tensor, " S"], cu_seqlens: Int[Tensor, " ends"]) -> Int[Tensor, " S"]:
    """Which pair a token belongs to, without a look at the host; fill goes to one behind the last."""
    return torch.searchsorted(cu_seqlens[1:].contiguous(), rows.int(), right=True)


class Tower(nn.Module):
    """The tokens of one side to one vector: a gated mean, and a projection to the unit sphere.

    Embeddings, which have seen no layer, first pass one here.
    """

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        size, behind_layers = config.hidden_size, config.fusion_layer > 0
        self.transform = None if behind_layers else nn.Linear(size, size)
        self.gate = (Gate if behind_layers else nn.Linear)(size, 1)
        self.projection = (Projection if behind_layers else nn.Linear)(size, config.dual_size)

    def forward(
        self,
        tokens: Float[Tensor, "S H"],
        real: Tensor,
        rows: Int[Tensor, " S"],
        cu_seqlens: Int[Tensor, " ends"],
        more: Float[Tensor, "B D"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """A vector of each pair, from those of `tokens` that are real; `rows` are theirs among all tokens."""
        pairs = len(cu_seqlens) - 1
        pair = pair_of(rows, cu_seqlens)
        hidden, weight = self.weighed(tokens, real)
        total = hidden.new_zeros(pairs + 1, hidden.shape[1]).index_add(0, pair, hidden)[:pairs]
        weights = weight.new_zeros(pairs + 1, 1).index_add(0, pair, weight)[:pairs]
        return self.project(total, weights, tokens.dtype, more)

    def weighed(self, tokens: Float[Tensor, "*rows H"], real: Tensor) -> tuple[Tensor, Tensor]:
        """Transformed tokens times their weights, and the weights [*rows, 1], in float32; 0 where they are not real."""
        weight = torch.sigmoid(self.gate(tokens).float()) * real[..., None]
        hidden = tokens if self.transform is None else F.gelu(self.transform(tokens))
        return hidden.float() * weight, weight

    def project(
        self,
        total: Float[Tensor, "B H"],
        weights: Float[Tensor, "B 1"],
        dtype: torch.dtype,
        more: Float[Tensor, "B D"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Unit vectors of sums of what `weighed` gives, and of what is added to them."""
        projected = self.projection((total / weights.clamp(min=1e-6)).to(dtype)).float()
        return F.normalize(projected if more is None else projected + more.float(), dim=1)


class DualHead(nn.Module):
    """Images and texts each to a vector of its own: candidates for what ITM then scores.

    They are made from the states that the first fused layer is given. Where all layers are fused, as in the paper,
    those are the embeddings, and an image's vector costs a thousandth of scoring it with some captions.
    """

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.image, self.text = Tower(config), Tower(config)
        # Where a text's mean begins: behind layers its first [SEP], which has seen the words, is part of it.
        self.first_place = 2 if config.fusion_layer else 3
        self.shortcut = Shortcut(config) if config.dual_shortcut else None
        # Of the logits' temperature; 1/0.07 to begin with (Radford et al., 2021, section 2.5).
        self.log_scale = nn.Parameter(torch.tensor([2.6593]))

    def images(self, sides: Float[Tensor, "T H"], batch: PackedBatch) -> Float[Tensor, "B D"]:
        """Unit vectors, from the states of a batch's tokens before its sides meet."""
        rows = batch.region_rows
        more = None if self.shortcut is None else self.shortcut(whole_image_features(batch))
        vectors: Tensor = self.image(sides[rows], torch.ones_like(rows), rows, batch.cu_seqlens, more)
        return vectors

    def texts(self, sides: Float[Tensor, "T H"], batch: PackedBatch) -> Float[Tensor, "B D"]:
        """Likewise."""
        rows = batch.text_rows
        of_text = batch.position_ids[rows] >= self.first_place
        vectors: Tensor = self.text(sides[rows], of_text, rows, batch.cu_seqlens)
        return vectors

    @property
    def scale(self) -> Float[Tensor, " 1"]:
        """What a product of unit vectors is multiplied by to be a logit; at most 100."""
        return self.log_scale.clamp(max=4.6).exp()

    def forward(self, sides: Float[Tensor, "T H"], batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Vectors of images and texts [B, D], scaled so that their products are logits."""
        return self.images(sides, batch) * self.scale, self.texts(sides, batch)
