"""Attention beside what else there is: see benchmarks/ops.py.

Candidates: ours, PyTorch eager and torch.compile (padded), padded scaled_dot_product_attention (flash, efficient and
cuDNN's), FlashAttention-2 varlen with dropout (PyTorch's own operator), torch's varlen_attn and FlexAttention with a
document mask (neither has dropout). Operations and bytes are those of the real tokens: 4 N D per query and key forward,
2.5 times that backward; each tensor once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.mixes import MIXES, SPECIALS, draw_lengths
from benchmarks.report import Line
from benchmarks.step import H200_BANDWIDTH, H200_MATMUL, ITEM
from benchmarks.timing import Pass, seconds, stream
from imagebert_kernels import attention

DROPOUT = 0.1
HEADS = {"base": 12, "large": 16}
SIZE = 64  # of a head
H200_CLOCK, H200_MULTIPROCESSORS = 1.98e9, 132
DIRECTIONS = ("forward", "backward")


class Shape(NamedTuple):
    mix: str
    model: str
    lengths: list[int]

    @property
    def heads(self) -> int:
        return HEADS[self.model]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def flops(self, direction: str) -> float:
        forward = 4 * self.heads * SIZE * sum(n * n for n in self.lengths)
        return {"forward": 1.0, "backward": 2.5, "both": 3.5}[direction] * forward

    def bytes(self, direction: str) -> float:
        """Forward q, k, v and out; backward these, dO, dQ, dK and dV; logsumexp each time."""
        rows = {"forward": 4, "backward": 8, "both": 12}[direction]
        return self.tokens * self.heads * (rows * SIZE * ITEM + (2 if direction == "both" else 1) * 4)


def shape(mix: str, model: str, pairs: int) -> Shape:
    rng = np.random.default_rng(0)
    lengths = draw_lengths(rng, mix, "regions", pairs) + draw_lengths(rng, mix, "words", pairs) + SPECIALS
    return Shape(mix, model, sorted(lengths.tolist(), reverse=True))


# ------------------------------------------------------------------------------------------------------- candidates


class Inputs(NamedTuple):
    """One set of inputs in the layouts that the candidates take."""

    packed: Tensor  # [T, 3, N, D]
    grad_out: Tensor  # [T, N, D]
    cu_seqlens: Tensor  # [B+1]
    longest: int
    rows: Tensor  # [B, longest], rows of the packed tokens, row 0 where there is none
    real: Tensor  # [B, longest]

    def padded(self) -> tuple[list[Tensor], Tensor]:
        """q, k and v [B, N, longest, D] and the gradient, as a program that pads holds them."""
        q, k, v = self.packed[self.rows].permute(2, 0, 3, 1, 4).contiguous()  # [3, B, N, longest, D]
        grad = (self.grad_out[self.rows] * self.real[:, :, None, None]).transpose(1, 2).contiguous()
        return [t.requires_grad_() for t in (q, k, v)], grad


def make_inputs(shape: Shape, seed: int) -> Inputs:
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, shape.heads, SIZE, generator=generator, device="cuda", dtype=torch.bfloat16)

    lengths = torch.tensor(shape.lengths, device="cuda")
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    places = torch.arange(int(lengths.max()), device="cuda")
    real = places < lengths[:, None]
    rows = torch.where(real, ends[:-1, None] + places, 0)
    return Inputs(normal(shape.tokens, 3), normal(shape.tokens), ends.int(), max(shape.lengths), rows, real)


def make_sets(shape: Shape) -> list[Inputs]:
    """So many that none is left in the L2 cache (60 MB) when its turn comes again."""
    return [make_inputs(shape, seed) for seed in range(max(2, min(32, int(4e8 / shape.bytes("forward")))))]


# A candidate prepares one set of inputs and gives two calls: forward, and backward of a forward done before.
Candidate = Callable[[Inputs], tuple[Pass, Pass]]


def ours(inputs: Inputs) -> tuple[Pass, Pass]:
    packed, cu, longest = inputs.packed, inputs.cu_seqlens, inputs.longest
    seed = torch.randint(2**63 - 1, (1,), device="cuda")
    arguments = (longest, SIZE**-0.5, DROPOUT, seed)
    out, logsumexp = torch.ops.imagebert.packed_attention(packed, None, cu, cu, *arguments)

    def forward() -> Tensor:
        return attention.packed_attention(packed, cu, longest, SIZE**-0.5, DROPOUT)

    def backward() -> Any:
        return torch.ops.imagebert.packed_attention_backward(
            inputs.grad_out, packed, None, cu, cu, out, logsumexp, *arguments
        )

    return forward, backward


def flash_attention_2(inputs: Inputs) -> tuple[Pass, Pass]:
    q, k, v = inputs.packed.unbind(1)
    cu, longest, scale = inputs.cu_seqlens, inputs.longest, SIZE**-0.5

    def forward() -> Any:
        return torch.ops.aten._flash_attention_forward(
            q, k, v, cu, cu, longest, longest, DROPOUT, False, False, scale=scale
        )

    out, logsumexp, state, unused, _ = forward()

    def backward() -> Any:
        return torch.ops.aten._flash_attention_backward(
            inputs.grad_out, q, k, v, out, logsumexp, cu, cu, longest, longest, DROPOUT, False, state, unused,
            scale=scale,
        )  # fmt: skip

    return forward, backward


def _differentiated(operation: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> tuple[Pass, Pass]:
    out = operation(*tensors)
    return lambda: operation(*tensors), lambda: torch.autograd.grad(out, tensors, grad, retain_graph=True)


def varlen_attn(inputs: Inputs) -> tuple[Pass, Pass]:
    from torch.nn.attention.varlen import varlen_attn as operation

    cu, longest = inputs.cu_seqlens, inputs.longest
    tensors = [t.detach().requires_grad_() for t in inputs.packed.unbind(1)]
    return _differentiated(lambda q, k, v: operation(q, k, v, cu, cu, longest, longest), tensors, inputs.grad_out)


def flex_attention(inputs: Inputs) -> tuple[Pass, Pass]:
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as operation

    tokens = len(inputs.packed)
    document = torch.repeat_interleave(inputs.cu_seqlens.diff().long())
    mask = create_block_mask(lambda b, h, q, k: document[q] == document[k], None, None, tokens, tokens, _compile=True)
    compiled = torch.compile(operation, dynamic=False)
    tensors = [t.transpose(0, 1)[None].contiguous().requires_grad_() for t in inputs.packed.unbind(1)]
    grad = inputs.grad_out.transpose(0, 1)[None].contiguous()
    return _differentiated(lambda q, k, v: compiled(q, k, v, block_mask=mask), tensors, grad)


def _written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(2, 3) * SIZE**-0.5 + bias, -1)
    return torch.nn.functional.dropout(weights, DROPOUT) @ v


def _bias(inputs: Inputs) -> Tensor:
    """0 for keys that are there, minus infinity for those that are not [B, 1, 1, longest]."""
    return torch.zeros_like(inputs.real, dtype=torch.bfloat16).masked_fill(~inputs.real, float("-inf"))[:, None, None]


def eager(inputs: Inputs) -> tuple[Pass, Pass]:
    tensors, grad = inputs.padded()
    bias = _bias(inputs)
    return _differentiated(lambda q, k, v: _written_out(q, k, v, bias), tensors, grad)


def compiled(inputs: Inputs) -> tuple[Pass, Pass]:
    tensors, grad = inputs.padded()
    operation, bias = torch.compile(_written_out, dynamic=False), _bias(inputs)
    return _differentiated(lambda q, k, v: operation(q, k, v, bias), tensors, grad)


def _sdpa(backend: SDPBackend, masked: bool) -> Candidate:
    def candidate(inputs: Inputs) -> tuple[Pass, Pass]:
        tensors, grad = inputs.padded()
        # An additive mask must start rows at multiples of 16 bytes.
        batch, longest = inputs.real.shape
        bias = torch.zeros(batch, 1, longest, -(-longest // 8) * 8, device="cuda", dtype=torch.bfloat16)[..., :longest]
        bias.masked_fill_(~inputs.real[:, None, None], float("-inf"))

        def operation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, bias if masked else None, DROPOUT)

        return _differentiated(operation, tensors, grad)

    return candidate


CANDIDATES: dict[str, Candidate] = {
    "ours": ours,
    "FlashAttention-2 varlen": flash_attention_2,
    "varlen_attn, no dropout": varlen_attn,
    "FlexAttention, no dropout": flex_attention,
    # Flash takes no mask: its time with the padding attended to, right for the full mix only.
    "padded SDPA flash": _sdpa(SDPBackend.FLASH_ATTENTION, masked=False),
    "padded SDPA efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION, masked=True),
    "padded SDPA cuDNN": _sdpa(SDPBackend.CUDNN_ATTENTION, masked=True),
    "padded eager": eager,
    "padded torch.compile": compiled,
}
EVERYWHERE = ("ours", "FlashAttention-2 varlen", "varlen_attn, no dropout")  # the others at one size only


# ----------------------------------------------------------------------------------------------------------- timing


def measure(shape: Shape, name: str) -> dict[str, Any]:
    """Times and peak memory of one candidate at one shape; with `error` instead where it does not run."""
    row: dict[str, Any] = {"mix": shape.mix, "model": shape.model, "pairs": len(shape.lengths), "candidate": name}
    row |= {"tokens": shape.tokens}
    try:
        torch.cuda.empty_cache()
        with torch.cuda.stream(stream()):
            inputs = make_sets(shape)
            used = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            pairs = [CANDIDATES[name](one) for one in inputs]
        torch.cuda.synchronize()
        forward, backward = [f for f, _ in pairs], [b for _, b in pairs]
        row["forward"], row["backward"] = seconds(forward), seconds(backward)
        row["both"] = seconds([one for pair in pairs for one in pair]) * 2
        row["peak_memory_gib"] = (torch.cuda.max_memory_allocated() - used) / 2**30
    except Exception as error:  # a candidate that this version or shape does not have
        if name == "ours":
            raise
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    return row


def on_gpu(
    limits: dict[str, float], pair_counts: list[int], keep: Callable[[list[dict[str, Any]]], None]
) -> list[Line]:
    """All candidates at all shapes: the lines that ours must reach. `keep` is given each's figures as they come."""
    rows = []
    for mix in MIXES:
        for model in HEADS:
            for pairs in pair_counts:
                for name in CANDIDATES:
                    if name not in EVERYWHERE and (pairs != 256 or model != "base"):
                        continue
                    row = measure(shape(mix, model, pairs), name)
                    rows.append(row)
                    keep([row])
                    print(json.dumps(row), flush=True)
    _print(rows, limits)
    return _lines(rows, limits)


def _lines(rows: list[dict[str, Any]], limits: dict[str, float]) -> list[Line]:
    def of(candidate: str, direction: str, **where: Any) -> list[float]:
        wanted = where | {"candidate": candidate}
        return [r[direction] for r in rows if direction in r and all(r[k] == v for k, v in wanted.items())]

    lines = []
    for direction in ("forward", "backward"):
        for mix in MIXES:
            mine, theirs = (of(name, direction, mix=mix) for name in ("ours", "FlashAttention-2 varlen"))
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)] if len(mine) == len(theirs) else []
            lines.append(Line(f"{direction}, {mix}: least speed over FlashAttention-2", min(ratios, default=0.0), 1))
        taken = of("ours", direction, mix="full", model="base", pairs=256)
        floor = shape("full", "base", 256).bytes(direction) / limits["bandwidth"]
        share = floor / taken[0] if taken else 0.0
        lines.append(Line(f"{direction}, 256 pairs of 144: share of the memory floor", share, 0.7))
    return lines


def _print(rows: list[dict[str, Any]], limits: dict[str, float]) -> None:
    table = Table("mix", "model", "pairs", "candidate", "fwd us", "bwd us", "TFLOP/s fwd", "bwd", "% floor fwd", "bwd")
    for row in rows:
        if row["pairs"] != 256 or row["model"] != "base":
            continue
        where, cells = shape(row["mix"], row["model"], row["pairs"]), [row.get("error", "")[:40]]
        if "error" not in row:
            taken = [(d, row[d]) for d in ("forward", "backward")]
            cells = [f"{t * 1e6:.0f}" for _, t in taken]
            cells += [f"{where.flops(d) / t / 1e12:.0f}" for d, t in taken]
            cells += [f"{100 * where.bytes(d) / limits['bandwidth'] / t:.0f}" for d, t in taken]
        table.add_row(row["mix"], row["model"], str(row["pairs"]), row["candidate"], *cells)
    Console(width=140).print(table)


def plot(rows: list[dict[str, Any]], limits: dict[str, float], folder: Path) -> None:
    """Shares of the memory floor, as PNG files."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for direction in ("forward", "backward"):
        figure, axes = plt.subplots(1, len(MIXES), figsize=(16, 4), sharey=True)
        for axis, mix in zip(axes, MIXES, strict=True):
            shown = [
                r for r in rows if r["mix"] == mix and r["model"] == "base" and r["pairs"] == 256 and "error" not in r
            ]
            floor = shape(mix, "base", 256).bytes(direction) / limits["bandwidth"]
            axis.barh([r["candidate"] for r in shown], [floor / r[direction] for r in shown])
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set_title(mix)
            axis.invert_yaxis()
        figure.suptitle(f"Attention {direction}, base, 256 pairs, bf16: share of the memory floor")
        figure.tight_layout()
        figure.savefig(folder / f"attention_{direction}.png", dpi=100)
        plt.close(figure)


# ------------------------------------------------------------------------------------------------------------- tune


def tune(mix: str, keep: Callable[[dict[str, Any]], None]) -> None:
    """Seconds of ours with every tiling that could hold the mix's pairs; base, 256 pairs.

    `keep` is given all figures so far after each tiling. What is fastest goes into the tables of attention.py, after
    the compile gate.
    """
    from benchmarks.compiled import CHIPS, attention_configuration, compile_ahead

    where = shape(mix, "base", 256)
    tilings = {direction: _tilings(direction, max(where.lengths)) for direction in DIRECTIONS}
    # Before anything touches the GPU: processes are forked.
    compile_ahead([attention_configuration(d, SIZE, t, True, CHIPS[-1]) for d in DIRECTIONS for t in tilings[d]])
    with torch.cuda.stream(stream()):
        sets = [ours(one) for one in make_sets(where)]
    shipped = (attention._HOPPER_FORWARD[SIZE], attention._HOPPER_BACKWARD[SIZE])
    found: dict[str, Any] = {}
    for number, direction in enumerate(DIRECTIONS):
        table = (attention._HOPPER_FORWARD, attention._HOPPER_BACKWARD)[number]
        passes = [one[number] for one in sets]
        shown = Table("tiling", f"{direction}, us")
        rows = found[direction] = []
        for tiling in [attention._fitting(shipped[number], max(where.lengths)), *tilings[direction]]:
            table[SIZE] = (tiling,)
            try:
                rows.append({"tiling": tiling._asdict(), "seconds": seconds(passes)})
            except Exception as error:  # too much shared memory or too few registers
                rows.append({"tiling": tiling._asdict(), "error": str(error)[:200]})
            print(json.dumps(rows[-1]), flush=True)
            keep({"mix": mix, "tilings": found})
        table[SIZE] = shipped[number]
        for row in sorted((r for r in rows if "seconds" in r), key=lambda r: r["seconds"])[:12]:
            shown.add_row(str(tuple(row["tiling"].values())), f"{row['seconds'] * 1e6:.1f}")
        Console(width=140).print(shown)


def _tilings(direction: str, longest: int) -> list[attention.Tiling]:
    tilings = []
    for tile in (32, 64, 128):
        full, rest = divmod(longest, tile)
        tail = 0 if rest == 0 else max(16, 2 ** (rest - 1).bit_length())
        # The rest as a tail, or as one more tile; a tail alone is a tile.
        cuts = {(full, tail), (full + (rest > 0), 0)} - {(0, tail)} - {(full, tile)}
        blocks = (64, 128) if direction == "forward" else (16, 32, 64)
        for (tiles, short), block, stages in itertools.product(sorted(cuts), blocks, (1, 2)):
            warps = 8 if 128 in (tile, block) else 4
            for registers in (None, 128 if warps == 8 else 168):
                tilings.append(attention.Tiling(block, tile, tiles, short, warps, stages, registers))
    return tilings


# ----------------------------------------------------------------------------------------------------------- floors


def floor(shape: Shape, direction: str, compiled: list[dict[str, Any]]) -> dict[str, Any]:
    """Least seconds by bytes, by products of whole tiles and by instructions, of one kernel on an H200.

    Instructions: the longest loop's, once per turn and warp, one a cycle and scheduler; what lies outside the loops is
    taken as one more turn. Each sequence is counted at the tiles that it fills.
    """
    forward = direction == "forward"
    tilings = (attention.forward_tilings if forward else attention.backward_tilings)(SIZE, True)
    tiling = attention._fitting(tilings, max(shape.lengths))
    (found,) = (
        c
        for c in compiled
        if (c["operation"], c["capability"], c["kernel"], c["size"], c["held"], c["dtype"], c["dropout"])
        == ("attention", 90, direction, SIZE, tiling.held, "bf16", True)
    )
    elements, issued = 0, 0.0
    for n in shape.lengths:
        full = min(-(-n // tiling.tile), tiling.tiles) * tiling.tile
        held = full + (tiling.tail if n > full else 0)
        turns = -(-n // tiling.block)
        elements += turns * tiling.block * held
        issued += (turns + 1) * found["longest_loop"] * (held / tiling.held) * tiling.warps
    times = {
        "memory": shape.bytes(direction) / H200_BANDWIDTH,
        "matrix": (4 if forward else 10) * elements * SIZE * shape.heads / H200_MATMUL,
        "issue": issued * shape.heads / (4 * H200_MULTIPROCESSORS * H200_CLOCK),
    }
    per_sequence = sum(shape.lengths) / len(shape.lengths) * SIZE * ITEM
    return {
        "mix": shape.mix,
        "model": shape.model,
        "pairs": len(shape.lengths),
        "direction": direction,
        "tokens": shape.tokens,
        "bytes": shape.bytes(direction),
        "flops": shape.flops(direction),
        **times,
        # Loads that the programs on one multiprocessor issue before their first product.
        "bytes_under_way": found["programs"] * per_sequence * (3 if forward else 5),
        "limit": max(times, key=times.__getitem__),
    }
