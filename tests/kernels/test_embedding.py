"""Embeddings of packed tokens against one token at a time, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagebert_kernels import packed_embedding
from tests.kernels.numerics import DEVICE, TYPES, assert_no_worse_than_plain_pytorch, kept_columns, normal

EPSILON = 1e-12


def plain(
    regions: Tensor, word_table: Tensor, position_table: Tensor, type_table: Tensor, weight: Tensor, shift: Tensor,
    region_rows: Tensor, input_ids: Tensor, text_rows: Tensor, position_ids: Tensor, token_type_ids: Tensor,
    epsilon: float, kept: Tensor | None = None,
) -> Tensor:  # fmt: skip
    contents: list[Tensor] = [torch.empty(0)] * len(position_ids)
    for i, row in enumerate(region_rows.tolist()):
        contents[row] = regions[i]
    for word, row in zip(input_ids.tolist(), text_rows.tolist(), strict=True):
        contents[row] = word_table[word]
    z = torch.stack(contents) + position_table[position_ids] + type_table[token_type_ids]
    centred = z - z.mean(1, keepdim=True)
    out = centred / (centred.square().mean(1, keepdim=True) + epsilon).sqrt() * weight + shift
    return out if kept is None else out * kept.to(out.dtype)


def tables(regions: int, columns: int, words: int = 200, positions: int = 50) -> dict[str, Tensor]:
    return {
        "regions": normal(regions, columns),
        "word_table": normal(words, columns, seed=1),
        "position_table": normal(positions, columns, seed=2),
        "type_table": normal(2, columns, seed=3),
        "weight": normal(columns, seed=4) + 1,
        "shift": normal(columns, seed=5),
    }


def tokens(regions: int, text: int, words: int = 200, positions: int = 50) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = regions + text
    order = torch.randperm(total, generator=generator)
    where = {
        "region_rows": order[:regions].sort().values,
        # Some words come many times, as [SEP] and [MASK] do; most never.
        "input_ids": torch.randint(0, words, (text,), generator=generator) // 3 * 3 % 60,
        "text_rows": order[regions:].sort().values,
        "position_ids": torch.randint(0, positions, (total,), generator=generator),
        "token_type_ids": torch.randint(0, 2, (total,), generator=generator),
    }
    return {name: t.to(DEVICE) for name, t in where.items()}


@pytest.mark.parametrize(("regions", "text", "columns"), [(0, 3, 8), (5, 0, 8), (9, 13, 24), (150, 90, 136)])
def test_right_at_any_shape(regions: int, text: int, columns: int, dtype: torch.dtype) -> None:
    fixed = {**tokens(regions, text), "epsilon": EPSILON}
    assert_no_worse_than_plain_pytorch(packed_embedding, plain, tables(regions, columns), fixed, dtype)


def test_dropout_replayed_exactly() -> None:
    seed = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
    names = "regions region_rows word_table input_ids text_rows position_ids token_type_ids position_table type_table"

    def ours(kept: Tensor, epsilon: float, **tensors: Any) -> Tensor:
        arguments = [tensors[name] for name in [*names.split(), "weight", "shift"]]
        out: Tensor = torch.ops.imagebert.packed_embedding(*arguments, epsilon, 0.3, seed)[0]
        return out

    fixed = {**tokens(30, 40), "epsilon": EPSILON, "kept": kept_columns(int(seed), 70, 48, 0.3)}
    assert_no_worse_than_plain_pytorch(ours, plain, tables(30, 48), fixed, TYPES[0])


def test_the_generator_decides(entry: str) -> None:
    arguments = {**{n: t.to(TYPES[0]) for n, t in tables(5, 64).items()}, **tokens(5, 4), "epsilon": EPSILON}
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(packed_embedding(**arguments, dropout=0.25))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_operator_is_what_pytorch_expects(dropout: float) -> None:
    t = {name: v.to(TYPES[0]).requires_grad_() for name, v in tables(3, 8).items()} | tokens(3, 4)
    seed = torch.tensor([7], device=DEVICE) if dropout else None
    arguments = (
        t["regions"], t["region_rows"], t["word_table"], t["input_ids"], t["text_rows"], t["position_ids"],
        t["token_type_ids"], t["position_table"], t["type_table"], t["weight"], t["shift"], EPSILON, dropout, seed,
    )  # fmt: skip
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.packed_embedding.default, arguments)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("word_table", torch.zeros(200, 7), r"the shape of word_table is \(200, 7\)"),
        ("input_ids", torch.zeros(5).long(), r"the shape of input_ids is \(5,\); it must be \[W\] = \[4\]"),
        ("text_rows", torch.zeros(4).int(), "the type of text_rows is torch.int32; it must be int64"),
        ("dropout", -0.1, "dropout is -0.1"),
    ],
)
def test_bad_arguments_are_named(entry: str, name: str, tensor: Any, message: str) -> None:
    good: dict[str, Any] = {n: t.float() for n, t in tables(3, 8).items()} | tokens(3, 4) | {"epsilon": EPSILON}
    with pytest.raises(ValueError, match=message):
        packed_embedding(**(good | {name: tensor}))
