"""`imagebert evaluate` and `imagebert mine`: a model folder and a corpus to scores, R@K, or hard negatives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.draws import Purpose, below, stage_key
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import HardNegatives, Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, initialize_from
from imagebert.model.initialization import read_architecture
from imagebert.retrieval.scoring import ScoreFunction, ScoreMatrix, model_scores, score_all


def load_scorer(model_folder: Path, corpus: Corpus, limits: Limits) -> tuple[ScoreFunction, Packer]:
    """The scoring function of a model folder: a fine-tuned model, or a pre-trained one (zero-shot: its ITM head).

    Raises:
        UsageError: no ImageBERT there, or one made for other features or another vocabulary.
    """
    shape = read_architecture(model_folder)
    if "feature_size" not in shape:
        raise UsageError(f"{model_folder} is a text-only BERT: it scores no images, train it first")
    needed = {"feature_size": corpus.feature_size, "vocab_size": len(corpus.tokenizer())}
    for name, size in needed.items():
        if shape[name] != size:
            raise UsageError(f"{model_folder} has {name} {shape[name]}, the data has {size}: use data of its kind")
    model = ImageBertForImageTextRetrieval(ImageBertConfig.from_pretrained(model_folder))
    report = initialize_from(model, model_folder)
    if report.new:
        raise UsageError(f"{model_folder} lacks weights: {', '.join(report.new[:4])}")
    packer = Packer(corpus, replace(limits, mark_whole_image=model.config.use_global_image_token))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model_scores(model, packer, device), packer


def score_corpus(
    model_folder: Path, source: SourceConfig, limits: Limits, images: int | None = None
) -> tuple[ScoreMatrix, Corpus]:
    """Every image of a source, or its first `images`, with every caption of those."""
    corpus = Corpus([source])
    score, packer = load_scorer(model_folder, corpus, limits)
    count = corpus.images if images is None else min(images, corpus.images)
    captions = np.flatnonzero(corpus.caption_image < count)
    scores = score_all(score, packer.lengths, np.arange(count), captions)
    return ScoreMatrix(scores, corpus.caption_image[captions]), corpus


def mine(score: ScoreFunction, packer: Packer, pool: int, keep: int, seed: int) -> HardNegatives:
    """For each image the `keep` best-scoring captions of `pool` random ones that are not its own, and the reverse."""
    corpus = packer.corpus
    if not 0 < keep <= pool:
        raise UsageError(f"keep {keep} of a pool of {pool}: keep at least 1 and at most the pool")
    key = stage_key(seed, "mine")
    own = corpus.caption_image

    def best(images: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.int64]:
        labels = np.zeros(pool, np.int64)
        scores = score(Samples(images, captions, labels, np.arange(pool)))
        scores = np.where(own[captions] == images, -np.inf, scores)  # its own is no negative
        return np.argsort(-scores, kind="stable")[:keep]

    hard_captions = np.empty((corpus.images, keep), np.int64)
    for image in track(range(corpus.images), "Mining captions"):
        drawn = below(len(corpus), key, Purpose.HARD, image, np.arange(pool), 0)
        hard_captions[image] = drawn[best(np.full(pool, image), drawn)]
    hard_images = np.empty((len(corpus), keep), np.int64)
    for caption in track(range(len(corpus)), "Mining images"):
        drawn = below(corpus.images, key, Purpose.HARD, caption, np.arange(pool), 1)
        hard_images[caption] = drawn[best(drawn, np.full(pool, caption))]
    return HardNegatives(hard_captions, hard_images)
