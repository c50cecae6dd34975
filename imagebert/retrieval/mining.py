"""`imagebert mine`: hard negatives for fine-tuning, which are what a model takes for matches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.draws import Purpose, below, stage_key
from imagebert.feed.plan import HardNegatives, Matches
from imagebert.log import track
from imagebert.retrieval.scoring import ScoreFunction

Numbers = NDArray[np.int64]


def mine(score: ScoreFunction, corpus: Corpus, pool: int, keep: int, seed: int) -> HardNegatives:
    """For each image the `keep` best-scoring captions of `pool` random ones that do not match it, and the reverse.

    A caption with the text of a match is one too, and so is an image with its picture.

    Raises:
        UsageError: `keep` is not between 1 and `pool`, or the corpus has too few others.
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

    def best(images: Numbers, captions: Numbers, found: Numbers) -> Numbers:
        if len(found) < keep:
            raise UsageError(f"only {len(found)} negatives were found where {keep} are to be kept: lower --keep")
        return found[np.argsort(-score(images, captions), kind="stable")[:keep]]

    hard_captions = np.empty((corpus.images, keep), np.int64)
    for image in track(range(corpus.images), "Mining captions", "images"):
        found = draw_pool(len(corpus), image, 0)
        hard_captions[image] = best(np.full(len(found), image), found, found)
    hard_images = np.empty((len(corpus), keep), np.int64)
    for caption in track(range(len(corpus)), "Mining images", "captions"):
        found = draw_pool(corpus.images, caption, 1)
        hard_images[caption] = best(found, np.full(len(found), caption), found)
    return HardNegatives(hard_captions, hard_images)
