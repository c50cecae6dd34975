"""Is a picture a photograph, or is it drawn: a chart, a diagram, a logo, a screenshot, a page of text, plain colour?

Some numbers say it that take a millisecond, measured on a picture of at most 128 pixels a side: how many colours there
are, how much is exactly flat, how steps between neighbours are spread and directed, how fast detail grows from coarse
to fine, what the blocks and rows are like. Logistic regression on them and their squares gives a probability. Its
weights were trained by `python -m benchmarks.lait_natural`, on photographs and on drawings that the benchmark renders;
they lie beside this file, sealed, with the names of the numbers that they belong to.

A photograph of a thing on white, with a border or with a line of text below it is a photograph. A page that shows some
photographs is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagebert.errors import UsageError
from imagebert.files import read_sealed

WEIGHTS = Path(__file__).with_name("natural.json")
_SIDE, _LEAST, _BLOCK = 128, 24, 8

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Integers = NDArray[np.int16]
Named = Iterator[tuple[str, float]]


class Natural:
    """Tells photographs from what is drawn.

    Args:
        weights: what `benchmarks/lait_natural.py` wrote; those of the package without

    Raises:
        UsageError: they are missing, damaged or belong to other features.
        OSError: the disk fails.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        content = read_sealed(weights, "install imagebert again, or train them with benchmarks/lait_natural.py")
        if content.get("features") != FEATURES:
            raise UsageError(f"{weights} belongs to another version's features: train it again")
        self._content = content

    def probability(self, pixels: Bytes) -> float:
        """How probable it is that a picture is a photograph, 0 to 1.

        Args:
            pixels: [height, width, 3], RGB, of any size
        """
        return float(probabilities(self._content, features(pixels)[None])[0])


def probabilities(content: Mapping[str, Any], measured: Floats) -> Floats:
    """Judges what has been measured.

    Args:
        content: of a file of weights
        measured: [N, features], of each picture its `features`

    Returns:
        [N], how probable it is that each is a photograph.
    """
    mean, deviation, weights = (np.array(content[name], np.float64) for name in ("mean", "deviation", "weights"))
    weighed = terms(measured, mean, deviation, content["most"]) @ weights + content["bias"]
    return 1 / (1 + np.exp(-weighed))


def terms(measured: Floats, mean: Floats, deviation: Floats, most: float) -> Floats:
    """What is weighed: each feature in deviations from its mean, at most `most` of them, and half its square.

    Args:
        measured: [N, features]

    Returns:
        [N, 2 * features]
    """
    scaled = np.clip((measured - mean) / deviation, -most, most)
    return np.concatenate([scaled, scaled * scaled / 2], axis=1)


def features(pixels: Bytes) -> Floats:
    """Measures a picture: the numbers that `FEATURES` names.

    Args:
        pixels: [height, width, 3], RGB, of any size
    """
    return np.array([value for _, value in _measured(pixels)])


def _measured(pixels: Bytes) -> Named:
    small = _shrunk(pixels)
    grey: Integers = (small @ np.array([77, 150, 29], np.uint16) >> 8).astype(np.int16)
    yield from _of_colours(small)
    yield from _of_greys(grey)
    yield from _of_steps(small.astype(np.int16), grey)
    yield from _of_edges(grey)
    yield from _of_scales(grey)
    yield from _of_blocks(grey)
    yield from _of_rows(grey, "rows")
    yield from _of_rows(grey.T, "columns")


def _shrunk(pixels: Bytes) -> Bytes:
    """No side longer than 128 pixels, none shorter than 24: what is larger is averaged, what is smaller is repeated."""
    height, width = pixels.shape[:2]
    ratio = min(1.0, _SIDE / max(height, width))
    size = max(_LEAST, round(width * ratio)), max(_LEAST, round(height * ratio))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _quantiles(counts: NDArray[np.int64], name: str, *shares: float) -> Named:
    """Of what has been counted by its value."""
    below = np.cumsum(counts)
    for share in shares:
        yield f"{name} {share:g}", float(np.searchsorted(below, share * below[-1]))


def _entropy(shares: Floats) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _of_colours(small: Bytes) -> Named:
    """How many colours of 16 steps a channel there are, how much the commonest cover, how strong they are."""
    coarse = small.reshape(-1, 3) >> 4
    counts = np.bincount(coarse @ np.array([256, 16, 1], np.uint16), minlength=4096)
    shares = np.sort(counts)[::-1] / len(coarse)
    covered = np.cumsum(shares)
    for most in (1, 2, 4, 8, 16, 32, 64):
        yield f"covered by {most} colours", float(covered[most - 1])
    yield "colours", float(np.log2((counts > 0).sum()))
    yield "colours of some pixels", float(np.log2(1 + (shares > 1e-3).sum()))
    yield "entropy of colours", _entropy(shares)
    red, green, blue = (small[..., channel] for channel in range(3))
    saturation = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    counts = np.bincount(saturation.ravel(), minlength=256)
    yield "grey", float(counts[:6].sum() / saturation.size)
    yield "strong colours", float(counts[160:].sum() / saturation.size)
    yield from _quantiles(counts, "saturation", 0.1, 0.5, 0.9)


def _of_greys(grey: Integers) -> Named:
    counts = np.bincount(grey.ravel(), minlength=256)
    shares = counts / grey.size
    yield "white", float(shares[250:].sum())
    yield "black", float(shares[:6].sum())
    yield "commonest grey", float(shares.max())
    yield "8 commonest greys", float(np.sort(shares)[-8:].sum())
    yield "entropy of greys", _entropy(shares)
    yield "roughness of greys", float(np.abs(np.diff(shares)).sum())
    yield from _quantiles(counts, "grey", 0.02, 0.1, 0.5, 0.9, 0.98)
    yield "deviation of greys", float(grey.std())


_STEPS = np.searchsorted([0, 1, 2, 4, 8, 16, 32, 64, 128], np.arange(256)).astype(np.uint8)  # a bin for each step


def _of_steps(rgb: Integers, grey: Integers) -> Named:
    """How large steps between neighbours are: of the channel that changes most, and of grey."""
    across, down = _largest(np.diff(rgb, axis=1)), _largest(np.diff(rgb, axis=0))
    largest = np.concatenate([across.ravel(), down.ravel()])
    counts = np.bincount(_STEPS[largest], minlength=10) / largest.size
    for name, share in zip((0, 1, 2, 4, 8, 16, 32, 64, 128, 255), np.cumsum(counts)[:-1], strict=False):
        yield f"steps to {name}", float(share)
    greys = np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=0)).mean()
    colourful = rgb[..., 0] - rgb[..., 2]
    yield "colour's steps by grey's", float(np.log((np.abs(np.diff(colourful, axis=1)).mean() + 0.1) / (greys + 0.2)))
    # What is flat in all directions: most of a drawing, of a photograph next to nothing.
    flat = (across[:-1] <= 1) & (down[:, :-1] <= 1)
    yield "flat pixels", float(flat.mean())
    yield "flat neighbours of the flat", float((flat[1:, 1:] & flat[:-1, :-1]).mean() / (flat.mean() + 1e-3))


def _largest(steps: Integers) -> Integers:
    """Of the three channels."""
    steps = np.abs(steps)
    return np.maximum(np.maximum(steps[..., 0], steps[..., 1]), steps[..., 2])


def _of_edges(grey: Integers) -> Named:
    """Where edges lead, and how fine detail is spread."""
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    x, y = np.abs(across), np.abs(down)
    strong = np.maximum(x, y) > 24
    yield "edges", float(strong.mean())
    x, y = x[strong].astype(np.float64), y[strong].astype(np.float64)
    upright = (np.minimum(x, y) < 0.08 * np.maximum(x, y)).sum()
    yield "upright edges", float((upright + 1) / (len(x) + 4))
    slanted = np.histogram(np.arctan2(y, x), 9, (0, np.pi / 2))[0]
    shares = (slanted + 2.0) / (len(x) + 18)
    yield "entropy of directions", _entropy(shares)
    yield "commonest direction", float(shares.max())
    fine = np.abs(4 * grey[1:-1, 1:-1] - grey[1:-1, 2:] - grey[1:-1, :-2] - grey[2:, 1:-1] - grey[:-2, 1:-1])
    counts = np.bincount(np.minimum(fine, 1023).ravel(), minlength=1024)
    for name, value in _quantiles(counts, "fine detail", 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97):
        yield name, float(np.log1p(value))


def _of_scales(grey: Integers) -> Named:
    """Detail at 4 scales: a photograph has about as much at each, and at each some that is much stronger than most."""
    level: NDArray[np.float32] = grey.astype(np.float32)
    before = 0.0
    for scale in (1, 2, 4, 8):
        across, down = np.diff(level, axis=1), np.diff(level, axis=0)
        energy = float((across**2).mean() + (down**2).mean()) + 0.05
        typical = float(np.abs(across).mean() + np.abs(down).mean()) + 0.05
        if scale > 1:
            yield f"growth to {scale}", float(np.log(energy / before))
        else:
            yield "energy", float(np.log(energy))
        yield f"evenness at {scale}", typical / float(np.sqrt(2 * energy))
        after = (across[:, 1:] * across[:, :-1]).mean() + (down[1:] * down[:-1]).mean()
        yield f"steadiness at {scale}", float(after) / energy
        before = energy
        even = level[: level.shape[0] // 2 * 2, : level.shape[1] // 2 * 2]
        level = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) * np.float32(0.25)


def _of_blocks(grey: Integers) -> Named:
    """Of blocks of 8x8 pixels: how many are flat or full of contrast, and whether those have two greys, as text has."""
    height, width = grey.shape[0] // _BLOCK, grey.shape[1] // _BLOCK
    cut = grey[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    blocks = np.ascontiguousarray(cut.transpose(0, 2, 1, 3)).reshape(height * width, _BLOCK**2)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    ranges = high - low
    for least, most in ((0, 2), (3, 8), (9, 24), (25, 60), (121, 255)):
        yield f"blocks of {least} to {most}", float(((ranges >= least) & (ranges <= most)).mean())
    contrast = ranges > 48
    blocks, margin = blocks[contrast], (ranges[contrast] // 6)[:, None]
    at_ends = (blocks <= low[contrast, None] + margin) | (blocks >= high[contrast, None] - margin)
    yield "two greys in a block", float((at_ends.mean(axis=1).sum() + 1) / (len(blocks) + 2))
    spread = np.sort(blocks.std(axis=1)) if len(blocks) else np.zeros(1)
    yield "contrast of blocks", float(np.median(spread))
    ordered = np.sort(ranges)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        yield f"range of blocks {share:g}", float(np.log1p(ordered[int(share * len(ordered))]))


def _of_rows(grey: Integers, name: str) -> Named:
    """Of rows, or columns of a picture on its side: those without detail, and how they differ in it, as lines do."""
    detail = np.abs(np.diff(grey, axis=1))
    yield f"flat {name}", float((detail.max(axis=1) <= 8).mean())
    means = detail.mean(axis=1)
    yield f"spread of {name}", float(means.std() / (means.mean() + 0.5))
    yield f"changes of {name}", float(np.abs(np.diff(means)).mean() / (means.mean() + 0.5))
    edge = np.concatenate([grey[0], grey[-1]])
    yield f"even first and last of {name}", float((np.abs(edge - np.median(edge)) <= 6).mean())


FEATURES = [name for name, _ in _measured(np.zeros((_LEAST, _LEAST, 3), np.uint8))]
