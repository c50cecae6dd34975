"""What a region is like, in words: "wet", "brown". Some detectors tell it, and then some stores have it."""

from __future__ import annotations

from typing import NamedTuple

from imagebert.data.records import RegionRecord
from imagebert.data.regions import RegionStore


class Attribute(NamedTuple):
    """The attribute of a region.

    Attributes:
        name: What it is called; empty where the region has none.
        confidence: How sure the detector was; None where it is not told.
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
    numbers, confidences = getattr(record, "attributes", None), getattr(record, "attribute_confidences", None)
    names = getattr(store, "attributes", None) or ()
    if numbers is None:
        return [Attribute()] * len(record.classes)
    sure = [None] * len(numbers) if confidences is None else confidences.tolist()
    known = zip(numbers.tolist(), sure, strict=True)
    return [Attribute(names[number], value) if number < len(names) else Attribute() for number, value in known]
