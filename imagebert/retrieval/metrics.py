"""R@K from a score matrix (paper, section 5.1), counted so that nothing flatters.

A text query's answer is its one image; an image query's answer is any of its captions. A query whose answer ties with
wrong ones counts at the worst rank among them. Every recall has an interval: what other images of the same kind would
have given, 95 times in 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError

CUTOFFS = (1, 5, 10)


class Ranks(NamedTuple):
    """Rank of each query's best answer, from 1."""

    image_retrieval: NDArray[np.int64]  # [captions]
    text_retrieval: NDArray[np.int64]  # [images]


def rank(scores: NDArray[np.floating], caption_image: NDArray[np.int64]) -> Ranks:
    """Ranks in a matrix [images, captions]; caption c belongs to image caption_image[c].

    The matrix is read twice, some rows at a time: it may be mapped and larger than memory.

    Raises:
        UsageError: the shapes do not fit, a score is not a number, or an image has no caption.
    """
    images, captions = scores.shape
    if (
        caption_image.shape != (captions,)
        or captions == 0
        or not ((caption_image >= 0) & (caption_image < images)).all()
    ):
        raise UsageError(f"scores of {images} images x {captions} captions do not fit their list of images")
    alone = np.setdiff1d(np.arange(images), caption_image)
    if len(alone):
        raise UsageError(f"image {alone[0]} (one of {len(alone)}) has no caption: leave it out of the evaluation")
    truth = np.empty(captions, scores.dtype)
    missing = 0
    for start, part in blocks(scores):
        own = np.flatnonzero((caption_image >= start) & (caption_image < start + len(part)))
        truth[own] = part[caption_image[own] - start, own]
        missing += int(np.isnan(part).sum())
    if missing:
        raise UsageError(f"{missing} of {scores.size} scores are not numbers: the evaluation is not whole")
    best = np.full(images, -np.inf, scores.dtype)
    np.maximum.at(best, caption_image, truth)
    # Itself, all better ones and all ties; of an image's own captions none but the best.
    image_ranks, text_ranks = np.zeros(captions, np.int64), np.empty(images, np.int64)
    for start, part in blocks(scores):
        image_ranks += (part >= truth).sum(axis=0)
        text_ranks[start : start + len(part)] = (part >= best[start : start + len(part), None]).sum(axis=1)
    text_ranks -= np.bincount(caption_image[truth == best[caption_image]], minlength=images) - 1
    return Ranks(image_ranks, text_ranks)


def blocks(scores: NDArray[np.floating], size: int = 1 << 24) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """The matrix some rows at a time, about `size` scores of it: the first row's number, and the rows."""
    rows = max(1, size // scores.shape[1])
    for start in range(0, len(scores), rows):
        yield start, np.asarray(scores[start : start + rows])


def recalls(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Percent of queries answered in the top 1, 5, 10, the median and the mean rank."""
    result = {f"r{k}": float(100 * (ranks <= k).mean()) for k in CUTOFFS}
    return {**result, "median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


class Fold(NamedTuple):
    """A set of images that is evaluated by itself, with the captions of those."""

    start: int  # its first image
    caption_image: NDArray[np.int64]  # [captions of the fold], counted from `start`
    captions: NDArray[np.int64]  # which of all captions those are
    ranks: Ranks


def rank_folds(scores: NDArray[np.floating], caption_image: NDArray[np.int64], folds: int = 1) -> list[Fold]:
    """Ranks within each of `folds` equal sets of the images, in order: COCO's 1K figures are five of the 5K images.

    Raises:
        UsageError: the images cannot be cut so, or as `rank` does.
    """
    check_folds(len(scores), folds)
    size, found = len(scores) // folds, []
    for start in range(0, len(scores), size):
        captions = np.flatnonzero((caption_image >= start) & (caption_image < start + size))
        inside = caption_image[captions] - start
        part = scores[start : start + size]
        part = part if folds == 1 else part[:, captions]
        found.append(Fold(start, inside, captions, rank(part, inside)))
    return found


def evaluate(scores: NDArray[np.floating], caption_image: NDArray[np.int64], folds: int = 1) -> dict[str, Any]:
    """R@K both ways, means over the folds, with intervals and beside chance: `summarize(rank_folds(...))`."""
    return summarize(rank_folds(scores, caption_image, folds))


def summarize(folds: Sequence[Fold]) -> dict[str, Any]:
    """R@K, ranks and R-sum, means over the folds, each recall with its 95 % interval, beside chance."""
    averaged: dict[str, dict[str, Any]] = averages(folds)
    drawn = bootstrap(folds)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0).tolist()
    intervals = dict(zip(NAMES, zip(low, high, strict=True), strict=True))
    for way in ("ir", "tr"):
        averaged[way]["interval"] = {f"r{k}": list(intervals[f"{way} r{k}"]) for k in CUTOFFS}
    captions = np.concatenate([np.bincount(f.caption_image) for f in folds])
    return {
        "images": len(captions),
        "captions": int(captions.sum()),
        "folds": len(folds),
        **averaged,
        "rsum": sum(averaged[way][f"r{k}"] for way in ("ir", "tr") for k in CUTOFFS),
        "rsum_interval": list(intervals["rsum"]),
        "chance": chance(captions, len(folds)),
    }


def averages(folds: Sequence[Fold]) -> dict[str, dict[str, float]]:
    """`recalls` both ways, means over the folds."""
    parts = [{"ir": recalls(f.ranks.image_retrieval), "tr": recalls(f.ranks.text_retrieval)} for f in folds]
    return {way: {k: float(np.mean([p[way][k] for p in parts])) for k in parts[0][way]} for way in ("ir", "tr")}


# The columns of `bootstrap`.
NAMES = [*(f"{way} r{k}" for way in ("ir", "tr") for k in CUTOFFS), "rsum"]


def bootstrap(folds: Sequence[Fold], samples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """The seven figures NAMES for `samples` sets of queries, each drawn from the images with replacement [samples, 7].

    What is drawn is an image with all its captions: queries of one image are not independent. The same seed draws the
    same images, so two evaluations of the same queries can be compared pair by pair.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros((samples, 2 * len(CUTOFFS)))
    for fold in folds:
        images = len(fold.ranks.text_retrieval)
        drawn = generator.multinomial(images, np.full(images, 1 / images), samples).astype(float)  # [samples, images]
        captions = np.bincount(fold.caption_image, minlength=images)
        hits = [np.bincount(fold.caption_image, fold.ranks.image_retrieval <= k, images) for k in CUTOFFS]
        total[:, : len(CUTOFFS)] += drawn @ np.stack(hits, axis=1) / (drawn @ captions)[:, None]
        total[:, len(CUTOFFS) :] += drawn @ np.stack([fold.ranks.text_retrieval <= k for k in CUTOFFS], axis=1) / images
    percent = 100 * total / len(folds)
    return np.concatenate([percent, percent.sum(axis=1, keepdims=True)], axis=1)


def check_folds(images: int, folds: int) -> None:
    if folds < 1 or images % folds:
        raise UsageError(f"{images} images cannot be cut into {folds} equal folds")


def chance(captions_per_image: NDArray[np.int64], folds: int = 1) -> dict[str, dict[str, float]]:
    """R@K, in percent, that random scores reach on average."""
    images, captions = len(captions_per_image) // folds, int(captions_per_image.sum()) // folds
    counts, shares = np.unique(captions_per_image, return_counts=True)
    text = {}
    for k in CUTOFFS:
        misses = [comb(captions - int(own), k) / comb(captions, k) if captions >= k else 0.0 for own in counts]
        text[f"r{k}"] = float(100 * (1 - np.average(misses, weights=shares)))
    return {"ir": {f"r{k}": min(100.0, 100 * k / images) for k in CUTOFFS}, "tr": text}
