"""The score matrix: every image with every caption through the network, packed, in tiles of like length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from imagebert.config import UsageError
from imagebert.data.folder import publish
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Packer
from imagebert.feed.plan import Lengths, Samples
from imagebert.model import ImageBertForImageTextRetrieval

# Scores some pairs of image and caption numbers: float32 [B].
ScoreFunction = Callable[[Samples], NDArray[np.float32]]

_IMAGES_PER_TILE = 64


class ScoreMatrix(NamedTuple):
    scores: NDArray[np.float32]  # [images, captions]
    caption_image: NDArray[np.int64]  # [captions]


def model_scores(model: ImageBertForImageTextRetrieval, packer: Packer, device: torch.device) -> ScoreFunction:
    """A model as a scoring function: the ITM head's logit."""
    model = model.eval().to(device)
    buffer = Arena()

    def score(samples: Samples) -> NDArray[np.float32]:
        with torch.inference_mode():
            scores: NDArray[np.float32] = model(packer.pack(samples, buffer).to(device)).float().cpu().numpy()
        return scores

    return score


def score_all(
    score: ScoreFunction,
    lengths: Lengths,
    images: NDArray[np.int64],
    captions: NDArray[np.int64],
    tokens: int = 8192,
    progress: bool = True,
) -> NDArray[np.float32]:
    """The matrix [len(images), len(captions)], scored in batches of at most `tokens` tokens."""
    scores = np.full((len(images), len(captions)), np.nan, np.float32)
    with Progress(disable=not progress) as bar:
        task = bar.add_task(f"Scoring {len(images)} x {len(captions)} pairs", total=scores.size)
        for rows, columns in tiles(lengths.regions[images], lengths.words[captions], tokens):
            samples = Samples(images[rows], captions[columns], np.ones(len(rows), np.int64), np.arange(len(rows)))
            scores[rows, columns] = score(samples)
            bar.advance(task, len(rows))
    return scores


def tiles(
    regions: NDArray[np.int64], words: NDArray[np.int64], tokens: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cuts all (image, caption) places into batches of like length: row and column numbers of each."""
    by_length = np.argsort(regions, kind="stable")
    for start in range(0, len(by_length), _IMAGES_PER_TILE):
        some = by_length[start : start + _IMAGES_PER_TILE]
        rows, columns = np.repeat(some, len(words)), np.tile(np.arange(len(words)), len(some))
        lengths = regions[rows] + words[columns] + 3
        order = np.argsort(lengths, kind="stable")
        used = np.cumsum(lengths[order])
        cuts = np.flatnonzero(np.diff(used // tokens)) + 1
        for part in np.split(order, cuts):
            yield rows[part], columns[part]


def save_scores(path: Path, matrix: ScoreMatrix, keys: list[str]) -> None:
    """Writes a matrix as a folder: scores.npy, caption_image.npy and the images' keys."""
    with publish(path) as folder:
        np.save(folder / "scores.npy", matrix.scores, allow_pickle=False)
        np.save(folder / "caption_image.npy", matrix.caption_image, allow_pickle=False)
        (folder / "images.json").write_text(json.dumps(keys), encoding="utf-8")


def load_scores(path: Path) -> ScoreMatrix:
    try:
        return ScoreMatrix(
            np.load(path / "scores.npy", mmap_mode="r", allow_pickle=False),
            np.load(path / "caption_image.npy", allow_pickle=False),
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} holds no saved scores ({error}): make them with `imagebert evaluate --save`"
        ) from None
