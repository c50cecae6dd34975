"""How the public ports make the network's input of a picture: each resizes it in a way of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from imagebert.regions.vg.rules import Resized, Rules

# Of Caffe's ResNet-101, blue, green, red.
PIXEL_MEAN = (102.9801, 115.9465, 122.7717)
CPU = torch.device("cpu")


def resize(image: Image.Image, rules: Rules, device: torch.device = CPU) -> Resized:
    """The input that a port makes of a picture (RGB), on a device. A side that would have no pixel keeps one."""
    width, height = image.size
    factor = rules.short_side / min(width, height)
    if rules.resize == "factor":
        if round(factor * max(width, height)) > rules.long_side:
            factor = rules.long_side / max(width, height)
        # Python's round goes to even numbers, as OpenCV's does.
        size = max(1, round(height * factor)), max(1, round(width * factor))
        return Resized(
            _channels(image, device, lambda channel: _read_at_factor(channel, size, factor)), (factor, factor)
        )
    sides = np.array([height, width], np.float64) * factor
    if sides.max() > rules.long_side:
        sides *= rules.long_side / sides.max()
    tall, wide = (max(1, int(side + 0.5)) for side in sides)
    if rules.resize == "pillow":
        pixels = _channels(image.resize((wide, tall), Image.Resampling.BILINEAR), device, lambda channel: channel)
    else:
        interpolated = partial(torch.nn.functional.interpolate, size=(tall, wide), mode="bilinear", align_corners=False)
        pixels = _channels(image, device, lambda channel: interpolated(channel[None, None])[0, 0])
    return Resized(pixels, (wide / width, tall / height))


def _channels(
    image: Image.Image, device: torch.device, resized: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Blue, green and red [h, w] less their means, each resized by itself: a picture may have 100 million pixels."""
    levels = torch.from_numpy(np.array(image)).to(device)  # [height, width, 3] uint8
    means = zip((2, 1, 0), PIXEL_MEAN, strict=True)
    return torch.stack([resized(levels[:, :, channel].float() - mean) for channel, mean in means])


def _read_at_factor(channel: torch.Tensor, size: tuple[int, int], factor: float) -> torch.Tensor:
    """Bilinear reads at multiples of 1 / factor, whatever the size is rounded to: OpenCV's resize by a factor.

    Args:
        channel: [height, width]
    """
    found = channel
    for axis in (1, 0):
        places = (torch.arange(size[axis], dtype=torch.float64, device=found.device) + 0.5) / factor - 0.5
        last = found.shape[axis] - 1
        low = places.floor().clamp(0, last)
        share = (places - low).clamp(0, 1).float()
        share[low == last] = 0
        share = share if axis == 1 else share[:, None]
        below, above = low.long(), (low.long() + 1).clamp(max=last)
        found = found.index_select(axis, below) * (1 - share) + found.index_select(axis, above) * share
    return found
