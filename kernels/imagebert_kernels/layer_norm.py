"""What follows a product in a post-LN Transformer: its bias, dropout, the residual, LayerNorm.

    out = LN(residual + dropout(x + bias)),    LN(z) = (z - mean(z)) / sqrt(var(z) + epsilon) * weight + shift

Layouts, all contiguous:
    x, residual, out            [T, H]
    bias, weight, shift         [H]
    mean, deviation             [T] float32, the latter 1 / sqrt(var + epsilon), kept for backward

Three ideas. The sum is never stored: backward computes it again in float32 from x and the residual, which are there
anyway, so forward moves 3 H a token and backward 5 H. The bias belongs here, since its gradient is the column sum of
x's: it costs nothing beside the other two, and a pass over [T, H] elsewhere. Sums over rows are kept by a fixed number
of programs, each in the order of its rows, then added up: no atomics, the same result every time. While a program
computes, the loads of its next turns are under way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from imagebert_kernels.backend import programs, uses_kernels
from imagebert_kernels.checks import check_tensor, must
from imagebert_kernels.dropout import DROPOUT_STEPS, dropout_threshold, kept_columns, seed_of


@triton.jit
def normalise(z, inside, epsilon, COLUMNS: tl.constexpr):
    """(z - mean) / deviation [ROWS, BLOCK] in float32, zeros where not `inside`; mean and 1 / deviation [ROWS]."""
    mean = tl.sum(tl.where(inside, z, 0.0), 1) / COLUMNS
    centred = tl.where(inside, z - mean[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, 1) / COLUMNS + epsilon)
    return centred * deviation[:, None], mean, deviation


@triton.jit
def differentiate(grad, normal, deviation, weight, COLUMNS: tl.constexpr):
    """The gradient of LN's input [ROWS, BLOCK], from that of its output."""
    scaled = grad * weight[None, :]
    along_mean = tl.sum(scaled, 1) / COLUMNS
    along_normal = tl.sum(scaled * normal, 1) / COLUMNS
    return deviation[:, None] * (scaled - along_mean[:, None] - normal * along_normal[:, None])


@triton.jit
def _residual_sum(x, bias, residual, draws, row, column, place, inside, DROPOUT: tl.constexpr):
    """residual + dropout(x + bias) in float32, and which elements dropout keeps, both [ROWS, BLOCK]."""
    seed, threshold = draws
    added = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + bias[None, :]
    kept = inside
    if DROPOUT:
        kept = kept_columns(seed, row, column, threshold)
        added = tl.where(kept, added * (DROPOUT_STEPS / (DROPOUT_STEPS - threshold)), 0.0)
    return added + tl.load(residual + place, mask=inside, other=0.0).to(tl.float32), kept


@triton.jit(do_not_specialize=["rows", "threshold"])
def layer_norm_forward(
    x,  # [T, H]
    bias,  # [H]
    residual,  # [T, H]
    weight,  # [H]
    shift,  # [H]
    out,  # [T, H]
    mean,  # [T] float32
    deviation,  # [T] float32
    seed,  # [1] int64; not read without DROPOUT
    rows,  # T
    epsilon,
    threshold,
    COLUMNS: tl.constexpr,  # H
    BLOCK: tl.constexpr,  # a power of two, at least H
    ROWS: tl.constexpr,  # of a program
    DROPOUT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    place = row[:, None] * COLUMNS + column[None, :]
    draws = (tl.load(seed) if DROPOUT else 0, threshold)
    biases = tl.load(bias + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    z, _ = _residual_sum(x, biases, residual, draws, row, column, place, inside, DROPOUT)
    normal, average, inverse = normalise(z, inside, epsilon, COLUMNS)
    weights = tl.load(weight + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    shifts = tl.load(shift + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    tl.store(out + place, (normal * weights[None, :] + shifts[None, :]).to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, average, mask=row < rows)
    tl.store(deviation + row, inverse, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "threshold"])
def layer_norm_backward(
    grad_out,  # [T, H]
    x,  # [T, H]
    bias,  # [H]
    residual,  # [T, H]
    weight,  # [H]
    mean,  # [T] float32
    deviation,  # [T] float32
    seed,  # [1] int64; not read without DROPOUT
    grad_x,  # [T, H]; not written without DROPOUT: it is that of the residual then
    grad_residual,  # [T, H]
    sums,  # [programs, 3, H] float32: parts of the gradients of weight, shift and bias
    rows,  # T
    threshold,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,  # in one turn
    STAGES: tl.constexpr,  # turns whose loads are under way
    DROPOUT: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    real = column < COLUMNS
    draws = (tl.load(seed) if DROPOUT else 0, threshold)
    biases = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
    weights = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    for_weight = tl.zeros([BLOCK], tl.float32)
    for_shift = tl.zeros([BLOCK], tl.float32)
    for_bias = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * COLUMNS + column[None, :]
        z, kept = _residual_sum(x, biases, residual, draws, row, column, place, inside, DROPOUT)
        average = tl.load(mean + row, mask=row < rows, other=0.0)
        inverse = tl.load(deviation + row, mask=row < rows, other=0.0)
        normal = tl.where(inside, (z - average[:, None]) * inverse[:, None], 0.0)
        grad = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
        for_weight += tl.sum(grad * normal, 0)
        for_shift += tl.sum(grad, 0)
        grad_z = differentiate(grad, normal, inverse, weights, COLUMNS)
        tl.store(grad_residual + place, grad_z.to(grad_residual.dtype.element_ty), mask=inside)
        if DROPOUT:
            grad_z = tl.where(kept, grad_z * (DROPOUT_STEPS / (DROPOUT_STEPS - threshold)), 0.0)
            tl.store(grad_x + place, grad_z.to(grad_x.dtype.element_ty), mask=inside)
        for_bias += tl.sum(grad_z, 0)
    sums += tl.program_id(0).to(tl.int64) * 3 * COLUMNS + column
    tl.store(sums, for_weight, mask=real)
    tl.store(sums + COLUMNS, for_shift, mask=real)
    tl.store(sums + 2 * COLUMNS, for_bias, mask=real)


def tiling(columns: int, backward: bool) -> dict[str, int]:
    """How the kernels are cut for rows of `columns`: constants and options of their launch."""
    block = triton.next_power_of_2(columns)
    wide = block > 1024
    turns = {"ROWS": 2, "STAGES": 2 if wide else 3} if backward else {"ROWS": 4}
    return {"COLUMNS": columns, "BLOCK": block, **turns, "num_warps": 8 if wide else 4}


def resident(columns: int) -> int:
    """Programs of backward that a multiprocessor holds."""
    return 3 if columns <= 1024 else 2


# --------------------------------------------------------------------------------------------- PyTorch's two operators


@torch.library.custom_op(
    "imagebert::residual_layer_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor bias, Tensor residual, Tensor weight, Tensor shift, float epsilon, float dropout, "
    "Tensor? seed) -> (Tensor, Tensor, Tensor)",
)
def _forward(x, bias, residual, weight, shift, epsilon, dropout, seed):  # type: ignore[no-untyped-def]
    out, mean, deviation = _outputs(x)
    cut = tiling(x.shape[1], backward=False)
    with torch.cuda.device_of(x):
        layer_norm_forward[(triton.cdiv(len(x), cut["ROWS"]),)](
            x, bias, residual, weight, shift, out, mean, deviation, seed, len(x), epsilon,
            dropout_threshold(dropout), DROPOUT=dropout > 0, **cut,
        )  # fmt: skip
    return out, mean, deviation


@_forward.register_fake
def _(x, bias, residual, weight, shift, epsilon, dropout, seed):  # type: ignore[no-untyped-def]
    return _outputs(x)


def _outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x), mean, deviation


@torch.library.custom_op(
    "imagebert::residual_layer_norm_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor x, Tensor bias, Tensor residual, Tensor weight, Tensor mean, Tensor deviation, "
    "float dropout, Tensor? seed) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad_out, x, bias, residual, weight, mean, deviation, dropout, seed):  # type: ignore[no-untyped-def]
    grad_x, grad_residual, sums = _grads(x, dropout)
    parts = x.new_empty(programs(x.device, resident(x.shape[1])), 3, x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(x):
        layer_norm_backward[(len(parts),)](
            grad_out.contiguous(), x, bias, residual, weight, mean, deviation, seed, grad_x, grad_residual, parts,
            len(x), dropout_threshold(dropout), DROPOUT=dropout > 0, **tiling(x.shape[1], backward=True),
        )  # fmt: skip
    torch.sum(parts, 0, out=sums)
    return grad_x, grad_residual, sums


@_backward.register_fake
def _(grad_out, x, bias, residual, weight, mean, deviation, dropout, seed):  # type: ignore[no-untyped-def]
    return _grads(x, dropout)


def _grads(x: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty without dropout: as the residual's), of the residual; of weight, shift and bias [3, H]."""
    return (
        torch.empty_like(x) if dropout > 0 else x.new_empty(0),
        torch.empty_like(x),
        x.new_empty(3, x.shape[1], dtype=torch.float32),
    )


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, bias, residual, weight, _, _, ctx.dropout, seed = inputs
    ctx.save_for_backward(x, bias, residual, weight, *output[1:], seed)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx, grad_out, *_):  # type: ignore[no-untyped-def]
    *tensors, seed = ctx.saved_tensors
    grad_x, grad_residual, sums = _backward(grad_out, *tensors, ctx.dropout, seed)
    for_weight, for_shift, for_bias = sums.to(tensors[3].dtype)
    return (
        grad_x if ctx.dropout > 0 else grad_residual,
        for_bias,
        grad_residual,
        for_weight,
        for_shift,
        None,
        None,
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_save)


# ----------------------------------------------------------------------------------------------- reference and dispatch


def residual_layer_norm_reference(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, epsilon: float, dropout: float = 0.0
) -> Tensor:
    """The operation in plain PyTorch, on any device and in any floating type."""
    return F.layer_norm(residual + F.dropout(x + bias, dropout), x.shape[1:], weight, shift, epsilon)


def residual_layer_norm(
    x: Float[Tensor, "T H"],
    bias: Float[Tensor, " H"],
    residual: Float[Tensor, "T H"],
    weight: Float[Tensor, " H"],
    shift: Float[Tensor, " H"],
    epsilon: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Float[Tensor, "T H"]:
    """Computes LN(residual + dropout(x + bias)), which follows a product in a post-LN Transformer.

    Args:
        x: A product without its bias, [T, H] of T tokens.
        bias: The bias of the product, [H].
        residual: The residual, [T, H].
        weight: The weight of LayerNorm, [H].
        shift: The bias of LayerNorm, [H].
        epsilon: The number that LayerNorm adds to the variance.
        dropout: The probability with which a number is dropped, 0 outside training. The kernel rounds it to a multiple
            of 1/256.
        seed: The seed of the kernel's dropout, which `imagebert_kernels.dropout.draw_seeds` draws. None draws one here.
            The reference in PyTorch uses PyTorch's generator instead.

    Returns:
        The normalised sums, [T, H].

    Raises:
        ValueError: An argument has a wrong type, device, shape or stride.
    """
    name = "residual_layer_norm"
    must(name, x.dim() == 2 and x.is_floating_point(), "x", f"{x.dtype} {tuple(x.shape)}", "of a floating type, [T, H]")
    check_tensor(name, "residual", residual, "T, H", x.shape, x)
    for label, vector in (("bias", bias), ("weight", weight), ("shift", shift)):
        check_tensor(name, label, vector, "H", x.shape[1:], x)
    must(name, 0 <= dropout < 1, "dropout", dropout, "at least 0 and less than 1")
    if not uses_kernels(x):
        return residual_layer_norm_reference(x, bias, residual, weight, shift, epsilon, dropout)
    seed = seed_of(dropout, seed, x.device)
    out, _, _ = _forward(x.contiguous(), bias, residual, weight, shift, epsilon, dropout, seed)
    return out
