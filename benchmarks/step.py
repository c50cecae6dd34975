"""A training step in parts: the floating-point operations that each must do, and the bytes that it must move.

Counted are forward and backward of what ImageBERT computes on real tokens, each tensor read and written once, bf16
activations and weights. The last layer counts for the rows that heads read. From these come floors (the larger of
operations over the matrix units' rate and bytes over bandwidth) and the model's FLOP/s in benchmarks/train.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.mixes import SPECIALS, draw_lengths

ITEM = 2  # bytes of a bf16
# Measured on an H200, for predictions; a run on a GPU measures its own.
H200_BANDWIDTH, H200_MATMUL = 4.3e12, 790e12


class Model(NamedTuple):
    layers: int
    hidden: int
    words: int = 30522
    features: int = 2048
    classes: int = 1600

    @property
    def parameters(self) -> int:
        h = self.hidden
        heads = h * h + self.classes * h + self.features * h
        return self.layers * 12 * h * h + (self.words + 512) * h + self.features * h + heads


MODELS = {"base": Model(12, 768), "large": Model(24, 1024)}


class Work(NamedTuple):
    """What a step is done on."""

    pairs: int
    regions: int
    texts: int  # words and specials
    squares: float  # sum of squared lengths
    masked_words: float
    masked_regions: float

    @property
    def tokens(self) -> int:
        return self.regions + self.texts

    @property
    def reads(self) -> float:
        return self.pairs + self.masked_words + self.masked_regions


def work_of(mix: str, pairs: int, masked: float = 0.15, matched: float = 0.5) -> Work:
    rng = np.random.default_rng(0)
    regions, words = draw_lengths(rng, mix, "regions", pairs), draw_lengths(rng, mix, "words", pairs)
    lengths = regions + words + SPECIALS
    total, texts = int(regions.sum()), int(words.sum())
    rows = [n * masked * matched for n in (texts, total)]
    return Work(pairs, total, texts + SPECIALS * pairs, float(np.square(lengths).sum()), *rows)


class Part(NamedTuple):
    flops: float
    bytes: float

    def floor(self, matmul: float, bandwidth: float) -> float:
        """Seconds."""
        return max(self.flops / matmul, self.bytes / bandwidth)


def parts(model: Model, work: Work) -> dict[str, Part]:
    """Forward and backward of a whole step, and the update of the weights."""
    h, t, q = model.hidden, work.tokens, work.reads
    full = model.layers - 1  # the last layer computes less
    rows = full * t + q  # rows of LayerNorm and feed-forward over all layers
    products = full * 12 * t + 2 * t + 10 * q  # in h^2, forward
    # Each product reads its rows and writes others: 4 h in and 9 h out of a layer forward, twice that backward.
    moved = 3 * ITEM * (full * 15 * t * h + 3 * t * h + 13 * q * h) + 3 * ITEM * model.layers * 12 * h * h
    heads_flops = 6 * work.masked_words * h * (model.words + h)
    heads_flops += 6 * work.masked_regions * h * model.classes + 8 * work.masked_regions * h * model.features
    logits = work.masked_words * model.words + work.masked_regions * model.classes
    weights = (model.words + model.classes + model.features) * h
    return {
        "region projection": Part(
            4 * work.regions * model.features * h,
            2 * work.regions * model.features + 2 * ITEM * work.regions * h + 2 * ITEM * model.features * h,
        ),
        "embedding, LayerNorm, dropout": Part(0, ITEM * h * (7 * t + work.texts + model.words)),
        "products of the layers": Part(6 * h * h * products, moved),
        "attention": Part(
            14 * h * work.squares * (full + q / t),
            12 * ITEM * h * (full * t + (2 * t + 2 * q) / 4),
        ),
        "bias, dropout, residual, LayerNorm": Part(0, 2 * 8 * ITEM * h * rows),
        "bias, GELU": Part(0, 5 * ITEM * 4 * h * rows),
        "heads and losses": Part(heads_flops, 6 * ITEM * logits + 3 * ITEM * weights),
        # Gradient in 16 bits; master weight and two moments in 32, read and written; weight in 16.
        "optimizer": Part(0, 28 * model.parameters),
    }


def model_flops(model: Model, work: Work) -> float:
    """Of one step, on real tokens only."""
    return sum(part.flops for part in parts(model, work).values())


# What a profiler's event belongs to, by words in its name: first on a GPU, where it is a kernel, then on a CPU.
_PATTERNS = {
    "region projection": ("region_projection",),
    "embedding, LayerNorm, dropout": ("embedding",),
    "attention": ("attention", "softmax", "flash", "fmha"),
    "bias, dropout, residual, LayerNorm": ("layer_norm", "layernorm", "dropout", "bernoulli"),
    "bias, GELU": ("gelu",),
    "heads and losses": ("region_regression", "classification", "log_softmax", "nll_loss", "cross_entropy"),
    "optimizer": ("adam", "multi_tensor", "foreach", "optimizer"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "addmm", "aten::mm", "aten::bmm", "aten::matmul", "linear"),
}


def part_of(event: str) -> str:
    """The part that a kernel or an operator of PyTorch belongs to, by its name."""
    name = event.lower()
    if "log_softmax" in name or "cross_entropy" in name:
        return "heads and losses"
    return next((part for part, words in _PATTERNS.items() if any(word in name for word in words)), "other")
