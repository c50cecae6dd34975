"""One image's regions as bytes, and back.

    offset  size    what
    0       1       format version
    1       1       feature type: 0 int8 with a scale per region, 1 float16, 2 float32
    2       2       n, regions
    4       4 + 4   image width and height, pixels
    12      4       F, feature size
    16      16 n    boxes, float32 x1 y1 x2 y2 in pixels
            4 n     confidences, float32
            4 n     scales, float32 (ones unless int8)
            2 n     class ids, uint16; padded to 4 bytes
            4 n     attribute confidences, float32    } format version 2 only
            2 n     attribute ids, uint16, as classes }
            n F b   features
            4       CRC-32 of all the above

Little-endian. Features stand last so that a reader copies one run of bytes into its batch.
"""

from __future__ import annotations

import struct
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError

try:  # the same sum at the speed of memory; zlib's is slower than a copy
    from isal.isal_zlib import crc32 as crc32
except ImportError:
    from zlib import crc32 as crc32

FeatureType = Literal["int8", "float16", "float32"]
FEATURE_TYPES: tuple[FeatureType, ...] = ("int8", "float16", "float32")

# The class of a region that is the whole image: no detector named it, so it is never masked.
WHOLE_IMAGE = 65535

_VERSION, _WITH_ATTRIBUTES = 1, 2  # a record without attributes stays what it was before there were any
_HEADER = struct.Struct("<BBHIII")
_CHECKSUM = struct.Struct("<I")


class RegionRecord(NamedTuple):
    """Holds the regions of one image: the whole-image region first, where there is one, then by falling confidence."""

    width: int
    height: int
    boxes: NDArray[np.float32]  # [n, 4] x1 y1 x2 y2 in pixels
    confidences: NDArray[np.float32]  # [n]
    classes: NDArray[np.uint16]  # [n]
    features: NDArray[np.generic]  # [n, F] int8, float16 or float32
    scales: NDArray[np.float32]  # [n]; a feature is features * scales
    attributes: NDArray[np.uint16] | None = None  # [n] the likeliest; None: no names. The whole image's says nothing
    attribute_confidences: NDArray[np.float32] | None = None  # [n]

    def dequantized(self) -> NDArray[np.float32]:
        """The features as float32 [n, F]; their own memory where they are that already."""
        if self.features.dtype == np.float32 and (self.scales == 1).all():
            return self.features  # type: ignore[return-value]
        return self.features.astype(np.float32) * self.scales[:, None]


class Sections(NamedTuple):
    """Where the parts of a record of n regions begin, in bytes; `end` is its whole size. Of many records: arrays."""

    boxes: Any
    confidences: Any
    scales: Any
    classes: Any
    attribute_confidences: Any
    attributes: Any
    features: Any
    end: Any

    @classmethod
    def of(cls, n: int | NDArray[np.int64], feature_bytes: int, has_attributes: bool = False) -> Sections:
        """`feature_bytes` of one region."""
        boxes, classes, numbers = _HEADER.size, _HEADER.size + 24 * n, (2 * n + 3) // 4 * 4
        confidences = classes + numbers
        attributes = confidences + 4 * n * has_attributes
        features = attributes + numbers * has_attributes
        end = features + n * feature_bytes + 4
        return cls(boxes, boxes + 16 * n, boxes + 20 * n, classes, confidences, attributes, features, end)


def header_word(n: NDArray[np.int64], feature_type: FeatureType, has_attributes: bool = False) -> NDArray[np.int64]:
    """The first four bytes of records of n regions, as a number."""
    return (_WITH_ATTRIBUTES if has_attributes else _VERSION) | FEATURE_TYPES.index(feature_type) << 8 | n << 16


def encode_record(record: RegionRecord, feature_type: FeatureType) -> bytes:
    """Packs a record, converting its features to `feature_type`; those that are of that type stay as they are."""
    stored, scales, _ = convert(record, record.dequantized(), feature_type)
    return pack_record(record, stored, scales)


def convert(
    record: RegionRecord, features: NDArray[np.float32], feature_type: FeatureType
) -> tuple[NDArray[np.generic], NDArray[np.float32], NDArray[np.float32]]:
    """A record's features as `feature_type` [n, F], their scales [n], and what is lost of them [n, F]; nothing: [1].

    Args:
        features: the record's own, dequantised
    """
    if record.features.dtype == feature_type:
        return record.features, record.scales, np.zeros(1, np.float32)
    if feature_type == "int8":
        return quantize(features)
    with np.errstate(over="ignore"):
        stored = features.astype(feature_type)
    return stored, np.ones(len(stored), np.float32), features - stored.astype(np.float32)


def quantize(features: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Features [n, F] as int8 [n, F] and a scale for each region [n]; and how much of each is lost [n, F].

    Symmetric: the largest feature of a region becomes 127. A region of zeros keeps scale 0.
    """
    largest = np.maximum(features.max(axis=1, initial=0), -features.min(axis=1, initial=0))
    scales = (largest / 127).astype(np.float32)
    steps = features / np.where(scales == 0, np.float32(1), scales)[:, None]
    np.rint(steps, out=steps)
    stored = steps.astype(np.int8)
    steps *= scales[:, None]
    np.subtract(features, steps, out=steps)
    return stored, scales, steps.astype(np.float32, copy=False)


def pack_record(record: RegionRecord, stored: NDArray[np.generic], scales: NDArray[np.float32]) -> bytes:
    """The bytes of a record whose features are `stored` [n, F] with `scales` [n]."""
    n, feature_size = stored.shape
    type_code = FEATURE_TYPES.index(str(stored.dtype))  # type: ignore[arg-type]
    version, named = _VERSION, []
    if record.attributes is not None:
        assert record.attribute_confidences is not None
        version = _WITH_ATTRIBUTES
        named = [record.attribute_confidences.astype("<f4", copy=False).tobytes(), _numbers(record.attributes)]
    parts = [
        _HEADER.pack(version, type_code, n, record.width, record.height, feature_size),
        record.boxes.astype("<f4", copy=False).tobytes(),
        record.confidences.astype("<f4", copy=False).tobytes(),
        scales.astype("<f4", copy=False).tobytes(),
        _numbers(record.classes),
        *named,
        stored.tobytes(),
    ]
    body = b"".join(parts)
    return body + _CHECKSUM.pack(crc32(body))


def _numbers(numbers: NDArray[np.uint16]) -> bytes:
    return numbers.astype("<u2", copy=False).tobytes().ljust((2 * len(numbers) + 3) // 4 * 4, b"\0")


def decode_record(data: memoryview | bytes, where: str, verify: bool = True) -> RegionRecord:
    """Unpacks a record as views into `data`, without a copy.

    Raises:
        UsageError: `data` is not a whole, undamaged record; `where` says which one.
    """
    size = len(data)
    if size < _HEADER.size + 4:
        raise UsageError(f"{where} is truncated: {size} bytes. Restore the store, or extract this image again")
    version, type_code, n, width, height, feature_size = _HEADER.unpack_from(data)
    if version not in (_VERSION, _WITH_ATTRIBUTES) or type_code >= len(FEATURE_TYPES):
        raise UsageError(
            f"{where} is damaged or of another format (version {version}, type {type_code}): restore the store"
        )
    dtype = np.dtype(FEATURE_TYPES[type_code])
    at = Sections.of(n, feature_size * dtype.itemsize, version == _WITH_ATTRIBUTES)
    if size != at.end:
        raise UsageError(f"{where} is truncated: {size} bytes, not {at.end}. Restore the store, or extract it again")
    if verify and crc32(data[: size - 4]) != _CHECKSUM.unpack_from(data, size - 4)[0]:
        raise UsageError(f"{where} is damaged: its checksum does not match. Restore the store, or extract it again")
    boxes = np.frombuffer(data, "<f4", 4 * n, at.boxes).reshape(n, 4)
    confidences = np.frombuffer(data, "<f4", n, at.confidences)
    scales = np.frombuffer(data, "<f4", n, at.scales)
    classes = np.frombuffer(data, "<u2", n, at.classes)
    features = np.frombuffer(data, dtype, n * feature_size, at.features).reshape(n, feature_size)
    attributes = attribute_confidences = None
    if version == _WITH_ATTRIBUTES:
        attributes = np.frombuffer(data, "<u2", n, at.attributes)
        attribute_confidences = np.frombuffer(data, "<f4", n, at.attribute_confidences)
    return RegionRecord(
        *(width, height, boxes, confidences, classes, features, scales),
        attributes=attributes,
        attribute_confidences=attribute_confidences,
    )
