"""Which photographs a folder holds. How they are read stands in pictures.py and decoder.py."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def find_images(folder: Path) -> list[Path]:
    """All picture files below `folder`, sorted by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
