"""Region features and boxes to hidden states, from the features as they are stored.

    out[r] = scale[r] (W_v features[r]) + b_v + W_c boxes[r] + b_c,    scale[r] = 0 where zeroed[r]

Layouts, all contiguous:
    features            [R, F] int8, float16, bfloat16 or float32
    scales              [R] float32
    zeroed              [R] bool, the model sees a feature of zeros there (paper, section 4: MOC)
    boxes               [R, 5] float32
    weight              [H, F], bias [H]; location_weight [H, 5], location_bias [H]
    out                 [R, H]

The features cross the bus and the memory as they lie in the store; they become 16-bit numbers on the multiprocessor,
int8 without any rounding, and their scales are applied to the product. Five columns of boxes ride along. Features have
no gradient. That of the weight is a product over all regions with both sides as they are stored too; it is cut into
parts of rows that are added up afterwards, always in the same order. Those of the small operands are PyTorch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Num
from torch import Tensor

from imagebert_kernels.backend import programs, uses_kernels
from imagebert_kernels.checks import check_tensor, must
from imagebert_kernels.products import Tiling, rows_times_weight

FEATURE_TYPES = (torch.int8, torch.float16, torch.bfloat16, torch.float32)
LOCATION = tl.constexpr(5)  # numbers of a box


@triton.jit
def _seen_scales(scales, zeroed, row, real):
    return tl.where(tl.load(zeroed + row, mask=real, other=1) != 0, 0.0, tl.load(scales + row, mask=real, other=0.0))


@triton.jit(do_not_specialize=["rows"])
def region_projection_forward(
    features,  # [R, F]
    scales,  # [R]
    zeroed,  # [R]
    boxes,  # [R, 5]
    weight,  # [H, F]
    bias,  # [H]
    location_weight,  # [H, 5]
    location_bias,  # [H]
    out,  # [R, H]
    rows,  # R
    COLUMNS: tl.constexpr,  # H
    INNER: tl.constexpr,  # F
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
):
    # Programs that read the same features follow each other.
    blocks: tl.constexpr = (COLUMNS + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    real, inside = row < rows, column < COLUMNS
    total = rows_times_weight(features, row, real, weight, column, COLUMNS, INNER, INNER_BLOCK, ROWS, BLOCK)
    total *= _seen_scales(scales, zeroed, row, real)[:, None]
    for i in tl.static_range(LOCATION):
        coordinate = tl.load(boxes + row * LOCATION + i, mask=real, other=0.0)
        factor = tl.load(location_weight + column * LOCATION + i, mask=inside, other=0.0).to(tl.float32)
        total += coordinate[:, None] * factor[None, :]
    total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    total += tl.load(location_bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    place = out + row[:, None] * COLUMNS + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows"])
def region_projection_backward(
    grad_out,  # [R, H]
    features,  # [R, F]
    scales,  # [R]
    zeroed,  # [R]
    parts,  # [parts, H, F] float32: of the weight's gradient
    rows,  # R
    COLUMNS: tl.constexpr,  # H
    INNER: tl.constexpr,  # F
    ROWS: tl.constexpr,  # of the weight
    BLOCK: tl.constexpr,  # columns of the weight
    INNER_BLOCK: tl.constexpr,  # regions in one turn
):
    blocks: tl.constexpr = (INNER + BLOCK - 1) // BLOCK
    output = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(tl.program_id(1) * INNER_BLOCK, rows, tl.num_programs(1) * INNER_BLOCK):
        row = start + tl.arange(0, INNER_BLOCK).to(tl.int64)
        real = row < rows
        place = grad_out + row[:, None] * COLUMNS + output[None, :]
        grad = tl.load(place, mask=real[:, None] & (output < COLUMNS)[None, :], other=0.0)
        scaled = (grad.to(tl.float32) * _seen_scales(scales, zeroed, row, real)[:, None]).to(grad.dtype)
        place = features + row[:, None] * INNER + feature[None, :]
        x = tl.load(place, mask=real[:, None] & (feature < INNER)[None, :], other=0).to(grad.dtype)
        total = tl.dot(tl.trans(scaled), x, total, input_precision="ieee")
    place = tl.program_id(1).to(tl.int64) * COLUMNS * INNER + output[:, None] * INNER + feature[None, :]
    tl.store(parts + place, total, mask=(output < COLUMNS)[:, None] & (feature < INNER)[None, :])


def tiling(backward: bool) -> Tiling:
    return Tiling(128, 128, 64, 8, 3) if not backward else Tiling(128, 128, 64, 8, 2)


# --------------------------------------------------------------------------------------------- PyTorch's two operators


@torch.library.custom_op(
    "imagebert::project_regions",
    mutates_args=(),
    schema="(Tensor features, Tensor scales, Tensor zeroed, Tensor boxes, Tensor weight, Tensor bias, "
    "Tensor location_weight, Tensor location_bias) -> Tensor",
)
def _forward(features, scales, zeroed, boxes, weight, bias, location_weight, location_bias):  # type: ignore[no-untyped-def]
    out, cut = _output(features, weight), tiling(backward=False)
    rows, columns = out.shape
    with torch.cuda.device_of(weight):
        if rows:
            region_projection_forward[(triton.cdiv(rows, cut.rows) * triton.cdiv(columns, cut.columns),)](
                features, scales, zeroed, boxes, weight, bias, location_weight, location_bias, out, rows,
                COLUMNS=columns, INNER=features.shape[1], **cut.constants(), **cut.options(),
            )  # fmt: skip
    return out


@_forward.register_fake
def _(features, scales, zeroed, boxes, weight, bias, location_weight, location_bias):  # type: ignore[no-untyped-def]
    return _output(features, weight)


def _output(features: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(features.shape[0], weight.shape[0])


@torch.library.custom_op(
    "imagebert::project_regions_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor features, Tensor scales, Tensor zeroed) -> Tensor",
)
def _backward(grad_out, features, scales, zeroed):  # type: ignore[no-untyped-def]
    (rows, columns), inner = grad_out.shape, features.shape[1]
    cut = tiling(backward=True)
    blocks = triton.cdiv(columns, cut.rows) * triton.cdiv(inner, cut.columns)
    turns = triton.cdiv(rows, cut.inner)
    parts = grad_out.new_empty(
        max(1, min(turns, programs(grad_out.device) // blocks)), columns, inner, dtype=torch.float32
    )
    with torch.cuda.device_of(grad_out):
        region_projection_backward[(blocks, len(parts))](
            grad_out.contiguous(), features, scales, zeroed, parts, rows,
            COLUMNS=columns, INNER=inner, **cut.constants(), **cut.options(),
        )  # fmt: skip
    return parts.sum(0).to(grad_out.dtype)


@_backward.register_fake
def _(grad_out, features, scales, zeroed):  # type: ignore[no-untyped-def]
    return grad_out.new_empty(grad_out.shape[1], features.shape[1])


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:4])


def _differentiate(ctx, grad_out):  # type: ignore[no-untyped-def]
    features, scales, zeroed, boxes = ctx.saved_tensors
    for_bias = grad_out.sum(0)
    for_location = grad_out.T @ boxes.to(grad_out.dtype)
    for_weight = _backward(grad_out, features, scales, zeroed)
    return None, None, None, None, for_weight, for_bias, for_location, for_bias.clone()


_forward.register_autograd(_differentiate, setup_context=_save)


# ----------------------------------------------------------------------------------------------- reference and dispatch


def project_regions_reference(
    features: Tensor, scales: Tensor, zeroed: Tensor, boxes: Tensor, weight: Tensor, bias: Tensor,
    location_weight: Tensor, location_bias: Tensor,
) -> Tensor:  # fmt: skip
    """The operation in plain PyTorch, on any device and in any floating type."""
    seen = scales.masked_fill(zeroed, 0).to(weight.dtype)
    projected = F.linear(features.to(weight.dtype), weight) * seen[:, None] + bias
    return projected + F.linear(boxes.to(weight.dtype), location_weight, location_bias)


def project_regions(
    features: Num[Tensor, "R F"],
    scales: Float[Tensor, " R"],
    zeroed: Bool[Tensor, " R"],
    boxes: Float[Tensor, "R 5"],
    weight: Float[Tensor, "H F"],
    bias: Float[Tensor, " H"],
    location_weight: Float[Tensor, "H 5"],
    location_bias: Float[Tensor, " H"],
) -> Float[Tensor, "R H"]:
    """Projects the features and boxes of R regions to hidden states (paper, section 3).

    The result is W_v (scale * feature) + b_v + W_c box + b_c.

    Args:
        features: The features as they are stored, [R, F] int8, float16, bfloat16 or float32.
        scales: The factor of each region's stored features, [R] float32.
        zeroed: Whether a region's feature is seen as zeros, [R] bool.
        boxes: The five numbers of each region's location, [R, 5] float32.
        weight: The weight W_v of the features' projection, [H, F].
        bias: The bias b_v of the features' projection, [H].
        location_weight: The weight W_c of the boxes' projection, [H, 5].
        location_bias: The bias b_c of the boxes' projection, [H].

    Returns:
        The projected regions, [R, H].

    Raises:
        ValueError: An argument has a wrong type, device, shape or stride.
    """
    name = "project_regions"
    must(name, weight.dim() == 2, "the shape of weight", tuple(weight.shape), "[H, F]")
    (size, inner), regions = weight.shape, len(features)
    check_tensor(name, "features", features, "R, F", (None, inner), weight, *FEATURE_TYPES, weight.dtype)
    check_tensor(name, "scales", scales, "R", (regions,), weight, torch.float32)
    check_tensor(name, "zeroed", zeroed, "R", (regions,), weight, torch.bool)
    check_tensor(name, "boxes", boxes, "R, 5", (regions, 5), weight, torch.float32)
    check_tensor(name, "bias", bias, "H", (size,), weight)
    check_tensor(name, "location_weight", location_weight, "H, 5", (size, 5), weight)
    check_tensor(name, "location_bias", location_bias, "H", (size,), weight)
    tensors = (features, scales, zeroed, boxes, weight, bias, location_weight, location_bias)
    if not uses_kernels(weight):
        return project_regions_reference(*tensors)
    out: Tensor = _forward(*tensors)
    return out
