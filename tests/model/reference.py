"""ImageBERT once more: padded, every row through every head, written from the paper and sharing no code with the model.

Only the names of the weights are the model's. Pairs are unpacked one by one, padded with NaN-free zeros to the
longest, and masked by a key mask; losses ignore rows by label -100.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from imagebert.batch import PackedBatch

Weights = dict[str, Tensor]


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: Tensor, epsilon: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def hidden_states(
    weights: Weights, batch: PackedBatch, layers: int, heads: int, epsilon: float = 1e-12, fusion: int = 0
) -> tuple[Tensor, Tensor]:
    """[B, longest, H] and which of the places are real [B, longest]; layers before `fusion` mix no sides."""
    ends = batch.cu_seqlens.tolist()
    e = "imagebert.embeddings"
    tokens = torch.zeros(batch.tokens, weights[f"{e}.word_embeddings.weight"].shape[1], dtype=torch.float32)
    tokens = tokens.to(weights[f"{e}.word_embeddings.weight"].dtype)
    place_of_text = {row: i for i, row in enumerate(batch.text_rows.tolist())}
    place_of_region = {row: i for i, row in enumerate(batch.region_rows.tolist())}
    whole = set(batch.global_regions.tolist())
    embedded = []
    for row in range(batch.tokens):
        if row in place_of_text:
            x = weights[f"{e}.word_embeddings.weight"][batch.input_ids[place_of_text[row]]]
        else:
            i = place_of_region[row]
            feature = batch.region_features[i].to(tokens.dtype) * batch.region_scales[i]
            if batch.region_zeroed[i]:
                feature = feature * 0
            x = _linear(weights, f"{e}.region_projection", feature)
            x = x + _linear(weights, f"{e}.location_projection", batch.region_boxes[i].to(tokens.dtype))
            if i in whole:
                x = x + weights[f"{e}.global_image.weight"][0]
        x = x + weights[f"{e}.position_embeddings.weight"][batch.position_ids[row]]
        embedded.append(x + weights[f"{e}.token_type_embeddings.weight"][batch.token_type_ids[row]])
    flat = _norm(weights, f"{e}.layer_norm", torch.stack(embedded), epsilon)

    longest = max(b - a for a, b in itertools.pairwise(ends))
    hidden = torch.stack([F.pad(flat[a:b], (0, 0, 0, longest - b + a)) for a, b in itertools.pairwise(ends)])
    real = torch.stack([torch.arange(longest) < b - a for a, b in itertools.pairwise(ends)])
    regions = [sum(a <= row < b for row in place_of_region) for a, b in itertools.pairwise(ends)]
    of_text = torch.arange(longest) > torch.tensor(regions)[:, None]  # behind [CLS] and the regions
    across = of_text[:, None, :, None] != of_text[:, None, None]
    size = hidden.shape[-1] // heads
    for layer in range(layers):
        name = f"imagebert.layers.{layer}"
        query, key, value = (
            part.unflatten(-1, (heads, size)).transpose(1, 2)
            for part in _linear(weights, f"{name}.query_key_value", hidden).chunk(3, -1)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(size)
        scores = scores.masked_fill(~real[:, None, None], -math.inf)
        if layer < fusion:
            scores = scores.masked_fill(across, -math.inf).masked_fill(~real[:, None, :, None], 0)
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        attended = hidden + _linear(weights, f"{name}.attention_output", context)
        attended = _norm(weights, f"{name}.attention_layer_norm", attended, epsilon)
        expanded = _linear(weights, f"{name}.output", _gelu(_linear(weights, f"{name}.intermediate", attended)))
        hidden = _norm(weights, f"{name}.output_layer_norm", attended + expanded, epsilon)
    return hidden, real


def itm_logits(weights: Weights, hidden: Tensor) -> Tensor:
    cls = hidden[:, 0]
    if "itm.pooler.weight" in weights:
        cls = torch.tanh(_linear(weights, "itm.pooler", cls))
    return _linear(weights, "itm.score", cls)[:, 0]


def pretraining_losses(
    weights: Weights, batch: PackedBatch, layers: int, heads: int, fusion: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of MLM, MOC, MRFR and ITM losses."""
    hidden, real = hidden_states(weights, batch, layers, heads, fusion=fusion)
    flat = hidden[real]  # back to [T, H], to place the labels
    words = torch.full((batch.tokens,), -100)
    words[batch.read_rows[batch.mlm_reads]] = batch.mlm_labels
    transformed = _norm(weights, "mlm.layer_norm", _gelu(_linear(weights, "mlm.transform", flat)), 1e-12)
    word_logits = transformed @ weights["imagebert.embeddings.word_embeddings.weight"].T + weights["mlm.decoder.bias"]
    mlm = F.cross_entropy(word_logits, words, ignore_index=-100, reduction="sum")

    classes = torch.full((batch.tokens,), -100)
    classes[batch.region_rows[batch.masked_regions]] = batch.moc_labels
    moc = F.cross_entropy(_linear(weights, "moc", flat), classes, ignore_index=-100, reduction="sum")

    predicted = _linear(weights, "mrfr", flat)
    mrfr = flat.new_zeros(())
    for region in batch.masked_regions.tolist():
        target = batch.region_features[region].to(flat.dtype) * batch.region_scales[region]
        difference = predicted[batch.region_rows[region]] - target
        mrfr = mrfr + (difference**2).sum() / len(target)

    itm = flat.new_zeros(())
    for logit, label in zip(itm_logits(weights, hidden), batch.itm_labels.tolist(), strict=True):
        itm = itm - (F.logsigmoid(logit) if label == 1 else F.logsigmoid(-logit))
    return mlm, moc, mrfr, itm
