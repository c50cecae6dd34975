"""Attention within each sequence of a packed batch.

For query i of sequence b and head n, over the keys j of the same sequence:

    out[i, n] = sum_j dropout(softmax_j(scale * q[i, n] . k[j, n])) v[j, n]

Layouts, all read where they lie (rows may be any stride apart, a row is contiguous):
    packed      [T, 3, N, D]  queries, keys and values, as one product of the layer gives them; or
    packed      [T, 2, N, D]  keys and values, with
    queries     [Q, N, D]     rows of their own: the last layer asks only for the rows that a head reads
    cu_seqlens  [B+1] int32   cumulative lengths of the sequences; query_cu_seqlens the same for `queries`. Rows behind
                              the last sequence are nobody's: they give zeros, and have zeros for gradients
    out         [Q, N, D]     Q = T where the queries are in `packed`
    logsumexp   [N, Q] float32, of scale * q . k, kept for backward

Four ideas. A program is one sequence and one head: forward holds all its keys and values on the multiprocessor and
walks over the queries, so softmax needs no rescaling; backward holds all its queries and walks over the keys, so that
each gradient is written once, by one program, without atomics: every byte crosses the memory bus once and the result
is deterministic. What is held is cut into tiles and a shorter tail, since a tile's rows must be a power of two and 144,
the longest pair, is none. Longer sequences than the tiling was made for are right too, by slower loops.
Sixteen attention weights share one Philox call: those that one thread of a matrix instruction holds.

Programs start in the order of the batch: put long sequences first, and no multiprocessor waits for a late long one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from imagebert_kernels import checks
from imagebert_kernels.backend import is_hopper, uses_kernels
from imagebert_kernels.dropout import DROPOUT_STEPS, dropout_threshold, philox, seed_of

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


# ------------------------------------------------------------------------------------------- shared by both kernels
#
# Tuples that the functions pass on:
#     draws    seed's value, head, threshold: of a random byte, below which a weight is dropped
#     lengths  row of the sequence's first query, its number of queries, its number of keys


@triton.jit
def _load_rows(pointer, stride, start, end, ROWS: tl.constexpr, D: tl.constexpr):
    """Rows start to start + ROWS [ROWS, D], zeros from row `end` on."""
    row = start + tl.arange(0, ROWS)
    return tl.load(pointer + row[:, None] * stride + tl.arange(0, D)[None, :], mask=(row < end)[:, None], other=0.0)


@triton.jit
def _store_rows(pointer, stride, start, end, tile, ROWS: tl.constexpr, D: tl.constexpr):
    row = start + tl.arange(0, ROWS)
    place = pointer + row[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=(row < end)[:, None])


@triton.jit
def _kept(draws, query, key):
    """Which weights dropout keeps [queries, keys], a function of (seed, head, packed row of the query, key) alone.

    A call gives 16 bytes. They go to the keys that are congruent modulo 8, up to the lowest bit, within 64: one thread
    holds just these in a matrix instruction's accumulator, so the compiler merges the 16 calls written here into one.
    The key is the counter's first word: the first round's products are then shared by all rows.
    """
    seed, head, threshold = draws
    a, b, c, d = philox(seed, ((key >> 6) * 4 + ((key >> 1) & 3))[None, :], query[:, None], head)
    byte = (((key >> 3) & 7) * 2 + (key & 1))[None, :]
    word = byte >> 2
    bits = tl.where(word == 0, a, tl.where(word == 1, b, tl.where(word == 2, c, d)))
    return ((bits >> ((byte & 3) * 8).to(tl.uint32)) & 255) >= threshold


@triton.jit
def _dot(a, b, accumulator):
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def _scores(q, k):
    """q . k [queries, keys], not scaled yet."""
    return _dot(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32))


@triton.jit
def _is_behind(N: tl.constexpr):
    """The last N programs have no sequence: they write what lies behind them all."""
    return tl.program_id(0) // N == tl.num_programs(0) // N - 1


@triton.jit
def _store_zeros(pointer, stride, rows, D: tl.constexpr):
    for start in tl.range(0, rows, 64):
        _store_rows(pointer, stride, start, rows, tl.zeros([64, D], tl.float32), 64, D)


# ---------------------------------------------------------------------------------------------------------- forward


@triton.jit
def _masked_scores(q, k, first, length):
    """Scores with minus infinity for the keys beyond the sequence."""
    key = first + tl.arange(0, k.shape[0])
    return tl.where((key < length)[None, :], _scores(q, k), float("-inf"))


@triton.jit
def _weighted(total, acc, s, v, highest, row, first, draws, scale, DROPOUT: tl.constexpr):
    """Adds a tile's softmax weights, not normalised, to their sum and, those that are kept, times v to acc."""
    p = tl.exp2(s * scale - highest[:, None])
    total += tl.sum(p, 1)
    if DROPOUT:
        # Not a constant 0: the compiler would choose after rounding to 16 bits, and unpack and pack again for that.
        p = tl.where(_kept(draws, row, first + tl.arange(0, v.shape[0])), p, scale - scale)
    return total, _dot(p.to(v.dtype), v, acc)


@triton.jit
def _write_out(out, logsumexp, stride, start, rows, total, acc, highest, draws, DROPOUT: tl.constexpr):
    _, _, threshold = draws
    factor = 1 / total
    if DROPOUT:
        factor *= DROPOUT_STEPS / (DROPOUT_STEPS - threshold)
    _store_rows(out, stride, start, rows, acc * factor[:, None], acc.shape[0], acc.shape[1])
    row = start + tl.arange(0, acc.shape[0])
    tl.store(logsumexp + row, (highest + tl.log2(total)) * _LN_2, mask=row < rows)


@triton.jit
def _forward_held(
    tensors, strides, lengths, draws, scale, D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, TAIL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """All keys and values at once: TILES tiles of TILE rows and one of TAIL."""
    queries, keys, values, out, logsumexp = tensors
    query_stride, key_stride, out_stride = strides
    first_row, rows, length = lengths
    ks = ()
    vs = ()
    for i in tl.static_range(TILES):
        ks = ks + (_load_rows(keys, key_stride, i * TILE, length, TILE, D),)
        vs = vs + (_load_rows(values, key_stride, i * TILE, length, TILE, D),)
    if TAIL > 0:
        ks = ks + (_load_rows(keys, key_stride, TILES * TILE, length, TAIL, D),)
        vs = vs + (_load_rows(values, key_stride, TILES * TILE, length, TAIL, D),)
    following = _load_rows(queries, query_stride, 0, rows, BLOCK, D)
    # Hoisting what does not change in this loop takes more registers than there are.
    for start in tl.range(0, rows, BLOCK, disable_licm=True):
        q = following
        following = _load_rows(queries, query_stride, start + BLOCK, rows, BLOCK, D)
        highest = tl.full([BLOCK], float("-inf"), tl.float32)
        scores = ()
        for i in tl.static_range(len(ks)):
            s = _masked_scores(q, ks[i], i * TILE, length)
            highest = tl.maximum(highest, tl.max(s, 1))
            scores = scores + (s,)
        highest *= scale
        row = first_row + start + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], tl.float32)
        acc = tl.zeros([BLOCK, D], tl.float32)
        for i in tl.static_range(len(vs)):
            total, acc = _weighted(total, acc, scores[i], vs[i], highest, row, i * TILE, draws, scale, DROPOUT)
        _write_out(out, logsumexp, out_stride, start, rows, total, acc, highest, draws, DROPOUT)


@triton.jit
def _forward_long(
    tensors, strides, lengths, draws, scale, D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """Any number of keys, tile by tile, rescaling what was summed whenever a higher score is met."""
    queries, keys, values, out, logsumexp = tensors
    query_stride, key_stride, out_stride = strides
    first_row, rows, length = lengths
    for start in tl.range(0, rows, BLOCK, num_stages=1, disable_licm=True):
        q = _load_rows(queries, query_stride, start, rows, BLOCK, D)
        row = first_row + start + tl.arange(0, BLOCK)
        highest = tl.full([BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        acc = tl.zeros([BLOCK, D], tl.float32)
        for first in tl.range(0, length, TILE, num_stages=1, disable_licm=True):
            k = _load_rows(keys, key_stride, first, length, TILE, D)
            v = _load_rows(values, key_stride, first, length, TILE, D)
            s = _masked_scores(q, k, first, length)
            higher = tl.maximum(highest, tl.max(s, 1) * scale)
            shrink = tl.exp2(highest - higher)
            highest = higher
            total, acc = _weighted(
                total * shrink, acc * shrink[:, None], s, v, highest, row, first, draws, scale, DROPOUT
            )
        _write_out(out, logsumexp, out_stride, start, rows, total, acc, highest, draws, DROPOUT)


@triton.jit(do_not_specialize=["all_rows", "threshold"])
def attention_forward(
    queries,  # [Q, N, D], rows query_stride apart
    keys,  # [T, N, D], rows key_stride apart
    values,  # [T, N, D], rows key_stride apart
    query_ends,  # [B+1]
    key_ends,  # [B+1]
    out,  # [Q, N, D]
    logsumexp,  # [N, Q]
    seed,  # [1] int64; not read without DROPOUT
    query_stride,
    key_stride,
    all_rows,  # Q
    scale,
    threshold,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,  # queries in one turn
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    TAIL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first_row, first_key = tl.load(query_ends + sequence), tl.load(key_ends + sequence)
    if _is_behind(N):
        _store_zeros(out + (first_row.to(tl.int64) * N * D + head * D), N * D, all_rows - first_row, D)
        return
    rows = tl.load(query_ends + sequence + 1) - first_row
    length = tl.load(key_ends + sequence + 1) - first_key
    tensors = (
        queries + (first_row.to(tl.int64) * query_stride + head * D),
        keys + (first_key.to(tl.int64) * key_stride + head * D),
        values + (first_key.to(tl.int64) * key_stride + head * D),
        out + (first_row.to(tl.int64) * N * D + head * D),
        logsumexp + (head.to(tl.int64) * all_rows + first_row),
    )
    strides = (query_stride, key_stride, N * D)
    lengths = (first_row, rows, length)
    draws = (tl.load(seed) if DROPOUT else 0, head, threshold)
    scale *= _LOG2_E
    for count in tl.static_range(1, TILES + 1 + (TAIL > 0)):
        # As many tiles as the sequence fills, the tail last.
        if (length > (count - 1) * TILE) & (length <= min(count, TILES) * TILE + (TAIL if count > TILES else 0)):
            _forward_held(
                tensors, strides, lengths, draws, scale, D, BLOCK, TILE, min(count, TILES),
                TAIL if count > TILES else 0, DROPOUT,
            )  # fmt: skip
    if length > TILES * TILE + TAIL:
        _forward_long(tensors, strides, lengths, draws, scale, D, BLOCK, TILE, DROPOUT)


# --------------------------------------------------------------------------------------------------------- backward
#
# With P the softmax weights, Z dropout's mask (0 or 1) and g = 1 / share kept:
#     dV = g (P Z)^T dO    dP = g Z (dO V^T)    dS = P (dP - rowsum(dO O))    dQ = scale dS K    dK = scale dS^T Q
# The factors that are the same for all elements, g and scale, are applied to the sums.


@triton.jit
def _load_queries(tensors, strides, draws, start, rows, ROWS: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr):
    """q and dO [ROWS, D]; logsumexp in base 2 and rowsum(dO O) / g [ROWS]."""
    queries, _, _, out, grad_out, logsumexp = tensors
    query_stride, _, out_stride, _, _ = strides
    _, _, threshold = draws
    q = _load_rows(queries, query_stride, start, rows, ROWS, D)
    do = _load_rows(grad_out, out_stride, start, rows, ROWS, D)
    delta = tl.sum(_load_rows(out, out_stride, start, rows, ROWS, D).to(tl.float32) * do.to(tl.float32), 1)
    if DROPOUT:
        delta *= (DROPOUT_STEPS - threshold) / DROPOUT_STEPS
    row = start + tl.arange(0, ROWS)
    # Rows beyond the sequence have any finite weights: their dO is zero, and so is all that they add.
    normaliser = tl.load(logsumexp + row, mask=row < rows, other=0.0) * _LOG2_E
    return q, do, normaliser, delta


@triton.jit
def _weights(loaded, k, v, row, first, draws, scale, DROPOUT: tl.constexpr):
    """P Z and dS / g [queries, keys], in the type of the inputs."""
    q, do, normaliser, delta = loaded
    # A weight is at most one; keys beyond the sequence are zeros, whose weight might overflow and spoil dQ.
    p = tl.exp2(tl.minimum(_scores(q, k) * (scale * _LOG2_E) - normaliser[:, None], 0.0))
    dp = _scores(do, v)
    if DROPOUT:
        kept = _kept(draws, row + tl.arange(0, q.shape[0]), first + tl.arange(0, k.shape[0]))
        dp = tl.where(kept, dp, 0.0)
    ds = p * (dp - delta[:, None])
    if DROPOUT:
        p = tl.where(kept, p, scale - scale)  # as in _weighted
    return p.to(q.dtype), ds.to(q.dtype)


@triton.jit
def _store_keys(grads, strides, first, length, dk, dv, scale, factor, BLOCK: tl.constexpr, D: tl.constexpr):
    _, grad_keys, grad_values = grads
    _, _, _, _, grad_key_stride = strides
    _store_rows(grad_keys, grad_key_stride, first, length, tl.trans(dk * (scale * factor)), BLOCK, D)
    _store_rows(grad_values, grad_key_stride, first, length, tl.trans(dv * factor), BLOCK, D)


@triton.jit
def _backward_held(
    tensors, grads, strides, lengths, draws, scale, factor, D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, TAIL: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """All queries at once: TILES tiles of TILE rows and one of TAIL."""
    _, keys, values, _, _, _ = tensors
    _, key_stride, _, grad_query_stride, _ = strides
    first_row, rows, length = lengths
    held = ()
    dqs = ()
    for i in tl.static_range(TILES):
        held = held + (_load_queries(tensors, strides, draws, i * TILE, rows, TILE, D, DROPOUT),)
        dqs = dqs + (tl.zeros([TILE, D], tl.float32),)
    if TAIL > 0:
        held = held + (_load_queries(tensors, strides, draws, TILES * TILE, rows, TAIL, D, DROPOUT),)
        dqs = dqs + (tl.zeros([TAIL, D], tl.float32),)
    # Hoisting what does not change in this loop takes more registers than there are.
    for first in tl.range(0, length, BLOCK, disable_licm=True):
        k = _load_rows(keys, key_stride, first, length, BLOCK, D)
        v = _load_rows(values, key_stride, first, length, BLOCK, D)
        # Transposed, so that the tail is an inner dimension of these products, which may be short, not an outer one.
        dk = tl.zeros([D, BLOCK], tl.float32)
        dv = tl.zeros([D, BLOCK], tl.float32)
        new_dqs = ()
        for i in tl.static_range(len(held)):
            p, ds = _weights(held[i], k, v, first_row + i * TILE, first, draws, scale, DROPOUT)
            dv = _dot(tl.trans(held[i][1]), p, dv)
            dk = _dot(tl.trans(held[i][0]), ds, dk)
            new_dqs = new_dqs + (_dot(ds, k, dqs[i]),)
        dqs = new_dqs
        _store_keys(grads, strides, first, length, dk, dv, scale, factor, BLOCK, D)
    for i in tl.static_range(len(dqs)):
        _store_rows(grads[0], grad_query_stride, i * TILE, rows, dqs[i] * (scale * factor), dqs[i].shape[0], D)


@triton.jit
def _backward_long(
    tensors, grads, strides, lengths, draws, scale, factor, D: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """Any number of queries: the weights are computed twice, once for dK and dV and once for dQ."""
    _, keys, values, _, _, _ = tensors
    _, key_stride, _, grad_query_stride, _ = strides
    first_row, rows, length = lengths
    for first in tl.range(0, length, BLOCK, num_stages=1, disable_licm=True):
        k = _load_rows(keys, key_stride, first, length, BLOCK, D)
        v = _load_rows(values, key_stride, first, length, BLOCK, D)
        dk = tl.zeros([D, BLOCK], tl.float32)
        dv = tl.zeros([D, BLOCK], tl.float32)
        for start in tl.range(0, rows, TILE, num_stages=1, disable_licm=True):
            loaded = _load_queries(tensors, strides, draws, start, rows, TILE, D, DROPOUT)
            p, ds = _weights(loaded, k, v, first_row + start, first, draws, scale, DROPOUT)
            dv = _dot(tl.trans(loaded[1]), p, dv)
            dk = _dot(tl.trans(loaded[0]), ds, dk)
        _store_keys(grads, strides, first, length, dk, dv, scale, factor, BLOCK, D)
    for start in tl.range(0, rows, TILE, num_stages=1, disable_licm=True):
        loaded = _load_queries(tensors, strides, draws, start, rows, TILE, D, DROPOUT)
        dq = tl.zeros([TILE, D], tl.float32)
        for first in tl.range(0, length, BLOCK, num_stages=1, disable_licm=True):
            k = _load_rows(keys, key_stride, first, length, BLOCK, D)
            v = _load_rows(values, key_stride, first, length, BLOCK, D)
            ds = _weights(loaded, k, v, first_row + start, first, draws, scale, DROPOUT)[1]
            dq = _dot(ds, k, dq)
        _store_rows(grads[0], grad_query_stride, start, rows, dq * (scale * factor), TILE, D)


@triton.jit(do_not_specialize=["all_rows", "all_keys", "threshold"])
def attention_backward(
    queries,  # [Q, N, D], rows query_stride apart
    keys,  # [T, N, D], rows key_stride apart
    values,  # [T, N, D], rows key_stride apart
    query_ends,  # [B+1]
    key_ends,  # [B+1]
    out,  # [Q, N, D]
    logsumexp,  # [N, Q]
    grad_out,  # [Q, N, D]
    seed,  # [1] int64; not read without DROPOUT
    grad_queries,  # [Q, N, D], rows grad_query_stride apart
    grad_keys,  # [T, N, D], rows grad_key_stride apart
    grad_values,  # [T, N, D], rows grad_key_stride apart
    query_stride,
    key_stride,
    grad_query_stride,
    grad_key_stride,
    all_rows,  # Q
    all_keys,  # T
    scale,
    threshold,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,  # keys in one turn
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    TAIL: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    sequence, head = tl.program_id(0) // N, tl.program_id(0) % N
    first_row, first_key = tl.load(query_ends + sequence), tl.load(key_ends + sequence)
    if _is_behind(N):
        behind = grad_queries + (first_row.to(tl.int64) * grad_query_stride + head * D)
        _store_zeros(behind, grad_query_stride, all_rows - first_row, D)
        behind = first_key.to(tl.int64) * grad_key_stride + head * D
        _store_zeros(grad_keys + behind, grad_key_stride, all_keys - first_key, D)
        _store_zeros(grad_values + behind, grad_key_stride, all_keys - first_key, D)
        return
    rows = tl.load(query_ends + sequence + 1) - first_row
    length = tl.load(key_ends + sequence + 1) - first_key
    tensors = (
        queries + (first_row.to(tl.int64) * query_stride + head * D),
        keys + (first_key.to(tl.int64) * key_stride + head * D),
        values + (first_key.to(tl.int64) * key_stride + head * D),
        out + (first_row.to(tl.int64) * N * D + head * D),
        grad_out + (first_row.to(tl.int64) * N * D + head * D),
        logsumexp + (head.to(tl.int64) * all_rows + first_row),
    )
    grads = (
        grad_queries + (first_row.to(tl.int64) * grad_query_stride + head * D),
        grad_keys + (first_key.to(tl.int64) * grad_key_stride + head * D),
        grad_values + (first_key.to(tl.int64) * grad_key_stride + head * D),
    )
    strides = (query_stride, key_stride, N * D, grad_query_stride, grad_key_stride)
    lengths = (first_row, rows, length)
    draws = (tl.load(seed) if DROPOUT else 0, head, threshold)
    factor = DROPOUT_STEPS / (DROPOUT_STEPS - threshold) if DROPOUT else 1.0
    for count in tl.static_range(1, TILES + 1 + (TAIL > 0)):
        # Of the first, no queries are a case too: their keys have gradients all the same, zeros.
        if (rows > (count - 1) * TILE - (count == 1)) & (
            rows <= min(count, TILES) * TILE + (TAIL if count > TILES else 0)
        ):
            _backward_held(
                tensors, grads, strides, lengths, draws, scale, factor, D, BLOCK, TILE, min(count, TILES),
                TAIL if count > TILES else 0, DROPOUT,
            )  # fmt: skip
    if rows > TILES * TILE + TAIL:
        _backward_long(tensors, grads, strides, lengths, draws, scale, factor, D, BLOCK, TILE, DROPOUT)


# ----------------------------------------------------------------------------------------------------------- tiling


class Tiling(NamedTuple):
    """How a kernel is cut for one head size, longest sequence and chip.

    Chosen by what `benchmarks/ops.py --static` shows; `--tune` will choose on a GPU.
    """

    block: int  # rows of the side that is walked over, in one turn
    tile: int  # rows of a tile of the side that is held
    tiles: int  # tiles that are held
    tail: int  # rows of one more, shorter tile
    warps: int
    stages: int = 1  # turns whose loads are under way at once
    registers: int | None = None  # most registers of a thread, so that two programs fit on a multiprocessor

    @property
    def held(self) -> int:
        """The longest sequence that is held at once; longer ones take the slower loop."""
        return self.tile * self.tiles + self.tail

    def constants(self) -> dict[str, int]:
        return {"BLOCK": self.block, "TILE": self.tile, "TILES": self.tiles, "TAIL": self.tail}

    def options(self) -> dict[str, int]:
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


HEAD_SIZES = (32, 64, 128)

# Shortest first: the first that holds the longest sequence is taken, else the last. None spills a register, with
# Triton 3.6, 3.7 and 3.9.
_HOPPER_FORWARD = {
    32: (Tiling(64, 32, 1, 0, 4), Tiling(64, 64, 1, 0, 4), Tiling(64, 64, 2, 0, 4), Tiling(64, 64, 2, 32, 4)),
    64: (
        Tiling(64, 32, 1, 0, 4),
        Tiling(64, 32, 2, 0, 4),
        Tiling(64, 32, 3, 0, 4),
        Tiling(64, 64, 2, 0, 4),
        Tiling(64, 64, 2, 16, 4),
    ),
    128: (Tiling(64, 32, 1, 0, 4), Tiling(64, 64, 1, 0, 4), Tiling(64, 64, 1, 32, 4)),
}
_HOPPER_BACKWARD = {
    32: (Tiling(32, 64, 1, 0, 4),),
    64: (
        Tiling(32, 64, 1, 0, 4, 1, 128),
        Tiling(32, 128, 1, 0, 8, 2, 128),
        Tiling(32, 64, 2, 16, 4, 2),
        Tiling(32, 128, 2, 0, 8, 2),
    ),
    128: (Tiling(32, 64, 1, 0, 4, 2), Tiling(32, 128, 1, 0, 8, 2), Tiling(32, 128, 1, 16, 8)),
}
_AMPERE_FORWARD = {
    32: (Tiling(64, 32, 1, 0, 4, 1, 96), Tiling(64, 64, 1, 0, 4, 1, 168), Tiling(64, 64, 2, 32, 4)),
    64: (Tiling(64, 32, 1, 0, 4, 1, 168), Tiling(64, 64, 1, 0, 4, 1, 248)),
    128: (Tiling(64, 64, 1, 0, 8), Tiling(64, 64, 2, 16, 8)),
}
_AMPERE_BACKWARD = {
    32: (Tiling(32, 64, 1, 0, 4),),
    64: (Tiling(32, 64, 1, 0, 4), Tiling(32, 128, 1, 0, 8)),
    128: (Tiling(16, 32, 1, 0, 8),),
}


def forward_tilings(head_size: int, hopper: bool) -> tuple[Tiling, ...]:
    """All tilings that may run: `hopper` from compute capability 9.0 on, otherwise 8.0."""
    return (_HOPPER_FORWARD if hopper else _AMPERE_FORWARD)[head_size]


def backward_tilings(head_size: int, hopper: bool) -> tuple[Tiling, ...]:
    return (_HOPPER_BACKWARD if hopper else _AMPERE_BACKWARD)[head_size]


def _fitting(tilings: tuple[Tiling, ...], longest: int) -> Tiling:
    return next((tiling for tiling in tilings if tiling.held >= longest), tilings[-1])


# --------------------------------------------------------------------------------------------- PyTorch's two operators
#
# The public function below checks the arguments; the operators are what torch.compile sees, one node each.


@torch.library.custom_op(
    "imagebert::packed_attention",
    mutates_args=(),
    schema="(Tensor packed, Tensor? queries, Tensor cu_seqlens, Tensor query_cu_seqlens, SymInt max_seqlen, "
    "float scale, float dropout, Tensor? seed) -> (Tensor, Tensor)",
)
def _forward(packed, queries, cu_seqlens, query_cu_seqlens, max_seqlen, scale, dropout, seed):  # type: ignore[no-untyped-def]
    queries, keys, values = _parts(packed, queries)
    rows, heads, size = queries.shape
    out, logsumexp = _forward_outputs(packed, queries)
    tiling = _fitting(forward_tilings(size, is_hopper(packed.device)), max_seqlen)
    with torch.cuda.device_of(packed):
        attention_forward[(len(cu_seqlens) * heads,)](
            queries, keys, values, query_cu_seqlens, cu_seqlens, out, logsumexp, seed,
            queries.stride(0), keys.stride(0), rows, scale, dropout_threshold(dropout),
            N=heads, D=size, DROPOUT=dropout > 0, **tiling.constants(), **tiling.options(),
        )  # fmt: skip
    return out, logsumexp


@_forward.register_fake
def _(packed, queries, cu_seqlens, query_cu_seqlens, max_seqlen, scale, dropout, seed):  # type: ignore[no-untyped-def]
    return _forward_outputs(packed, _parts(packed, queries)[0])


@torch.library.custom_op(
    "imagebert::packed_attention_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor packed, Tensor? queries, Tensor cu_seqlens, Tensor query_cu_seqlens, Tensor out, "
    "Tensor logsumexp, SymInt max_seqlen, float scale, float dropout, Tensor? seed) -> (Tensor, Tensor)",
)
def _backward(
    grad_out, packed, queries, cu_seqlens, query_cu_seqlens, out, logsumexp, max_seqlen, scale, dropout, seed
):  # type: ignore[no-untyped-def]
    grad_packed, grad_queries = _backward_outputs(packed, queries)
    into_queries, into_keys, into_values = _parts(grad_packed, None if queries is None else grad_queries)
    queries, keys, values = _parts(packed, queries)
    rows, heads, size = queries.shape
    tiling = _fitting(backward_tilings(size, is_hopper(packed.device)), max_seqlen)
    with torch.cuda.device_of(packed):
        attention_backward[(len(cu_seqlens) * heads,)](
            queries, keys, values, query_cu_seqlens, cu_seqlens, out, logsumexp, grad_out.contiguous(), seed,
            into_queries, into_keys, into_values,
            queries.stride(0), keys.stride(0), into_queries.stride(0), into_keys.stride(0), rows, len(keys), scale,
            dropout_threshold(dropout), N=heads, D=size, DROPOUT=dropout > 0, **tiling.constants(), **tiling.options(),
        )  # fmt: skip
    return grad_packed, grad_queries


@_backward.register_fake
def _(grad_out, packed, queries, cu_seqlens, query_cu_seqlens, out, logsumexp, max_seqlen, scale, dropout, seed):  # type: ignore[no-untyped-def]
    return _backward_outputs(packed, queries)


def _parts(packed: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, views [rows, N, D]."""
    return (packed[:, 0] if queries is None else queries), packed[:, -2], packed[:, -1]


def _forward_outputs(packed: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    rows, heads, size = queries.shape
    return packed.new_empty(rows, heads, size), packed.new_empty(heads, rows, dtype=torch.float32)


def _backward_outputs(packed: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of packed and of queries; the latter is empty where there are none."""
    return packed.new_empty(packed.shape), packed.new_empty((0,) if queries is None else queries.shape)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    packed, queries, cu_seqlens, query_cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.dropout, seed = inputs
    ctx.save_for_backward(packed, queries, cu_seqlens, query_cu_seqlens, *output, seed)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out, _grad_logsumexp):  # type: ignore[no-untyped-def]
    *tensors, seed = ctx.saved_tensors
    grad_packed, grad_queries = _backward(grad_out, *tensors, ctx.max_seqlen, ctx.scale, ctx.dropout, seed)
    return grad_packed, (None if tensors[1] is None else grad_queries), *[None] * 6


_forward.register_autograd(_differentiate, setup_context=_save)


# -------------------------------------------------------------------------------------------------------- reference


def packed_attention_reference(
    packed: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout: float = 0.0,
    queries: Tensor | None = None,
    query_cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The operation in plain PyTorch, on any device and in any floating type. Reads the lengths on the host.

    Sequences of like length are padded to each other, here and nowhere else. Where those of one length lie one behind
    the other, as in sorted batches, nothing is padded or gathered.
    """
    query_cu_seqlens = cu_seqlens if query_cu_seqlens is None else query_cu_seqlens
    query_ends, key_ends = query_cu_seqlens.tolist(), cu_seqlens.tolist()
    rows, shape = len(packed if queries is None else queries), packed.shape[-2:]
    # All sequences' rows are cut, or gathered, at once: a gradient of each cut would be as large as the whole.
    if runs := _runs(query_ends, key_ends):
        pieces = _cut(packed, [keys for _, _, keys in runs])
        asking = [None] * len(runs) if queries is None else _cut(queries, [asked for _, asked, _ in runs])
        parts = []
        for (sequences, _, _), q, kv in zip(runs, asking, pieces, strict=True):
            q = None if q is None else q.view(sequences, -1, *shape)
            out = _attended(q, kv.view(sequences, -1, *packed.shape[1:]), scale, dropout)
            parts.append(out.flatten(0, 1))
        if (behind := rows - query_ends[-1]) > 0:
            parts.append(packed.new_zeros(behind, *shape))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    groups = _groups(tuple(query_ends), tuple(key_ends), packed.device)
    if not groups:
        return packed.new_zeros(rows, *shape)
    gathered = _gather(packed, [group.key_rows for group in groups])
    asking = [None] * len(groups) if queries is None else _gather(queries, [group.query_rows for group in groups])
    outs = [
        _attended(q, kv, scale, dropout, group.mask).flatten(0, 1)[group.kept]
        for group, q, kv in zip(groups, asking, gathered, strict=True)
    ]
    covered = torch.cat(outs)[_order(groups)]
    return torch.nn.functional.pad(covered, (0, 0, 0, 0, 0, rows - len(covered)))


def _attended(
    queries: Tensor | None, packed: Tensor, scale: float, dropout: float, mask: Tensor | None = None
) -> Tensor:
    """[b, q, N, D] from queries [b, q, N, D] with keys and values [b, k, 2, N, D], or from all [b, k, 3, N, D]."""
    parts = packed.unbind(2) if queries is None else (queries, *packed.unbind(2))
    asked, keys, values = (part.transpose(1, 2) for part in parts)  # [b, N, q or k, D]
    out = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2)


def _cut(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """The pieces of so many rows each; what is behind them is nobody's."""
    return rows.split([*sizes, len(rows) - sum(sizes)])[:-1]


def _gather(rows: Tensor, index: Sequence[Tensor]) -> list[Tensor]:
    """The rows of each index [b, n], as [b, n, ...]."""
    taken = rows[torch.cat([i.flatten() for i in index])].split([i.numel() for i in index])
    return [piece.view(*i.shape, *rows.shape[1:]) for piece, i in zip(taken, index, strict=True)]


# Sequences of one length that make a run of their own worth a call.
_RUN = 4


def _runs(query_ends: list[int], key_ends: list[int]) -> list[tuple[int, int, int]]:
    """Runs of sequences of one length: how many, how many queries they have together, how many keys. None where they
    are short or have no query or key."""
    runs: list[tuple[int, int, int]] = []
    start, lengths = 0, (0, 0)
    for b in range(1, len(key_ends)):
        following = (query_ends[b] - query_ends[b - 1], key_ends[b] - key_ends[b - 1])
        if following == lengths:
            continue
        if 0 in following or _RUN * (len(runs) + 1) > len(key_ends) + _RUN:
            return []
        if b > 1:
            runs.append(_run(start, b - 1, query_ends, key_ends))
        start, lengths = b - 1, following
    return [*runs, _run(start, len(key_ends) - 1, query_ends, key_ends)] if len(key_ends) > 1 else []


def _run(start: int, end: int, query_ends: list[int], key_ends: list[int]) -> tuple[int, int, int]:
    return end - start, query_ends[end] - query_ends[start], key_ends[end] - key_ends[start]


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


# --------------------------------------------------------------------------------------------------------- dispatch


def packed_attention(
    packed: Float[Tensor, "T parts N D"],
    cu_seqlens: Int[Tensor, " ends"],
    max_seqlen: int,
    scale: float,
    dropout: float = 0.0,
    queries: Float[Tensor, "Q N D"] | None = None,
    query_cu_seqlens: Int[Tensor, " ends"] | None = None,
    seed: Tensor | None = None,
) -> Float[Tensor, "Q N D"]:
    """Computes softmax attention of each query over the keys of its own sequence.

    Sequences lie one behind the other, without padding: T tokens, N heads of size D, Q queries.

    Args:
        packed: The queries, keys and values of each token, [T, 3, N, D]; only keys and values, [T, 2, N, D], where
            `queries` are given.
        cu_seqlens: The cumulative lengths of B sequences, [B+1] int32, beginning with 0 and ending with T or before. A
            sequence with queries has keys; a sequence may be empty.
        max_seqlen: The length of the longest sequence, which chooses the kernel's tiling. Longer sequences are computed
            rightly but slowly.
        scale: The factor of the products of queries and keys, mostly 1 / sqrt(D).
        dropout: The probability with which an attention weight is dropped, 0 outside training. The kernel rounds it to
            a multiple of 1/256.
        queries: Queries of their own, [Q, N, D], where only some rows are wanted. None takes those in `packed`, so that
            Q is T.
        query_cu_seqlens: The cumulative lengths of the sequences of `queries`, [B+1] int32.
        seed: The seed of the kernel's dropout, which `imagebert_kernels.dropout.draw_seeds` draws. None draws one here.
            The reference in PyTorch uses PyTorch's generator instead.

    Returns:
        The weighted sums of values, [Q, N, D].

    Raises:
        ValueError: An argument has a wrong type, device, shape or stride; nothing is read from the device for that.
            With IMAGEBERT_CHECK_KERNELS=1 the values of both cumulative lengths are read and checked too.
    """
    _check(packed, cu_seqlens, scale, dropout, queries, query_cu_seqlens)
    if not uses_kernels(packed) or packed.shape[-1] not in HEAD_SIZES:
        return packed_attention_reference(packed, cu_seqlens, scale, dropout, queries, query_cu_seqlens)
    seed = seed_of(dropout, seed, packed.device)
    ends = cu_seqlens if query_cu_seqlens is None else query_cu_seqlens
    out, _ = _forward(packed, queries, cu_seqlens, ends, max_seqlen, scale, dropout, seed)
    return out


def _check(
    packed: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout: float,
    queries: Tensor | None,
    query_cu_seqlens: Tensor | None,
) -> None:
    must = partial(checks.must, "packed_attention")
    parts = 3 if queries is None else 2
    shape, size = tuple(packed.shape), tuple(packed.shape[2:])
    must(packed.dim() == 4 and shape[1] == parts, "the shape of packed", shape, f"[T, {parts}, N, D]")
    must(packed.is_floating_point(), "the type of packed", packed.dtype, "a floating type")
    must(packed[:1].is_contiguous(), "the stride of packed", packed.stride(), "contiguous within a row")
    must((queries is None) == (query_cu_seqlens is None), "query_cu_seqlens", query_cu_seqlens, "given with queries")
    if queries is not None:
        found = tuple(queries.shape)
        must(queries.dim() == 3 and found[1:] == size, "the shape of queries", found, f"[Q, {size[0]}, {size[1]}]")
        must(queries.dtype == packed.dtype, "the type of queries", queries.dtype, f"that of packed, {packed.dtype}")
        must(queries.device == packed.device, "the device of queries", queries.device, f"{packed.device}, as packed")
        must(queries[:1].is_contiguous(), "the stride of queries", queries.stride(), "contiguous within a row")
    for name, ends in (("cu_seqlens", cu_seqlens), ("query_cu_seqlens", query_cu_seqlens)):
        if ends is not None:
            must(ends.dim() == 1 and len(ends) >= 1, f"the shape of {name}", tuple(ends.shape), "[B+1]")
            must(ends.dtype == torch.int32, f"the type of {name}", ends.dtype, "int32")
            must(ends.device == packed.device, f"the device of {name}", ends.device, f"{packed.device}, as packed")
            must(ends.is_contiguous(), f"the stride of {name}", ends.stride(), "contiguous")
            wanted = f"{len(cu_seqlens)}, as cu_seqlens"
            must(len(ends) == len(cu_seqlens), f"the length of {name}", len(ends), wanted)
    must(scale > 0, "scale", scale, "positive")
    must(0 <= dropout < 1, "dropout", dropout, "at least 0 and less than 1")
    if os.environ.get("IMAGEBERT_CHECK_KERNELS") == "1":
        for name, ends, rows in (("cu_seqlens", cu_seqlens, packed), ("query_cu_seqlens", query_cu_seqlens, queries)):
            if ends is not None and rows is not None:
                values = ends.tolist()
                must(values[0] == 0 and values[-1] <= len(rows), name, values, f"from 0 to {len(rows)}, the rows")
                must(values == sorted(values), name, values, "ascending")
