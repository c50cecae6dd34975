"""The product with its input beside it against autograd's own sum of the two gradients."""

from __future__ import annotations

from collections.abc import Callable

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


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a post-LN sum": lambda product, residual: (residual * 2 + product.tanh()).square().sum(),
    "one gradient for both": lambda product, residual: (product + residual).square().sum(),
    "a gradient of one number": lambda product, residual: product.sum() + residual.sum(),
    "no residual": lambda product, residual: product.square().sum(),
}


@pytest.mark.parametrize("use", USES)
def test_in_place_where_nobody_else_is_met(use: str) -> None:
    x, weight = normal(9, 16).requires_grad_(), normal(16, 16, seed=1).requires_grad_()
    expected = torch.autograd.grad(USES[use](x @ weight.T, x), (x, weight))
    got = torch.autograd.grad(USES[use](*residual_linear(x, weight, in_place=True)), (x, weight))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_sum_takes_the_place_of_the_residuals_gradient(in_place: bool) -> None:
    x, weight = normal(9, 16).requires_grad_(), normal(16, 16, seed=1).requires_grad_()
    places = []
    product, residual = residual_linear(x, weight, in_place=in_place)
    residual.register_hook(lambda grad: places.append(grad.data_ptr()))
    (grad,) = torch.autograd.grad(USES["a post-LN sum"](product, residual), x)
    assert (grad.data_ptr() == places[0]) == in_place


def test_twice_differentiable_in_place() -> None:
    x, weight = normal(5, 4).requires_grad_(), normal(4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *a: residual_linear(*a, None, True), (x, weight))
