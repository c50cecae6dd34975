"""Search without scoring everything: vectors find candidates, ImageBERT scores those. The gate of faiss.

Vectors are the dual head's, or any that a person brings: an .npz file with

    images [I, D], captions [N, D]      float; the larger the product of two, the likelier they match
    image_keys [I]                      text, the keys of the region store
    caption_texts [N]                   text; in the order of the pair store's split

The search is over all vectors and exact (faiss' flat index): a million of 256 numbers are a gigabyte and a tenth of a
second. Only what it leaves out is lost, and `imagebert evaluate --candidates` says how much that is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.retrieval.matrix import ScoreMatrix
from imagebert.retrieval.metrics import recalls
from imagebert.retrieval.scoring import PairScorer

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]

_TOP = 10  # of the exact order, whose recall is told


def nearest(queries: Vectors, keys: Vectors, count: int) -> Numbers:
    """The numbers of the `count` keys [N, D] with the largest product with each of queries [Q, D]: [Q, count]."""
    import faiss

    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(np.ascontiguousarray(keys, np.float32))
    _, found = index.search(np.ascontiguousarray(queries, np.float32), min(count, len(keys)))
    return np.asarray(found, np.int64)


class Embeddings(NamedTuple):
    images: Vectors  # [I, D]
    captions: Vectors  # [N, D]


def read_embeddings(path: Path, keys: list[str], texts: list[str]) -> Embeddings:
    """Vectors that a person brought, for these images and captions, in their order.

    Raises:
        UsageError: the file cannot be read, lacks an image or a caption, or names an image twice.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, captions = (np.asarray(file[name], np.float32) for name in ("images", "captions"))
            image_keys, caption_texts = file["image_keys"].tolist(), file["caption_texts"].tolist()
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        raise UsageError(
            f"embeddings {path}: {error}; give an .npz with images, captions, image_keys and caption_texts"
        ) from None
    shapes = images.shape, captions.shape
    fits = images.ndim == captions.ndim == 2 and images.shape[1] == captions.shape[1]
    if not fits or len(image_keys) != len(images) or len(caption_texts) != len(captions):
        raise UsageError(
            f"embeddings {path}: images {shapes[0]} and captions {shapes[1]} do not fit each other or their "
            f"{len(image_keys)} keys and {len(caption_texts)} texts"
        )
    if not (np.isfinite(images).all() and np.isfinite(captions).all()):
        raise UsageError(f"embeddings {path} holds numbers that are not finite")
    places: dict[str, int] = {}
    for number, key in enumerate(image_keys):
        if places.setdefault(key, number) != number:
            raise UsageError(f"embeddings {path} names image {key!r} twice")
    missing = [key for key in keys if key not in places]
    if missing:
        raise UsageError(f"embeddings {path} lacks image {missing[0]!r} (one of {len(missing)})")
    if caption_texts[: len(texts)] != texts:
        number = next(n for n, text in enumerate(texts) if n >= len(caption_texts) or caption_texts[n] != text)
        raise UsageError(
            f"embeddings {path}: caption {number} is not {texts[number][:40]!r}: keep the order of the store's split"
        )
    return Embeddings(images[[places[key] for key in keys]], captions[: len(texts)])


def two_step(
    scorer: PairScorer, images: Numbers, captions: Numbers, matrix: ScoreMatrix, count: int, given: Embeddings | None
) -> dict[str, Any]:
    """R@K when only `count` candidates of each query are scored, beside what scoring everything finds.

    A query whose answer is not among its candidates has the worst rank of all. Scores are computed anew, so that the
    seconds are real.

    Args:
        images, captions: numbers of what the rows and columns of the exact matrix are
        given: vectors of those; None: the dual head's
    """
    begun = time.perf_counter()
    if given is None:
        given = Embeddings(scorer.image_vectors(images), scorer.text_vectors(captions))
    for_text = nearest(given.captions, given.images, count)  # [N, K] rows
    for_image = nearest(given.images, given.captions, count)  # [I, K] columns
    seconds_finding = time.perf_counter() - begun
    width = len(captions)
    places = np.unique(
        np.concatenate([
            (for_text * width + np.arange(width)[:, None]).ravel(),
            (np.arange(len(images))[:, None] * width + for_image).ravel(),
        ])
    )  # fmt: skip
    scores = np.empty(len(places), np.float32)
    for part in np.array_split(np.arange(len(places)), max(1, len(places) // 4096)):
        rows, columns = np.divmod(places[part], width)
        scores[part] = scorer(images[rows], captions[columns])
    seconds = time.perf_counter() - begun

    def found(rows: Numbers, columns: Numbers) -> NDArray[np.float32]:
        return scores[np.searchsorted(places, rows * width + columns)]

    exact, caption_image = matrix
    by_text = found(for_text, np.arange(width)[:, None])  # [N, K]
    right = for_text == caption_image[:, None]
    truth = np.where(right, by_text, -np.inf).max(axis=1)
    text_ranks = np.where(right.any(axis=1), (by_text >= truth[:, None]).sum(axis=1), len(images))
    by_image = found(np.arange(len(images))[:, None], for_image)  # [I, K]
    own = caption_image[for_image] == np.arange(len(images))[:, None]
    best = np.where(own, by_image, -np.inf).max(axis=1)
    wrong_above = ((by_image >= best[:, None]) & ~own).sum(axis=1)
    image_ranks = np.where(own.any(axis=1), 1 + wrong_above, width)
    return {
        "candidates": count,
        "pairs": len(places),
        "seconds": seconds,
        "seconds_finding": seconds_finding,
        "ir": {**recalls(text_ranks), "recall_of_exact_top_10": _overlap(np.asarray(exact).T, for_text)},
        "tr": {**recalls(image_ranks), "recall_of_exact_top_10": _overlap(np.asarray(exact), for_image)},
    }


def _overlap(exact: NDArray[np.float32], candidates: Numbers) -> float:
    """Percent of the exact order's first ten that are among the candidates, over all queries [Q, N] and [Q, K]."""
    top = min(_TOP, exact.shape[1])
    best = np.argpartition(-exact, top - 1, axis=1)[:, :top]
    inside = (best[:, :, None] == candidates[:, None, :]).any(axis=2)
    return float(100 * inside.mean())
