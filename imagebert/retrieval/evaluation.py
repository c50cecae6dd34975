"""`imagebert evaluate` and `imagebert mine`: a model folder and a corpus to scores, R@K, or hard negatives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from imagebert.config import UsageError
from imagebert.data.corpus import Corpus
from imagebert.data.folder import file_digest
from imagebert.feed.draws import Purpose, below, stage_key
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import HardNegatives, Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, initialize_from
from imagebert.model.initialization import read_architecture
from imagebert.retrieval.scoring import ScoreFunction, ScoreMatrix, model_scores, score_all

Numbers = NDArray[np.int64]


def load_scorer(model_folder: Path, corpus: Corpus, limits: Limits) -> tuple[ScoreFunction, Packer]:
    """The scoring function of a model folder: a fine-tuned model, or a pre-trained one (zero-shot: its ITM head).

    Raises:
        UsageError: no ImageBERT there, or one made for other features or another vocabulary.
    """
    shape = read_architecture(model_folder)
    if "feature_size" not in shape:
        raise UsageError(f"{model_folder} is a text-only BERT: it scores no images, train it first")
    needed = {"feature_size": corpus.feature_size, "vocab_size": len(corpus.tokenizer)}
    for name, size in needed.items():
        if shape[name] != size:
            raise UsageError(f"{model_folder} has {name} {shape[name]}, the data has {size}: use data of its kind")
    vocabulary = model_folder / "vocab.txt"
    if vocabulary.is_file() and file_digest(vocabulary) != corpus.tokenizer.digest:
        raise UsageError(
            f"{vocabulary} is not the vocabulary that the pairs were tokenised with: use pairs of its kind"
        )
    model = ImageBertForImageTextRetrieval(ImageBertConfig.from_pretrained(model_folder))
    report = initialize_from(model, model_folder)
    if report.new:
        raise UsageError(f"{model_folder} lacks weights: {', '.join(report.new[:4])}")
    packer = Packer(corpus, replace(limits, mark_whole_image=model.config.use_global_image_token))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model_scores(model, packer, device), packer


def score_corpus(model_folder: Path, corpus: Corpus, limits: Limits, images: int) -> ScoreMatrix:
    """The first `images` images of a corpus with every caption of those."""
    score, packer = load_scorer(model_folder, corpus, limits)
    captions = np.flatnonzero(corpus.caption_image < images)
    scores = score_all(score, packer.lengths, np.arange(images), captions)
    return ScoreMatrix(scores, corpus.caption_image[captions])


def mine(score: ScoreFunction, packer: Packer, pool: int, keep: int, seed: int) -> HardNegatives:
    """For each image the `keep` best-scoring captions of `pool` random ones of other images, and the reverse.

    Raises:
        UsageError: `keep` is not between 1 and `pool`, or the corpus has too few others.
    """
    corpus = packer.corpus
    if not 0 < keep <= pool:
        raise UsageError(f"keep {keep} of a pool of {pool}: keep at least 1 and at most the pool")
    key = stage_key(seed, "mine")
    own = corpus.caption_image

    def draw_pool(numbers: int, query: int, side: int, own_numbers: Numbers) -> Numbers:
        """Distinct numbers that are not the query's own, at most `pool`, in the order drawn."""
        drawn = below(numbers, key, Purpose.HARD, query, np.arange(4 * pool), side)
        drawn = drawn[~np.isin(drawn, own_numbers)]
        _, first = np.unique(drawn, return_index=True)
        return drawn[np.sort(first)][:pool]

    def best(images: Numbers, captions: Numbers, found: Numbers) -> Numbers:
        if len(found) < keep:
            raise UsageError(f"only {len(found)} negatives were found where {keep} are to be kept: lower --keep")
        scores = score(Samples(images, captions, np.zeros(len(found), np.int64), np.arange(len(found))))
        return found[np.argsort(-scores, kind="stable")[:keep]]

    hard_captions = np.empty((corpus.images, keep), np.int64)
    for image in track(range(corpus.images), "Mining captions"):
        found = draw_pool(len(corpus), image, 0, np.flatnonzero(own == image))
        hard_captions[image] = best(np.full(len(found), image), found, found)
    hard_images = np.empty((len(corpus), keep), np.int64)
    for caption in track(range(len(corpus)), "Mining images"):
        found = draw_pool(corpus.images, caption, 1, own[caption : caption + 1])
        hard_images[caption] = best(found, np.full(len(found), caption), found)
    return HardNegatives(hard_captions, hard_images)
