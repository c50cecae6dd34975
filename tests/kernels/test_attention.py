"""Packed attention, kernels and reference, against one sequence at a time in float64."""

from __future__ import annotations

import types
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from imagebert_kernels import attention, backend
from imagebert_kernels.attention import packed_attention
from tests.kernels.numerics import DEVICE, GPU, TYPES, philox

LENGTHS = [1, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 144, 200, 255, 256, 257, 300, 512]
SCALE = 0.3


@pytest.fixture(params=["hopper"] if GPU else ["hopper", "ampere"])
def chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention, "is_hopper", lambda device: request.param == "hopper")
    return


class Case(NamedTuple):
    """Inputs in float64, and the gradient that comes back."""

    packed: Tensor
    queries: Tensor | None
    cu_seqlens: Tensor
    query_cu_seqlens: Tensor | None
    grad_out: Tensor


def make(lengths: list[int], heads: int, size: int, rows: list[int] | None = None, spread: float = 1.0) -> Case:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, heads, size, generator=generator, dtype=torch.float64) * spread).to(DEVICE)

    def ends(counts: list[int]) -> Tensor:
        return torch.tensor([0, *counts], device=DEVICE).cumsum(0).to(torch.int32)

    if rows is None:
        return Case(normal(sum(lengths), 3), None, ends(lengths), None, normal(sum(lengths)))
    return Case(normal(sum(lengths), 2), normal(sum(rows)), ends(lengths), ends(rows), normal(sum(rows)))


def one_by_one(case: Case, scale: float = SCALE, kept: list[Tensor] | None = None, share: float = 1.0) -> Tensor:
    """The operation as it is written; `kept` [N, queries, keys] of each sequence replays a dropout."""
    queries = case.packed[:, 0] if case.queries is None else case.queries
    query_ends = case.cu_seqlens if case.query_cu_seqlens is None else case.query_cu_seqlens
    outs = []
    for b, ((r0, r1), (k0, k1)) in enumerate(
        zip(pairwise(query_ends.tolist()), pairwise(case.cu_seqlens.tolist()), strict=True)
    ):
        k, v = case.packed[k0:k1, -2:].unbind(1)
        weights = torch.einsum("qnd,knd->nqk", queries[r0:r1], k).mul(scale).softmax(-1)
        if kept is not None:
            weights = weights * (kept[b] / share).to(weights.dtype)
        outs.append(torch.einsum("nqk,knd->qnd", weights, v))
    return torch.cat(outs)


def attend(case: Case, max_seqlen: int, scale: float = SCALE, dropout: float = 0.0) -> Tensor:
    return packed_attention(
        case.packed, case.cu_seqlens, max_seqlen, scale, dropout, case.queries, case.query_cu_seqlens
    )


def with_gradients(operation, case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Output and gradients of `operation` on the case's inputs in `dtype`, in float64."""
    inputs = [t.to(dtype).requires_grad_() for t in (case.packed, case.queries) if t is not None]
    low = case._replace(packed=inputs[0], queries=None if case.queries is None else inputs[1])
    out = operation(low)
    return [t.double() for t in (out, *torch.autograd.grad(out, inputs, case.grad_out.to(dtype)))]


def assert_no_worse_than_plain_pytorch(case: Case, max_seqlen: int, dtype: torch.dtype, scale: float = SCALE) -> None:
    """Errors against float64, of the output and of each gradient, at most twice plain PyTorch's in the same type.

    And float32's rounding on top: with one key plain softmax makes no error, and its gradients are exact zeros.
    """
    exact = with_gradients(lambda c: one_by_one(c, scale), case)
    plain = with_gradients(lambda c: one_by_one(c, scale), case, dtype)
    ours = with_gradients(lambda c: attend(c, max_seqlen, scale), case, dtype)
    for name, right, theirs, got in zip(("out", "packed", "queries"), exact, plain, ours, strict=False):
        assert got.isfinite().all(), name
        rounding = 8 * torch.finfo(torch.float32).eps * max(right.norm(), case.grad_out.norm())
        assert (got - right).norm() <= 2 * (theirs - right).norm() + rounding, name


# ------------------------------------------------------------------------------------------------- right at any shape


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", attention.HEAD_SIZES)
def test_every_length_that_is_special(kernel: None, size: int, dtype: torch.dtype) -> None:
    assert_no_worse_than_plain_pytorch(make(LENGTHS, 1, size), max(LENGTHS), dtype)


@pytest.mark.parametrize("size", attention.HEAD_SIZES)
@pytest.mark.parametrize("max_seqlen", [32, 64, 128, 144, 256])
def test_every_tiling(kernel: None, chip: None, size: int, max_seqlen: int) -> None:
    # Also one sequence that is longer than was said.
    lengths = [n for n in (max_seqlen, max_seqlen // 2 + 1, 9, max_seqlen + 3) if n]
    assert_no_worse_than_plain_pytorch(make(lengths, 2, size), max_seqlen, TYPES[0])


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 9)), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([(1, 32), (3, 64)]),
)
def test_ragged_batches(entry: str, lengths: list[tuple[int, int]], separate: bool, shape: tuple[int, int]) -> None:
    rows = [min(q, k) for k, q in lengths] if separate else None
    if rows is not None and sum(rows) == 0:
        rows[0] = 1
    assert_no_worse_than_plain_pytorch(make([k for k, _ in lengths], *shape, rows), 150, TYPES[0])


@pytest.mark.parametrize("lengths", [[70], [1 + i % 23 for i in range(100)]], ids=["one sequence", "100 sequences"])
def test_few_and_many_sequences(entry: str, lengths: list[int]) -> None:
    assert_no_worse_than_plain_pytorch(make(lengths, 2, 32), max(lengths), TYPES[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_large_logits(kernel: None, sign: int) -> None:
    case = make([70, 130, 5, 200], 1, 64, spread=6)
    # All scores of a sequence far from zero: what stands for keys that are not there must not win, nor overflow.
    case.packed[:, 1] = case.packed[:1, 1]
    case.packed[:, 0] = sign * case.packed[:1, 1]
    assert (case.packed[0, 0] * case.packed[0, 1]).sum().abs() * SCALE > 400
    exact, ours = with_gradients(one_by_one, case), with_gradients(lambda c: attend(c, 200), case, TYPES[0])
    for right, got in zip(exact, ours, strict=True):
        assert (got - right).norm() <= (5e-2 if GPU else 1e-4) * right.norm()
    case = make([70, 130, 5, 200], 1, 64, spread=6)
    assert_no_worse_than_plain_pytorch(case, 200, TYPES[0])


def test_separate_queries_are_rows_of_the_full_result(entry: str) -> None:
    case = make([9, 130, 4], 2, 32)
    case = case._replace(packed=case.packed.to(TYPES[0]))
    full = attend(case, 130)
    rows = torch.tensor([0, 3, 8, 9, 139], device=DEVICE)
    few = case._replace(
        packed=case.packed[:, 1:],
        queries=case.packed[rows, 0],
        query_cu_seqlens=torch.tensor([0, 3, 4, 5], device=DEVICE).int(),
    )
    torch.testing.assert_close(attend(few, 130), full[rows], rtol=1e-2 if GPU else 1e-6, atol=1e-6)


@pytest.mark.parametrize("separate", [False, True])
def test_rows_behind_the_last_sequence_are_zeros(entry: str, separate: bool) -> None:
    case = make([9, 40, 0, 3, 75], 2, 32, rows=[2, 7, 0, 3, 70] if separate else None)
    ends = case.cu_seqlens[:-1]
    query_ends = None if case.query_cu_seqlens is None else case.query_cu_seqlens[:-1]
    few = case._replace(cu_seqlens=ends, query_cu_seqlens=query_ends)
    keys, rows = int(ends[-1]), int((ends if query_ends is None else query_ends)[-1])
    out, *grads = with_gradients(lambda c: attend(c, 75), few, TYPES[0])
    whole = one_by_one(case)
    torch.testing.assert_close(out[:rows], whole[:rows], rtol=1e-2 if GPU else 1e-5, atol=1e-2 if GPU else 1e-6)
    assert (out[rows:] == 0).all()
    assert (grads[0][keys:] == 0).all()
    assert grads[0][:keys].abs().sum() > 0
    if separate:
        assert (grads[1][rows:] == 0).all()


def test_rows_may_lie_apart(kernel: None) -> None:
    case = make([9, 33], 2, 32)
    wide = torch.zeros(42, 300, dtype=TYPES[0], device=DEVICE)
    view = wide[:, 7 : 7 + 192].unflatten(1, (3, 2, 32))
    view.copy_(case.packed)
    assert torch.equal(
        attend(case._replace(packed=view), 33), attend(case._replace(packed=case.packed.to(TYPES[0])), 33)
    )


def test_lengths_first_seen_in_inference_can_train_later() -> None:
    case = make([3, 5], 1, 8)
    with torch.inference_mode():
        attend(case, 5)
    case.packed.requires_grad_()
    attend(case, 5).sum().backward()
    assert case.packed.grad is not None


# ------------------------------------------------------------------------------------------------------------- dropout


def test_philox_gives_the_published_numbers() -> None:
    # Known answers of Random123: counter and key zero, 10 rounds.
    words = philox(0, np.array(0), np.array(0), 0, rounds=10)
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def replayed(seed: int, heads: int, first_row: int, rows: int, keys: int, dropout: float) -> Tensor:
    """The mask [N, rows, keys] that the kernel's documentation promises."""
    key = np.arange(keys)[None, :]
    row = np.arange(first_row, first_row + rows)[:, None]
    masks = []
    for head in range(heads):
        words = np.stack(philox(seed, (key // 64) * 4 + key % 8 // 2, row, head, rounds=7))  # [4, rows, keys]
        byte = np.broadcast_to(key % 64 // 8 * 2 + key % 2, words.shape[1:])
        word = np.take_along_axis(words, (byte // 4)[None], 0)[0]
        masks.append((word >> (byte % 4 * 8).astype(np.uint64)) & np.uint64(255))
    return torch.from_numpy(np.stack(masks).astype(np.int64) >= round(dropout * 256)).double()


def recovered(lengths: list[int], heads: int, seed: Tensor, dropout: float) -> list[Tensor]:
    """The masks that the forward kernel really uses: all weights equal, values that name the key."""
    size = 64
    case = make(lengths, heads, size)
    masks = [torch.zeros(heads, n, n, device=DEVICE) for n in lengths]
    for chunk in range(0, max(lengths), size):
        packed = torch.zeros(sum(lengths), 3, heads, size, dtype=TYPES[0], device=DEVICE)
        starts = case.cu_seqlens.tolist()
        for start, n in zip(starts, lengths, strict=False):
            seen = min(max(n - chunk, 0), size)
            packed[start + chunk : start + chunk + seen, 2] = torch.eye(size, device=DEVICE)[:seen, None]
        out, _ = attention._forward(
            packed, None, case.cu_seqlens, case.cu_seqlens, max(lengths), 1.0, dropout, seed
        )  # [T, N, D]
        for mask, start, n in zip(masks, starts, lengths, strict=False):
            seen = min(max(n - chunk, 0), size)
            mask[:, :, chunk : chunk + seen] = (out[start : start + n, :, :seen] > 0).transpose(0, 1)
    return masks


@pytest.mark.parametrize(("max_seqlen", "lengths"), [(150, [5, 100, 144, 150]), (64, [64, 20, 1]), (600, [300])])
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_the_mask_is_recovered_and_replayed_exactly(max_seqlen: int, lengths: list[int], dropout: float) -> None:
    seed = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
    case, heads = make(lengths, 2, 64), 2
    masks = recovered(lengths, heads, seed, dropout)
    starts = case.cu_seqlens.tolist()
    for mask, start, n in zip(masks, starts, lengths, strict=False):
        assert torch.equal(mask.cpu().double(), replayed(int(seed), heads, start, n, n, dropout))
    kept = torch.cat([m.flatten() for m in masks]).mean()
    if sum(n * n for n in lengths) > 10000:
        assert float(kept) == pytest.approx(1 - dropout, rel=0.01)
    # With that mask, output and gradients are the formula's.
    share = 1 - round(dropout * 256) / 256
    exact = with_gradients(lambda c: one_by_one(c, kept=[m.double() for m in masks], share=share), case)
    plain = with_gradients(lambda c: one_by_one(c, kept=[m.float() for m in masks], share=share), case, TYPES[0])

    def ours(c: Case) -> Tensor:
        out: Tensor = attention._forward(c.packed, None, c.cu_seqlens, c.cu_seqlens, max_seqlen, SCALE, dropout, seed)[
            0
        ]
        return out

    for right, theirs, got in zip(exact, plain, with_gradients(ours, case, TYPES[0]), strict=True):
        assert (got - right).norm() <= 2 * (theirs - right).norm()


def test_the_generator_decides(entry: str) -> None:
    case = make([100, 150, 150], 2, 32)
    low = case._replace(packed=case.packed.to(TYPES[0]))
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(with_gradients(lambda c: attend(c, 150, dropout=0.25), low, TYPES[0]))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_dropout_keeps_the_mean(entry: str) -> None:
    # With equal keys and values of ones, an output is the sum of the kept weights.
    packed = torch.zeros(400, 3, 2, 32, dtype=TYPES[0], device=DEVICE)
    packed[:, 2] = 1
    out = packed_attention(packed, torch.tensor([0, 100, 250, 400], device=DEVICE).int(), 150, 1.0, dropout=0.25)
    assert float(out.float().mean()) == pytest.approx(1, abs=0.01)
    assert float(out.float().std()) > 0.01


def test_dropout_is_rounded_but_never_away() -> None:
    assert [attention.dropout_threshold(p) for p in (0.0, 1e-6, 0.1, 0.5, 0.9999)] == [0, 1, 26, 128, 255]


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed": torch.zeros(9, 2, 1, 32)}, r"shape of packed is \(9, 2, 1, 32\); it must be \[T, 3, N, D\]"),
        ({"packed": torch.zeros(9, 3, 1, 32, dtype=torch.int32)}, "type of packed is torch.int32"),
        ({"packed": torch.zeros(9, 3, 32, 2).transpose(2, 3)}, "stride of packed is"),
        ({"packed": torch.zeros(9, 3, 1, 32, device="meta")}, "device of cu_seqlens is cpu; it must be meta"),
        ({"cu_seqlens": torch.tensor([0, 9])}, "type of cu_seqlens is torch.int64; it must be int32"),
        ({"cu_seqlens": torch.zeros(2, 1).int()}, r"shape of cu_seqlens is \(2, 1\)"),
        ({"cu_seqlens": torch.zeros(4).int()[::2]}, "stride of cu_seqlens is"),
        ({"queries": torch.zeros(9, 1, 32)}, r"shape of packed is \(9, 3, 1, 32\); it must be \[T, 2, N, D\]"),
        ({"query_cu_seqlens": torch.tensor([0, 9]).int()}, "query_cu_seqlens is .* given with queries"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_arguments_are_named(entry: str, change: dict[str, object], message: str) -> None:
    good = {"packed": torch.zeros(9, 3, 1, 32), "cu_seqlens": torch.tensor([0, 9]).int(), "max_seqlen": 9, "scale": 1.0}
    with pytest.raises(ValueError, match=message):
        packed_attention(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(3, 2, 32)}, r"shape of queries is \(3, 2, 32\); it must be \[Q, 1, 32\]"),
        ({"queries": torch.zeros(3, 1, 32).half()}, "type of queries is torch.float16"),
        ({"queries": torch.zeros(3, 1, 64)[:, :, ::2]}, "stride of queries"),
        ({"query_cu_seqlens": torch.tensor([0, 3, 3]).int()}, "length of query_cu_seqlens is 3; it must be 2"),
    ],
)
def test_bad_queries_are_named(entry: str, change: dict[str, object], message: str) -> None:
    ends = torch.tensor([0, 9]).int()
    good = {"packed": torch.zeros(9, 2, 1, 32), "cu_seqlens": ends, "max_seqlen": 9, "scale": 1.0}
    good |= {"queries": torch.zeros(3, 1, 32), "query_cu_seqlens": torch.tensor([0, 3]).int()}
    with pytest.raises(ValueError, match=message):
        packed_attention(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [[0, 10], [1, 9], [0, 5, 3, 9]])
def test_values_are_checked_where_that_is_wished(monkeypatch: pytest.MonkeyPatch, ends: list[int]) -> None:
    monkeypatch.setenv("IMAGEBERT_CHECK_KERNELS", "1")
    with pytest.raises(ValueError, match=r"cu_seqlens is \[.*\]; it must be (from 0 to 9|ascending)"):
        packed_attention(torch.zeros(9, 3, 1, 32), torch.tensor(ends).int(), 9, 1.0)


# ------------------------------------------------------------------------------------------------------------- dispatch


def test_who_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_chosen", "auto")
    half, single, double = (torch.zeros(1, dtype=t) for t in (torch.bfloat16, torch.float32, torch.float64))
    cuda = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    cuda_single = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    everywhere = [half, single, double, cuda, cuda_single]

    def who() -> list[bool]:
        return [backend.uses_kernels(tensor) for tensor in everywhere]  # type: ignore[arg-type]

    assert who() == [False, False, False, True, False]
    backend.choose("reference", cuda.device)
    assert who() == [False] * 5
    monkeypatch.setenv(backend.VARIABLE, "triton")
    assert who() == [True, True, False, True, True]
    monkeypatch.setenv(backend.VARIABLE, "cuda")
    with pytest.raises(ValueError, match="IMAGEBERT_KERNELS=cuda: give one of auto, reference, triton"):
        who()


def test_kernels_cannot_be_forced_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_chosen", "auto")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv(backend.VARIABLE, "triton")
    with pytest.raises(ValueError, match="is triton, but there is no GPU: choose auto, or set TRITON_INTERPRET=1"):
        backend.choose("auto", torch.device("cpu"))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_operator_is_what_pytorch_expects(separate: bool, dropout: float) -> None:
    case = make([5, 20], 2, 32, rows=[2, 3] if separate else None)
    packed = case.packed.to(TYPES[0]).requires_grad_()
    queries = None if case.queries is None else case.queries.to(TYPES[0]).requires_grad_()
    ends = case.cu_seqlens if case.query_cu_seqlens is None else case.query_cu_seqlens
    seed = torch.tensor([7], device=DEVICE) if dropout else None
    arguments = (packed, queries, case.cu_seqlens, ends, 20, SCALE, dropout, seed)
    out, logsumexp = torch.ops.imagebert.packed_attention(*arguments)
    assert out.requires_grad
    assert not logsumexp.requires_grad  # it has no gradient: better an error than a zero
    torch.use_deterministic_algorithms(False)  # opcheck compares unwritten memory of its own
    torch.library.opcheck(torch.ops.imagebert.packed_attention.default, arguments)


def test_compile_sees_one_node(kernel: None) -> None:
    seen = []

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]):  # type: ignore[no-untyped-def]
        seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    case = make([5, 20], 2, 32)
    packed = case.packed.to(TYPES[0])
    compiled = torch.compile(lambda p: attend(case._replace(packed=p), 20), backend=look, fullgraph=True)
    torch.testing.assert_close(compiled(packed), attend(case._replace(packed=packed), 20))
    assert [name for name in seen if "attention" in name] == ["imagebert.packed_attention.default"]
