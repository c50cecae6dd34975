"""Oscar's and VinVL's {split}_captions.pt: image id -> captions, a list or the JSON of one, by torch.save."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagebert.data.captions.line import Found, Line, id_of
from imagebert.data.readers import BadRecord
from imagebert.data.readers.tensors import read_plain
from imagebert.errors import UsageError
from imagebert.files import parse_json


def oscar(path: Path) -> Found:
    """Raises: UsageError: it is damaged, or no dictionary of captions."""
    try:
        content = read_plain(path)
    except BadRecord as error:
        raise UsageError(f"cannot read captions from {path}: {error}") from None
    if not isinstance(content, dict) or not content or not isinstance(next(iter(content.values())), list | str):
        raise UsageError(f"{path} holds no captions under images' ids, as Oscar's captions.pt do")
    return Found(f"Oscar's captions of {len(content):,} images", _oscar(path, content))


def _oscar(path: Path, content: dict[Any, Any]) -> Iterator[Line]:
    row = 0
    for image, texts in content.items():
        where = f"{path}, image {image!r:.80}"
        line = Line(where, str(image), "", row, id_of(image))
        if isinstance(texts, str):
            try:
                texts = parse_json(texts, "it")
            except UsageError as error:
                texts, line = [], line._replace(error=str(error))
        if not isinstance(texts, list) or not texts:
            yield line._replace(error=line.error or "it has no list of captions")
            row += 1
            continue
        for text in texts:
            wrong = "" if isinstance(text, str) else f"its caption is {type(text).__name__}, no text"
            yield line._replace(row=row, text="" if wrong else text, error=wrong)
            row += 1
