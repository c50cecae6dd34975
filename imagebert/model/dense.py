"""The encoder on padded tensors, in PyTorch's plain operations: to be exported, and to show what lies inside.

`torch.export` and ONNX want one graph for any batch, which packing is not; hidden states and attention weights of a
packed batch are nowhere. Modules are those of the model itself. Slower than packing, and equal to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from imagebert.model.layers import Embeddings, Layer, with_area


class Inside(NamedTuple):
    """What an encoder makes of padded tokens [B, S, H]."""

    hidden: list[Tensor]  # L + 1 of that shape, the embeddings first
    attentions: list[Tensor]  # L of [B, N, S, S], where they were asked for


def embed_images(
    embeddings: Embeddings,
    features: Float[Tensor, "B R F"],
    boxes: Float[Tensor, "B R 4"],
    whole_image: Shaped[Tensor, " B"] | None = None,
    zeroed: Bool[Tensor, "B R"] | None = None,
) -> Float[Tensor, "B R H"]:
    """Embedded regions; `boxes` as PaddedPairs has them, `zeroed` regions are seen as zeros."""
    location = with_area(boxes)
    dtype = embeddings.layer_norm.weight.dtype
    if zeroed is not None:
        features = features.masked_fill(zeroed[..., None], 0)
    regions = embeddings.region_projection(features.to(dtype)) + embeddings.location_projection(location.to(dtype))
    if embeddings.global_image is not None and whole_image is not None:
        mark = embeddings.global_image.weight[0] * whole_image[:, None].to(dtype)
        regions = torch.cat([regions[:, :1] + mark[:, None], regions[:, 1:]], dim=1)
    place = embeddings.token_type_embeddings.weight[0] + embeddings.position_embeddings.weight[1]
    return _embedded(embeddings, regions + place)


def embed_texts(
    embeddings: Embeddings, ids: Int[Tensor, "B W"], mask: Bool[Tensor, "B W"]
) -> Float[Tensor, "B tokens H"]:
    """Embedded `[CLS] [SEP] words [SEP]` of `[CLS] words [SEP]`: 1 + W tokens. [CLS] is of the image's side."""
    last = ids.gather(1, mask.sum(1, keepdim=True) - 1)
    ids = torch.cat([ids[:, :1], last, ids[:, 1:]], dim=1)
    place = torch.arange(ids.shape[1], device=ids.device)
    segment = embeddings.token_type_embeddings.weight[(place >= 2).long()]
    position = embeddings.position_embeddings.weight[place + (place > 0)]
    return _embedded(embeddings, embeddings.word_embeddings(ids) + segment + position)


def _embedded(embeddings: Embeddings, tokens: Tensor) -> Tensor:
    return F.dropout(embeddings.layer_norm(tokens), embeddings.dropout, embeddings.training)


def encode(
    layers: nn.ModuleList,
    images: Float[Tensor, "B R H"],
    texts: Float[Tensor, "B tokens H"],
    region_mask: Bool[Tensor, "B R"],
    text_mask: Bool[Tensor, "B W"],
    attentions: bool = False,
    fusion_layer: int = 0,
) -> Inside:
    """Embedded sides to all hidden states of `[CLS] regions [SEP] words [SEP]`."""
    real = torch.cat([text_mask[:, :1], region_mask, text_mask[:, :1], text_mask[:, 1:]], dim=1)
    of_text = torch.arange(real.shape[1], device=real.device) > region_mask.shape[1]
    within = (of_text[:, None] == of_text)[None, None]  # [1, 1, S, S]
    inside = Inside([torch.cat([texts[:, :1], images, texts[:, 1:]], dim=1)], [])
    each: list[Any] = list(layers)
    for number, layer in enumerate(each):
        mask = real[:, None, None] & within if number < fusion_layer else real[:, None, None]
        hidden, weights = _layer(layer, inside.hidden[-1], mask, attentions)
        inside.hidden.append(hidden)
        inside.attentions.extend([] if weights is None else [weights])
    return inside


def encode_side(layers: list[Any], tokens: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
    """Embedded tokens of one side through the layers before the fused ones."""
    for layer in layers:
        tokens, _ = _layer(layer, tokens, mask[:, None, None], attentions=False)
    return tokens


def _layer(layer: Layer, hidden: Tensor, mask: Tensor, attentions: bool) -> tuple[Tensor, Tensor | None]:
    pairs, tokens, size = hidden.shape
    packed = layer.query_key_value(hidden).view(pairs, tokens, 3, layer.heads, size // layer.heads)
    queries, keys, values = packed.permute(2, 0, 3, 1, 4).unbind(0)  # [B, N, S, D]
    dropout, weights = layer.attention_dropout if layer.training else 0.0, None
    if attentions:
        logits = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
        weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=3)
        context = F.dropout(weights, dropout) @ values
    else:
        context = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
    context = context.transpose(1, 2).reshape(pairs, tokens, size)

    def add(product: nn.Module, x: Tensor, residual: Tensor, norm: nn.Module) -> Tensor:
        result: Tensor = norm(residual + F.dropout(product(x), layer.dropout, layer.training))
        return result

    attended = add(layer.attention_output, context, hidden, layer.attention_layer_norm)
    raised = F.gelu(layer.intermediate(attended))
    return add(layer.output, raised, attended, layer.output_layer_norm), weights
