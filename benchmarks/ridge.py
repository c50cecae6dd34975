"""A linear baseline for retrieval: ridge regression from an image's features to a text model's mean caption vector.

    python -m benchmarks.ridge --regions STORE --pairs STORE --text MODEL [--images 100 1000] [--json FILE]

The image's features are those of its whole-image region; a caption's vector is the mean of the last layer of a BERT in
Hugging Face's format over its word pieces, [CLS] and [SEP] among them, as sentence transformers take it. How much the
weights shrink is chosen on a tenth of the training images; the images that are evaluated are seen once, at the end.
Who trains for hours has to be better than this minute.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertModel

from benchmarks.report import publish
from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.data.records import WHOLE_IMAGE
from imagebert.retrieval.metrics import CUTOFFS, rank_folds, summarize

Floats = NDArray[np.float32]
SHRINKAGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
_BATCH = 64


def image_features(corpus: Corpus, count: int) -> Floats:
    """The whole-image region of the first images [count, F].

    Raises:
        UsageError: an image has none.
    """
    found = []
    for image in range(count):
        record = corpus.regions(image)
        if record.classes[0] != WHOLE_IMAGE:
            raise UsageError(f"image {corpus.image_key(image)!r} has no region that is the whole image")
        found.append(record.dequantized()[0])
    return np.stack(found)


@torch.inference_mode()
def caption_vectors(corpus: Corpus, captions: NDArray[np.int64], folder: Path) -> Floats:
    """Mean states of captions [n, H], of length 1."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = corpus.tokenizer
    vectors = np.empty((len(captions), model.config.hidden_size), np.float32)
    lengths = corpus.caption_words[captions]
    order = np.argsort(lengths, kind="stable")
    for rows in np.array_split(order, max(1, len(order) // _BATCH)):
        longest = int(lengths[rows].max()) + 2
        ids, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest)
        for row, caption in enumerate(captions[rows].tolist()):
            pieces = corpus.first_pieces(np.array([caption]), corpus.caption_words[[caption]]).tolist()
            whole = [tokenizer.cls_id, *pieces, tokenizer.sep_id]
            ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
        hidden = model(ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return vectors


class Ridge:
    """Standardised features to vectors, by least squares with weights that are shrunk towards zero."""

    def __init__(self, features: Floats, vectors: Floats, shrinkage: float) -> None:
        self._mean, self._scale = features.mean(0), features.std(0) + 1e-6
        self._offset = vectors.mean(0)
        x = self._standard(features)
        products = x.T @ x + shrinkage * np.eye(x.shape[1], dtype=np.float32)
        self._weights = np.linalg.solve(products, x.T @ (vectors - self._offset))

    def _standard(self, features: Floats) -> Floats:
        return (features - self._mean) / self._scale

    def __call__(self, features: Floats) -> Floats:
        found: Floats = self._standard(features) @ self._weights + self._offset
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def recall(ridge: Ridge, features: Floats, vectors: Floats, caption_image: NDArray[np.int64]) -> dict[str, Any]:
    return summarize(rank_folds(ridge(features) @ vectors.T, caption_image))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--text", type=Path, required=True, help="a BERT's folder, whose vocabulary the pairs have")
    parser.add_argument("--split", default="dev", help="evaluated; trained is on the split train")
    parser.add_argument("--images", type=int, nargs="+", default=[1000], help="the first so many, each by itself")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    begun = time.perf_counter()
    train, test = (
        Corpus([SourceConfig(regions=parsed.regions, pairs=parsed.pairs, split=split)])
        for split in ("train", parsed.split)
    )
    features, vectors = image_features(train, train.images), caption_vectors(train, np.arange(len(train)), parsed.text)
    targets = np.zeros((train.images, vectors.shape[1]), np.float32)
    np.add.at(targets, train.caption_image, vectors)
    targets /= np.bincount(train.caption_image)[:, None]
    fitted = train.images - train.images // 10
    left = np.flatnonzero(train.caption_image >= fitted)

    def by_shrinkage(shrinkage: float) -> float:
        ridge = Ridge(features[:fitted], targets[:fitted], shrinkage)
        found = recall(ridge, features[fitted:], vectors[left], train.caption_image[left] - fitted)
        return float(found["rsum"])

    shrinkage = max(SHRINKAGES, key=by_shrinkage)
    ridge = Ridge(features, targets, shrinkage)
    asked, answered = image_features(test, test.images), caption_vectors(test, np.arange(len(test)), parsed.text)
    found: dict[str, Any] = {}
    for images in parsed.images:
        chosen = test.caption_image < images
        figures = recall(ridge, asked[:images], answered[chosen], test.caption_image[chosen])
        for way, name in (("ir", "text-to-image"), ("tr", "image-to-text")):
            print(images, name, *(f"R@{k} {figures[way][f'r{k}']:.1f}" for k in CUTOFFS))
        found[str(images)] = figures
    seconds = time.perf_counter() - begun
    publish({"shrinkage": shrinkage, "seconds": seconds, "recall": found}, [], parsed.json)


if __name__ == "__main__":
    main()
