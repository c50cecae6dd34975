"""Every query of an evaluation by itself: what it asked for, where the answer came, what came first instead.

queries.parquet is for people's own tools and for `imagebert compare`, which asks of two evaluations of the same queries
whether they differ by more than other images would make them differ. Both are drawn the same images again and again
(metrics.bootstrap), so what is hard for both cancels out. Training again with another seed may move more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from imagebert.errors import UsageError
from imagebert.files import DIGESTS, check_digests
from imagebert.retrieval.matrix import ScoreMatrix
from imagebert.retrieval.metrics import CUTOFFS, NAMES, Fold, Ranks, averages, blocks, bootstrap

FILE = "queries.parquet"


def best_wrong(matrix: ScoreMatrix, folds: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The best wrong image of its fold for each caption [captions], and the best wrong caption for each image."""
    scores, caption_image = matrix
    images, captions = scores.shape
    fold_of = np.arange(images) // (images // folds)
    for_text, highest = np.zeros(captions, np.int64), np.full(captions, -np.inf)
    for_image = np.zeros(images, np.int64)
    for start, part in blocks(scores):
        here = np.arange(start, start + len(part))[:, None]
        left_out = (caption_image == here) | (fold_of[caption_image] != fold_of[here])
        wrong = np.where(left_out, -np.inf, part)
        for_image[start : start + len(part)] = wrong.argmax(axis=1)
        at = wrong.argmax(axis=0)
        value = wrong[at, np.arange(captions)]
        better = value > highest
        for_text[better], highest[better] = at[better] + start, value[better]
    return for_text, for_image


def write_queries(folder: Path, matrix: ScoreMatrix, folds: Sequence[Fold], keys: list[str], texts: list[str]) -> Path:
    """One row a query: text queries in the order of the captions, then image queries."""
    scores, caption_image = matrix
    images, captions = scores.shape
    ranks = Ranks(np.zeros(captions, np.int64), np.zeros(images, np.int64))
    for fold in folds:
        ranks.image_retrieval[fold.captions] = fold.ranks.image_retrieval
        ranks.text_retrieval[fold.start : fold.start + len(fold.ranks.text_retrieval)] = fold.ranks.text_retrieval
    for_text, for_image = best_wrong(matrix, len(folds))
    own = np.array([scores[i, c] for c, i in enumerate(caption_image.tolist())], np.float32)
    best = np.zeros(images, np.int64)  # of each image its best caption
    for caption in np.argsort(own, kind="stable").tolist():
        best[caption_image[caption]] = caption
    fold_of = np.arange(images) // (images // len(folds))
    columns = {
        "query": ["text"] * captions + ["image"] * images,
        "image": [keys[i] for i in caption_image] + keys,
        "caption": texts + [texts[c] for c in best],
        "fold": [*fold_of[caption_image].tolist(), *fold_of.tolist()],
        "rank": [*ranks.image_retrieval.tolist(), *ranks.text_retrieval.tolist()],
        "score": [*own.tolist(), *own[best].tolist()],
        "best_wrong": [keys[i] for i in for_text] + [texts[c] for c in for_image],
        "best_wrong_score": [
            *(float(scores[i, c]) for c, i in enumerate(for_text.tolist())),
            *(float(scores[i, c]) for i, c in enumerate(for_image.tolist())),
        ],
    }
    path = in_folds(folder / FILE, len(folds))
    parquet.write_table(pa.table(columns), path)
    return path


def in_folds(path: Path, folds: int) -> Path:
    """Another name for what is counted in folds: it stands beside what is counted as a whole."""
    return path if folds == 1 else path.with_stem(f"{path.stem}-{folds}-folds")


def read_folds(folder: Path) -> tuple[list[Fold], list[tuple[str, str]]]:
    """The folds of a finished evaluation with their ranks, and what its queries are: image and caption of each.

    Raises:
        UsageError: there is none.
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file() and len(found := list(folder.glob("queries-*-folds.parquet"))) == 1:
        path = found[0]
    if (path.parent / DIGESTS).is_file():
        check_digests(path.parent, "evaluate again", [path.name])
    try:
        table = parquet.read_table(path, columns=["query", "image", "caption", "fold", "rank"]).to_pydict()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UsageError(f"{path} holds no queries ({error}): make it with `imagebert evaluate`") from None
    captions = table["query"].count("text")
    fold, rank = np.array(table["fold"]), np.array(table["rank"])
    place = {key: number for number, key in enumerate(table["image"][captions:])}
    caption_image = np.array([place[key] for key in table["image"][:captions]])
    folds = []
    for number in np.unique(fold).tolist():
        images, inside = np.flatnonzero(fold[captions:] == number), np.flatnonzero(fold[:captions] == number)
        start = int(images[0])
        ranks = Ranks(rank[inside], rank[captions + images])
        folds.append(Fold(start, caption_image[inside] - start, inside, ranks))
    return folds, list(zip(table["image"][:captions], table["caption"][:captions], strict=True))


def compare(a: Path, b: Path) -> list[dict[str, Any]]:
    """The seven figures of two evaluations: each, the difference, its 95 % interval, and whether that leaves out 0.

    Raises:
        UsageError: one is missing, or they asked different queries.
    """
    (before, asked), (after, asked_too) = read_folds(a), read_folds(b)
    if asked != asked_too or len(before) != len(after):
        counts = f"{len(asked)} captions in {len(before)} folds, and {len(asked_too)} in {len(after)}"
        raise UsageError(
            f"{a} and {b} asked different queries ({counts}): compare evaluations of the same split, images and folds"
        )
    drawn = bootstrap(after) - bootstrap(before)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    values = [_figures(folds) for folds in (before, after)]
    return [
        {
            "figure": name,
            "a": values[0][n],
            "b": values[1][n],
            "difference": values[1][n] - values[0][n],
            "interval": [float(low[n]), float(high[n])],
            "larger than noise": bool(low[n] > 0 or high[n] < 0),
        }
        for n, name in enumerate(NAMES)
    ]


def _figures(folds: Sequence[Fold]) -> list[float]:
    """As NAMES has them."""
    averaged = averages(folds)
    figures = [averaged[way][f"r{k}"] for way in ("ir", "tr") for k in CUTOFFS]
    return [*figures, sum(figures)]
