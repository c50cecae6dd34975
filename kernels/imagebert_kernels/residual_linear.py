"""A product whose input goes on beside it, as a residual does.

    product = x W^T + bias,  residual = x;    dx = dproduct W + dresidual

Left to autograd, the two gradients of x are made apart and added in a pass of their own over [T, H]: 3 H a token. Here
the second is what the backward product starts its sums from. PyTorch copies it first (2 H a token), unless the result
may take its place. x is [T, H], the weight [O, H], the bias [O] or none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class _ResidualLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, in_place: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.in_place = bias is not None, in_place
        return F.linear(x, weight, bias), x.view_as(x)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_product: Tensor, grad_residual: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_bias = grad_product.sum(0) if ctx.has_bias else None
        for_weight = grad_product.T @ x
        if ctx.in_place and _may_be_overwritten(grad_residual, grad_product):
            return grad_residual.addmm_(grad_product, weight), for_weight, for_bias, None
        return torch.addmm(grad_residual, grad_product, weight), for_weight, for_bias, None


def _may_be_overwritten(grad: Tensor, other: Tensor) -> bool:
    """Whether no element of `grad` is another's too, and nothing will differentiate through it. A compiler sees to that
    by itself."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not grad.is_contiguous():
        return False
    return grad.untyped_storage()._cdata != other.untyped_storage()._cdata


def residual_linear(
    x: Float[Tensor, "T H"],
    weight: Float[Tensor, "O H"],
    bias: Float[Tensor, " O"] | None = None,
    in_place: bool = False,
) -> tuple[Float[Tensor, "T O"], Float[Tensor, "T H"]]:
    """Computes x W^T + bias, and gives x back to be used as the residual.

    So both gradients of x are added up by one product. Tensors have any floating type and lie on any device.

    Args:
        x: The input, [T, H] of T tokens.
        weight: The weight W, [O, H].
        bias: The bias, [O], or None.
        in_place: Whether backward may write over the gradient that the residual gets. That is right only where nobody
            else reads it afterwards, as with the sum of a post-LN layer.

    Returns:
        The product [T, O], and the residual [T, H].
    """
    product, residual = _ResidualLinear.apply(x, weight, bias, in_place)
    return product, residual
