"""The projection of stored features and boxes against dequantising first, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagebert_kernels import project_regions
from tests.kernels.numerics import DEVICE, TYPES, assert_no_worse_than_plain_pytorch, normal


def plain(
    weight: Tensor, bias: Tensor, location_weight: Tensor, location_bias: Tensor,
    features: Tensor, scales: Tensor, zeroed: Tensor, boxes: Tensor,
) -> Tensor:  # fmt: skip
    dtype = weight.dtype
    seen = torch.where(zeroed[:, None], 0, features.to(dtype) * scales.to(dtype)[:, None])
    return seen @ weight.T + bias + boxes.to(dtype) @ location_weight.T + location_bias


def stored(regions: int, size: int, kind: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-127, 128, (regions, size), generator=generator).to(kind)
    if kind != torch.int8:
        features = features / 100
    return {
        "features": features.to(DEVICE),
        "scales": (torch.rand(regions, generator=generator) / 100 + 1e-3).to(DEVICE),
        "zeroed": (torch.rand(regions, generator=generator) < 0.3).to(DEVICE),
        "boxes": torch.rand(regions, 5, generator=generator).to(DEVICE),
    }


def weights(size: int, inner: int) -> dict[str, Tensor]:
    return {
        "weight": normal(size, inner, seed=1),
        "bias": normal(size, seed=2),
        "location_weight": normal(size, 5, seed=3),
        "location_bias": normal(size, seed=4),
    }


@pytest.mark.parametrize("kind", [torch.int8, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("regions", "inner", "size"), [(1, 12, 24), (150, 70, 40), (64, 128, 136), (300, 33, 8)])
def test_right_at_any_shape(entry: str, regions: int, inner: int, size: int, kind: torch.dtype) -> None:
    fixed = stored(regions, inner, kind)
    assert_no_worse_than_plain_pytorch(project_regions, plain, weights(size, inner), fixed, TYPES[0])


def test_in_the_other_type(kernel: None) -> None:
    fixed = stored(40, 96, torch.int8)
    assert_no_worse_than_plain_pytorch(project_regions, plain, weights(32, 96), fixed, TYPES[1])


def test_no_region_at_all(entry: str) -> None:
    tensors = {name: t.to(TYPES[0]).requires_grad_() for name, t in weights(8, 12).items()}
    out = project_regions(**tensors, **stored(0, 12, torch.int8))
    assert out.shape == (0, 8)
    grads = torch.autograd.grad(out.sum(), list(tensors.values()))
    assert all((g == 0).all() for g in grads)


def test_the_operator_is_what_pytorch_expects() -> None:
    tensors = [t.to(TYPES[0]).requires_grad_() for t in weights(8, 12).values()]
    arguments = (*stored(5, 12, torch.int8).values(), *tensors)
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.project_regions.default, arguments)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("features", torch.zeros(3, 7).char(), r"the shape of features is \(3, 7\); it must be \[R, F\] = \[any, 12\]"),
        ("features", torch.zeros(3, 12).int(), "the type of features is torch.int32; it must be int8 or float16"),
        ("scales", torch.ones(3).double(), "the type of scales is torch.float64; it must be float32"),
        ("zeroed", torch.zeros(3), "the type of zeroed is torch.float32; it must be bool"),
        ("boxes", torch.zeros(3, 4), r"the shape of boxes is \(3, 4\)"),
    ],
)
def test_bad_arguments_are_named(entry: str, name: str, tensor: Tensor, message: str) -> None:
    good: dict[str, Any] = {n: t.float() for n, t in weights(8, 12).items()} | stored(3, 12, torch.int8)
    with pytest.raises(ValueError, match=message):
        project_regions(**(good | {name: tensor}))
