"""The regression's loss and gradients against gathering, predicting and comparing one after the other, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagebert_kernels import region_regression_loss
from tests.kernels.numerics import DEVICE, TYPES, assert_no_worse_than_plain_pytorch, normal

REGIONS = 60


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, features: Tensor, scales: Tensor, regions: Tensor
) -> Tensor:
    there = rows >= 0
    predictions = hidden[rows[there]] @ weight.T + bias
    wide = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
    targets = features[regions[there]].to(wide.dtype) * scales[regions[there]][:, None]
    return ((wide - targets) ** 2).sum() / len(weight)


def stored(size: int, masked: int, absent: int, queries: int, kind: torch.dtype = torch.int8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randint(-127, 128, (REGIONS, size), generator=generator).to(kind)
    rows = torch.cat([torch.randperm(queries, generator=generator)[:masked], torch.full((absent,), -1)])
    regions = torch.randint(0, REGIONS, (masked + absent,), generator=generator)
    scales = torch.rand(REGIONS, generator=generator) / 50
    return {
        k: v.to(DEVICE)
        for k, v in zip(("rows", "features", "scales", "regions"), (rows, features, scales, regions), strict=True)
    }


def weights(queries: int, inner: int, size: int) -> dict[str, Tensor]:
    return {"hidden": normal(queries, inner), "weight": normal(size, inner, seed=1), "bias": normal(size, seed=2)}


@pytest.mark.parametrize("kind", [torch.int8, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("queries", "masked", "absent", "inner", "size"),
    [(1, 1, 0, 8, 12), (200, 150, 0, 24, 136), (200, 20, 250, 70, 40), (40, 40, 3, 64, 128)],
)
def test_right_at_any_shape(
    entry: str, queries: int, masked: int, absent: int, inner: int, size: int, kind: torch.dtype
) -> None:
    fixed = stored(size, masked, absent, queries, kind)
    assert_no_worse_than_plain_pytorch(region_regression_loss, plain, weights(queries, inner, size), fixed, TYPES[0])


def test_in_the_other_type(kernel: None) -> None:
    fixed = stored(96, 30, 5, 50)
    assert_no_worse_than_plain_pytorch(region_regression_loss, plain, weights(50, 32, 96), fixed, TYPES[1])


@pytest.mark.parametrize("absent", [0, 9])
def test_no_row_at_all(entry: str, absent: int) -> None:
    tensors = {name: t.to(TYPES[0]).requires_grad_() for name, t in weights(5, 8, 12).items()}
    loss = region_regression_loss(**tensors, **stored(12, 0, absent, 5))
    assert loss.dtype == torch.float32
    assert float(loss) == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, list(tensors.values())))


def test_the_operator_is_what_pytorch_expects() -> None:
    tensors = {name: t.to(TYPES[0]).requires_grad_() for name, t in weights(9, 8, 12).items()}
    fixed = stored(12, 4, 2, 9)
    order = (tensors["hidden"], fixed["rows"], tensors["weight"], tensors["bias"])
    arguments = (*order, fixed["features"], fixed["scales"], fixed["regions"])
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.region_regression_loss.default, arguments)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("hidden", torch.zeros(9, 7), r"the shape of hidden is \(9, 7\); it must be \[Q, H\] = \[any, 8\]"),
        ("rows", torch.zeros(6).int(), "the type of rows is torch.int32; it must be int64"),
        ("regions", torch.zeros(5).long(), r"the shape of regions is \(5,\); it must be \[M\] = \[6\]"),
        ("features", torch.zeros(60, 12).long(), "the type of features is torch.int64"),
    ],
)
def test_bad_arguments_are_named(entry: str, name: str, tensor: Tensor, message: str) -> None:
    good: dict[str, Any] = {n: t.float() for n, t in weights(9, 8, 12).items()} | stored(12, 4, 2, 9)
    with pytest.raises(ValueError, match=message):
        region_regression_loss(**(good | {name: tensor}))
