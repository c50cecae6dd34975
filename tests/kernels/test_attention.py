"""Packed attention against one sequence at a time in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebert_kernels.attention import packed_attention


def one_by_one(
    queries: torch.Tensor, keys_values: torch.Tensor, query_ends: list[int], ends: list[int], scale: float
) -> torch.Tensor:
    out = torch.zeros_like(queries)
    for b in range(len(ends) - 1):
        q = queries[query_ends[b] : query_ends[b + 1]]
        k, v = keys_values[ends[b] : ends[b + 1]].unbind(1)
        weights = torch.einsum("qnd,knd->nqk", q, k).mul(scale).softmax(-1)
        out[query_ends[b] : query_ends[b + 1]] = torch.einsum("nqk,knd->qnd", weights, v)
    return out


def make(
    key_lengths: list[int], query_lengths: list[int] | None, heads: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query_lengths = query_lengths or key_lengths
    queries = torch.randn(sum(query_lengths), heads, size, generator=generator, dtype=torch.float64)
    keys_values = torch.randn(sum(key_lengths), 2, heads, size, generator=generator, dtype=torch.float64)
    ends = [torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (query_lengths, key_lengths)]
    return queries, keys_values, *ends


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 9)), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([(1, 32), (3, 8)]),
)
def test_values_and_gradients(lengths: list[tuple[int, int]], separate_queries: bool, shape: tuple[int, int]) -> None:
    keys = [k for k, _ in lengths]
    rows = [min(q, k) for k, q in lengths] if separate_queries else None
    if rows is not None and sum(rows) == 0:
        rows[0] = 1
    queries, keys_values, query_cu, cu = make(keys, rows, *shape)
    queries.requires_grad_(), keys_values.requires_grad_()
    expected = one_by_one(queries, keys_values, query_cu.tolist(), cu.tolist(), 0.3)
    got = packed_attention(queries, keys_values, query_cu, cu, 0.3)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    signal = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((got * signal).sum(), (queries, keys_values)),
        torch.autograd.grad((expected * signal).sum(), (queries, keys_values)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_in_low_precision_is_that_of_plain_pytorch(dtype: torch.dtype) -> None:
    queries, keys_values, query_cu, cu = make([144, 17, 100, 3], None, 4, 64)
    exact = one_by_one(queries, keys_values, query_cu.tolist(), cu.tolist(), 0.125)
    low = queries.to(dtype), keys_values.to(dtype)
    plain = one_by_one(*low, query_cu.tolist(), cu.tolist(), 0.125)
    got = packed_attention(*low, query_cu, cu, 0.125)
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_separate_queries_are_rows_of_the_full_result() -> None:
    queries, keys_values, _, cu = make([9, 30, 4], None, 2, 8)
    full = packed_attention(queries, keys_values, cu, cu, 0.3)
    rows = torch.tensor([0, 3, 8, 9, 39])
    read_cu = torch.tensor([0, 3, 4, 5], dtype=torch.int32)
    torch.testing.assert_close(packed_attention(queries[rows], keys_values, read_cu, cu, 0.3), full[rows])


def test_lengths_first_seen_in_inference_can_train_later() -> None:
    queries, keys_values, _, cu = make([3, 5], None, 1, 8)
    with torch.inference_mode():
        packed_attention(queries, keys_values, cu, cu, 0.3)
    packed_attention(queries.requires_grad_(), keys_values, cu, cu, 0.3).sum().backward()
    assert queries.grad is not None


def test_dropout_keeps_its_share_and_its_seed() -> None:
    # With equal keys and values of ones, an output is the sum of the kept weights.
    queries, keys_values = torch.zeros(400, 2, 8), torch.zeros(400, 2, 2, 8)
    keys_values[:, 1] = 1
    cu = torch.tensor([0, 100, 250, 400], dtype=torch.int32)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(packed_attention(queries, keys_values, cu, cu, 1.0, dropout=0.25))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert outs[0].mean() == pytest.approx(1, abs=0.01)
    assert outs[0].std() > 0.01
