"""Which words and regions are masked, and with what: a pure function of counters, the same bits on every device.

    draw(state, a, b) = mix(mix(state ^ mix(a)) ^ mix(b)),    mix being SplitMix64's finaliser (Steele et al., 2014)

For a word at place p of sample s: masked where draw(mask, s, p) lies below a rate; then its second draw says whether a
mask, a random word or the word itself is seen, and its third which random word (Devlin et al., 2019, section 3.1). For
a region: masked alike, and the second draw says whether its feature is zeroed (paper, section 4). The states are chains
of draws over what is the same for a whole batch, made by the caller. Numbers below a rate are compared as whole numbers
of 53 bits, so that no rounding differs between a CPU and a GPU.

Layouts: everything [n], contiguous; words, samples and places int64, flags bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int
from torch import Tensor


@triton.jit
def _mix(z):
    z = z + 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _draw(state, sample, place):
    """64 bits [BLOCK]."""
    return _mix(_mix(state.to(tl.uint64) ^ _mix(sample)) ^ _mix(place))


@triton.jit
def _upper(draw):
    """The upper 53 bits, to be compared with a rate."""
    return (draw >> 11).to(tl.int64)


@triton.jit
def _counters(samples, places, items, BLOCK: tl.constexpr):
    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = item < items
    sample = tl.load(samples + item, mask=real, other=0).to(tl.uint64)
    return item, real, sample, tl.load(places + item, mask=real, other=0).to(tl.uint64)


_WORD_NUMBERS = [
    "mask_state", "change_state", "word_state", "masked_rate", "mask_rate", "random_rate", "items", "mask_word",
    "vocabulary",
]  # fmt: skip


@triton.jit(do_not_specialize=_WORD_NUMBERS)
def masking_words(
    words,  # [n]
    samples,  # [n]
    places,  # [n]
    seen,  # [n]
    masked,  # [n]
    mask_state,
    change_state,
    word_state,
    masked_rate,
    mask_rate,
    random_rate,
    items,  # n
    mask_word,
    vocabulary,
    BLOCK: tl.constexpr,
):
    item, real, sample, place = _counters(samples, places, items, BLOCK)
    word = tl.load(words + item, mask=real, other=0)
    chosen = _upper(_draw(mask_state, sample, place)) < masked_rate
    change = _upper(_draw(change_state, sample, place))
    other = ((_draw(word_state, sample, place) >> 32) * vocabulary.to(tl.uint64) >> 32).to(tl.int64)
    changed = tl.where(change < mask_rate, mask_word.to(tl.int64), tl.where(change < random_rate, other, word))
    tl.store(seen + item, tl.where(chosen, changed, word), mask=real)
    tl.store(masked + item, chosen, mask=real)


@triton.jit(do_not_specialize=["mask_state", "change_state", "masked_rate", "zeroed_rate", "items"])
def masking_regions(
    samples,  # [n]
    places,  # [n]
    masked,  # [n]
    zeroed,  # [n]
    mask_state,
    change_state,
    masked_rate,
    zeroed_rate,
    items,  # n
    BLOCK: tl.constexpr,
):
    item, real, sample, place = _counters(samples, places, items, BLOCK)
    chosen = _upper(_draw(mask_state, sample, place)) < masked_rate
    change = _upper(_draw(change_state, sample, place))
    tl.store(masked + item, chosen, mask=real)
    tl.store(zeroed + item, chosen & (change < zeroed_rate), mask=real)


def tiling() -> dict[str, int]:
    return {"BLOCK": 256, "num_warps": 4}


def mask_words(
    words: Int[Tensor, " n"], samples: Int[Tensor, " n"], places: Int[Tensor, " n"], states: Sequence[int],
    rates: Sequence[float], mask_word: int, vocabulary: int,
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:  # fmt: skip
    """Words as the model sees them, and which are masked.

    Args:
        states: 64 bits each: of the mask, of the change, of the random word
        rates: the share that is masked; the shares of the second draw below which the mask is seen, and a random word
    """
    seen, masked = torch.empty_like(words), torch.empty_like(words, dtype=torch.bool)
    with torch.cuda.device_of(words):
        masking_words[_grid(words)](
            words, samples, places, seen, masked, *map(_signed, states), *map(_numerator, rates), len(words),
            mask_word, vocabulary, **tiling(),
        )  # fmt: skip
    return seen, masked


def mask_regions(
    samples: Int[Tensor, " n"], places: Int[Tensor, " n"], states: Sequence[int], rates: Sequence[float]
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Which regions are masked, and of which the model sees a feature of zeros.

    Args:
        states: 64 bits each: of the mask, of the change
        rates: the share that is masked; the share of those that is zeroed
    """
    masked, zeroed = (torch.empty_like(samples, dtype=torch.bool) for _ in range(2))
    with torch.cuda.device_of(samples):
        masking_regions[_grid(samples)](
            samples, places, masked, zeroed, *map(_signed, states), *map(_numerator, rates), len(samples), **tiling()
        )
    return masked, zeroed


def _grid(items: Tensor) -> tuple[int]:
    return (triton.cdiv(max(len(items), 1), tiling()["BLOCK"]),)


def _signed(bits: int) -> int:
    """The same 64 bits as a whole number with a sign, as kernels take them."""
    return (bits + 2**63) % 2**64 - 2**63


def _numerator(share: float) -> int:
    """A draw's upper 53 bits lie below this with just that probability: no rounding differs between devices."""
    return math.ceil(share * 2**53)
