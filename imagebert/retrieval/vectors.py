"""The dual head's vectors of whole stores, computed once, by all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.log import Progress
from imagebert.retrieval.scoring import NO_DUAL, PairScorer

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]
Block = TypeVar("Block")

_BLOCK = 1000  # images or captions that are encoded together


class Embeddings(NamedTuple):
    images: Vectors  # [I, D]
    captions: Vectors  # [N, D]


def shared(blocks: Sequence[Block], what: str, unit: str = "blocks") -> Iterator[Block]:
    """Those of the blocks that fall to this rank: whoever is free takes the next."""
    with Progress(what, len(blocks), unit) as progress:
        for number in distributed.queue():
            progress.update(min(number, len(blocks)))  # of all ranks: they take them in order
            if number >= len(blocks):
                return
            yield blocks[number]


def summed(values: NDArray[Any]) -> NDArray[Any]:
    """Over all ranks: each has zeros where another one's are."""
    on_device = torch.from_numpy(values).to(distributed.device())
    return distributed.total_on_device(on_device).cpu().numpy()


def encode(scorer: PairScorer, of: Callable[[Numbers], Vectors], count: int, size: int | None = None) -> Vectors:
    """The vectors [count, D] of images or captions; all ranks share the work, and all are given all of it.

    What is encoded together depends on the numbers alone, so that any number of ranks finds the same.

    Args:
        of: `scorer.image_vectors` or `scorer.text_vectors`
        size: D, where it is not the dual head's

    Raises:
        UsageError: the model has no dual head, or gives numbers that are not finite.
        OSError: another rank failed, or is gone.
    """
    if scorer.model.dual is None:
        raise UsageError(NO_DUAL)
    vectors = np.zeros((count, size or scorer.model.config.dual_size), np.float32)
    blocks = [np.arange(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    with distributed.together():
        for numbers in shared(blocks, "Encoding", f"blocks of {_BLOCK:,}"):
            vectors[numbers] = of(numbers)
            if not np.isfinite(vectors[numbers]).all():
                raise UsageError("the model's vectors are not finite numbers: train it again with a lower rate")
    return summed(vectors)


def encode_both(scorer: PairScorer, images: int, captions: int) -> Embeddings:
    """Vectors of all images and of all captions; see `encode`."""
    return Embeddings(encode(scorer, scorer.image_vectors, images), encode(scorer, scorer.text_vectors, captions))
