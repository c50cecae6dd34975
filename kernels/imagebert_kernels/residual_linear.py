"""A product whose input goes on beside it, as a residual does.

    product = x W^T + bias,  residual = x;    dx = dproduct W + dresidual

Left to autograd, the two gradients of x are made apart and added in a pass of their own over [T, H]: 3 H a token. Here
the second is what the backward product starts its sums from. x is [T, H], the weight [O, H], the bias [O] or none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class _ResidualLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(x, weight, bias), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_product: Tensor, grad_residual: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        for_bias = grad_product.sum(0) if ctx.has_bias else None
        return torch.addmm(grad_residual, grad_product, weight), grad_product.T @ x, for_bias


def residual_linear(
    x: Float[Tensor, "T H"], weight: Float[Tensor, "O H"], bias: Float[Tensor, " O"] | None = None
) -> tuple[Float[Tensor, "T O"], Float[Tensor, "T H"]]:
    """x W^T + bias, and x to be used as the residual; in any floating type and on any device."""
    product, residual = _ResidualLinear.apply(x, weight, bias)
    return product, residual
