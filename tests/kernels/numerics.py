"""What the tests of kernels share: the rule for errors, and dropout's masks from an independent generator.

Kernels run in Triton's interpreter; where that is off and a GPU is there, compiled, and in bfloat16 too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = torch.device("cuda" if GPU else "cpu")
# The interpreter's products in bfloat16 are wrong; on a GPU there is no product in float32.
TYPES = [torch.bfloat16, torch.float16] if GPU else [torch.float32, torch.float16]

Operation = Callable[..., Tensor]


def normal(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).to(DEVICE)


def with_gradients(
    operation: Operation, tensors: dict[str, Tensor], fixed: dict[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Output and gradients of `operation` with `tensors` in `dtype`, all in float64."""
    inputs = {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}
    out = operation(**inputs, **fixed)
    grad = normal(*out.shape, seed=99) if out.dim() else torch.tensor(0.7, dtype=torch.float64, device=DEVICE)
    grads = torch.autograd.grad(
        out, list(inputs.values()), grad.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    return {"out": out.double()} | {name: g.double() for name, g in zip(inputs, grads, strict=True)}


def assert_no_worse_than_plain_pytorch(
    ours: Operation, plain: Operation, tensors: dict[str, Tensor], fixed: dict[str, Any], dtype: torch.dtype
) -> None:
    """Errors against float64, of the output and of each gradient, at most twice plain PyTorch's in the same type.

    `tensors` are rounded to that type first, so that all start from the same numbers. Float32's rounding comes on top;
    and for a single number some of its type's own, since plain PyTorch's errors may happen to cancel in it.
    """
    tensors = {name: t.to(dtype).double() for name, t in tensors.items()}
    exact = with_gradients(plain, tensors, fixed, torch.float64)
    theirs = with_gradients(plain, tensors, fixed, dtype)
    got = with_gradients(ours, tensors, fixed, dtype)
    for name, right in exact.items():
        assert got[name].isfinite().all(), name
        rounding = 16 * torch.finfo(torch.float32).eps * (right.norm() + right.numel() ** 0.5 * 1e-3)
        if right.dim() == 0:
            rounding += torch.finfo(dtype).eps / 16 * right.abs()
        error, allowed = (got[name] - right).norm(), 2 * (theirs[name] - right).norm() + rounding
        assert error <= allowed, f"{name}: {float(error):.3g} > {float(allowed):.3g}"


def philox(seed: int, c0: NDArray[Any], c1: NDArray[Any], c2: int, rounds: int) -> list[NDArray[Any]]:
    """Philox 4x32 (Salmon et al., 2011) with counter (c0, c1, c2, 0), in whole numbers of NumPy."""
    a, b, c, d = (x.astype(np.uint64) for x in np.broadcast_arrays(c0, c1, c2, 0))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(rounds):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (right >> half) ^ b ^ np.uint64(k0), right & low
        c, d = (left >> half) ^ d ^ np.uint64(k1), left & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def kept_columns(seed: int, rows: int, columns: int, dropout: float) -> Tensor:
    """The mask [rows, columns] that dropout.py promises for rows of a matrix, divided by the share it keeps."""
    column, row = np.arange(columns)[None, :], np.arange(rows)[:, None]
    first, second, _, _ = philox(seed, column // 8, row, 0, rounds=7)
    word = np.where(column % 8 < 4, first, second)
    byte = (word >> (column % 4 * 8).astype(np.uint64)) & np.uint64(255)
    threshold = round(dropout * 256)
    mask = torch.from_numpy((byte.astype(np.int64) >= threshold).astype(np.float64)).to(DEVICE)
    return mask * (256 / (256 - threshold))
