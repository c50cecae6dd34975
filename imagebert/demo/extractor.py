"""A fixed small extractor for the rendered scenes: it finds things in the pixels and describes what it sees there.

Like a detector it knows which shapes and colours there are, but nothing of the scene: regions are connected pixels
that differ from the fitted background; a region's class is the nearest template and colour; its vector is F = 96:
occupancy of its box on an 8 x 8 grid (64), hue histogram weighted by saturation (16), edge directions (8), mean
colour (3) and contrast (1), extents, area and fill (4). Region 0 is the whole picture.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.demo.scenes import COLORS, SHAPES, outline
from imagebert.files import file_digest

FEATURE_SIZE = 96
_GRID = 8
_DIFFERENT = 45.0  # distance in RGB from the background, 0 to 441
_SMALLEST = 60  # pixels


class SceneExtractor:
    """Picture to RegionRecord; see the head of this file."""

    def __init__(self) -> None:
        self.classes = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
        self.description: dict[str, Any] = {
            "name": "connected components of rendered scenes",
            "digest": file_digest(Path(__file__)),
        }

    def __call__(self, image: Image.Image) -> RegionRecord:
        pixels = np.asarray(image, np.float32)
        found = ndimage.binary_opening(_foreground(pixels))
        labels, count = ndimage.label(found)
        gray = pixels.mean(axis=2)
        edges = np.stack([ndimage.sobel(gray, 0), ndimage.sobel(gray, 1)])
        regions = []
        for number, box in enumerate(ndimage.find_objects(labels, count), start=1):
            mask = labels[box] == number
            if mask.sum() >= _SMALLEST:
                regions.append(_see(pixels[box], mask, edges[(slice(None), *box)], box, image.size))
        regions.sort(key=lambda region: -region[2])
        whole = (slice(0, image.height), slice(0, image.width))
        vector, *_ = _see(pixels, found, edges, whole, image.size)
        return RegionRecord(
            width=image.width,
            height=image.height,
            boxes=np.array([[0, 0, image.width, image.height], *(r[3] for r in regions)], np.float32),
            confidences=np.array([1, *(r[2] for r in regions)], np.float32),
            classes=np.array([WHOLE_IMAGE, *(r[1] for r in regions)], np.uint16),
            features=np.array([vector, *(r[0] for r in regions)], np.float32),
            scales=np.ones(1 + len(regions), np.float32),
        )


def _foreground(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels far from a plane that is fitted to the background: to all, then to those that are near the first fit."""
    height, width, _ = pixels.shape
    ys, xs = np.mgrid[:height, :width]
    terms = np.stack([np.ones(height * width), xs.ravel() / width, ys.ravel() / height], axis=1).astype(np.float32)
    flat = pixels.reshape(-1, 3)
    near = np.linalg.norm(flat - np.median(flat, axis=0), axis=1) < 2 * _DIFFERENT
    plane, *_ = np.linalg.lstsq(terms[near][::7], flat[near][::7], rcond=None)
    far: NDArray[np.bool_] = np.linalg.norm(flat - terms @ plane, axis=1) > _DIFFERENT
    return far.reshape(height, width)


def _see(
    pixels: NDArray[np.float32],
    mask: NDArray[np.bool_],
    edges: NDArray[np.float32],
    box: tuple[slice, ...],
    size: tuple[int, int],
) -> tuple[NDArray[np.float32], int, float, list[float]]:
    """A region's vector, class, confidence and box."""
    rows, columns = box[0], box[1]
    occupancy = _occupancy(mask)
    inside = ndimage.binary_erosion(mask, iterations=2)
    seen = pixels[inside] if inside.any() else pixels[mask]
    if len(seen) == 0:
        seen = pixels.reshape(-1, 3)
    hues, saturations = _hues(seen)
    hue_bins = np.histogram(hues, 16, (0, 1), weights=saturations)[0] / max(len(seen), 1)
    down, right = edges[:, inside] if inside.any() else edges[:, mask]
    strength = np.hypot(down, right) / 255
    turn = (np.arctan2(down, right) / np.pi + 1) % 1
    edge_bins = np.histogram(turn, 8, (0, 1), weights=strength)[0] / max(len(strength), 1)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    vector = np.concatenate(
        [
            occupancy,
            hue_bins * 4,
            edge_bins * 4,
            seen.mean(axis=0) / 128 - 1,
            [seen.std(axis=0).mean() / 32],
            [width / size[0], height / size[1], mask.sum() / (size[0] * size[1]) * 4, mask.mean()],
        ]
    ).astype(np.float32)
    # Textures darken part of a thing; its own colour is that of its brighter half.
    bright = seen[seen.sum(axis=1) >= np.median(seen.sum(axis=1))].mean(axis=0)
    colors = np.linalg.norm(_palette() - bright, axis=1)
    shapes = np.linalg.norm(_templates() - occupancy, axis=1)
    confidence = float(np.exp(-colors.min() / 100 - shapes.min() / 4))
    region_class = int(colors.argmin()) * len(SHAPES) + int(shapes.argmin())
    return vector, region_class, confidence, [columns.start, rows.start, columns.stop, rows.stop]


def _occupancy(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((_GRID, _GRID), Image.Resampling.BOX)
    return np.asarray(picture, np.float32).ravel() / np.float32(255)


def _hues(colors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Hue and saturation, each 0 to 1, of colours [n, 3]."""
    high, low = colors.max(axis=1), colors.min(axis=1)
    spread = np.maximum(high - low, 1e-3)
    red, green, blue = colors.T
    sector: NDArray[np.float32] = np.select(
        [high == red, high == green],
        [(green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    return sector / np.float32(6), ((high - low) / np.maximum(high, 1)).astype(np.float32)


@cache
def _palette() -> NDArray[np.float32]:
    return np.array([rgb for rgb, _ in COLORS.values()], np.float32)


@cache
def _templates() -> NDArray[np.float32]:
    return np.stack([_occupancy(np.asarray(outline(shape, 32)) > 127) for shape in SHAPES])
