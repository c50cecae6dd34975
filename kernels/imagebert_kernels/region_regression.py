"""Masked region feature regression, from hidden states to the loss in one pass (paper, section 4: MRFR).

    loss = sum_m mean_f (W_f . hidden[rows[m]] + bias_f - scales[regions[m]] features[regions[m], f])^2

Layouts, all contiguous:
    hidden          [Q, H]
    rows            [M] int64 rows of hidden, each at most once. A negative one, -q, is no row, and only behind all
                    others: q is then a row to which nothing is added, a different one each where time matters
    weight, bias    [F, H], [F]
    features        [R, F] int8, float16, bfloat16 or float32, as stored
    scales          [R] float32
    regions         [M] int64 rows of features
    loss            [] float32

The predictions [M, F] never reach memory in forward: a program holds a tile of them, takes the targets from the store's
own type and leaves one number. Backward computes the tile again and writes its difference to the targets, 16 bits each,
for two products of cuBLAS: with the weight for the hidden rows, with the hidden rows for the weight. All sums have a
fixed order. How many rows there are may change from call to call: nothing is compiled again, nothing is waited for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float, Int, Num
from torch import Tensor

from imagebert_kernels.backend import uses_kernels
from imagebert_kernels.checks import check_tensor, must
from imagebert_kernels.products import Tiling, rows_times_weight
from imagebert_kernels.region_projection import FEATURE_TYPES


@triton.jit
def _differences(
    hidden, rows, weight, bias, features, scales, regions, place, column, masked_rows,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, INNER_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Predictions minus targets in float32 [ROWS, BLOCK], zeros where there is no row or no column."""
    row = tl.load(rows + place, mask=place < masked_rows, other=-1)
    real, inside = row >= 0, column < COLUMNS
    total = rows_times_weight(hidden, row, real, weight, column, COLUMNS, INNER, INNER_BLOCK, ROWS, BLOCK)
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    region = tl.load(regions + place, mask=real, other=0)
    known = real[:, None] & inside[None, :]
    target = tl.load(features + region[:, None] * COLUMNS + column[None, :], mask=known, other=0).to(tl.float32)
    return tl.where(known, total - target * tl.load(scales + region, mask=real, other=0.0)[:, None], 0.0)


@triton.jit(do_not_specialize=["masked_rows"])
def region_regression_forward(
    hidden,  # [Q, H]
    rows,  # [M]
    weight,  # [F, H]
    bias,  # [F]
    features,  # [R, F]
    scales,  # [R]
    regions,  # [M]
    parts,  # [row blocks, column blocks] float32: sums of squares
    masked_rows,  # M
    COLUMNS: tl.constexpr,  # F
    INNER: tl.constexpr,  # H
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    squares = 0.0
    # Rows that are none lie behind the others: a block that begins with one has no work.
    if tl.load(rows + tl.program_id(0) * ROWS) >= 0:
        difference = _differences(
            hidden, rows, weight, bias, features, scales, regions, place, column, masked_rows,
            COLUMNS, INNER, INNER_BLOCK, ROWS, BLOCK,
        )  # fmt: skip
        squares = tl.sum(tl.sum(difference * difference, 1), 0)
    tl.store(parts + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), squares)


@triton.jit(do_not_specialize=["masked_rows"])
def region_regression_backward(
    hidden,  # [Q, H]
    rows,  # [M]
    weight,  # [F, H]
    bias,  # [F]
    features,  # [R, F]
    scales,  # [R]
    regions,  # [M]
    differences,  # [M, F]
    masked_rows,  # M
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    difference = _differences(
        hidden, rows, weight, bias, features, scales, regions, place, column, masked_rows,
        COLUMNS, INNER, INNER_BLOCK, ROWS, BLOCK,
    )  # fmt: skip
    to = differences + place.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(to, difference.to(weight.dtype.element_ty), mask=(place < masked_rows)[:, None] & (column < COLUMNS)[None])


TILING = Tiling(128, 128, 64, 8, 3)


# --------------------------------------------------------------------------------------------- PyTorch's two operators

_ARGUMENTS = "Tensor hidden, Tensor rows, Tensor weight, Tensor bias, Tensor features, Tensor scales, Tensor regions"


@torch.library.custom_op("imagebert::region_regression_loss", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _forward(hidden, rows, weight, bias, features, scales, regions):  # type: ignore[no-untyped-def]
    parts = hidden.new_empty(*_grid(rows, weight), dtype=torch.float32)
    if len(rows):
        _launch(region_regression_forward, (hidden, rows, weight, bias, features, scales, regions), parts)
    return parts.sum() / len(weight)


@_forward.register_fake
def _(hidden, rows, weight, bias, features, scales, regions):  # type: ignore[no-untyped-def]
    return hidden.new_empty((), dtype=torch.float32)


@torch.library.custom_op(
    "imagebert::region_regression_loss_backward", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor"
)
def _backward(hidden, rows, weight, bias, features, scales, regions):  # type: ignore[no-untyped-def]
    """Predictions minus targets [M, F]."""
    differences = hidden.new_empty(len(rows), len(weight))
    if len(rows):
        _launch(region_regression_backward, (hidden, rows, weight, bias, features, scales, regions), differences)
    return differences


@_backward.register_fake
def _(hidden, rows, weight, bias, features, scales, regions):  # type: ignore[no-untyped-def]
    return hidden.new_empty(len(rows), len(weight))


def _grid(rows: Tensor, weight: Tensor) -> tuple[int, int]:
    return triton.cdiv(len(rows), TILING.rows), triton.cdiv(len(weight), TILING.columns)


def _launch(kernel, tensors: tuple[Tensor, ...], out: Tensor) -> None:  # type: ignore[no-untyped-def]
    rows, weight = tensors[1:3]
    with torch.cuda.device_of(weight):
        kernel[_grid(rows, weight)](
            *tensors, out, len(rows), COLUMNS=len(weight), INNER=weight.shape[1], **TILING.constants(),
            **TILING.options(),
        )  # fmt: skip


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_loss):  # type: ignore[no-untyped-def]
    hidden, rows, weight = ctx.saved_tensors[:3]
    differences = _backward(*ctx.saved_tensors)  # [M, F]
    factor = grad_loss * (2 / len(weight))
    at = rows.abs()
    # The factor goes to the small sides: differences keep the range of 16 bits to themselves.
    for_rows = ((differences @ weight) * factor).to(hidden.dtype)
    for_hidden = torch.zeros_like(hidden).index_add_(0, at, for_rows)
    for_weight = differences.T @ (hidden[at] * factor).to(hidden.dtype)
    for_bias = (differences.sum(0, dtype=torch.float32) * factor).to(weight.dtype)
    return for_hidden, None, for_weight, for_bias, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


# ----------------------------------------------------------------------------------------------- reference and dispatch


def region_regression_loss_reference(
    hidden: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, features: Tensor, scales: Tensor, regions: Tensor
) -> Tensor:
    """The operation in plain PyTorch, on any device and in any floating type."""
    predictions = F.linear(hidden[rows.abs()], weight, bias)
    predictions = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
    targets = features[regions].to(predictions.dtype) * scales[regions][:, None]
    return ((predictions - targets).square().mean(1) * (rows >= 0)).sum()


def region_regression_loss(
    hidden: Float[Tensor, "Q H"],
    rows: Int[Tensor, " M"],
    weight: Float[Tensor, "F H"],
    bias: Float[Tensor, " F"],
    features: Num[Tensor, "R F"],
    scales: Float[Tensor, " R"],
    regions: Int[Tensor, " M"],
) -> Float[Tensor, ""]:
    """Computes the squared distance of a linear prediction to stored features: mean over F, sum over the rows.

    Args:
        hidden: Hidden states, [Q, H].
        rows: The rows of `hidden` that features are predicted from, [M], each at most once; negative ones, behind all
            others, are no rows.
        weight: The weight of the linear layer, [F, H].
        bias: The bias of the linear layer, [F].
        features: The features as they are stored, [R, F] int8, float16, bfloat16 or float32.
        scales: The factor of each region's stored features, [R] float32.
        regions: The row of `features` that each prediction is compared with, [M].

    Returns:
        The sum as a float32 scalar.

    Raises:
        ValueError: An argument has a wrong type, device, shape or stride. Values are not checked.
    """
    name = "region_regression_loss"
    must(name, weight.dim() == 2, "the shape of weight", tuple(weight.shape), "[F, H]")
    size, inner = weight.shape
    check_tensor(name, "hidden", hidden, "Q, H", (None, inner), weight)
    check_tensor(name, "rows", rows, "M", (None,), weight, torch.int64)
    check_tensor(name, "bias", bias, "F", (size,), weight)
    check_tensor(name, "features", features, "R, F", (None, size), weight, *FEATURE_TYPES, weight.dtype)
    check_tensor(name, "scales", scales, "R", (len(features),), weight, torch.float32)
    check_tensor(name, "regions", regions, "M", (len(rows),), weight, torch.int64)
    tensors = (hidden, rows, weight, bias, features, scales, regions)
    if not uses_kernels(weight):
        return region_regression_loss_reference(*tensors)
    loss: Tensor = _forward(*tensors)
    return loss
