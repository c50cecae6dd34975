"""Bias, dropout, residual and LayerNorm against the formula written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from imagebert_kernels import layer_norm, residual_layer_norm
from tests.kernels.numerics import DEVICE, TYPES, assert_no_worse_than_plain_pytorch, kept_columns, normal

EPSILON = 1e-12


def plain(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, epsilon: float, kept: Tensor | None = None
) -> Tensor:
    added = x + bias
    z = residual + (added if kept is None else added * kept.to(x.dtype))
    centred = z - z.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + epsilon).sqrt() * weight + shift


def inputs(rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "x": normal(rows, columns),
        "bias": normal(columns, seed=1),
        "residual": normal(rows, columns, seed=2) + 3,
        "weight": normal(columns, seed=3) + 1,
        "shift": normal(columns, seed=4),
    }


@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (7, 24), (33, 128), (5, 768), (130, 40)])
def test_right_at_any_shape(rows: int, columns: int, dtype: torch.dtype) -> None:
    fixed = {"epsilon": EPSILON}
    assert_no_worse_than_plain_pytorch(residual_layer_norm, plain, inputs(rows, columns), fixed, dtype)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 70))
def test_ragged_shapes(kernel: None, rows: int, columns: int) -> None:
    fixed = {"epsilon": 1e-5}
    assert_no_worse_than_plain_pytorch(residual_layer_norm, plain, inputs(rows, columns), fixed, TYPES[0])


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_replayed_exactly(dropout: float) -> None:
    seed = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
    kept = kept_columns(int(seed), 40, 96, dropout)
    assert float((kept > 0).double().mean()) == pytest.approx(1 - dropout, abs=0.02)

    def ours(kept: Tensor, **tensors: Any) -> Tensor:
        out: Tensor = layer_norm._forward(**tensors, dropout=dropout, seed=seed)[0]
        return out

    fixed = {"epsilon": EPSILON, "kept": kept}
    assert_no_worse_than_plain_pytorch(ours, plain, inputs(40, 96), fixed, TYPES[0])


def test_the_generator_decides(entry: str) -> None:
    tensors = [t.to(TYPES[0]) for t in inputs(9, 64).values()]
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(residual_layer_norm(*tensors, EPSILON, 0.25))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_the_same_result_every_time(kernel: None) -> None:
    tensors = [t.to(TYPES[0]).requires_grad_() for t in inputs(50, 96).values()]
    runs = [
        torch.autograd.grad(residual_layer_norm(*tensors, EPSILON), tensors, torch.ones_like(tensors[0]))
        for _ in (1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_operator_is_what_pytorch_expects(dropout: float) -> None:
    tensors = [t.to(TYPES[0]).requires_grad_() for t in inputs(5, 16).values()]
    seed = torch.tensor([7], device=DEVICE) if dropout else None
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.residual_layer_norm.default, (*tensors, EPSILON, dropout, seed))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("bias", torch.zeros(7), r"the shape of bias is \(7,\); it must be \[H\] = \[8\]"),
        ("residual", torch.zeros(3, 8).half(), "the type of residual is torch.float16; it must be float32"),
        ("residual", torch.zeros(8, 3).T, "the stride of residual"),
        ("shift", torch.zeros(8, device="meta"), "the device of shift is meta"),
        ("dropout", 1.0, "dropout is 1.0"),
    ],
)
def test_bad_arguments_are_named(entry: str, name: str, tensor: Any, message: str) -> None:
    good: dict[str, Any] = {"x": torch.zeros(3, 8), "residual": torch.zeros(3, 8), "epsilon": 1e-5}
    good |= {label: torch.zeros(8) for label in ("bias", "weight", "shift")}
    with pytest.raises(ValueError, match=message):
        residual_layer_norm(**(good | {name: tensor}))
