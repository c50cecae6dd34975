"""Bias and GELU between the two products of the feed-forward layer.

    out = u Phi(u),  u = x + bias,    du = dout (Phi(u) + u phi(u))

with Phi and phi the normal distribution's: the exact GELU, as BERT has it. x and out are [T, I], contiguous; bias [I].
Backward reads x again, and sums the bias' gradient on its way: a fixed number of programs for each block of columns,
each in the order of its rows, then added up, so that the result is the same every time. While a program computes, the
loads of its next two turns are under way.
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

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_PHI_0 = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


@triton.jit
def _normal_distribution(u):
    """Phi(u) to 1e-7, and exp(-u^2 / 2), which phi is made of too.

    erfc(x) = exp(-x^2) t (a_1 + ... + a_5 t^4), t = 1 / (1 + p x), for x >= 0 (Abramowitz and Stegun, 7.1.26): with the
    library's erf, backward would issue instructions for longer than it moves bytes.
    """
    x = tl.abs(u) * _SQRT_HALF
    bell = tl.exp(-x * x)
    t = 1.0 / (1.0 + 0.3275911 * x)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    tail = 0.5 * bell * t * series
    return tl.where(u < 0, tail, 1.0 - tail), bell


@triton.jit(do_not_specialize=["rows"])
def gelu_forward(
    x,  # [T, I]
    bias,  # [I]
    out,  # [T, I]
    rows,  # T
    COLUMNS: tl.constexpr,  # I
    BLOCK: tl.constexpr,  # columns of a program
    ROWS: tl.constexpr,  # rows of a program
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    place = row[:, None] * COLUMNS + column[None, :]
    biases = tl.load(bias + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    u = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + biases[None, :]
    below, _ = _normal_distribution(u)
    tl.store(out + place, (u * below).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def gelu_backward(
    grad_out,  # [T, I]
    x,  # [T, I]
    bias,  # [I]
    grad_x,  # [T, I]
    sums,  # [programs, I] float32: parts of the bias' gradient
    rows,  # T
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,  # in one turn
    STAGES: tl.constexpr,  # turns whose loads are under way
):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < COLUMNS
    biases = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
    for_bias = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & real[None, :]
        place = row[:, None] * COLUMNS + column[None, :]
        u = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + biases[None, :]
        below, bell = _normal_distribution(u)
        slope = below + u * bell * _PHI_0
        grad = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32) * slope
        tl.store(grad_x + place, grad.to(grad_x.dtype.element_ty), mask=inside)
        for_bias += tl.sum(grad, 0)
    tl.store(sums + tl.program_id(0).to(tl.int64) * COLUMNS + column, for_bias, mask=real)


RESIDENT = 8  # programs of backward that a multiprocessor holds


def tiling(columns: int, backward: bool) -> dict[str, int]:
    """How the kernels are cut for rows of `columns`: constants and options of their launch."""
    return {
        "COLUMNS": columns,
        "BLOCK": min(triton.next_power_of_2(columns), 1024),
        **({"ROWS": 2, "STAGES": 3} if backward else {"ROWS": 4}),
        "num_warps": 4,
    }


# --------------------------------------------------------------------------------------------- PyTorch's two operators


@torch.library.custom_op("imagebert::bias_gelu", mutates_args=(), schema="(Tensor x, Tensor bias) -> Tensor")
def _forward(x, bias):  # type: ignore[no-untyped-def]
    out, cut = torch.empty_like(x), tiling(x.shape[1], backward=False)
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(len(x), cut["ROWS"]), triton.cdiv(x.shape[1], cut["BLOCK"]))
        gelu_forward[grid](x, bias, out, len(x), **cut)
    return out


@_forward.register_fake
def _(x, bias):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


@torch.library.custom_op(
    "imagebert::bias_gelu_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor x, Tensor bias) -> (Tensor, Tensor)",
)
def _backward(grad_out, x, bias):  # type: ignore[no-untyped-def]
    grad_x, cut = torch.empty_like(x), tiling(x.shape[1], backward=True)
    blocks = triton.cdiv(x.shape[1], cut["BLOCK"])
    parts = x.new_empty(triton.cdiv(programs(x.device, RESIDENT), blocks), x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(x):
        gelu_backward[(len(parts), blocks)](grad_out.contiguous(), x, bias, grad_x, parts, len(x), **cut)
    return grad_x, parts.sum(0).to(bias.dtype)


@_backward.register_fake
def _(grad_out, x, bias):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), torch.empty_like(bias)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_out):  # type: ignore[no-untyped-def]
    return _backward(grad_out, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)


# ----------------------------------------------------------------------------------------------- reference and dispatch


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """The operation in plain PyTorch, on any device and in any floating type."""
    return F.gelu(x + bias)


def bias_gelu(x: Float[Tensor, "T I"], bias: Float[Tensor, " I"]) -> Float[Tensor, "T I"]:
    """Computes the exact GELU of x + bias.

    Args:
        x: A product without its bias, [T, I] of T tokens.
        bias: The bias of the product, [I].

    Returns:
        The activations, [T, I].

    Raises:
        ValueError: An argument has a wrong type, device or shape.
    """
    must("bias_gelu", x.dim() == 2 and x.is_floating_point(), "x", f"{x.dtype} {tuple(x.shape)}", "floating, [T, I]")
    check_tensor("bias_gelu", "bias", bias, "I", x.shape[1:], x)
    if not uses_kernels(x):
        return bias_gelu_reference(x, bias)
    out: Tensor = _forward(x.contiguous(), bias)
    return out
