"""The Visual Genome detector as an extractor: pictures in, RegionRecords out, several at a time.

Each picture is computed on its own size: pictures of one size go through the network together, and none is padded, so
that a picture's regions do not depend on its neighbours. (transformers' port pads them, and mixes up two that do not
have enough boxes.) Within a record regions stand by falling confidence, as in every store; the ports' own order is that
of `Detections`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from imagebert.data.records import RegionRecord
from imagebert.errors import UsageError
from imagebert.files import digest_of
from imagebert.regions.vg import VisualGenome
from imagebert.regions.vg.network import Network
from imagebert.regions.vg.operators import RegionPooling
from imagebert.regions.vg.resizing import resize
from imagebert.regions.vg.rules import Detections, Resized, Rules, choose, propose
from imagebert.regions.vg.weights import Detector, read_detector

Precision = Literal["fp32", "bf16", "fp16"]
_NARROWEST = 3  # pixels of the network's input
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class VisualGenomeExtractor:
    """An extractor of the paper's regions.

    Args:
        weights: what `read_detector` reads
        boxes: how many regions a picture has, "36" or "10-100"; empty: as the weights' file says
        proposals: how many boxes the second half of the network looks at; None: as the weights' file says
        precision: that convolutions are computed in
        device: None: the GPU where there is one

    Raises:
        UsageError: the weights, or a number, are wrong.
    """

    def __init__(
        self,
        weights: Path | Detector,
        *,
        boxes: str = "",
        proposals: int | None = None,
        precision: Precision = "fp32",
        device: torch.device | None = None,
    ) -> None:
        detector = weights if isinstance(weights, Detector) else read_detector(weights)
        rules = detector.rules.boxes(boxes) if boxes else detector.rules
        self.rules: Rules = rules if proposals is None else rules.with_proposals(proposals)
        if precision not in _DTYPES:
            raise UsageError(f"precision {precision!r}: give one of {', '.join(_DTYPES)}")
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = Network(detector.weights, _DTYPES[precision], self.device)
        self._cell = detector.weights["proposal_generator.anchor_generator.cell_anchors.0"].to(self.device)
        self.classes, self.attributes = list(detector.classes), list(detector.attributes)
        defined = f"{self.rules} {detector.digest} {precision} {digest_of([self.classes, self.attributes])}"
        self.description: dict[str, Any] = {
            "name": f"Visual Genome Faster R-CNN, {self.rules.variant}",
            "digest": hashlib.sha256(defined.encode()).hexdigest(),
            "weights_sha256": detector.digest,
            "weights": detector.source,
            "boxes": [self.rules.least, self.rules.most],
            "proposals": self.rules.proposals,
            "resize": self.rules.resize,
            "precision": precision,
        }
        self.batch_size = 16 if self.device.type == "cuda" else 1

    @classmethod
    def of(cls, named: VisualGenome) -> VisualGenomeExtractor:
        """The one that somebody named."""
        return cls(Path(named.weights), boxes=named.boxes, proposals=named.proposals, precision=named.precision)

    def __call__(self, image: Image.Image) -> RegionRecord:
        return self.many([image])[0]

    def many(self, images: Sequence[Image.Image]) -> list[RegionRecord]:
        """The regions of several pictures (RGB), each as if it came alone; of one where nothing is found, none."""
        return [_record(image, found) for image, found in zip(images, self.detect(images), strict=True)]

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The same as the port's own tensors, in its order."""
        seen = [resize(image, self.rules, self.device) for image in images]
        places: dict[torch.Size, list[int]] = {}
        for place, picture in enumerate(seen):
            places.setdefault(picture.pixels.shape, []).append(place)
        found: dict[int, Detections] = {}
        with torch.backends.cudnn.flags(allow_tf32=False):  # fp32 is fp32, on a GPU, too
            for size, group in places.items():
                if min(size[1:]) < _NARROWEST:  # of which the fourth stage has nothing
                    found |= dict.fromkeys(group, self._nothing())
                else:
                    found |= dict(zip(group, self._of_one_size([seen[place] for place in group]), strict=True))
        return [found[place] for place in range(len(images))]

    def _nothing(self) -> Detections:
        numbers, whole = torch.zeros(0, device=self.device), torch.zeros(0, dtype=torch.int64, device=self.device)
        features = torch.zeros(0, self.network.feature_size, device=self.device)
        return Detections(torch.zeros(0, 4, device=self.device), whole, numbers, whole, numbers, features, whole)

    def _of_one_size(self, seen: list[Resized]) -> list[Detections]:
        maps = self.network.maps(torch.stack([picture.pixels for picture in seen]))
        scores, deltas = self.network.propose(maps)
        proposals = [
            propose(scores[place], deltas[place], self._cell, picture, self.rules)[0]
            for place, picture in enumerate(seen)
        ]
        counts = [len(boxes) for boxes in proposals]
        boxes = torch.cat(proposals)
        pictures = torch.arange(len(seen)).repeat_interleave(torch.tensor(counts)).to(boxes.device)
        pool, at_once = RegionPooling(maps), self.network.regions_at_once
        features = [
            self.network.features(pool(part, which))
            for part, which in zip(torch.split(boxes, at_once), torch.split(pictures, at_once), strict=True)
        ]
        ends = np.cumsum(counts)
        every = torch.cat(features)
        return [
            choose(proposals[place], self.network.heads(every[end - count : end]), picture, self.rules)
            for place, (picture, count, end) in enumerate(zip(seen, counts, ends, strict=True))
        ]


def _record(image: Image.Image, found: Detections) -> RegionRecord:
    order = found.confidences.argsort(descending=True, stable=True)
    boxes, classes, confidences, attributes, sure, features = (part[order].cpu().numpy() for part in found[:6])
    return RegionRecord(
        width=image.width,
        height=image.height,
        boxes=boxes,
        confidences=confidences,
        classes=classes.astype(np.uint16),
        features=features,
        scales=np.ones(len(boxes), np.float32),
        attributes=attributes.astype(np.uint16),
        attribute_confidences=sure,
    )
