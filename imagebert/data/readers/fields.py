"""One image's arrays, under whatever names and in whatever units a project keeps them, to a RegionRecord."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagebert.data.readers import BadRecord
from imagebert.data.records import RegionRecord

# What projects call a field; the first that is there is taken.
_NAMES = {
    "features": ("features", "x", "image_feat", "feat"),
    "boxes": ("boxes", "norm_bb", "bbox", "image_bboxes"),
    "width": ("image_w", "image_width", "img_w", "width"),
    "height": ("image_h", "image_height", "img_h", "height"),
    "number": ("num_boxes", "num_bbox"),
    "classes": ("objects_id", "objects"),
    "confidences": ("objects_conf", "conf"),
    "probabilities": ("soft_labels", "cls_prob"),
}
_VISUAL_GENOME_FEATURES, _VISUAL_GENOME_CLASSES = 2048, 1600
_GEOMETRY = 6  # columns that VinVL puts behind the features: x1 y1 x2 y2 w h, as shares of the image


def record_from(fields: Mapping[str, Any], most: int | None = None) -> RegionRecord:
    """The record of one image.

    Features [n, F] and boxes [n, 4 or more] xyxy are needed, in pixels with the image's size, or as shares of it. Of
    boxes with more columns (areas, sides) the first four count. Classes may be numbers, or probabilities, with or
    without the background's in front; without any, all regions are of class 0. Regions come by falling confidence.

    Args:
        most: how many regions the file's index says it has; what lies behind them is padding

    Raises:
        BadRecord: a field is missing, or does not fit the others.
    """
    features = _matrix("features", _find(fields, "features"))
    n = len(features)
    number = _find(fields, "number")
    # MMF counts the boxes that are sure and keeps others behind them, or writes the number that it was asked for.
    n = n if number is None else min(n, _whole("number of boxes", number))
    if most is not None:
        if most > n:
            raise BadRecord(f"its index says {most} boxes, it has {n}")
        n = most
    if n < 1:
        raise BadRecord(f"it says {n} boxes")
    boxes = _find(fields, "boxes")
    if features.shape[1] == _VISUAL_GENOME_FEATURES + _GEOMETRY:
        features, geometry = np.split(features, [_VISUAL_GENOME_FEATURES], axis=1)
        boxes = geometry if boxes is None else boxes
    boxes = _matrix("boxes", boxes)
    if len(boxes) != len(features) or boxes.shape[1] < 4:
        raise BadRecord(f"boxes are {list(boxes.shape)}, features {list(features.shape)}")
    pixels, width, height = _in_pixels(boxes[:n, :4], _size(fields, "width"), _size(fields, "height"))
    classes, confidences = _classes(fields, len(features))
    order = np.argsort(-confidences[:n], kind="stable")
    return RegionRecord(
        width=width,
        height=height,
        boxes=pixels[order],
        confidences=confidences[:n][order],
        classes=classes[:n][order],
        features=features[:n][order].astype(np.float32, copy=False),
        scales=np.ones(n, np.float32),
    )


def decode_base64(text: bytes | str, dtype: str, name: str, rows: int | None = None) -> NDArray[Any]:
    """An array that was written as base64 of its raw bytes; with `rows`, [rows, what there is a row].

    Raises:
        BadRecord: no base64, or its length does not fit.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadRecord(f"{name} is no base64 ({error})") from None
    size = np.dtype(dtype).itemsize * max(rows or 1, 1)
    if (rows is not None and rows < 1) or len(data) % size or not data:
        raise BadRecord(f"{name} has {len(data)} bytes, which are not {rows} rows of {dtype}")
    array = np.frombuffer(data, dtype)
    return array if rows is None else array.reshape(rows, -1)


def _find(fields: Mapping[str, Any], what: str) -> Any:
    return next((fields[name] for name in _NAMES[what] if fields.get(name) is not None), None)


def _matrix(name: str, value: Any) -> NDArray[Any]:
    if value is None:
        raise BadRecord(f"it has no {name} ({', '.join(_NAMES[name])})")
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.size == 0:
        raise BadRecord(f"{name} is {array.dtype}{list(array.shape)}, not a table of numbers")
    return array


def _size(fields: Mapping[str, Any], what: str) -> int | None:
    value = _find(fields, what)
    size = None if value is None else _whole(what, value)
    if size is not None and not 0 < size < 1 << 20:
        raise BadRecord(f"{what} is {size}")
    return size


def _whole(what: str, value: Any) -> int:
    """A whole number, as such, as text, or as an array of one."""
    try:
        return int(np.asarray(value).reshape(-1)[0] if isinstance(value, np.ndarray) and value.size == 1 else value)
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"{what} is {value!r}") from None


def _in_pixels(boxes: NDArray[Any], width: int | None, height: int | None) -> tuple[NDArray[np.float32], int, int]:
    """Boxes [n, 4] in pixels, and the size; where it is unknown, an image of 1 x 1.

    No detector gives boxes that all lie within one pixel: where none exceeds 1, they are shares of the image.
    """
    boxes = boxes.astype(np.float32)
    if not np.isfinite(boxes).all():
        raise BadRecord("a box is not finite")
    if boxes.max() <= 1.01:
        width, height = width or 1, height or 1
        boxes = boxes * np.array([width, height, width, height], np.float32)
    elif width is None or height is None:
        raise BadRecord("boxes are in pixels, and the size of the image is unknown")
    limit = np.array([width, height, width, height], np.float32)
    slack = 0.01 * limit + 1  # detectors run a little over the edge
    outside = ((boxes < -slack) | (boxes > limit + slack)).any(axis=1)
    if outside.any():
        raise BadRecord(f"box {boxes[outside][0].tolist()} is outside of {width} x {height} pixels")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise BadRecord(f"box {boxes[(boxes[:, 2:] < boxes[:, :2]).any(axis=1)][0].tolist()} ends before it begins")
    return np.clip(boxes, 0, limit), width, height


def _classes(fields: Mapping[str, Any], n: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    classes, confidences = _find(fields, "classes"), _find(fields, "confidences")
    probabilities = _find(fields, "probabilities")
    if probabilities is not None and np.ndim(probabilities) == 1:  # MMF's extract_features_frcnn.py: of the top class
        confidences = probabilities if confidences is None else confidences
    elif probabilities is not None:
        table = _without_background(_matrix_of(probabilities), classes)
        if classes is None or len(np.reshape(classes, -1)) == n - 1:  # ViLBERT's own extraction loses one
            classes = table.argmax(axis=1)
        confidences = table.max(axis=1) if confidences is None else confidences
    classes = np.zeros(n, np.int64) if classes is None else np.asarray(classes).reshape(-1)
    confidences = np.ones(n, np.float32) if confidences is None else np.asarray(confidences).reshape(-1)
    if len(classes) != n or len(confidences) != n or classes.dtype.kind not in "iu" or confidences.dtype.kind != "f":
        raise BadRecord(
            f"classes are {classes.dtype}{list(classes.shape)}, confidences {confidences.dtype}"
            f"{list(confidences.shape)}, regions {n}"
        )
    if (classes < 0).any() or (classes >= 65534).any() or not np.isfinite(confidences).all():
        raise BadRecord(
            f"a class is below 0 or above 65533 ({classes.min()} to {classes.max()}), or a confidence is none"
        )
    return classes.astype(np.uint16), confidences.astype(np.float32)


def _without_background(table: NDArray[Any], classes: Any) -> NDArray[Any]:
    """The probabilities of the classes alone: some projects keep the background's in front of them, some do not."""
    if classes is not None and len(np.reshape(classes, -1)) == len(table):
        given = np.reshape(classes, -1)
        with_it, without = (table[:, 1:].argmax(axis=1) == given).mean(), (table.argmax(axis=1) == given).mean()
        return table[:, 1:] if with_it >= without else table
    return table if table.shape[1] == _VISUAL_GENOME_CLASSES else table[:, 1:]


def _matrix_of(value: Any) -> NDArray[Any]:
    table = np.asarray(value)
    if table.ndim != 2 or table.dtype.kind != "f" or table.shape[1] < 2:
        raise BadRecord(f"class probabilities are {table.dtype}{list(table.shape)}")
    return table
