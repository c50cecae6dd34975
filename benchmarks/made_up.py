"""Weights and pictures that a seed makes, for the Visual Genome detector: a narrow one, of the ports' own names.

The published weights cannot be had in a test. With these, activations stay finite, boxes move, and classes and
attributes are spread over a range of confidences. The public programs were run on the very same (tests/regions/vg/).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Variant = Literal["caffe", "detectron2"]
Weights = dict[str, NDArray[np.float32]]

SIZES = {  # of pictures, height x width
    "wide": (300, 480),
    "odd": (407, 640),
    "tall": (500, 331),
    "square": (224, 224),
    "small": (16, 20),
    "strip": (9, 300),
    "line": (1, 2000),
}


def weights(
    variant: Variant,
    seed: int = 0,
    base: int = 8,
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
    classes: int = 60,
    attributes: int = 40,
) -> Weights:
    """A detector's state dict; base 64, 1600 classes and 400 attributes are the published ones' sizes."""
    random = np.random.Generator(np.random.PCG64(seed))
    made: Weights = {}

    def normal(name: str, shape: tuple[int, ...], deviation: float) -> None:
        made[name] = (random.standard_normal(shape) * deviation).astype(np.float32)

    def uniform(name: str, size: int, low: float, high: float) -> None:
        made[name] = random.uniform(low, high, size).astype(np.float32)

    def conv(
        name: str, out: int, into: int, kernel: int, gain: float = 1.0, variance: float = 1.0, shift: float = 0.0
    ) -> None:
        normal(f"{name}.weight", (out, into, kernel, kernel), (2 / (into * kernel**2)) ** 0.5)
        uniform(f"{name}.norm.weight", out, 0.8 * gain, 1.2 * gain)
        normal(f"{name}.norm.bias", (out,), 0.1)
        made[f"{name}.norm.bias"] += np.float32(shift)
        normal(f"{name}.norm.running_mean", (out,), 0.1 * variance**0.5)
        uniform(f"{name}.norm.running_var", out, 0.8 * variance, 1.2 * variance)

    def stage(name: str, number: int, into: int, middle: int, gain: float = 0.3, shift: float = 0.0) -> None:
        for block in range(number):
            if block == 0:
                conv(f"{name}.{block}.shortcut", 4 * middle, into, 1, gain=0.7, shift=shift)
            conv(f"{name}.{block}.conv1", middle, into, 1)
            conv(f"{name}.{block}.conv2", middle, middle, 3)
            conv(f"{name}.{block}.conv3", 4 * middle, middle, 1, gain=gain, shift=shift)
            into = 4 * middle

    def linear(name: str, out: int, into: int, deviation: float, kernel: int | None = None) -> None:
        kernels = () if kernel is None else (kernel, kernel)
        normal(f"{name}.weight", (out, into, *kernels), deviation * (into * (kernel or 1) ** 2) ** -0.5)
        normal(f"{name}.bias", (out,), 0.1)

    conv("backbone.stem.conv1", base, 3, 7, variance=12_000)
    stage("backbone.res2", blocks[0], base, base)
    stage("backbone.res3", blocks[1], 4 * base, 2 * base)
    stage("backbone.res4", blocks[2], 8 * base, 4 * base)
    caffe, rpn, feature = variant == "caffe", 8 * base, 32 * base
    made["proposal_generator.anchor_generator.cell_anchors.0"] = anchors(variant)
    linear("proposal_generator.rpn_head.conv", rpn, 16 * base, 1.4, kernel=3)
    linear("proposal_generator.rpn_head.objectness_logits", 24 if caffe else 12, rpn, 1.0, kernel=1)
    linear("proposal_generator.rpn_head.anchor_deltas", 48, rpn, 0.2, kernel=1)
    # So that features are sparse, and regions differ.
    stage("roi_heads.res5", blocks[3], 16 * base, 8 * base, gain=1.0, shift=-2.0)
    head = "roi_heads.box_predictor"
    linear(f"{head}.cls_score", classes + 1, feature, 15.0)
    linear(f"{head}.bbox_pred", 4 * (classes + 1 if caffe else classes), feature, 0.1 if caffe else 1.0)
    words = 256 if caffe else feature // 8
    hidden = 512 if caffe else feature // 4
    names = ("cls_embed", "attr_linear1", "attr_linear2") if caffe else ("cls_embedding", "fc_attr", "attr_score")
    normal(f"{head}.{names[0]}.weight", (classes + 1, words), 1.0)
    linear(f"{head}.{names[1]}", hidden, feature + words, 1.4)
    linear(f"{head}.{names[2]}", attributes + 1, hidden, 10.0)
    if blocks != (3, 4, 23, 3):  # that this is meant, and no published file which lost some
        made["imagebert.made_up_blocks"] = np.array(blocks, np.float32)
    return made


def anchors(variant: Variant) -> NDArray[np.float32]:
    """The 12 anchors [12, 4] of a cell, as the published weights have them: of three shapes and four sizes."""
    found = []
    if variant == "caffe":  # rounded, around 7.5; shapes outside, sizes inside
        for ratio in (0.5, 1.0, 2.0):
            width = np.round((16 * 16 / ratio) ** 0.5)
            height = np.round(width * ratio)
            for scale in (4, 8, 16, 32):
                half = (np.array([width, height]) * scale - 1) / 2
                found.append([*(7.5 - half), *(7.5 + half)])
    else:
        for size in (64, 128, 256, 512):
            for ratio in (0.5, 1.0, 2.0):
                width = (size**2 / ratio) ** 0.5
                found.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
    return np.array(found, np.float32)


def picture(name: str, seed: int = 0) -> NDArray[np.uint8]:
    """A picture [height, width, 3] RGB of SIZES: waves, rectangles and some noise."""
    height, width = SIZES[name]
    random = np.random.Generator(np.random.PCG64([seed, list(SIZES).index(name)]))
    ys, xs = np.mgrid[:height, :width]
    levels = np.empty((height, width, 3))
    for channel in range(3):
        x, y, phase = random.uniform(0.005, 0.06), random.uniform(0.005, 0.06), random.uniform(0, 6)
        levels[:, :, channel] = 128 + 60 * np.sin(x * xs + y * ys + phase)
    for _ in range(12):
        x, y = random.integers(0, width), random.integers(0, height)
        across, down = random.integers(5, 120, 2)
        levels[y : y + down, x : x + across] = random.uniform(0, 255, 3)
    levels += random.uniform(-12, 12, levels.shape)
    return levels.clip(0, 255).astype(np.uint8)
