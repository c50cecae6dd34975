"""`imagebert mine`: hard negatives for fine-tuning, which are what a model takes for matches.

Queries come in blocks, which ranks take as they are free. What is drawn and scored for a block depends on the block
alone, so that any number of ranks finds the same.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.draws import Purpose, below, stage_key
from imagebert.feed.plan import HardNegatives, Matches
from imagebert.log import Progress
from imagebert.retrieval.scoring import ScoreFunction

Numbers = NDArray[np.int64]

_BLOCK = 64  # queries whose pools are scored together


def mine(score: ScoreFunction, corpus: Corpus, pool: int, keep: int, seed: int) -> HardNegatives:
    """For each image the `keep` best-scoring captions of `pool` random ones that do not match it, and the reverse.

    A caption with the text of a match is one too, and so is an image with its picture. All ranks share the work, and
    all are given all of it.

    Args:
        score: of a pair the same bits, whatever was scored before the pairs that it comes with

    Raises:
        UsageError: `keep` is not between 1 and `pool`, or the corpus has too few others.
        OSError: another rank failed, or is gone.
    """
    if not 0 < keep <= pool:
        raise UsageError(f"keep {keep} of a pool of {pool}: keep at least 1 and at most the pool")
    key = stage_key(seed, "mine")
    matches = Matches(corpus.image_class, corpus.caption_class, corpus.caption_image)

    def draw_pool(numbers: int, query: int, side: int) -> Numbers:
        """Distinct numbers that do not match the query, at most `pool`, in the order drawn."""
        drawn = below(numbers, key, Purpose.HARD, query, np.arange(4 * pool), side)
        queries = np.full_like(drawn, query)
        drawn = drawn[~(matches(drawn, queries) if side else matches(queries, drawn))]
        _, first = np.unique(drawn, return_index=True)
        return drawn[np.sort(first)][:pool]

    def best(queries: range, side: int) -> Numbers:
        """What each query keeps of its pool [queries, keep]."""
        pools = [draw_pool(len(corpus) if side == 0 else corpus.images, query, side) for query in queries]
        shortest = min(map(len, pools))
        if shortest < keep:
            raise UsageError(f"only {shortest} negatives were found where {keep} are to be kept: lower `keep`")
        ends = np.cumsum([len(found) for found in pools])
        asked, drawn = np.repeat(queries, [len(found) for found in pools]), np.concatenate(pools)
        scores = np.split(score(*((asked, drawn) if side == 0 else (drawn, asked))), ends[:-1])
        ordered = [np.argsort(-own, kind="stable")[:keep] for own in scores]
        return np.stack([found[order] for found, order in zip(pools, ordered, strict=True)])

    mined = HardNegatives(np.zeros((corpus.images, keep), np.int64), np.zeros((len(corpus), keep), np.int64))
    blocks = [
        (side, range(start, min(start + _BLOCK, len(kept))))
        for side, kept in enumerate(mined)
        for start in range(0, len(kept), _BLOCK)
    ]
    with distributed.together(), Progress("Mining", len(blocks), "blocks") as progress:
        for number in distributed.queue():
            progress.update(min(number, len(blocks)))  # of all ranks: they take them in order
            if number >= len(blocks):
                break
            side, queries = blocks[number]
            mined[side][queries.start : queries.stop] = best(queries, side)
    return HardNegatives(*(_summed(kept) for kept in mined))


def _summed(values: Numbers) -> Numbers:
    """Over all ranks: each has zeros where another one's are."""
    on_device = torch.from_numpy(values).to(distributed.device())
    return distributed.total_on_device(on_device).cpu().numpy()
