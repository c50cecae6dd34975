"""Cross-entropy over chosen rows against log-softmax written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagebert_kernels import classification_loss
from tests.kernels.numerics import DEVICE, TYPES, assert_no_worse_than_plain_pytorch, normal


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, rows: Tensor | None, labels: Tensor) -> Tensor:
    there = labels >= 0
    rows = torch.arange(len(hidden), device=DEVICE) if rows is None else rows
    logits = hidden[rows[there]] @ weight.T + bias
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    normaliser = (wide - wide.amax(1, keepdim=True)).exp().sum(1).log() + wide.amax(1)
    return (normaliser - wide[torch.arange(len(wide)), labels[there]]).sum()


def chosen(queries: int, masked: int, absent: int, classes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.cat([torch.randperm(queries, generator=generator)[:masked], torch.full((absent,), -1)])
    labels = torch.cat([torch.randint(0, classes, (masked,), generator=generator), torch.full((absent,), -1)])
    return {"rows": rows.to(DEVICE), "labels": labels.to(DEVICE)}


def weights(queries: int, inner: int, classes: int, spread: float = 1.0) -> dict[str, Tensor]:
    return {
        "hidden": normal(queries, inner),
        "weight": normal(classes, inner, seed=1, spread=spread),
        "bias": normal(classes, seed=2),
    }


@pytest.mark.parametrize(
    ("queries", "masked", "absent", "inner", "classes"),
    [(1, 1, 0, 8, 2), (30, 20, 7, 16, 45), (9, 9, 0, 24, 5003), (40, 3, 37, 8, 1600)],
)
def test_right_at_any_shape(
    queries: int, masked: int, absent: int, inner: int, classes: int, dtype: torch.dtype
) -> None:
    fixed = chosen(queries, masked, absent, classes)
    assert_no_worse_than_plain_pytorch(classification_loss, plain, weights(queries, inner, classes, 0.3), fixed, dtype)


def test_all_rows_of_hidden(entry: str) -> None:
    fixed = {"rows": None, "labels": chosen(20, 15, 5, 90)["labels"]}
    assert_no_worse_than_plain_pytorch(classification_loss, plain, weights(20, 16, 90, 0.3), fixed, TYPES[0])


def test_large_logits(kernel: None) -> None:
    fixed = chosen(30, 20, 0, 300)
    assert_no_worse_than_plain_pytorch(classification_loss, plain, weights(30, 16, 300, 40), fixed, TYPES[0])


@pytest.mark.parametrize("absent", [0, 9])
def test_no_row_at_all(entry: str, absent: int) -> None:
    tensors = {name: t.to(TYPES[0]).requires_grad_() for name, t in weights(5, 8, 45).items()}
    loss = classification_loss(**tensors, **chosen(5, 0, absent, 45))
    assert loss.dtype == torch.float32
    assert float(loss) == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, list(tensors.values())))


def test_the_operator_is_what_pytorch_expects() -> None:
    tensors = {name: t.to(TYPES[0]).requires_grad_() for name, t in weights(9, 8, 64).items()}
    fixed = chosen(9, 4, 2, 64)
    arguments = (tensors["hidden"], fixed["rows"], tensors["weight"], tensors["bias"], fixed["labels"])
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.classification_loss.default, arguments)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("hidden", torch.zeros(9, 7), r"the shape of hidden is \(9, 7\); it must be \[Q, H\] = \[any, 8\]"),
        ("labels", torch.zeros(5).long(), r"the shape of labels is \(5,\); it must be \[M\] = \[6\]"),
        ("labels", torch.zeros(6), "the type of labels is torch.float32; it must be int64"),
    ],
)
def test_bad_arguments_are_named(entry: str, name: str, tensor: Tensor, message: str) -> None:
    good: dict[str, Any] = {n: t.float() for n, t in weights(9, 8, 45).items()} | chosen(9, 4, 2, 45)
    with pytest.raises(ValueError, match=message):
        classification_loss(**(good | {name: tensor}))
