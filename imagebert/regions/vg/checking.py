"""A detector beside regions that somebody published of the same pictures: are these the weights that made them?

Published regions are matched with those that the detector finds now. Right weights and preprocessing give nearly the
same boxes and features; other ones do not, and colours in the wrong order are told by trying the other order, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.regions.vg.extractor import VisualGenomeExtractor
from imagebert.regions.vg.operators import overlaps

# From these on a picture's regions count as found again: resizing and decoders differ between programs.
IOU, COSINE = 0.8, 0.9
MOST = 0.5  # of the boxes, and of their classes


class CheckedPicture(NamedTuple):
    """Says how near a detector comes to the published regions of one picture.

    Attributes:
        key: The picture's key.
        published: The number of published regions.
        found: The number of regions that the detector finds.
        iou: The mean intersection over union of each published box with the nearest one found.
        again: The share of published boxes that are found again, at an overlap of 0.8 and more.
        cosine: The mean cosine of their features with those of the boxes found; None where none is found again.
        classes: The share of them that have the same class; None where none is found again, or none was published.
        other_colours: The same cosine where the detector is given red, green and blue in the other order.
    """

    key: str
    published: int
    found: int
    iou: float
    again: float
    cosine: float | None
    classes: float | None
    other_colours: float | None


def check(
    extractor: VisualGenomeExtractor,
    pictures: Iterable[tuple[str, Image.Image, RegionRecord]],
    has_classes: bool = True,
) -> Iterable[CheckedPicture]:
    """Compares each picture's published regions with those that the detector finds.

    Args:
        pictures: key, picture (RGB) and published regions of each
        has_classes: whether classes were published
    """
    for key, image, record in pictures:
        named = record.classes != WHOLE_IMAGE
        boxes = torch.from_numpy(record.boxes[named].copy())
        features = torch.from_numpy(record.dequantized()[named])
        exchanged = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
        first, other = extractor.many([image, exchanged])
        iou, again, cosine, classes = _nearness(boxes, features, record.classes[named], first)
        yield CheckedPicture(
            *(key, len(boxes), len(first.boxes), iou, again, cosine, classes if has_classes else None),
            other_colours=_nearness(boxes, features, record.classes[named], other)[2],
        )


def _nearness(
    boxes: torch.Tensor,
    features: torch.Tensor,
    classes: np.ndarray[tuple[int], np.dtype[np.uint16]],
    found: RegionRecord,
) -> tuple[float, float, float | None, float | None]:
    if not len(found.boxes) or not len(boxes):
        return 0.0, 0.0, None, None
    overlap, nearest = overlaps(boxes, torch.from_numpy(found.boxes)).max(dim=1)
    again = overlap >= IOU
    if not again.any():
        return float(overlap.mean()), 0.0, None, None
    near = torch.from_numpy(found.dequantized())[nearest]
    cosines = torch.nn.functional.cosine_similarity(features, near)
    same = torch.from_numpy(classes == found.classes[nearest.numpy()])
    return (
        float(overlap.mean()),
        float(again.float().mean()),
        float(cosines[again].mean()),
        float(same[again].float().mean()),
    )


def verdict(pictures: list[CheckedPicture]) -> tuple[bool, str]:
    """Whether the weights fit what was published, and a sentence about it."""
    again = float(np.mean([picture.again for picture in pictures]))
    cosines, others, classes = (
        [c for c in each if c is not None]
        for each in zip(*((p.cosine, p.other_colours, p.classes) for p in pictures), strict=True)
    )
    cosine, other = (float(np.mean(each)) if each else -1.0 for each in (cosines, others))
    share = f"{again:.0%} of the published boxes are found again" + (
        f", their features at a cosine of {cosine:.3f}" if cosines else ""
    )
    same = float(np.mean(classes)) if classes else 1.0
    if cosine >= COSINE and again >= MOST and same < MOST:
        return False, (
            f"boxes and features fit, and {same:.0%} of the classes agree: the rows of these weights' classes stand in "
            f"another order, or the published regions number theirs otherwise; {share}"
        )
    if cosine >= COSINE and again >= MOST:
        return True, f"these weights made those regions, or ones like them: {share}"
    if other >= COSINE and other > cosine:
        return False, (
            f"with red and blue exchanged the features fit, at a cosine of {other:.3f}: the published regions were "
            f"made of pictures read in the wrong order of colours; as they are, {share}"
        )
    if again >= MOST:
        return False, f"the boxes fit, the features do not: another variant or preprocessing; {share}"
    return False, f"these weights did not make those regions: {share}"
