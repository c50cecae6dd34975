"""Bias and GELU against the formula written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imagebert_kernels import bias_gelu
from tests.kernels.numerics import DEVICE, TYPES, assert_no_worse_than_plain_pytorch, normal


def plain(x: Tensor, bias: Tensor) -> Tensor:
    u = x + bias
    return u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (9, 40), (70, 96), (3, 1030)])
def test_right_at_any_shape(rows: int, columns: int, dtype: torch.dtype) -> None:
    tensors = {"x": normal(rows, columns, spread=2), "bias": normal(columns, seed=1)}
    assert_no_worse_than_plain_pytorch(bias_gelu, plain, tensors, {}, dtype)


def test_far_from_zero(kernel: None) -> None:
    def row(*values: float) -> Tensor:
        return torch.tensor([values], dtype=TYPES[0], device=DEVICE)

    x, bias = row(-60, -9, 0, 9, 60).requires_grad_(), row(0, 0, 0, 0, 0)[0]
    out = bias_gelu(x, bias)
    torch.testing.assert_close(out, row(0, 0, 0, 9, 60), atol=1e-6, rtol=1e-3)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, row(0, 0, 0.5, 1, 1), atol=1e-6, rtol=1e-3)


def test_the_operator_is_what_pytorch_expects() -> None:
    tensors = [t.to(TYPES[0]).requires_grad_() for t in (normal(5, 12), normal(12))]
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.bias_gelu.default, tuple(tensors))


def test_bad_arguments_are_named(entry: str) -> None:
    with pytest.raises(ValueError, match=r"bias_gelu: the shape of bias is \(7,\); it must be \[I\] = \[8\]"):
        bias_gelu(torch.zeros(3, 8), torch.zeros(7))
    with pytest.raises(ValueError, match=r"x is torch.int64 \(3, 8\)"):
        bias_gelu(torch.zeros(3, 8).long(), torch.zeros(8))
