"""The sum of embeddings of each packed token, LayerNorm and dropout (paper, section 3 and figure 1).

    out[t] = dropout(LN(content[t] + position_table[position_ids[t]] + type_table[token_type_ids[t]]))
    content of a word: word_table[input_ids];  of a region: what project_regions gave

Layouts, all contiguous:
    regions             [R, H]              region_rows   [R] int64, the token of each
    input_ids           [W] int64           text_rows     [W] int64; the two hold each of the T tokens once
    position_ids, token_type_ids   [T] int64
    word_table          [V, H], position_table [P, H], type_table [S, H]
    weight, shift       [H]
    out                 [T, H]
    mean, deviation     [T] float32, kept for backward

Two ideas. Sums are never stored: backward gathers them again. The gradient of a table is a product of the identifiers
written as ones and zeros, with the tokens' gradients: a program owns some rows of the table and walks over all tokens
in order, reading the gradients of those that are its own. So it needs no sorting and no atomics, and the result is the
same every time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from imagebert_kernels import layer_norm
from imagebert_kernels.backend import programs, uses_kernels
from imagebert_kernels.checks import check_tensor, must
from imagebert_kernels.dropout import DROPOUT_STEPS, dropout_threshold, kept_columns, seed_of


@triton.jit
def _embedding_sum(
    contents, identifiers, token, position_ids, token_type_ids, position_table, type_table, item, items, column,
    COLUMNS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Content + position + type in float32 [ROWS, BLOCK], and where there is one; of words or of regions."""
    real = item < items
    inside = real[:, None] & (column < COLUMNS)[None, :]
    source = item
    if WORDS:
        source = tl.load(identifiers + item, mask=real, other=0)
    position = tl.load(position_ids + token, mask=real, other=0)
    kind = tl.load(token_type_ids + token, mask=real, other=0)
    total = tl.load(contents + source[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0).to(tl.float32)
    total += tl.load(position_table + position[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)
    total += tl.load(type_table + kind[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)
    return total, inside


@triton.jit(do_not_specialize=["items", "threshold"])
def embedding_forward(
    contents,  # [V, H] the word table, or [R, H] projected regions
    identifiers,  # [W]; not read for regions
    tokens,  # [W] or [R], the token of each
    position_ids,  # [T]
    token_type_ids,  # [T]
    position_table,  # [P, H]
    type_table,  # [S, H]
    weight,  # [H]
    shift,  # [H]
    out,  # [T, H]
    mean,  # [T] float32
    deviation,  # [T] float32
    seed,  # [1] int64; not read without DROPOUT
    items,  # W or R
    epsilon,
    threshold,
    COLUMNS: tl.constexpr,  # H
    BLOCK: tl.constexpr,  # a power of two, at least H
    ROWS: tl.constexpr,  # of a program
    WORDS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    real = item < items
    token = tl.load(tokens + item, mask=real, other=0)
    z, inside = _embedding_sum(
        contents, identifiers, token, position_ids, token_type_ids, position_table, type_table, item, items, column,
        COLUMNS, WORDS,
    )  # fmt: skip
    normal, average, inverse = layer_norm.normalise(z, inside, epsilon, COLUMNS)
    weights = tl.load(weight + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    shifts = tl.load(shift + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    y = normal * weights[None, :] + shifts[None, :]
    if DROPOUT:
        kept = kept_columns(tl.load(seed), token, column, threshold)
        y = tl.where(kept, y * (DROPOUT_STEPS / (DROPOUT_STEPS - threshold)), 0.0)
    tl.store(out + token[:, None] * COLUMNS + column[None, :], y.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + token, average, mask=real)
    tl.store(deviation + token, inverse, mask=real)


@triton.jit(do_not_specialize=["items", "threshold"])
def embedding_backward(
    grad_out,  # [T, H]
    contents,  # [V, H] the word table, or [R, H] projected regions
    identifiers,  # [W]; not read for regions
    tokens,  # [W] or [R]
    position_ids,  # [T]
    token_type_ids,  # [T]
    position_table,  # [P, H]
    type_table,  # [S, H]
    weight,  # [H]
    mean,  # [T] float32
    deviation,  # [T] float32
    seed,  # [1] int64; not read without DROPOUT
    grads,  # [W, H] or [R, H], of the sums
    sums,  # [programs, 2, H] float32: parts of the gradients of weight and shift
    items,  # W or R
    threshold,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,  # in one turn
    STAGES: tl.constexpr,
    WORDS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    known = column < COLUMNS
    weights = tl.load(weight + column, mask=known, other=0.0).to(tl.float32)
    for_weight = tl.zeros([BLOCK], tl.float32)
    for_shift = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(tl.program_id(0) * ROWS, items, tl.num_programs(0) * ROWS, num_stages=STAGES):
        item = start + tl.arange(0, ROWS).to(tl.int64)
        real = item < items
        token = tl.load(tokens + item, mask=real, other=0)
        z, inside = _embedding_sum(
            contents, identifiers, token, position_ids, token_type_ids, position_table, type_table, item, items,
            column, COLUMNS, WORDS,
        )  # fmt: skip
        grad = tl.load(grad_out + token[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if DROPOUT:
            kept = kept_columns(tl.load(seed), token, column, threshold)
            grad = tl.where(kept, grad * (DROPOUT_STEPS / (DROPOUT_STEPS - threshold)), 0.0)
        average = tl.load(mean + token, mask=real, other=0.0)
        inverse = tl.load(deviation + token, mask=real, other=0.0)
        normal = tl.where(inside, (z - average[:, None]) * inverse[:, None], 0.0)
        for_weight += tl.sum(grad * normal, 0)
        for_shift += tl.sum(grad, 0)
        grad_z = layer_norm.differentiate(grad, normal, inverse, weights, COLUMNS)
        tl.store(grads + item[:, None] * COLUMNS + column[None, :], grad_z.to(grads.dtype.element_ty), mask=inside)
    sums += tl.program_id(0).to(tl.int64) * 2 * COLUMNS + column
    tl.store(sums, for_weight, mask=known)
    tl.store(sums + COLUMNS, for_shift, mask=known)


@triton.jit(do_not_specialize=["items", "entries"])
def embedding_table(
    identifiers,  # [n] int64
    grads,  # [n, H]
    out,  # [parts, entries, H]
    items,  # n
    entries,  # rows of the table
    COLUMNS: tl.constexpr,  # H
    ENTRIES: tl.constexpr,  # rows of the table that a program owns
    BLOCK: tl.constexpr,  # columns that it owns
    ROWS: tl.constexpr,  # items in one turn
):
    first = tl.program_id(0) * ENTRIES
    entry = first + tl.arange(0, ENTRIES)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ENTRIES, BLOCK], tl.float32)
    for start in tl.range(tl.program_id(2) * ROWS, items, tl.num_programs(2) * ROWS):
        item = start + tl.arange(0, ROWS).to(tl.int64)
        identifier = tl.load(identifiers + item, mask=item < items, other=-1)
        mine = (identifier >= first) & (identifier < first + ENTRIES)
        if tl.max(mine.to(tl.int32), 0) > 0:
            place = grads + item[:, None] * COLUMNS + column[None, :]
            grad = tl.load(place, mask=mine[:, None] & (column < COLUMNS)[None, :], other=0.0)
            ones = (entry[:, None] == identifier[None, :]).to(grad.dtype)
            total = tl.dot(ones, grad, total, input_precision="ieee")
    place = out + (tl.program_id(2).to(tl.int64) * entries + entry[:, None]) * COLUMNS + column[None, :]
    inside = (entry < entries)[:, None] & (column < COLUMNS)[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


def table_tiling() -> dict[str, int]:
    return {"ENTRIES": 64, "BLOCK": 128, "ROWS": 64, "num_warps": 4, "num_stages": 2}


# --------------------------------------------------------------------------------------------- PyTorch's two operators

_ARGUMENTS = (
    "Tensor regions, Tensor region_rows, Tensor word_table, Tensor input_ids, Tensor text_rows, Tensor position_ids, "
    "Tensor token_type_ids, Tensor position_table, Tensor type_table, Tensor weight"
)


@torch.library.custom_op(
    "imagebert::packed_embedding",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor shift, float epsilon, float dropout, Tensor? seed) -> (Tensor, Tensor, Tensor)",
)
def _forward(
    regions, region_rows, word_table, input_ids, text_rows, position_ids, token_type_ids, position_table, type_table,
    weight, shift, epsilon, dropout, seed,
):  # type: ignore[no-untyped-def]  # fmt: skip
    out, mean, deviation = _outputs(position_ids, weight)
    cut = layer_norm.tiling(len(weight), backward=False)
    with torch.cuda.device_of(weight):
        for contents, tokens, words in ((regions, region_rows, False), (word_table, text_rows, True)):
            if len(tokens):
                embedding_forward[(triton.cdiv(len(tokens), cut["ROWS"]),)](
                    contents, input_ids, tokens, position_ids, token_type_ids, position_table, type_table, weight,
                    shift, out, mean, deviation, seed, len(tokens), epsilon, dropout_threshold(dropout),
                    WORDS=words, DROPOUT=dropout > 0, **cut,
                )  # fmt: skip
    return out, mean, deviation


@_forward.register_fake
def _(
    regions, region_rows, word_table, input_ids, text_rows, position_ids, token_type_ids, position_table, type_table,
    weight, shift, epsilon, dropout, seed,
):  # type: ignore[no-untyped-def]  # fmt: skip
    return _outputs(position_ids, weight)


def _outputs(position_ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation = (weight.new_empty(len(position_ids), dtype=torch.float32) for _ in range(2))
    return weight.new_empty(len(position_ids), len(weight)), mean, deviation


@torch.library.custom_op(
    "imagebert::packed_embedding_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, {_ARGUMENTS}, Tensor mean, Tensor deviation, float dropout, Tensor? seed) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad_out, regions, region_rows, word_table, input_ids, text_rows, position_ids, token_type_ids, position_table,
    type_table, weight, mean, deviation, dropout, seed,
):  # type: ignore[no-untyped-def]  # fmt: skip
    grad_out = grad_out.contiguous()
    grads = torch.empty_like(grad_out)  # of the sums: regions first, then words
    for_regions, for_words = grads.split([len(region_rows), len(text_rows)])
    walking = programs(weight.device, layer_norm.resident(len(weight)))
    parts = weight.new_empty(2, walking, 2, len(weight), dtype=torch.float32)
    with torch.cuda.device_of(weight):
        for contents, tokens, into, sums in (
            (regions, region_rows, for_regions, parts[0]),
            (word_table, text_rows, for_words, parts[1]),
        ):
            embedding_backward[(len(sums),)](
                grad_out, contents, input_ids, tokens, position_ids, token_type_ids, position_table, type_table,
                weight, mean, deviation, seed, into, sums, len(tokens), dropout_threshold(dropout),
                WORDS=contents is word_table, DROPOUT=dropout > 0, **layer_norm.tiling(len(weight), backward=True),
            )  # fmt: skip
        rows = torch.cat([region_rows, text_rows])
        word_grad = _table_gradient(input_ids, for_words, word_table)
        position_grad = _table_gradient(position_ids[rows], grads, position_table)
        type_grad = _table_gradient(token_type_ids[rows], grads, type_table)
    return for_regions.clone(), word_grad, position_grad, type_grad, parts.sum((0, 1))


@_backward.register_fake
def _(
    grad_out, regions, region_rows, word_table, input_ids, text_rows, position_ids, token_type_ids, position_table,
    type_table, weight, mean, deviation, dropout, seed,
):  # type: ignore[no-untyped-def]  # fmt: skip
    grads = [torch.empty_like(t) for t in (regions, word_table, position_table, type_table)]
    return *grads, weight.new_empty(2, len(weight), dtype=torch.float32)


def _table_gradient(identifiers: Tensor, grads: Tensor, table: Tensor) -> Tensor:
    """The gradient of `table` [entries, H], from those of what was looked up [n, H]."""
    cut = table_tiling()
    (entries, columns), items = table.shape, len(identifiers)
    grid = (triton.cdiv(entries, cut["ENTRIES"]), triton.cdiv(columns, cut["BLOCK"]))
    turns = triton.cdiv(items, cut["ROWS"])
    # A small table has few programs: the items are cut too, and the parts added up.
    parts = max(1, min(turns, programs(table.device) // (grid[0] * grid[1])))
    out = table.new_empty(parts, entries, columns, dtype=table.dtype if parts == 1 else torch.float32)
    embedding_table[(*grid, parts)](identifiers, grads, out, items, entries, COLUMNS=columns, **cut)
    return out[0] if parts == 1 else out.sum(0).to(table.dtype)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, _, _, ctx.dropout, seed = inputs
    ctx.save_for_backward(*tensors, *output[1:], seed)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx, grad_out, *_):  # type: ignore[no-untyped-def]
    *tensors, seed = ctx.saved_tensors
    for_regions, for_words, for_positions, for_types, sums = _backward(grad_out, *tensors, ctx.dropout, seed)
    for_weight, for_shift = sums.to(for_words.dtype)
    tables = (for_words, None, None, None, None, for_positions, for_types)
    return for_regions, None, *tables, for_weight, for_shift, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


# ----------------------------------------------------------------------------------------------- reference and dispatch


def packed_embedding_reference(
    regions: Tensor, region_rows: Tensor, word_table: Tensor, input_ids: Tensor, text_rows: Tensor,
    position_ids: Tensor, token_type_ids: Tensor, position_table: Tensor, type_table: Tensor, weight: Tensor,
    shift: Tensor, epsilon: float, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """The operation in plain PyTorch, on any device and in any floating type."""
    hidden = F.embedding(position_ids, position_table) + F.embedding(token_type_ids, type_table)
    hidden = hidden.index_add(0, text_rows, F.embedding(input_ids, word_table)).index_add(0, region_rows, regions)
    return F.dropout(F.layer_norm(hidden, weight.shape, weight, shift, epsilon), dropout)


def packed_embedding(
    regions: Float[Tensor, "R H"],
    region_rows: Int[Tensor, " R"],
    word_table: Float[Tensor, "V H"],
    input_ids: Int[Tensor, " W"],
    text_rows: Int[Tensor, " W"],
    position_ids: Int[Tensor, " T"],
    token_type_ids: Int[Tensor, " T"],
    position_table: Float[Tensor, "P H"],
    type_table: Float[Tensor, "S H"],
    weight: Float[Tensor, " H"],
    shift: Float[Tensor, " H"],
    epsilon: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Float[Tensor, "T H"]:
    """Computes dropout(LN(content + position + type)) of each of T packed tokens, which are R regions and W words.

    Args:
        regions: The projected regions, [R, H].
        region_rows: The token that each region is, [R] int64.
        word_table: The embeddings of words, [V, H].
        input_ids: The number of each word in `word_table`, [W] int64.
        text_rows: The token that each word is, [W] int64. With `region_rows` it holds each token once.
        position_ids: The position of each token, [T] int64.
        token_type_ids: The type of each token, [T] int64.
        position_table: The embeddings of positions, [P, H].
        type_table: The embeddings of types, [S, H].
        weight: The weight of LayerNorm, [H].
        shift: The bias of LayerNorm, [H].
        epsilon: The number that LayerNorm adds to the variance.
        dropout: The probability with which a number is dropped, 0 outside training. The kernel rounds it to a multiple
            of 1/256.
        seed: The seed of the kernel's dropout, which `imagebert_kernels.dropout.draw_seeds` draws. None draws one here.
            The reference in PyTorch uses PyTorch's generator instead.

    Returns:
        The embedded tokens, [T, H].

    Raises:
        ValueError: An argument has a wrong type, device, shape or stride. Values are not checked.
    """
    name, columns, tokens = "packed_embedding", len(weight), len(position_ids)
    for label, table in (("word_table", word_table), ("position_table", position_table), ("type_table", type_table)):
        check_tensor(name, label, table, "entries, H", (None, columns), weight)
    check_tensor(name, "regions", regions, "R, H", (None, columns), weight)
    check_tensor(name, "shift", shift, "H", (columns,), weight)
    for label, index, letter, length in (
        ("region_rows", region_rows, "R", len(regions)),
        ("input_ids", input_ids, "W", tokens - len(regions)),
        ("text_rows", text_rows, "W", tokens - len(regions)),
        ("position_ids", position_ids, "T", tokens),
        ("token_type_ids", token_type_ids, "T", tokens),
    ):
        check_tensor(name, label, index, letter, (length,), weight, torch.int64)
    must(name, 0 <= dropout < 1, "dropout", dropout, "at least 0 and less than 1")
    tensors = (
        regions, region_rows, word_table, input_ids, text_rows, position_ids, token_type_ids, position_table,
        type_table, weight, shift,
    )  # fmt: skip
    if not uses_kernels(weight):
        return packed_embedding_reference(*tensors, epsilon, dropout)
    out, _, _ = _forward(*tensors, epsilon, dropout, seed_of(dropout, seed, weight.device))
    return out
