"""Captions as projects publish them: COCO's and Karpathy's JSON, Flickr's files, Conceptual Captions, SBU.

Where a project has several layouts, the first line that fits one decides for the whole file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from imagebert.data.captions.line import PATIENCE, Found, Line, id_of, list_of, text_of
from imagebert.errors import UsageError
from imagebert.files import text_lines

_TOKEN = re.compile(r"([^\t]+)#[0-9]+\t")  # Flickr's own files
_PIPES = re.compile(r"\s*image_name\s*\|\s*comment_number\s*\|\s*comment\s*")  # Kaggle's Flickr30k
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
SBU = "SBU_captioned_photo_dataset_{}.txt"


def coco(path: Path, content: Any) -> Found:
    """Raises: UsageError: it is another of COCO's files, of boxes or of images alone."""
    images, annotations = list_of(content, "images", path), list_of(content, "annotations", path)
    _check_any(annotations, "caption", f"{path} has annotations without captions: give COCO's captions_*.json")
    return Found(f"COCO's JSON of {len(annotations):,} annotations", _coco(path, images, annotations))


def _coco(path: Path, entries: list[Any], annotations: list[Any]) -> Iterator[Line]:
    images = {}
    for image in entries:
        if isinstance(image, dict) and (number := id_of(image.get("id"))) is not None:
            images[number] = image.get("file_name")
    for row, annotation in enumerate(annotations):
        where = f"{path}, annotation {row}"
        given = annotation.get("image_id") if isinstance(annotation, dict) else None
        number = id_of(given)
        if number is None or number not in images:
            yield Line(where, "", "", row, error=f"its image_id {given!r:.80} is not among the images")
        else:
            yield Line(where, text_of(images[number]), text_of(annotation.get("caption")), row, number)


def _check_any(entries: list[Any], name: str, otherwise: str) -> None:
    first = [entry for entry in entries[:PATIENCE] if isinstance(entry, dict)]
    if first and not any(name in entry for entry in first):
        raise UsageError(otherwise)


def karpathy(path: Path, content: Any) -> Found:
    """Raises: UsageError: it has images alone, as COCO's image_info does."""
    images = list_of(content, "images", path)
    _check_any(
        images, "sentences", f"{path} has images without sentences, such as COCO's image_info: it has no captions"
    )
    return Found(f"Karpathy's JSON of {len(images):,} images", _karpathy(path, images))


def _karpathy(path: Path, images: list[Any]) -> Iterator[Line]:
    row = 0
    for place, image in enumerate(images):
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


def flickr(path: Path) -> Found:
    """IMAGE#NUMBER, tab, caption; or Kaggle's results.csv, which has image, number and caption between bars."""
    has_bars = any(_PIPES.fullmatch(line.text) for line in islice(text_lines(path), 1))
    between = "image| number| caption" if has_bars else "image#number, tab, caption"
    return Found(f"Flickr's captions, {between}, in UTF-8", _flickr(path, has_bars))


def _flickr(path: Path, has_bars: bool) -> Iterator[Line]:
    for number, text, error in islice(text_lines(path), int(has_bars), None):
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

# Which fields of a line are caption and URL, of how many: Conceptual Captions, its labelled part, and CC12M.
_CONCEPTUAL = {
    "caption, tab, URL": (0, 1, 2),
    "caption, URL, labels, their ids and confidences between tabs": (0, 1, 5),
    "URL, tab, caption": (1, 0, 2),
}
_HEADERS = (["caption", "url"], ["url", "caption"])  # which img2dataset's instructions put in front


def _conceptual_fields(layout: str, text: str) -> tuple[str, str] | None:
    """Caption and URL of a line; None: it is not of this layout."""
    caption, url, of = _CONCEPTUAL[layout]
    fields = text.split("\t")
    return (fields[caption], fields[url]) if len(fields) == of and _URL.fullmatch(fields[url]) else None


def conceptual_layout(line: str) -> str | None:
    """Which of Conceptual Captions' layouts a line has; None: it fits none."""
    for layout in _CONCEPTUAL:
        fields = _conceptual_fields(layout, line)
        if fields and not _URL.fullmatch(fields[0]):
            return layout
    return None


def conceptual(path: Path) -> Found:
    """The image is called after the line's number, from 0."""
    has_header = any(line.text.split("\t") in _HEADERS for line in islice(text_lines(path), 1))
    readable = (conceptual_layout(line.text) for line in islice(text_lines(path), PATIENCE) if not line.error)
    layout = next(filter(None, readable), next(iter(_CONCEPTUAL)))
    return Found(f"Conceptual Captions, {layout}, in UTF-8", _conceptual(path, layout, has_header))


def _conceptual(path: Path, layout: str, has_header: bool) -> Iterator[Line]:
    for row, (number, text, error) in enumerate(islice(text_lines(path), int(has_header), None)):
        line = Line(f"{path}, line {number}", f"{row:08d}", "", row, row, error=error)
        fields = _conceptual_fields(layout, text)
        if not error and fields is None:
            line = line._replace(error=f"it is not {layout}")
        caption, url = fields or ("", "")
        yield line._replace(text=caption, url=url)


# ----------------------------------------------------------------------------------------------------------------- SBU


def sbu(path: Path, content: Any) -> Found:
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
    return Found(f"SBU, {len(urls):,} URLs and captions", _sbu(path, urls, captions, errors))


def _sbu(path: Path, urls: list[Any], captions: list[Any], errors: list[str]) -> Iterator[Line]:
    for row, (url, caption, error) in enumerate(zip(urls, captions, errors, strict=True)):
        url, caption = text_of(url), text_of(caption)
        yield Line(f"{path}, entry {row}", PurePosixPath(url).name, caption, row, row, url=url, error=error)
