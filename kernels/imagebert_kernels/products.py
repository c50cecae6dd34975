"""The product that the region kernels share: some rows of a matrix times a weight, one tile of the result."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Tiling(NamedTuple):
    """How a product [rows, columns] is cut, and the options of its launch."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def constants(self) -> dict[str, int]:
        return {"ROWS": self.rows, "BLOCK": self.columns, "INNER_BLOCK": self.inner}

    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


@triton.jit
def rows_times_weight(
    rows,  # [any, INNER]
    row,  # [ROWS] int64, which of them
    real,  # [ROWS] bool; other rows count as zeros
    weight,  # [columns, INNER]
    column,  # [BLOCK]
    columns,
    INNER: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """rows @ weight^T, float32 [ROWS, BLOCK]. The rows take the weight's type: int8 becomes exact bf16 or fp16."""
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    left = rows + row[:, None] * INNER
    right = weight + column.to(tl.int64)[:, None] * INNER
    for start in tl.range(0, INNER, INNER_BLOCK):
        inner = start + tl.arange(0, INNER_BLOCK)
        here, there = real[:, None], (column < columns)[:, None]
        if INNER % INNER_BLOCK != 0:
            here = here & (inner < INNER)[None, :]
            there = there & (inner < INNER)[None, :]
        x = tl.load(left + inner[None, :], mask=here, other=0).to(weight.dtype.element_ty)
        w = tl.load(right + inner[None, :], mask=there, other=0.0)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    return total
