"""Embeddings and Transformer layers over a packed sequence (paper, section 3 and figure 1).

An operation often takes parameters of several modules at once: a product's bias goes to the LayerNorm behind it. ZeRO-3
gathers a parameter of another module when a forward first asks for it, and knows it from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imagebert.batch import PackedBatch
from imagebert.model.configuration import ImageBertConfig
from imagebert_kernels import (
    bias_gelu,
    packed_attention,
    packed_embedding,
    project_regions,
    residual_layer_norm,
    residual_linear,
)

Module = TypeVar("Module", bound=nn.Module)


def plain(module: nn.Module, kind: type[Module]) -> Module:
    """A module whose parameters an operation reads, without calling it.

    Raises:
        TypeError: it was wrapped, by an adapter say, which would then have no effect.
    """
    if type(module) is not kind:
        raise TypeError(
            f"{type(module).__module__}.{type(module).__name__} stands in place of a plain {kind.__name__}, whose "
            "parameters ImageBERT reads without calling it: adapt linear layers only"
        )
    return module


def with_area(boxes: Float[Tensor, "*R 4"]) -> Float[Tensor, "*R 5"]:
    """Boxes x1, y1, x2, y2, as shares of the image's sides, and their share of its area (paper, section 3)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.cat([boxes, (sides[..., 0] * sides[..., 1])[..., None]], dim=-1)


class Embeddings(nn.Module):
    """Words: LN(word + segment + position). Regions: LN(W_v r + segment + W_c c + position)."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.region_projection = nn.Linear(config.feature_size, config.hidden_size)
        self.location_projection = nn.Linear(5, config.hidden_size)
        # A table of one row: what marks a region as the whole image.
        self.global_image = nn.Embedding(1, config.hidden_size) if config.use_global_image_token else None
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, batch: PackedBatch, seed: Tensor | None = None) -> Float[Tensor, "T H"]:
        """The embedded tokens; `seed` as packed_embedding takes it."""
        regions = self._regions(batch)
        if self.global_image is not None:
            marks = self.global_image(torch.zeros_like(batch.global_regions))
            regions = regions.index_add(0, batch.global_regions, marks)
        norm = plain(self.layer_norm, nn.LayerNorm)
        return packed_embedding(
            regions,
            batch.region_rows,
            plain(self.word_embeddings, nn.Embedding).weight,
            batch.input_ids,
            batch.text_rows,
            batch.position_ids,
            batch.token_type_ids,
            plain(self.position_embeddings, nn.Embedding).weight,
            plain(self.token_type_embeddings, nn.Embedding).weight,
            norm.weight,
            norm.bias,
            norm.eps,
            self.dropout if self.training else 0.0,
            seed,
        )

    def _regions(self, batch: PackedBatch) -> Float[Tensor, "R H"]:
        features, scales, zeroed, boxes = (
            *(batch.region_features, batch.region_scales),
            *(batch.region_zeroed, batch.region_boxes),
        )
        visual, location = self.region_projection, self.location_projection
        if type(visual) is type(location) is nn.Linear:
            weights = visual.weight, visual.bias, location.weight, location.bias
            return project_regions(features, scales, zeroed, boxes, *weights)
        # An adapter's: called as the layers that they are.
        dtype = self.layer_norm.weight.dtype
        seen = features.to(dtype) * scales.masked_fill(zeroed, 0).to(dtype)[:, None]
        regions: Tensor = visual(seen) + location(boxes.to(dtype))
        return regions


class Reads(NamedTuple):
    """The rows whose last layer is wanted."""

    rows: Tensor  # [Q]
    cu_seqlens: Tensor  # [B+1]


# A product's bias, or its input as the residual, often belongs to the operation beside it. So these two give them apart
# when they are asked; called with their input only they are the linear layers that an adapter wraps.


class QueryKeyValue(nn.Linear):
    """The three projections as one weight [3H, H]: all rows in one product, or queries for the read rows only."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "*T H"], apart: bool = False, rows: Int[Tensor, " Q"] | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None, Tensor]:
        """Queries, keys and values [*T, 3H].

        With `apart` also what goes with them: None, and the residual [T, H]; with `rows` too keys and values [T, 2H],
        and of those rows queries [Q, H] and the residual [Q, H].
        """
        if not apart:
            return F.linear(hidden, self.weight, self.bias)
        if rows is None:
            packed, residual = residual_linear(hidden, self.weight, self.bias, in_place=True)
            return packed, None, residual
        size = self.in_features
        queries, residual = residual_linear(hidden[rows], self.weight[:size], self.bias[:size], in_place=True)
        return F.linear(hidden, self.weight[size:], self.bias[size:]), queries, residual


class Product(nn.Linear):
    """A linear layer whose bias is left to what follows it, if that asks."""

    def forward(self, x: Float[Tensor, "*Q I"], apart: bool = False) -> Float[Tensor, "*Q O"]:  # type: ignore[override]
        """`apart`: without the bias."""
        return F.linear(x, self.weight, None if apart else self.bias)


def _bias_apart(product: nn.Module, x: Float[Tensor, "Q I"]) -> tuple[Float[Tensor, "Q O"], Float[Tensor, " O"]]:
    """A product, and the bias that is still to be added: of an adapter's, which has added it, zeros."""
    if type(product) is Product:
        return product(x, apart=True), product.bias
    result: Tensor = product(x)
    return result, result.new_zeros(result.shape[1])


# Of a layer's dropouts: of attention weights, behind attention, behind the feed-forward products. Each None where the
# operation draws for itself.
Seeds = Sequence[Tensor | None]
_OWN_SEEDS: Seeds = (None, None, None)


class Layer(nn.Module):
    """A post-LN Transformer layer of BERT."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.attention_dropout, self.dropout = config.attention_probs_dropout_prob, config.hidden_dropout_prob
        self.query_key_value = QueryKeyValue(size, 3 * size)
        self.attention_output = Product(size, size)
        self.attention_layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.intermediate = Product(size, config.intermediate_size)
        self.output = Product(config.intermediate_size, size)
        self.output_layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "T H"],
        cu_seqlens: Int[Tensor, " ends"],
        max_seqlen: int,
        reads: Reads | None = None,
        seeds: Seeds = _OWN_SEEDS,
    ) -> Float[Tensor, "Q H"]:
        """The layer's output for all rows, or for the read rows only."""
        packed, queries, residual = self.project(hidden, None if reads is None else reads.rows)
        return self.attend(packed, queries, residual, cu_seqlens, max_seqlen, reads, seeds)

    def project(
        self, hidden: Float[Tensor, "T H"], rows: Int[Tensor, " Q"] | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The first product, as `attend` takes it."""
        if type(self.query_key_value) is QueryKeyValue:
            return self.query_key_value(hidden, apart=True, rows=rows)
        packed = self.query_key_value(hidden)
        if rows is None:
            return packed, None, hidden
        size = hidden.shape[1]
        return packed[:, size:].contiguous(), packed[rows, :size], hidden[rows]

    def attend(
        self,
        packed: Float[Tensor, "T parts"],
        queries: Float[Tensor, "Q H"] | None,
        residual: Float[Tensor, "Q H"],
        cu_seqlens: Int[Tensor, " ends"],
        max_seqlen: int,
        reads: Reads | None,
        seeds: Seeds = _OWN_SEEDS,
    ) -> Float[Tensor, "Q H"]:
        """What follows the first product, whose results `project` gives."""
        head_size = residual.shape[1] // self.heads
        context = packed_attention(
            packed.view(len(packed), -1, self.heads, head_size),
            cu_seqlens,
            max_seqlen,
            head_size**-0.5,
            self.attention_dropout if self.training else 0.0,
            None if queries is None else queries.view(len(queries), self.heads, head_size),
            None if reads is None else reads.cu_seqlens,
            seeds[0],
        )
        attended = self._add(self.attention_output, context.flatten(1), residual, self.attention_layer_norm, seeds[1])
        if type(self.intermediate) is Product:
            expanded, residual = residual_linear(attended, self.intermediate.weight, in_place=True)
            raised = bias_gelu(expanded, self.intermediate.bias)
        else:
            raised, residual = F.gelu(self.intermediate(attended)), attended
        return self._add(self.output, raised, residual, self.output_layer_norm, seeds[2])

    def _add(self, product: nn.Module, x: Tensor, residual: Tensor, norm: nn.Module, seed: Tensor | None) -> Tensor:
        """LN(residual + dropout(product(x))) [Q, H]."""
        dropout, norm = self.dropout if self.training else 0.0, plain(norm, nn.LayerNorm)
        result, bias = _bias_apart(product, x)
        return residual_layer_norm(result, bias, residual, norm.weight, norm.bias, norm.eps, dropout, seed)
