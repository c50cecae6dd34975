"""The Visual Genome detector of bottom-up attention (Anderson et al. 2018), whose regions the paper's are.

Faster R-CNN with ResNet-101-C4: 1,600 object classes and 400 attributes. Its public ports differ; which one is spoken
of is written in `rules.py`, and a store names it. Weights are the user's (`weights.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VisualGenome:
    """Names the detector of bottom-up attention (docs/detector.md) as what finds regions.

    Attributes:
        weights: The file or folder of its weights, as any project publishes them, or converted.
        boxes: How many regions a picture has, "36" or "10-100". Empty takes what belongs to the weights.
        proposals: How many boxes the second half of the network looks at. None takes what belongs to the weights.
        precision: What the convolutions are computed in.
    """

    weights: str
    boxes: str = ""
    proposals: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
