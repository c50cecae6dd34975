"""Which regions each word of a pair looks at: attention weights, for people to see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.model.modeling import ImageBertModel


@torch.inference_mode()
def word_region_attention(model: ImageBertModel, batch: PackedBatch) -> Float[Tensor, "W R"]:
    """Attention of each text token (its words and the last [SEP]) to each region, the mean over heads and layers.

    Of the layers in which words see regions; the last is left out: only its [CLS] is ever read. Where no layer sees
    both it is how alike their states are: a softmax of cosines over the regions, at the temperature that vectors begin
    with. In plain PyTorch and float32, whatever the kernels are.

    Args:
        batch: one pair
    """
    hidden = model.sides(batch, model.draw_seeds())
    text = (batch.token_type_ids == 1).nonzero()[:, 0]
    layers = model.fused_layers
    if not layers:
        words, regions = (F.normalize(hidden[rows].float(), dim=1) for rows in (text, batch.region_rows))
        return (words @ regions.T / 0.07).softmax(dim=1)
    total = hidden.new_zeros(len(text), len(batch.region_rows), dtype=torch.float32)
    shown = layers[:-1] or layers
    for layer in shown:
        packed = layer.query_key_value(hidden)
        queries, keys, _ = packed.view(len(hidden), 3, layer.heads, -1).transpose(0, 2).unbind(1)  # [N, T, D]
        logits = queries.float() @ keys.float().transpose(1, 2) * queries.shape[2] ** -0.5
        total += logits.softmax(dim=2).mean(dim=0)[text][:, batch.region_rows]
        hidden = layer(hidden, batch.cu_seqlens, batch.max_seqlen)
    return total / len(shown)
