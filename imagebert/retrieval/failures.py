"""The queries of an evaluation that went worst, as one HTML page of pictures and captions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from imagebert.files import write_bytes
from imagebert.pages.page import render
from imagebert.retrieval.matrix import ScoreMatrix
from imagebert.retrieval.metrics import Fold
from imagebert.retrieval.pictures import Pictures
from imagebert.retrieval.queries import in_folds

FILE = "failures.html"
_SHOWN, _FOUND, _PIXELS = 20, 5, 220


def write_failures(
    folder: Path,
    figures: dict[str, Any],
    matrix: ScoreMatrix,
    folds: Sequence[Fold],
    keys: list[str],
    texts: list[str],
    pictures: Pictures,
) -> Path:
    """Writes folder/failures.html: of each direction the answers that came last, with what came first instead."""
    scores, caption_image = matrix

    @cache
    def picture(image: int) -> dict[str, Any]:
        data = pictures.thumbnail(keys[image], _PIXELS)
        return {"key": keys[image], "data": None if data is None else base64.b64encode(data).decode("ascii")}

    by_text, by_image = [], []
    for fold in folds:
        images = np.arange(fold.start, fold.start + len(fold.ranks.text_retrieval))
        for local, rank in enumerate(fold.ranks.image_retrieval.tolist()):
            by_text.append((rank, int(fold.captions[local]), images))
        by_image += [
            (rank, int(image), fold.captions)
            for image, rank in zip(images, fold.ranks.text_retrieval.tolist(), strict=True)
        ]
    text_queries = []
    for rank, caption, images in sorted(by_text, key=lambda item: -item[0])[:_SHOWN]:
        row = scores[images, caption]
        found = images[np.argsort(-row, kind="stable")[:_FOUND]].tolist()
        text_queries.append(
            {
                "text": texts[caption],
                "rank": rank,
                "of": len(images),
                "answer": picture(int(caption_image[caption])),
                "found": [picture(image) | {"right": image == caption_image[caption]} for image in found],
            }
        )
    image_queries = []
    for rank, image, captions in sorted(by_image, key=lambda item: -item[0])[:_SHOWN]:
        row = scores[image, captions]
        found = captions[np.argsort(-row, kind="stable")[:_FOUND]].tolist()
        image_queries.append(
            {
                "picture": picture(image),
                "rank": rank,
                "of": len(captions),
                "own": [texts[c] for c in captions[caption_image[captions] == image]],
                "found": [{"text": texts[c], "right": caption_image[c] == image} for c in found],
            }
        )
    page = render(
        "imagebert.retrieval", "failures.html.j2", figures=figures, by_text=text_queries, by_image=image_queries
    )
    path = in_folds(folder / FILE, len(folds))
    write_bytes(path, page.encode())
    return path
