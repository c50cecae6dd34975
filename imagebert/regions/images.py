"""Which photographs a folder holds. How they are read stands in pictures.py and decoder.py."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


class Found(NamedTuple):
    """A folder's pictures, sorted by name; how many other files it has of each suffix; and folders that are links."""

    pictures: list[Path]
    others: Counter[str]
    links: int


def find_images(folder: Path) -> Found:
    """All files below `folder`. A folder that is reached by a link is walked as well, each once."""
    pictures, others, links = [], Counter[str](), 0
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        links += os.path.islink(place)
        folders.sort()
        for file in (Path(place, name) for name in files):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                pictures.append(file)
            else:
                others[file.suffix.lower() or "none"] += 1
    return Found(sorted(pictures), others, links)
