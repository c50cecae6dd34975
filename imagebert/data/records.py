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
            n F b   features
            4       CRC-32 of all the above

Little-endian. Features stand last so that a reader copies one run of bytes into its batch.
"""

from __future__ import annotations

import struct
import zlib
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError

FeatureType = Literal["int8", "float16", "float32"]
FEATURE_TYPES: tuple[FeatureType, ...] = ("int8", "float16", "float32")

# The class of a region that is the whole image: no detector named it, so it is never masked.
WHOLE_IMAGE = 65535

_VERSION = 1
_HEADER = struct.Struct("<BBHIII")


class RegionRecord(NamedTuple):
    """The regions of one image: the whole-image region first, where there is one, then by falling confidence."""

    width: int
    height: int
    boxes: NDArray[np.float32]  # [n, 4] x1 y1 x2 y2 in pixels
    confidences: NDArray[np.float32]  # [n]
    classes: NDArray[np.uint16]  # [n]
    features: NDArray[np.generic]  # [n, F] int8, float16 or float32
    scales: NDArray[np.float32]  # [n]; a feature is features * scales

    def dequantized(self) -> NDArray[np.float32]:
        """The features as float32 [n, F]."""
        return self.features.astype(np.float32) * self.scales[:, None]


def encode_record(record: RegionRecord, feature_type: FeatureType) -> bytes:
    """Packs a record whose features are floats, converting them to `feature_type`."""
    n, feature_size = record.features.shape
    features = record.dequantized()
    scales = np.ones(n, np.float32)
    stored: NDArray[np.generic]
    if feature_type == "int8":
        # Symmetric, one scale per region: the largest feature becomes 127. A region of zeros keeps scale 0.
        scales = (np.abs(features).max(axis=1, initial=0) / 127).astype(np.float32)
        stored = np.rint(features / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8)
    else:
        stored = features.astype(feature_type)
    parts = [
        _HEADER.pack(_VERSION, FEATURE_TYPES.index(feature_type), n, record.width, record.height, feature_size),
        record.boxes.astype("<f4").tobytes(),
        record.confidences.astype("<f4").tobytes(),
        scales.astype("<f4").tobytes(),
        record.classes.astype("<u2").tobytes().ljust((2 * n + 3) // 4 * 4, b"\0"),
        stored.tobytes(),
    ]
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def decode_record(data: memoryview | bytes, where: str, verify: bool = True) -> RegionRecord:
    """Unpacks a record as views into `data`, without a copy.

    Raises:
        UsageError: `data` is not a whole, undamaged record; `where` says which one.
    """
    size = len(data)
    if size < _HEADER.size + 4:
        raise UsageError(f"{where} is truncated: {size} bytes. Restore the store, or extract this image again")
    version, type_code, n, width, height, feature_size = _HEADER.unpack_from(data)
    if version != _VERSION or type_code >= len(FEATURE_TYPES):
        raise UsageError(
            f"{where} is damaged or of another format (version {version}, type {type_code}): restore the store"
        )
    dtype = np.dtype(FEATURE_TYPES[type_code])
    class_bytes = (2 * n + 3) // 4 * 4
    expected = _HEADER.size + 24 * n + class_bytes + n * feature_size * dtype.itemsize + 4
    if size != expected:
        raise UsageError(f"{where} is truncated: {size} bytes, not {expected}. Restore the store, or extract it again")
    if verify and zlib.crc32(data[: size - 4]) != struct.unpack_from("<I", data, size - 4)[0]:
        raise UsageError(f"{where} is damaged: its checksum does not match. Restore the store, or extract it again")
    at = _HEADER.size
    boxes = np.frombuffer(data, "<f4", 4 * n, at).reshape(n, 4)
    confidences = np.frombuffer(data, "<f4", n, at + 16 * n)
    scales = np.frombuffer(data, "<f4", n, at + 20 * n)
    classes = np.frombuffer(data, "<u2", n, at + 24 * n)
    features = np.frombuffer(data, dtype, n * feature_size, at + 24 * n + class_bytes).reshape(n, feature_size)
    return RegionRecord(width, height, boxes, confidences, classes, features, scales)
