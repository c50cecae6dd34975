"""The photographs behind a region store's keys: found in a folder, shown small."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

from imagebert.config import UsageError

# What a photograph may be; anything else that Pillow could open is refused.
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000


class Pictures:
    """Photographs by key, such as the file names that `imagebert extract` stored.

    Args:
        folder: None: there are none, and everything is shown by its key
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--pictures {folder} is no folder: name the one that the regions were extracted from")

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
        root = self.folder.resolve()
        path = (root / key).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None

    def thumbnail(self, key: str, size: int) -> bytes | None:
        """A JPEG of at most size x size pixels; None where there is no readable picture."""
        path = self.path(key)
        if path is None:
            return None
        try:
            with open_picture(path.read_bytes()) as picture:
                picture.thumbnail((size, size))
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=82)
        except (OSError, UsageError):
            return None
        return buffer.getvalue()


def open_picture(data: bytes) -> Image.Image:
    """A photograph that somebody sent, upright, RGB.

    Raises:
        UsageError: it is none of FORMATS, damaged, or has more than MAX_PIXELS; it is not decoded then.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UsageError(f"the picture has more pixels than {MAX_PIXELS:,}: send a smaller one")
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError:
        raise UsageError(f"the picture has more pixels than {MAX_PIXELS:,}: send a smaller one") from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = "it is damaged" if "truncated" in str(error) or "broken" in str(error) else "it is none"
        raise UsageError(f"cannot read the picture, {reason}: send a JPEG, PNG or WebP") from None
