"""Exact R@K of a model in training, on a small fixed set: the evaluator that `imagebert pretrain` hands to the loop.

It has a model of its own, which is given the weights of the one that trains: so it does not matter how those are cut
over ranks, compiled, or recorded in a graph. All ranks share the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from imagebert import distributed
from imagebert.config import RunConfig
from imagebert.data.corpus import Corpus
from imagebert.feed.packer import Limits
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.retrieval.matrix import score_all
from imagebert.retrieval.metrics import CUTOFFS, rank, recalls
from imagebert.retrieval.scoring import PairScorer


def validation_corpus(config: RunConfig) -> Corpus:
    """What is evaluated while a recipe trains.

    Raises:
        UsageError: it is missing or damaged, or of another kind than what is trained on.
    """
    # With what is trained on, so that another kind of features or words is told.
    Corpus([config.data.sources[0], *config.evaluation.sources], verify=False)
    corpus = Corpus(config.evaluation.sources)
    for image in range(min(config.evaluation.images, corpus.images)):
        corpus.regions(image)  # a damaged record is told now, not after hours
    return corpus


class Validation:
    """R@K both ways, median ranks and R-sum on the first images of config.evaluation.sources.

    Raises:
        UsageError: the data is missing, damaged, or of another kind than what is trained on.
    """

    def __init__(self, config: RunConfig, shape: ImageBertConfig, dtype: torch.dtype) -> None:
        self._corpus = validation_corpus(config)
        self._images = np.arange(min(config.evaluation.images, self._corpus.images))
        self._captions = np.flatnonzero(self._corpus.caption_image < len(self._images))
        self._limits = Limits.of(config.data)
        self.model = ImageBertForImageTextRetrieval(shape).to(distributed.device(), dtype)

    def __call__(self, alive: Callable[[], None]) -> Iterator[tuple[str, float]]:
        # What was encoded with the weights before is of no use.
        scorer = PairScorer(self.model, self._corpus, self._corpus, self._limits, distributed.device())
        scores = score_all(scorer, self._images, self._captions, alive)
        ranks = rank(scores, self._corpus.caption_image[self._captions])
        figures = {"ir": recalls(ranks.image_retrieval), "tr": recalls(ranks.text_retrieval)}
        for way, values in figures.items():
            yield from ((f"recall/{way}_{name}", value) for name, value in values.items())
        yield "recall/rsum", sum(figures[way][f"r{k}"] for way in figures for k in CUTOFFS)
