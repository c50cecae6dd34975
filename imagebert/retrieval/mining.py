"""`imagebert mine`: hard negatives for fine-tuning, which are what a model takes for matches.

By scores: the best of a random pool, by the whole model. By vectors: the nearest of all, by the dual head alone.
Queries come in blocks, which ranks take as they are free. What is done for a block depends on the block alone, so that
any number of ranks finds the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.draws import Purpose, below, stage_key
from imagebert.feed.plan import HardNegatives, Matches
from imagebert.retrieval.candidates import nearest
from imagebert.retrieval.scoring import ScoreFunction
from imagebert.retrieval.vectors import Embeddings, shared, summed

Numbers = NDArray[np.int64]

_BLOCK = 64  # queries whose pools are scored together
_SEARCHED = 1024  # queries that are searched for together
_MATCHES = 24  # found beside those to keep: more than most queries have


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

    return _of_all(corpus, keep, _BLOCK, best)


def mine_by_vectors(vectors: Embeddings, corpus: Corpus, keep: int) -> HardNegatives:
    """For each image the `keep` captions with the nearest vectors that do not match it, and the reverse.

    The search is exact. What matches, who does the work and what is raised are as for `mine`.
    """
    matches = Matches(corpus.image_class, corpus.caption_class, corpus.caption_image)

    def best(queries: range, side: int) -> Numbers:
        """What each query keeps, the nearest first [queries, keep]."""
        own, others = vectors if side == 0 else vectors[::-1]
        kept = np.empty((len(queries), keep), np.int64)
        left, count = np.asarray(queries), min(keep + _MATCHES, len(others))
        while len(left):
            found = nearest(own[left], others, count)  # [left, count]
            asked = np.broadcast_to(left[:, None], found.shape)
            matched = matches(found, asked) if side else matches(asked, found)
            enough = count - matched.sum(axis=1) >= keep
            if count == len(others) and not enough.all():
                fewest = count - int(matched.sum(axis=1).max())
                raise UsageError(f"only {fewest} negatives are there where {keep} are to be kept: lower `keep`")
            nearest_first = np.argsort(matched, axis=1, kind="stable")[:, :keep]
            kept[left[enough] - queries.start] = np.take_along_axis(found, nearest_first, axis=1)[enough]
            left, count = left[~enough], min(4 * count, len(others))
        return kept

    return _of_all(corpus, keep, _SEARCHED, best)


def _of_all(corpus: Corpus, keep: int, size: int, best: Callable[[range, int], Numbers]) -> HardNegatives:
    """What `best` gives for blocks of images (side 0) and captions (1), made by all ranks; all are given all of it."""
    mined = HardNegatives(np.zeros((corpus.images, keep), np.int64), np.zeros((len(corpus), keep), np.int64))
    blocks = [
        (side, range(start, min(start + size, len(kept))))
        for side, kept in enumerate(mined)
        for start in range(0, len(kept), size)
    ]
    with distributed.together():
        for side, queries in shared(blocks, "Mining"):
            mined[side][queries.start : queries.stop] = best(queries, side)
    return HardNegatives(*(summed(kept) for kept in mined))
