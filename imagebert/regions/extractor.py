"""Detector and backbone as one extractor: a picture in, a RegionRecord out.

Boxes come from the detector, class-wise non-maximum suppression keeps the best (where the detector has not done that
itself), and each region's vector is pooled from the backbone's feature map under its box (RoIAlign, He et al. 2017,
section 3: bilinear samples, averaged). Region 0 is the whole picture. What the networks want and give stands in a small
YAML description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagebert.config import UsageError
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.files import digest_of, read_names
from imagebert.pictures import UnreadableImage
from imagebert.regions.networks import (
    Candidates,
    FeatureMap,
    Network,
    NetworkSpec,
    in_words,
    load_network,
    of_the_machine,
    prepare,
)
from imagebert.regions.vg import VisualGenome
from imagebert.strict_yaml import build, read_yaml

_BLANK = 640, 480  # width and height of a picture to try networks out with
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


Layout = Literal["yolox", "boxes_scores", "boxes_labels_scores", "torchvision"]

# What the arrays of a layout are, of A candidates, or of N regions among which the detector has chosen itself.
_LAYOUTS: dict[Layout, str] = {
    "yolox": "[1, A, 5 + classes]",
    "boxes_scores": "[1, A, 4] and [1, A, classes]",
    "boxes_labels_scores": "boxes [N, 4], labels [N] and scores [N], or each of them in one more bracket",
    "torchvision": "a list of one dictionary: boxes [N, 4], labels [N] and scores [N]",
}
_CHOOSE_THEMSELVES = ("boxes_labels_scores", "torchvision")


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """Give `transformers`, a folder; or `network` with `classes` and `layout`.

    Layouts: `yolox`, one output [1, A, 5+C] of grid offsets; `boxes_scores`, [1, A, 4] xyxy and [1, A, C];
    `boxes_labels_scores`, [N, 4] xyxy, [N] and [N]; `torchvision`, a module of [{boxes, labels, scores}].
    """

    network: NetworkSpec | None = None
    classes: str | None = None  # a file, one name a line
    layout: Layout | None = None
    strides: tuple[int, ...] = (8, 16, 32)  # yolox
    confidence: float = 0.05
    nms_iou: float | None = None  # 0.45, or 1, which is none, for detectors that choose themselves
    # As transformers saves it: config.json, model.safetensors, preprocessor_config.json.
    transformers: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.network is None) == (self.transformers is None):
            raise UsageError("a detector has to name either network (onnx or module) or transformers (a folder)")
        for name, value in (("classes", self.classes), ("layout", self.layout)):
            if self.network is not None and value is None:
                raise UsageError(f"detector.{name} is missing: a network does not tell it")
            if self.network is None and value is not None:
                raise UsageError(f"detector.{name} is {value}, and the transformers folder says it: leave it out")
        if self.nms_iou is None:
            chosen = self.layout is None or self.layout in _CHOOSE_THEMSELVES
            object.__setattr__(self, "nms_iou", 1.0 if chosen else 0.45)
        for name, share in (("confidence", self.confidence), ("nms_iou", self.nms_iou)):
            if share is not None and not 0 <= share <= 1:
                raise UsageError(f"detector.{name} is {share}: give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    name: str
    detector: DetectorSpec
    backbone: NetworkSpec | None = None  # None: the transformers detector's own, its last feature map
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
        own = self.backbone is None
        if own and self.detector.transformers is None:
            raise UsageError("backbone is missing: only a transformers detector brings one of its own")
        if self.scales != (1.0,) and (self.backbone is None or self.backbone.input.fit == "as_is"):
            what = "the detector's own backbone sees" if own else "fit as_is lets the backbone see"
            raise UsageError(f"scales is {self.scales}, but {what} a picture at one size: leave scales out")
        if own and self.backbone_output:
            raise UsageError(f"backbone_output is {self.backbone_output}, but no backbone is named: leave it out")

    @property
    def nameless(self) -> ExtractorSpec:
        """The description without what it and its files are called: their contents count."""

        def of(network: NetworkSpec | None) -> NetworkSpec | None:
            return network and replace(network, onnx=network.onnx and "", weights=network.weights and "")

        found = self.detector
        detector = replace(found, network=of(found.network), classes=found.classes and "")
        return replace(self, name="", detector=detector, backbone=of(self.backbone))

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

    return VisualGenomeExtractor.of(given)


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
        self._find, self.classes, detector_digest = open_detector(self.spec, description)
        self._backbone: Network | None = None
        backbone_digest = ""
        if self.spec.backbone is not None:
            self._backbone, backbone_digest = load_network(self.spec.backbone)
        names = digest_of(self.classes)
        defined = f"{self.spec.nameless} {detector_digest} {backbone_digest}{self.spec.views} {names}"
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
        detector = self.spec.detector
        assert detector.nms_iou is not None
        found = self._find(image)
        found = found._replace(boxes=np.clip(found.boxes, 0, _corners(image.width, image.height)))
        kept = select(found, detector.confidence, detector.nms_iou, self.spec.max_regions)
        whole = np.array([[0, 0, image.width, image.height]], np.float32)
        boxes = np.concatenate([whole, kept.boxes])
        return RegionRecord(
            width=image.width,
            height=image.height,
            boxes=boxes,
            confidences=np.concatenate([np.ones(1, np.float32), kept.confidences]),
            classes=np.concatenate([np.array([WHOLE_IMAGE], np.uint16), kept.classes.astype(np.uint16)]),
            features=self._features(image, boxes, found.feature_map),
            scales=np.ones(len(boxes), np.float32),
        )

    def _features(self, image: Image.Image, boxes: NDArray[np.float32], own: FeatureMap | None) -> NDArray[np.float32]:
        """A vector of each box [n, 4]: the mean of those at all scales."""
        maps = [own] if own is not None else [self._look(image, scale) for scale in self.spec.scales]
        pooled = [
            pool(seen.values, torch.from_numpy(boxes / _corners(*seen.extent)), self.spec.samples) for seen in maps
        ]
        mean: NDArray[np.float32] = torch.stack(pooled).mean(0).numpy()
        return mean

    def _look(self, image: Image.Image, scale: float) -> FeatureMap:
        """What the backbone makes of a picture at a multiple of its input's size."""
        spec, backbone = self.spec.backbone, self._backbone
        assert spec is not None
        assert backbone is not None
        size = spec.input
        if size.fit != "as_is":
            size = replace(size, height=max(1, round(size.height * scale)), width=max(1, round(size.width * scale)))
        array, (scale_x, scale_y) = prepare(image, size)
        outputs, chosen = backbone(array), self.spec.backbone_output
        if chosen >= len(outputs):
            raise UsageError(f"backbone_output is {chosen}, the backbone gives {len(outputs)}: count from 0")
        shape = list(outputs[chosen].shape)
        if len(shape) != 4:
            raise UsageError(
                f"backbone_output {chosen} is {shape} and no feature map [1, channels, h, w]: name another one, or "
                "leave the backbone's pooling and classes out"
            )
        if 0 in shape:  # of this picture; others may be larger
            raise ValueError(f"the feature map is empty, {shape}")
        return FeatureMap(torch.from_numpy(outputs[chosen][0]), (array.shape[3] / scale_x, array.shape[2] / scale_y))

    def try_out(self) -> None:
        """Looks at a blank picture with all networks, so that what they cannot do is told before the work.

        Raises:
            UsageError: one of them fails: the description does not fit it.
        """
        blank = Image.new("RGB", _BLANK, (128, 128, 128))
        whole = np.array([[0, 0, *_BLANK]], np.float32)
        detector, backbone = self.spec.detector, self.spec.backbone
        named = "transformers" if detector.network is None else f"network.input, {detector.network.input.sides}"
        with _naming(f"detector.{named}"):
            own = self._find(blank).feature_map
        if backbone is None:
            with _naming("the backbone of detector.transformers"):
                self._features(blank, whole, own)
            return
        for scale in self.spec.scales:
            with _naming(f"backbone.input, {backbone.input.sides}" + (f", at {scale} of scales" if scale != 1 else "")):
                self._look(blank, scale)


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Where a network fails, says by which key of the description it was named."""
    try:
        yield
    except Exception as error:  # what networks raise is no closed list
        if of_the_machine(error) or (isinstance(error, UsageError) and not isinstance(error, UnreadableImage)):
            raise
        said = str(error) if isinstance(error, UnreadableImage) else in_words(error)
        raise UsageError(f"{key}: correct it, the network fails at a blank picture ({said})") from None


Find = Callable[[Image.Image], Candidates]


def open_detector(spec: ExtractorSpec, description: Path) -> tuple[Find, list[str], str]:
    """What finds boxes in pictures, the names of its classes, and the SHA-256 of what defines it.

    Raises:
        UsageError: a file or folder that is not there or does not work.
    """
    detector = spec.detector
    if detector.transformers is not None:
        from imagebert.regions.hugging_face import TransformersDetector

        found = TransformersDetector(Path(detector.transformers), own_backbone=spec.backbone is None)
        return lambda image: found(image, detector.confidence), found.classes, found.digest
    assert detector.network is not None
    assert detector.classes is not None
    try:
        classes = read_names(Path(detector.classes))
    except UsageError as error:
        raise UsageError(f"{description}: class names: {error}") from None
    network, digest = load_network(detector.network, listed=detector.layout == "torchvision")
    return lambda image: _find(image, network, detector, len(classes)), classes, digest


def _find(image: Image.Image, network: Network, spec: DetectorSpec, classes: int) -> Candidates:
    """All candidates of a network, in the picture's pixels.

    Raises:
        UsageError: what it gives is not of that layout, or of other classes.
    """
    assert spec.network is not None
    assert spec.layout is not None
    array, scale = prepare(image, spec.network.input)
    outputs = network(array)
    shapes = [output.shape for output in outputs]
    match spec.layout, [len(shape) for shape in shapes]:
        case "yolox", [3]:
            boxes, scores = decode_yolox(outputs[0][0], array.shape[2:], spec.strides)
        case "boxes_scores", [3, 3] if shapes[0][1:] == (shapes[1][1], 4):
            boxes, scores = outputs[0][0], outputs[1][0]
        case (("boxes_labels_scores" | "torchvision"), [2, 1, 1] | [3, 2, 2]) if shapes[0] == (*shapes[1], 4):
            boxes, labels, best = outputs[0].reshape(-1, 4), outputs[1].reshape(-1), outputs[2].reshape(-1)
            _check_boxes(boxes, best, array.shape[2:], spec)
            return Candidates(boxes / _corners(*scale), _known(labels, spec, classes), best)
        case _:
            told = ", ".join(str(list(shape)) for shape in shapes)
            raise UsageError(f"the detector gives {told}; layout {spec.layout} wants {_LAYOUTS[spec.layout]}")
    if scores.shape[1] != classes:
        raise UsageError(f"{spec.classes} names {classes} classes, the detector has {scores.shape[1]}")
    top = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), top]
    _check_boxes(boxes, best, array.shape[2:], spec)
    return Candidates(boxes / _corners(*scale), top, best)


def _check_boxes(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], size: tuple[int, ...], spec: DetectorSpec
) -> None:
    """Looks at boxes [A, 4] and scores [A] of an input of `size`: wrong ones would be a store without regions.

    Raises:
        UnreadableImage: they are no numbers, which may be so of one picture only.
        UsageError: they are shares of the input's sides.
    """
    sure = scores > spec.confidence
    if np.isnan(scores).any() or np.isnan(boxes[sure]).any():
        raise UnreadableImage("the detector gives boxes or scores that are no numbers (NaN): are its weights right?")
    extent = boxes[sure, 2:] - boxes[sure, :2]
    if min(size) > 1 and (extent > 0).all(axis=1).any() and np.abs(boxes).max() <= 1:
        raise UsageError(
            f"all boxes of detector.network lie within one pixel of the corner of its input, {size[0]} x {size[1]}: it "
            "gives shares, and pixels are wanted; give a network that multiplies them by width and height"
        )


def _known(labels: NDArray[np.float32], spec: DetectorSpec, classes: int) -> NDArray[np.int64]:
    numbers = labels.astype(np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
        wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
        raise UsageError(
            f"the detector found class {wrong}, {spec.classes} names {classes}: name all, from class 0, a line each"
        )
    return numbers


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


def select(found: Candidates, confidence: float, iou: float, most: int) -> Candidates:
    """Non-maximum suppression within a class, none at an IoU of 1, and the `most` best, by falling confidence."""
    boxes, classes, best, _ = found
    extent = boxes[:, 2:] - boxes[:, :2]
    keep = np.flatnonzero((best > confidence) & (extent.min(axis=1) > 1))
    keep = keep[np.argsort(-best[keep], kind="stable")]
    chosen: list[int] = keep[:most].tolist() if iou >= 1 else []
    while iou < 1 and len(keep) and len(chosen) < most:
        first, rest = keep[0], keep[1:]
        chosen.append(int(first))
        overlap = _iou(boxes[first], boxes[rest])
        keep = rest[(overlap <= iou) | (classes[rest] != classes[first])]
    return Candidates(boxes[chosen].astype(np.float32), classes[chosen], best[chosen].astype(np.float32))


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
