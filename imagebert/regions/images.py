"""Which photographs, and tars of some, a folder holds. How they are read: pictures.py, decoder.py, tar_pictures.py."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from imagebert.files import walk

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
TAR, PACKED_TARS = ".tar", (".tar.gz", ".tgz")

# How files of these kinds begin: downloads are often named by numbers alone.
_BEGINNING = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|BM....\0\0\0\0|GIF8[79]a|II\*\0|MM\0\*|....ftypavi[fs]", re.DOTALL
)


class Found(NamedTuple):
    """What a folder holds."""

    pictures: list[Path]  # sorted by name
    others: Counter[str]  # how many other files of each suffix
    links: int  # folders that are links
    closed: list[OSError]  # of folders that cannot be read
    tars: list[Path]  # sorted by name


def find_images(folder: Path) -> Found:
    """All files below `folder`: pictures by their suffixes; those without one by how they begin.

    A folder that is reached by a link is walked as well, each once.
    """
    pictures, tars, others, closed, links = [], list[Path](), Counter[str](), list[OSError](), 0
    for place, files in walk(folder, closed.append):
        links += place.is_symlink()
        for file in (place / name for name in files):
            if file.is_file() and (file.suffix.lower() in SUFFIXES or (not file.suffix and _begins_as_one(file))):
                pictures.append(file)
            elif file.suffix.lower() == TAR and file.is_file():
                tars.append(file)
            else:
                packed = file.name.lower().endswith(PACKED_TARS)
                others[PACKED_TARS[0] if packed else file.suffix.lower() or "none"] += 1
    return Found(sorted(pictures), others, links, closed, sorted(tars))


def _begins_as_one(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return _BEGINNING.match(opened.read(16)) is not None
    except OSError:
        return False
