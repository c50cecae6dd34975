"""The photographs behind a region store's keys: found in a folder, shown small."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from PIL import Image

from imagebert.errors import UsageError
from imagebert.files import read_bytes
from imagebert.pictures import DECODER, FILE_BYTES, LOCAL, PictureLimits, UnreadableImage

_KEPT = 256  # thumbnails: some tens of MB at most


class Pictures:
    """Photographs by key, such as the file names that `imagebert extract` stored.

    Args:
        folder: None: there are none, and everything is shown by its key
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None and not folder.is_dir():
            raise UsageError(f"pictures {folder} is no folder: name the one that the regions were extracted from")
        self._kept = lru_cache(_KEPT)(_thumbnail)

    @classmethod
    def beside(cls, regions: Path, folder: Path | None) -> Pictures:
        """Those of `folder`; where none is named, of the folder images/ beside the region store, if there is one."""
        if folder is None and (regions.parent / "images").is_dir():
            folder = regions.parent / "images"
        return cls(folder)

    def path(self, key: str) -> Path | None:
        """The file of a key; None where there is none, or where the key points out of the folder."""
        if self.folder is None:
            return None
        try:
            root = self.folder.resolve()
            path = (root / key).resolve()
            return path if path.is_relative_to(root) and path.is_file() else None
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # a key that no file can have: too long, a zero byte, links in a ring
            return None

    def thumbnail(self, key: str, size: int) -> bytes | None:
        """A JPEG of at most size x size pixels; None where there is no readable picture.

        Raises:
            OSError: no decoder can be started.
        """
        path = self.path(key)
        if path is None:
            return None
        try:
            state = os.stat(path)
        except OSError:
            return None
        return self._kept(path, size, state.st_mtime_ns, state.st_size)


def _thumbnail(path: Path, size: int, *state: int) -> bytes | None:
    """With `state`, what tells a file from the one that had its name before."""
    try:
        data = read_bytes(path, FILE_BYTES)
    except (OSError, UsageError):
        return None
    try:
        return DECODER.thumbnail(data, size, LOCAL)
    except UnreadableImage:
        return None


def open_picture(data: bytes, limits: PictureLimits) -> Image.Image:
    """A photograph that somebody named or sent, upright, RGB.

    Raises:
        UsageError: it cannot be used; one sentence says why.
        OSError: no decoder can be started.
    """
    try:
        return DECODER.picture(data, limits)
    except UnreadableImage as error:
        raise UsageError(f"cannot read the picture, {error}") from None
