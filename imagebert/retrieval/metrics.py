"""R@K from a score matrix (paper, section 5.1), counted so that nothing flatters.

A text query's answer is its one image; an image query's answer is any of its captions. A query whose answer ties with
wrong ones counts at the worst rank among them.
"""

from __future__ import annotations

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
    if np.isnan(scores).any():
        raise UsageError(
            f"{np.isnan(scores).sum()} of {scores.size} scores are not numbers: the evaluation is not whole"
        )
    alone = np.setdiff1d(np.arange(images), caption_image)
    if len(alone):
        raise UsageError(f"image {alone[0]} (one of {len(alone)}) has no caption: leave it out of the evaluation")
    truth = scores[caption_image, np.arange(captions)]  # [captions]
    image_ranks = (scores >= truth).sum(axis=0)  # itself, all better ones and all ties
    own = caption_image == np.arange(images)[:, None]  # [images, captions]
    best = np.where(own, scores, -np.inf).max(axis=1)  # [images]
    text_ranks = 1 + ((scores >= best[:, None]) & ~own).sum(axis=1)
    return Ranks(image_ranks.astype(np.int64), text_ranks.astype(np.int64))


def recalls(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Percent of queries answered in the top 1, 5, 10, and the median rank."""
    result = {f"r{k}": float(100 * (ranks <= k).mean()) for k in CUTOFFS}
    return {**result, "median_rank": float(np.median(ranks))}


def evaluate(scores: NDArray[np.floating], caption_image: NDArray[np.int64], folds: int = 1) -> dict[str, Any]:
    """R@K both ways, beside chance.

    Args:
        folds: cut the images, in order, into so many equal sets, evaluate each on its own captions and average:
            COCO's 1K figures are five folds of the 5K images
    """
    images = len(scores)
    check_folds(images, folds)
    size = images // folds
    parts = []
    for fold in range(folds):
        inside = caption_image // size == fold
        part = scores[fold * size : (fold + 1) * size, inside]
        ranks = rank(part, caption_image[inside] - fold * size)
        parts.append({"ir": recalls(ranks.image_retrieval), "tr": recalls(ranks.text_retrieval)})
    averaged = {way: {k: float(np.mean([p[way][k] for p in parts])) for k in parts[0][way]} for way in ("ir", "tr")}
    return {
        "images": images,
        "captions": len(caption_image),
        "folds": folds,
        **averaged,
        "chance": chance(np.bincount(caption_image, minlength=images), folds),
    }


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
