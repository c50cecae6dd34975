"""What a region is like, in words: "wet", "brown". Some detectors tell it, and then some stores have it."""

from __future__ import annotations

from typing import NamedTuple

from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.regions import RegionStore


class Attribute(NamedTuple):
    """The attribute of a region.

    Attributes:
        name: What it is called; empty where the region has none.
        confidence: How sure the detector was; None where the region has none.
    """

    name: str = ""
    confidence: float | None = None


def attributes_of(record: RegionRecord, store: RegionStore) -> list[Attribute]:
    """Names the attribute of each region of a record.

    Args:
        record: The regions of an image, from this store or found by the same detector.
        store: The region store, which names the attributes.

    Returns:
        An attribute for each region; without a name where the detector tells none.
    """
    if record.attributes is None or record.attribute_confidences is None:
        return [Attribute()] * len(record.classes)
    known = zip(record.attributes.tolist(), record.attribute_confidences.tolist(), record.classes.tolist(), strict=True)
    return [
        Attribute() if kind == WHOLE_IMAGE else Attribute(store.attributes[number], confidence)
        for number, confidence, kind in known
    ]
