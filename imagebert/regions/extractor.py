"""Detector and backbone as one extractor: a picture in, a RegionRecord out.

Boxes come from the detector, class-wise non-maximum suppression keeps the best, and each region's vector is pooled
from the backbone's feature map under its box (RoIAlign, He et al. 2017, section 3: bilinear samples, averaged).
Region 0 is the whole picture. What the two networks want and give stands in a small YAML description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagebert.config import UsageError
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.files import read_text
from imagebert.regions.networks import NetworkSpec, load_network, prepare
from imagebert.regions.vg import VisualGenome
from imagebert.strict_yaml import build, read_yaml

# Of files of the Visual Genome detector's weights.
_WEIGHTS = (".safetensors", ".pth", ".pkl", ".bin")


class Extractor(Protocol):
    """Finds the regions of pictures, one at a time.

    Attributes:
        classes: The names of the region classes, in the order of their numbers.
        description: The name and digest of the extractor, which a region store keeps in its meta.json.
    """

    classes: list[str]
    description: dict[str, Any]

    def __call__(self, image: Image.Image) -> RegionRecord:
        """Finds the regions of one picture.

        Args:
            image: The picture, in RGB.
        """


@runtime_checkable
class BatchExtractor(Extractor, Protocol):
    """Finds the regions of several pictures faster together than one after the other.

    Attributes:
        batch_size: How many pictures it is best given at once.
    """

    batch_size: int

    def many(self, images: Sequence[Image.Image]) -> list[RegionRecord]:
        """Finds the regions of several pictures, each as if it came alone.

        Args:
            images: The pictures, in RGB.
        """


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """Layouts: `yolox`, one output [1, A, 5+C] of grid offsets; `boxes_scores`, [1, A, 4] xyxy and [1, A, C]."""

    network: NetworkSpec
    classes: str  # a file, one name a line
    layout: Literal["yolox", "boxes_scores"]
    strides: tuple[int, ...] = (8, 16, 32)  # yolox
    confidence: float = 0.05
    nms_iou: float = 0.45


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    name: str
    detector: DetectorSpec
    backbone: NetworkSpec
    backbone_output: int = 0
    max_regions: int = 100  # detector's regions kept, besides the whole image
    samples: int = 7  # RoIAlign samples along each side of a box
    # Multi-scale testing: a vector is the mean of those that the backbone gives at these multiples of its input's size.
    scales: tuple[float, ...] = field(default=(1.0,), repr=False)

    def __post_init__(self) -> None:
        numbers: list[tuple[str, float, float, float]] = [("backbone_output", self.backbone_output, 0, 1000)]
        numbers += [("max_regions", self.max_regions, 1, 10_000)]
        numbers += [("samples", self.samples, 1, 100)]
        numbers += [("detector.strides", stride, 1, 1 << 13) for stride in self.detector.strides]
        numbers += [("scales", scale, 0.1, 10) for scale in self.scales]
        for name, value, low, high in numbers:
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}: give {low} to {high}")
        if not self.scales:
            raise UsageError("scales is empty: give at least one, such as 1.0")

    @property
    def views(self) -> str:
        """How the backbone sees a picture; empty where it does once, at its input's size."""
        return f" scales {self.scales}" if self.scales != (1.0,) else ""


def open_extractor(given: Path | VisualGenome) -> Extractor:
    """What finds regions: a YAML description, or weights of the Visual Genome detector.

    Args:
        given: a description of `vg: {weights: ...}` names that detector, too

    Raises:
        UsageError: the description, or a file that it names, is missing or wrong.
    """
    if isinstance(given, Path):
        if given.is_dir() or given.suffix in _WEIGHTS:
            given = VisualGenome(weights=str(given))
        else:
            tree = read_yaml(given)
            if "vg" not in tree:
                return DetectorExtractor(given)
            given = build(_Described, tree, str(given)).vg
    from imagebert.regions.vg.extractor import VisualGenomeExtractor

    return VisualGenomeExtractor(
        Path(given.weights), boxes=given.boxes, proposals=given.proposals, precision=given.precision
    )


@dataclass(frozen=True, kw_only=True)
class _Described:
    vg: VisualGenome


class DetectorExtractor:
    """An extractor read from its YAML description.

    Raises:
        UsageError: the description, or a file that it names, is missing or wrong.
    """

    def __init__(self, description: Path) -> None:
        self.spec = build(ExtractorSpec, read_yaml(description), str(description))
        names = Path(self.spec.detector.classes)
        try:
            self.classes = read_text(names, 1 << 24).split("\n")
        except UsageError as error:
            raise UsageError(f"{description}: class names: {error}") from None
        self.classes = [name.strip() for name in self.classes if name.strip()]
        self._detect, detector_digest = load_network(self.spec.detector.network)
        self._backbone, backbone_digest = load_network(self.spec.backbone)
        # At one scale the digest is that of stores from before there were several.
        defined = f"{self.spec} {detector_digest} {backbone_digest}{self.spec.views}"
        both = hashlib.sha256(defined.encode()).hexdigest()
        self.description = {
            "name": self.spec.name,
            "digest": both,
            "detector_sha256": detector_digest,
            "backbone_sha256": backbone_digest,
            "confidence": self.spec.detector.confidence,
            "nms_iou": self.spec.detector.nms_iou,
            "max_regions": self.spec.max_regions,
        }
        if self.spec.views:
            self.description["scales"] = list(self.spec.scales)

    def __call__(self, image: Image.Image) -> RegionRecord:
        boxes, scores = self._boxes(image)
        boxes, classes, confidences = select(
            boxes, scores, self.spec.detector.confidence, self.spec.detector.nms_iou, self.spec.max_regions
        )
        whole = np.array([[0, 0, image.width, image.height]], np.float32)
        boxes = np.concatenate([whole, boxes])
        return RegionRecord(
            width=image.width,
            height=image.height,
            boxes=boxes,
            confidences=np.concatenate([np.ones(1, np.float32), confidences]),
            classes=np.concatenate([np.array([WHOLE_IMAGE], np.uint16), classes.astype(np.uint16)]),
            features=self._features(image, boxes),
            scales=np.ones(len(boxes), np.float32),
        )

    def _features(self, image: Image.Image, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """A vector of each box [n, 4]: the mean of those at all scales."""
        spec, pooled = self.spec, []
        for scale in spec.scales:
            size = spec.backbone.input
            seen = replace(size, height=max(1, round(size.height * scale)), width=max(1, round(size.width * scale)))
            array, (scale_x, scale_y) = prepare(image, seen)
            feature_map = torch.from_numpy(self._backbone(array)[spec.backbone_output][0])
            relative = torch.from_numpy(boxes / _corners(array.shape[3] / scale_x, array.shape[2] / scale_y))
            pooled.append(pool(feature_map, relative, spec.samples))
        mean: NDArray[np.float32] = torch.stack(pooled).mean(0).numpy()
        return mean

    def _boxes(self, image: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """All candidate boxes [A, 4] in the picture's pixels and their class scores [A, C]."""
        spec = self.spec.detector
        array, (scale_x, scale_y) = prepare(image, spec.network.input)
        outputs = self._detect(array)
        if spec.layout == "yolox":
            boxes, scores = decode_yolox(outputs[0][0], array.shape[2:], spec.strides)
        else:
            boxes, scores = outputs[0][0], outputs[1][0]
        if scores.shape[1] != len(self.classes):
            raise UsageError(f"{spec.classes} names {len(self.classes)} classes, the detector has {scores.shape[1]}")
        boxes = boxes / _corners(scale_x, scale_y)
        return np.clip(boxes, 0, _corners(image.width, image.height)), scores


def _corners(x: float, y: float) -> NDArray[np.float32]:
    return np.array([x, y, x, y], np.float32)


def decode_yolox(
    output: NDArray[np.float32], size: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """YOLOX's raw output [A, 5+C] to boxes [A, 4] xyxy in input pixels and scores [A, C] (Ge et al. 2021).

    Anchors are the cells of a grid per stride, row by row; a score is objectness times class.
    """
    grids, steps = [], []
    for stride in strides:
        rows, columns = size[0] // stride, size[1] // stride
        ys, xs = np.mgrid[:rows, :columns]
        grids.append(np.stack([xs, ys], axis=-1).reshape(-1, 2))
        steps.append(np.full((rows * columns, 1), stride))
    grid, step = np.concatenate(grids).astype(np.float32), np.concatenate(steps).astype(np.float32)
    if len(grid) != len(output):
        raise UsageError(f"the detector gives {len(output)} boxes, strides {strides} imply {len(grid)}: correct them")
    center, extent = (output[:, :2] + grid) * step, np.exp(output[:, 2:4]) * step
    boxes = np.concatenate([center - extent / 2, center + extent / 2], axis=1)
    return boxes, output[:, 4:5] * output[:, 5:]


def select(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], confidence: float, iou: float, most: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Top class per box, non-maximum suppression within a class, the `most` best: boxes, classes, confidences."""
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    extent = boxes[:, 2:] - boxes[:, :2]
    keep = np.flatnonzero((best > confidence) & (extent.min(axis=1) > 1))
    keep = keep[np.argsort(-best[keep], kind="stable")]
    chosen: list[int] = []
    while len(keep) and len(chosen) < most:
        first, rest = keep[0], keep[1:]
        chosen.append(int(first))
        overlap = _iou(boxes[first], boxes[rest])
        keep = rest[(overlap <= iou) | (classes[rest] != classes[first])]
    return boxes[chosen].astype(np.float32), classes[chosen], best[chosen].astype(np.float32)


def _iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    union: NDArray[np.float32] = shared / np.maximum(area + areas - shared, 1e-9)
    return union


def pool(feature_map: torch.Tensor, boxes: torch.Tensor, samples: int) -> torch.Tensor:
    """RoIAlign to one vector a region: the mean of samples x samples bilinear reads inside each box.

    Args:
        feature_map: [channels, h, w] float32
        boxes: [n, 4] xyxy relative to the picture, 0 to 1

    Returns:
        [n, channels] float32
    """
    steps = (torch.arange(samples, dtype=torch.float32) + 0.5) / samples
    low, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    points = low[:, None] + steps[:, None] * extent[:, None]  # [n, samples, (x, y)]
    grid = torch.stack(
        [
            points[:, None, :, 0].expand(-1, samples, -1),
            points[:, :, None, 1].expand(-1, -1, samples),
        ],
        dim=-1,
    )  # [n, samples, samples, (x, y)]
    # All boxes in one call: n rows of samples^2 points on the one map.
    read = torch.nn.functional.grid_sample(
        feature_map[None],
        grid.reshape(1, len(boxes), samples * samples, 2) * 2 - 1,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )  # [1, channels, n, samples^2]
    return read[0].mean(dim=2).T.contiguous()
