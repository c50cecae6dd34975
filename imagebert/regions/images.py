"""Photographs as they come to upright RGB: EXIF rotation, greyscale, CMYK, palettes and transparency."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# A picture of more pixels than this is refused before it is decoded (decompression bombs).
MAX_PIXELS = 100_000_000


class UnreadableImage(Exception):
    """This picture cannot be used; the message says why."""


def load_image(path: Path) -> Image.Image:
    """The picture at `path`, upright, mode RGB.

    Raises:
        UnreadableImage: not a picture, damaged, truncated, or too large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("P", "PA", "LA", "RGBA"):
                # Transparent parts are white, as a page would show them.
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            elif upright.mode in ("I;16", "I;16B", "I"):
                upright = upright.point(lambda value: value / 256).convert("L")
            return upright.convert("RGB")
    except UnidentifiedImageError:
        raise UnreadableImage("not a picture in a known format") from None
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # what damaged EXIF or TIFF tags may raise is no closed list
        raise UnreadableImage(str(error) or type(error).__name__) from None


def find_images(folder: Path) -> list[Path]:
    """All picture files below `folder`, sorted by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
