"""Dropout inside kernels: a mask is never stored, it is drawn again from (seed, place).

Philox 4x32-7 (Salmon et al., 2011) of a counter gives 16 random bytes, and one byte decides over one element: dropout
is a multiple of 1/256. Which counter and which byte belong to an element is each operation's to say; `kept_columns`
says it for rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from imagebert_kernels.backend import uses_kernels

DROPOUT_STEPS = tl.constexpr(256)


def dropout_threshold(dropout: float) -> int:
    """The random byte below which an element is dropped: dropout in steps of 1/256, never rounded to none or all."""
    return min(max(round(dropout * 256), 1), 255) if dropout > 0 else 0


def draw_seeds(count: int, like: Tensor) -> Sequence[Tensor | None]:
    """Seeds [1] int64 for `count` operations on tensors as `like`: one draw from PyTorch's generator of the device.

    None each where the reference will run, which draws for itself. They lie 16 bytes apart: a pointer of another
    alignment would have Triton compile a kernel again.
    """
    if not uses_kernels(like):
        return [None] * count
    return torch.randint(2**63 - 1, (2 * count,), device=like.device)[::2].split(1)


def seed_of(dropout: float, seed: Tensor | None, device: torch.device) -> Tensor | None:
    """The seed of an operation: the given one, or one drawn now without waiting; None where nothing is dropped."""
    if dropout == 0:
        return None
    return torch.randint(2**63 - 1, (1,), device=device) if seed is None else seed


@triton.jit
def philox(seed, c0, c1, c2):
    """Philox 4x32-7 of the counter (c0, c1, c2, 0): four words; 7 rounds pass all its authors' tests.

    As tl.philox, but each 64-bit product is one instruction, not two for its halves.
    """
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1, c2 = c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32)
    c3 = tl.zeros_like(c2)
    for _ in tl.static_range(7):
        left, right = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (right >> 32).to(tl.uint32) ^ c1 ^ k0, right.to(tl.uint32)
        c2, c3 = (left >> 32).to(tl.uint32) ^ c3 ^ k1, left.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def kept_columns(seed, row, column, threshold):
    """Which elements dropout keeps [rows, columns], a function of (seed, row, column) alone.

    Eight neighbouring columns share a call, written once for each: one thread holds them, since it loads 16 bytes, so
    the compiler merges the eight calls into one. Byte i of the call's first two words belongs to the i-th of them.
    """
    a, b, _, _ = philox(seed, (column >> 3)[None, :], row[:, None], 0 * row[:, None])
    bits = tl.where((column & 4)[None, :] == 0, a, b)
    return ((bits >> ((column & 3) * 8).to(tl.uint32)[None, :]) & 255) >= threshold
