"""Captions as projects publish them: COCO's and Karpathy's JSON, Flickr's files, Conceptual Captions, SBU.

Where a project has several layouts, the first line that fits one decides for the whole file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from imagebert.data.captions.line import Line, id_of, list_of, text_of
from imagebert.errors import UsageError
from imagebert.files import text_lines

_TOKEN = re.compile(r"([^\t]+)#[0-9]+\t")  # Flickr's own files
_PIPES = re.compile(r"\s*image_name\s*\|\s*comment_number\s*\|\s*comment\s*")  # Kaggle's Flickr30k
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_PATIENCE = 100  # lines that may be of no layout before the first that decides
SBU = "SBU_captioned_photo_dataset_{}.txt"


def coco(path: Path, content: Any) -> Iterator[Line]:
    images = {}
    for image in list_of(content, "images", path):
        if isinstance(image, dict) and (number := id_of(image.get("id"))) is not None:
            images[number] = image.get("file_name")
    for row, annotation in enumerate(list_of(content, "annotations", path)):
        where = f"{path}, annotation {row}"
        given = annotation.get("image_id") if isinstance(annotation, dict) else None
        number = id_of(given)
        if number is None or number not in images:
            yield Line(where, "", "", row, error=f"its image_id {given!r:.80} is not among the images")
        else:
            yield Line(where, text_of(images[number]), text_of(annotation.get("caption")), row, number)


def karpathy(path: Path, content: Any) -> Iterator[Line]:
    row = 0
    for place, image in enumerate(list_of(content, "images", path)):
        where = f"{path}, image {place}"
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
            yield Line(where, "", "", row, error="it has no sentences")
            continue
        # The 30,504 validation images that Karpathy & Fei-Fei moved to training are called restval.
        split = {"restval": "train"}.get(str(image.get("split")), str(image.get("split") or "train"))
        number = id_of(image.get("cocoid", image.get("imgid")))
        for at, sentence in enumerate(image["sentences"]):
            text = text_of(sentence.get("raw") if isinstance(sentence, dict) else None)
            yield Line(f"{where}, sentence {at}", text_of(image.get("filename")), text, row, number, split)
            row += 1


# -------------------------------------------------------------------------------------------------------------- Flickr


def is_flickr(line: str) -> bool:
    """Whether a file of Flickr8k or Flickr30k begins with this line."""
    return bool(_TOKEN.match(line) or _PIPES.fullmatch(line))


def flickr(path: Path) -> Iterator[Line]:
    """IMAGE#NUMBER, tab, caption; or Kaggle's results.csv, which has image, number and caption between bars."""
    lines = text_lines(path)
    has_bars = any(_PIPES.fullmatch(line.text) for line in islice(text_lines(path), 1))
    for number, text, error in islice(lines, 1, None) if has_bars else lines:
        line = Line(f"{path}, line {number}", "", "", number - 1 - has_bars, error=error)
        if not error and has_bars:
            fields = [part.strip() for part in text.split("|", 2)]
            if len(fields) == 3 and fields[1].isdigit():
                line = line._replace(image=fields[0], text=fields[2])
            else:  # line 19,999 of the published file is one
                line = line._replace(error="it is not IMAGE| NUMBER| caption")
        elif not error:
            if found := _TOKEN.match(text):
                line = line._replace(image=found[1], text=text[found.end() :])
            else:
                line = line._replace(error="it is not IMAGE#NUMBER, tab, caption")
        yield line


# --------------------------------------------------------------------------------------------------------- Conceptual

# How a line becomes (caption, URL): Conceptual Captions, its labelled part, and CC12M.
_CONCEPTUAL: dict[str, Callable[[str], tuple[str, ...]]] = {
    "caption, tab, URL": lambda text: text.rpartition("\t")[::2],
    "caption, URL, labels, their ids and confidences between tabs": lambda text: (
        tuple(text.split("\t")[:2]) if text.count("\t") == 4 else ("", "")
    ),
    "URL, tab, caption": lambda text: text.partition("\t")[::-2],
}


def conceptual_layout(line: str) -> str | None:
    """Which of Conceptual Captions' layouts a line has; None: it fits none."""
    for layout, split in _CONCEPTUAL.items():
        caption, url = split(line)
        if _URL.fullmatch(url) and not _URL.fullmatch(caption):
            return layout
    return None


def conceptual(path: Path) -> Iterator[Line]:
    """The image is called after the line's number, from 0."""
    readable = (conceptual_layout(line.text) for line in islice(text_lines(path), _PATIENCE) if not line.error)
    layout = next(filter(None, readable), next(iter(_CONCEPTUAL)))
    for number, text, error in text_lines(path):
        line = Line(f"{path}, line {number}", f"{number - 1:08d}", "", number - 1, number - 1, error=error)
        caption, url = _CONCEPTUAL[layout](text)
        if not error and not _URL.fullmatch(url):
            line = line._replace(error=f"it is not {layout}")
        yield line._replace(text=caption, url=url)


# ----------------------------------------------------------------------------------------------------------------- SBU


def sbu(path: Path, content: Any) -> Iterator[Line]:
    """JSON of image_urls and captions, or a folder of two texts."""
    if os.path.isdir(path):
        both = [list(text_lines(path / SBU.format(name))) for name in ("urls", "captions")]
        urls, captions = ([line.text for line in lines] for lines in both)
        errors = [url.error or caption.error for url, caption in zip(*both, strict=False)]
    else:
        urls, captions = list_of(content, "image_urls", path), list_of(content, "captions", path)
        errors = [""] * len(urls)
    if len(urls) != len(captions):
        raise UsageError(f"{path} has {len(urls)} URLs and {len(captions)} captions: it is not whole")
    for row, (url, caption, error) in enumerate(zip(urls, captions, errors, strict=True)):
        url, caption = text_of(url), text_of(caption)
        yield Line(f"{path}, entry {row}", PurePosixPath(url).name, caption, row, row, url=url, error=error)
