"""Attention within each sequence of a packed batch.

For query i of sequence b and head n, over the keys j of the same sequence:

    out[i, n] = sum_j dropout(softmax_j(scale * q[i, n] . k[j, n])) v[j, n]

Layouts, all read where they lie:
    queries      [Q, N, D]     any rows stride
    keys_values  [T, 2, N, D]  any rows stride
    query_cu_seqlens, cu_seqlens  [B+1] int32, cumulative lengths of the queries and of the keys per sequence
    out          [Q, N, D]

Queries may be fewer than keys: the last layer asks only for the rows that a head reads. The dispatch point has one
entry so far, PyTorch: sequences of like length are padded to each other inside this file and nowhere else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def packed_attention(
    queries: Float[Tensor, "Q N D"],
    keys_values: Float[Tensor, "T 2 N D"],
    query_cu_seqlens: Int[Tensor, " ends"],
    cu_seqlens: Int[Tensor, " ends"],
    scale: float,
    dropout: float = 0.0,
) -> Float[Tensor, "Q N D"]:
    """Softmax attention of each query over its own sequence's keys; see the head of this file.

    Args:
        dropout: probability with which an attention weight is dropped; 0 outside training.
    """
    return packed_attention_reference(queries, keys_values, query_cu_seqlens, cu_seqlens, scale, dropout)


def packed_attention_reference(
    queries: Tensor, keys_values: Tensor, query_cu_seqlens: Tensor, cu_seqlens: Tensor, scale: float, dropout: float
) -> Tensor:
    """The operation in plain PyTorch, on any device and in any floating type. Reads the lengths on the host."""
    groups = _groups(tuple(query_cu_seqlens.tolist()), tuple(cu_seqlens.tolist()), queries.device)
    keys, values = keys_values.unbind(1)  # [T, N, D]
    outs = []
    for group in groups:
        out = scaled_dot_product_attention(
            queries[group.query_rows].transpose(1, 2),  # [b, N, q, D]
            keys[group.key_rows].transpose(1, 2),  # [b, N, k, D]
            values[group.key_rows].transpose(1, 2),
            attn_mask=group.mask,
            dropout_p=dropout,
            scale=scale,
        )
        outs.append(out.transpose(1, 2).flatten(0, 1)[group.kept])
    return torch.cat(outs)[_order(groups)]


class _Group(NamedTuple):
    """Sequences of like length, laid out as a rectangle; places beyond a sequence's end repeat its first row."""

    query_rows: Tensor  # [b, q] rows of the queries
    key_rows: Tensor  # [b, k] rows of the keys
    mask: Tensor | None  # [b, 1, 1, k] bool, true where a key is real; None where all are
    kept: Tensor  # which of the b*q outputs are real
    places: Tensor  # the rows of the result that those are


# A group holds sequences down to this share of its longest: more padding costs more than another call.
_LIKE = 0.8


@lru_cache(maxsize=8)  # one batch asks once per layer, forward and recomputation
@torch.inference_mode(False)  # what was first asked for in inference may be used in training
def _groups(query_ends: tuple[int, ...], key_ends: tuple[int, ...], device: torch.device) -> tuple[_Group, ...]:
    queries, keys = torch.tensor(query_ends), torch.tensor(key_ends)
    query_lengths, key_lengths = queries.diff(), keys.diff()
    by_length = torch.argsort(key_lengths, descending=True, stable=True)
    groups, start = [], 0
    while start < len(by_length):
        longest = key_lengths[by_length[start]]
        if longest == 0:
            break
        like = (key_lengths[by_length[start:]] >= _LIKE * longest).sum()
        members = by_length[start : start + int(like)]
        start += int(like)
        query_rows, query_real = _rectangle(queries[members], query_lengths[members])
        key_rows, key_real = _rectangle(keys[members], key_lengths[members])
        kept = query_real.flatten().nonzero()[:, 0]
        group = _Group(
            query_rows,
            key_rows,
            None if key_real.all() else key_real[:, None, None],
            kept,
            query_rows.flatten()[kept],
        )
        groups.append(_Group(*(None if t is None else t.to(device) for t in group)))  # type: ignore[arg-type]
    return tuple(groups)


def _rectangle(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(int(lengths.max()))
    real = steps < lengths[:, None]
    # A sequence without queries still needs some row to point at: row 0 of all.
    return torch.where(real, starts[:, None] + steps, torch.where(lengths > 0, starts, 0)[:, None]), real


def _order(groups: tuple[_Group, ...]) -> Tensor:
    return torch.argsort(torch.cat([group.places for group in groups]))
