"""The product with its input beside it against autograd's own sum of the two gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagebert_kernels import residual_linear
from tests.kernels.numerics import TYPES, assert_no_worse_than_plain_pytorch, normal


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([x @ weight.T + bias, x * 3], 1)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product, residual = residual_linear(x, weight, bias)
    return torch.cat([product, residual * 3], 1)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_both_gradients_arrive(kind: torch.dtype) -> None:
    tensors = {"x": normal(9, 16), "weight": normal(24, 16, seed=1), "bias": normal(24, seed=2)}
    assert_no_worse_than_plain_pytorch(ours, plain, tensors, {}, kind)


def test_without_a_bias() -> None:
    x, weight = normal(9, 16).requires_grad_(), normal(24, 16, seed=1).requires_grad_()
    product, residual = residual_linear(x, weight)
    torch.testing.assert_close(product, x @ weight.T)
    assert torch.equal(residual, x)
    assert torch.autograd.gradcheck(residual_linear, (x, weight))
