"""What the public ports do with what the network says of a picture; each number here is one of theirs.

    caffe       Caffe's own (Anderson et al. 2018) and MILVLG's bottom-up-attention.pytorch in its caffe mode
    detectron2  airsplay's py-bottom-up-attention, whose weights transformers' lxmert project has, too

In pixels of Caffe's a box holds its last column and row, so that it is wider by one than the difference of its corners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from imagebert.errors import UsageError
from imagebert.regions.vg.operators import overlaps, suppress, suppress_classes

Variant = Literal["caffe", "detectron2"]

_STRIDE = 16
_LARGEST_STEP = math.log(1000 / 16)  # of a box's logarithmic change of size


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Says how a port goes from a picture to regions.

    Attributes:
        variant: The port, which the weights' shapes tell.
        resize: How a picture gets its size. "factor": means are taken away, then all pixels are read at multiples of
            one factor (Caffe). "pillow": Pillow's antialiased resize of the bytes (airsplay). "interpolate":
            torch's interpolation of floats without antialiasing (transformers).
        short_side: The length in pixels that a picture's shorter side gets.
        long_side: The length in pixels that its longer side may have.
        candidates: How many boxes go into the first suppression.
        proposals: How many come out of it at most.
        least: How many regions a picture has at least, where there are as many.
        most: How many it has at most.
        confidence: The confidence from which on a region is kept beyond `least` (caffe).
        nms_iou: The overlaps at which regions suppress each other, tried one after the other until `least` are left
            (detectron2); of caffe's the first counts.
    """

    variant: Variant
    resize: Literal["factor", "pillow", "interpolate"]
    short_side: int = 600
    long_side: int = 1000
    candidates: int = 6000
    proposals: int = 300
    least: int = 10
    most: int = 100
    confidence: float = 0.2
    nms_iou: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __post_init__(self) -> None:
        if self.variant not in ("caffe", "detectron2") or self.resize not in ("factor", "pillow", "interpolate"):
            raise UsageError(f"a detector of the kind {self.variant!r} with resize {self.resize!r} is not known")
        if not 0 < self.least <= self.most or not self.most <= self.proposals <= self.candidates:
            raise UsageError(
                f"{self.least} to {self.most} regions of {self.proposals} proposals of {self.candidates} candidates:"
                " give numbers that rise"
            )
        if not 0 < self.short_side <= self.long_side <= 1 << 13 or not self.nms_iou:
            raise UsageError(f"sides of {self.short_side} to {self.long_side} pixels: give numbers that rise")

    def boxes(self, number: str) -> Rules:
        """Changes how many regions a picture has: "36", or "10-100".

        Raises:
            UsageError: It is neither one number nor two that rise.
        """
        least, _, most = number.partition("-")
        try:
            return replace(self, least=int(least), most=int(most or least))
        except ValueError:
            raise UsageError(f"boxes {number!r}: give a number, such as 36, or two, such as 10-100") from None

    def with_proposals(self, number: int) -> Rules:
        """Changes how many boxes the second half of the network looks at; a picture has no more regions than those.

        Raises:
            UsageError: There are fewer than the regions that a picture has at least.
        """
        return replace(self, proposals=number, most=max(self.least, min(self.most, number)))


class Resized(NamedTuple):
    """A picture as the network sees it."""

    pixels: torch.Tensor  # [3, h, w] float32: blue, green, red, less their means
    scale: tuple[float, float]  # its pixels per pixel of the picture, along x and y


class Detections(NamedTuple):
    """The regions of one picture, in the port's order; n of them."""

    boxes: torch.Tensor  # [n, 4] float32 x1 y1 x2 y2, in pixels of the picture
    classes: torch.Tensor  # [n] int64, 0 to 1,599
    confidences: torch.Tensor  # [n] float32
    attributes: torch.Tensor  # [n] int64, 0 to 399
    attribute_confidences: torch.Tensor  # [n] float32
    features: torch.Tensor  # [n, F] float32
    proposals: torch.Tensor  # [n] int64: which of the proposals each is


# ------------------------------------------------------------------------------------------------------ of the network


def anchors(variant: Variant) -> torch.Tensor:
    """The 12 boxes [12, 4] of a cell, for weights that have none of their own: three shapes, four sizes."""
    if variant == "detectron2":  # around 0; sizes outside
        sizes, ratios = (64, 128, 256, 512), (0.5, 1.0, 2.0)
        pairs = [(size * ratio**-0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
        return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in pairs])
    found = []  # whole numbers around 7.5, the middle of the first cell; shapes outside
    for width, height in ((23, 12), (16, 16), (11, 22)):
        for scale in (4, 8, 16, 32):
            across, down = (width * scale - 1) / 2, (height * scale - 1) / 2
            found.append([7.5 - across, 7.5 - down, 7.5 + across, 7.5 + down])
    return torch.tensor(found)


def all_anchors(cell: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The anchors [height * width * 12, 4] of a map, row by row, those of a cell together."""
    xs = torch.arange(width, device=cell.device, dtype=torch.float32) * _STRIDE
    ys = torch.arange(height, device=cell.device, dtype=torch.float32) * _STRIDE
    corners = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)] * 2, dim=-1)
    return (corners[:, :, None] + cell).reshape(-1, 4)


def propose(
    scores: torch.Tensor, deltas: torch.Tensor, cell: torch.Tensor, seen: Resized, rules: Rules
) -> tuple[torch.Tensor, torch.Tensor]:
    """The proposals of one picture: boxes [n, 4] in the network's pixels, and their scores [n], falling.

    Args:
        scores: [12 or 24, h, w] of the region proposal network; 24: the background's come first
        deltas: [48, h, w]
    """
    caffe, (tall, wide) = rules.variant == "caffe", seen.pixels.shape[1:]
    height, width = scores.shape[1:]
    if scores.shape[0] == 2 * len(cell):
        scores = scores.view(2, len(cell), height, width).softmax(dim=0)[1]
    flat = scores.permute(1, 2, 0).reshape(-1)
    steps = deltas.view(len(cell), 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    boxes = moved(all_anchors(cell, height, width), steps, 1.0 if caffe else 0.0)
    if caffe:
        boxes = clipped(boxes, wide - 1, tall - 1)
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        keep &= (boxes[:, 2:] - boxes[:, :2] + 1 > 16 * seen.scale[0]).all(dim=1)
        boxes, flat = boxes[keep], flat[keep]
    order = flat.argsort(descending=True, stable=True)[: rules.candidates]
    boxes, flat = boxes[order], flat[order]
    if not caffe:
        boxes = clipped(boxes, wide, tall)
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, flat = boxes[keep], flat[keep]
    kept = suppress(boxes, 0.7, wider=1.0 if caffe else 0.0, most=rules.proposals)
    return boxes[kept], flat[kept]


def moved(
    boxes: torch.Tensor, deltas: torch.Tensor, wider: float, weights: tuple[float, float] = (1, 1)
) -> torch.Tensor:
    """Boxes [n, 4] moved and scaled by a network's deltas [n, 4] (Girshick et al. 2014, appendix C).

    Args:
        wider: by how much a box is wider than the difference of its corners
        weights: that the deltas of place and of size were learnt with
    """
    extent = boxes[:, 2:] - boxes[:, :2] + wider
    middle = boxes[:, :2] + 0.5 * extent
    middle = deltas[:, :2] / weights[0] * extent + middle
    half = 0.5 * (deltas[:, 2:] / weights[1]).clamp(max=_LARGEST_STEP).exp() * extent
    return torch.cat([middle - half, middle + half], dim=1)


def clipped(boxes: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """Boxes [n, 4] inside a picture."""
    most = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), most)


# ------------------------------------------------------------------------------------------------- behind the network


class Heads(NamedTuple):
    """What the network says of the n proposals of one picture."""

    features: torch.Tensor  # [n, F]
    classes: torch.Tensor  # [n, C+1] logits, the background first (caffe) or last (detectron2)
    deltas: torch.Tensor  # [n, 4 (C+1)] or [n, 4 C]
    attributes: torch.Tensor  # [n, A+1] logits, no attribute first or last


def choose(proposals: torch.Tensor, heads: Heads, seen: Resized, rules: Rules) -> Detections:
    """The regions that a port keeps of the proposals [n, 4] of one picture."""
    caffe = rules.variant == "caffe"
    named = slice(1, None) if caffe else slice(None, -1)
    scores = heads.classes.float().softmax(dim=1)[:, named]
    confidences, classes = scores.max(dim=1)
    if caffe:
        boxes = proposals / seen.scale[0]
        kept = _keep_of_caffe(boxes, scores, rules)
        attribute = heads.attributes.float().softmax(dim=1)[:, named].max(dim=1)
    else:
        deltas = heads.deltas.float().view(len(proposals), -1, 4)
        boxes = moved(proposals, deltas[torch.arange(len(proposals)), classes], 0.0, (10.0, 5.0))
        boxes = clipped(boxes, seen.pixels.shape[2], seen.pixels.shape[1])
        kept = _keep_of_detectron2(boxes, confidences, rules)
        boxes = boxes / torch.tensor(seen.scale * 2, dtype=boxes.dtype, device=boxes.device)
        attribute = heads.attributes.float()[:, named].softmax(dim=1).max(dim=1)
    return Detections(
        boxes[kept],
        classes[kept],
        confidences[kept],
        attribute.indices[kept],
        attribute.values[kept],
        heads.features[kept].float(),
        kept,
    )


def _keep_of_caffe(boxes: torch.Tensor, scores: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Suppression within each class; what is left at `confidence`, in the proposals' order, where that is as many as
    there may be; else the best."""
    best = suppress_classes(overlaps(boxes, wider=1.0), scores, rules.nms_iou[0])
    kept = (best >= rules.confidence).nonzero().flatten()
    if len(kept) < rules.least:
        return best.argsort(descending=True, stable=True)[: rules.least]
    return best.argsort(descending=True, stable=True)[: rules.most] if len(kept) > rules.most else kept


def _keep_of_detectron2(boxes: torch.Tensor, confidences: torch.Tensor, rules: Rules) -> torch.Tensor:
    order = confidences.argsort(descending=True, stable=True)
    kept = order
    for overlap in rules.nms_iou:
        kept = order[suppress(boxes[order], overlap, most=rules.most)]
        if len(kept) >= rules.least:
            break
    return kept
