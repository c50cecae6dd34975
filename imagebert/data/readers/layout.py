"""How the records of a source are to be read: decided once, from a sample of them, and told before anything is stored.

Projects keep an image's arrays under names, in units and in orders of their own, and their files do not say which.
None of it is decided for a record by itself: an image whose boxes happen to be small has no other unit than its
neighbours. A record that contradicts what holds for its source is refused, not read otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pybase64
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, Loaded
from imagebert.data.records import RegionRecord
from imagebert.strict_yaml import shown

# One image's arrays as a file has them. Text and bytes are base64 of an array's own bytes.
Fields = Mapping[str, Any]
Value = TypeVar("Value", bound=Hashable)

# What projects call a field; the first that most records have is taken.
NAMES = {
    "features": ("features", "x", "image_feat", "feat", "roi_features", "image_features", "box_features"),
    "boxes": ("boxes", "norm_bb", "bbox", "image_bboxes", "normalized_boxes", "cls_boxes"),
    "classes": ("objects_id", "obj_id", "obj_ids", "objects"),
    "confidences": ("objects_conf", "obj_conf", "obj_probs", "conf", "max_conf"),
    "probabilities": ("soft_labels", "cls_prob"),
    "width": ("image_w", "image_width", "img_w", "width"),
    "height": ("image_h", "image_height", "img_h", "height"),
    "number": ("num_boxes", "num_bbox", "preds_per_image"),
    "key": ("img_id", "image_id", "key", "id", "image"),  # where its place in the file does not name the image
}
# MMF's VinVL features, which have box_features too: maskrcnn-benchmark's own fields, whose class 0 is the background.
_MASKRCNN = {"classes": "labels", "confidences": "scores"}
# Features and boxes of bottom-up-attention.pytorch, whose objects_id is the best of all scores, the background's first.
_BUA_PYTORCH = ("x", "bbox")
_CHOICES = {
    "numbers": ("float32", "float16", "float64"),
    "axis": ("rows", "columns"),
    "unit": ("pixels", "shares"),
    "corners": ("xyxy", "xywh"),
    "background": ("none", "first", "last", "counted"),
}

VISUAL_GENOME_FEATURES = 2048
GEOMETRY = 6  # columns that VinVL puts behind the features: x1 y1 x2 y2 w h, as shares of the image
_FEATURE_SIZES = (1024, 2048, 2048 + GEOMETRY, 4096)
_AGREED = 2 / 3  # of a sample
_SHARE = 1.05  # of an image that a box reaches to: detectors run a little over the edge
_LOOKED_AT = 4096  # numbers of an image


@dataclass(frozen=True)
class Layout:
    """What holds for a source. Each can be given, as NAME=VALUE of `layout`.

    Args:
        names: what -> the field that has it
        size: features of a region
        numbers: the type of features that are written as bytes
        axis: whether regions are the rows of the features, or their columns (MCAN)
        unit: boxes in pixels, or as shares of the image
        corners: boxes as two corners, or as a corner with width and height
        background: where the probabilities have the background's: in front, behind, nowhere; or counted: in front, and
            class numbers count it as 0 (MMF's --background)
        classes: how many there are
        largest: no feature is so large
    """

    names: Mapping[str, str]
    size: int
    classes: int
    numbers: str = "float32"
    axis: str = "rows"
    unit: str = "pixels"
    corners: str = "xyxy"
    background: str = "first"
    geometry: bool = False  # VinVL's, behind the features
    encoded: bool = False  # features are bytes, as base64
    largest: float = 1e4

    @property
    def has_classes(self) -> bool:
        return "classes" in self.names or "probabilities" in self.names

    def described(self) -> dict[str, Any]:
        """Plain data, for meta.json and for other ranks; `Layout(**described)` is the same."""
        return {**vars(self), "names": dict(self.names)}

    def record(self, key: str, fields: Fields) -> Loaded:
        """The regions of one image, by falling confidence; rows of zeros that fill a table up are left out.

        Args:
            key: what its place in the file is called

        Raises:
            BadRecord: a field is missing, does not fit the others, or is not as the source's are.
        """
        n = self.number_of(fields)
        features = self.features_of(fields, n)
        rows = len(features)
        if n is not None and n > rows:
            raise BadRecord(f"it says {n} boxes and has {rows}")
        n = rows if n is None else n
        if n < 1:
            raise BadRecord(f"it says {n} boxes")
        boxes = self.boxes_of(fields, features, rows)
        if self.geometry:
            features = features[:, :-GEOMETRY]
        if features.shape[1] != self.size:
            raise BadRecord(f"its features have {features.shape[1]} numbers, those of the source {self.size}")
        classes, confidences = self._classes(fields, rows)
        features, boxes, classes, confidences = as_float32(features[:n]), boxes[:n], classes[:n], confidences[:n]
        empty = ~boxes.any(axis=1)
        if empty.any():
            kept = ~empty | features.any(axis=1)
            features, boxes, classes, confidences = features[kept], boxes[kept], classes[kept], confidences[kept]
            if len(features) == 0:
                raise BadRecord("all its regions are rows of zeros")
        if not self.largest > max(float(features.max()), -float(features.min())):  # nor where one is no number
            raise BadRecord(f"a feature is not finite, or {self.largest:g} and more (layout largest=)")
        if not (classes.min() >= 0 and classes.max() < self.classes):
            raise BadRecord(f"a class is {classes.min()} or {classes.max()}: there are {self.classes}")
        if not (confidences.min() >= 0 and confidences.max() <= 1.001):  # half floats round up
            raise BadRecord(f"confidences are {confidences.min():g} to {confidences.max():g}, not between 0 and 1")
        pixels, width, height = self._in_pixels(boxes, fields)
        if (np.diff(confidences) > 0).any():
            order = np.argsort(-confidences, kind="stable")
            features, pixels, classes, confidences = features[order], pixels[order], classes[order], confidences[order]
        record = RegionRecord(
            width=width,
            height=height,
            boxes=pixels,
            confidences=np.minimum(confidences, 1).astype(np.float32),
            classes=classes.astype(np.uint16),
            features=features,
            scales=np.ones(len(features), np.float32),
        )
        return Loaded(self._key(fields, key), record, rows - len(features))

    def _key(self, fields: Fields, key: str) -> str:
        name = self.names.get("key")
        if name is None:
            return key
        found = fields.get(name)
        found = found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else found
        if not isinstance(found, str | int | np.integer | np.str_) or found == "":
            raise BadRecord(f"its {name} is {shown(found)}, which names no image")
        return str(found)

    def number_of(self, fields: Fields) -> int | None:
        value = self._find(fields, "number")
        return None if value is None else _whole("number of boxes", value)

    def _find(self, fields: Fields, what: str) -> Any:
        return fields.get(self.names[what]) if what in self.names else None

    def _needed(self, fields: Fields, what: str) -> Any:
        value = self._find(fields, what)
        if value is None:
            raise BadRecord(f"it has no {self.names[what]}, which the others have")
        return value

    def features_of(self, fields: Fields, n: int | None) -> NDArray[Any]:
        """[rows, F], with what stands behind the features."""
        value = self._needed(fields, "features")
        if isinstance(value, str | bytes):
            return decode_base64(value, self.numbers, self.names["features"], _rows(n))
        features = as_matrix(self.names["features"], value)
        return features.T if self.axis == "columns" else features

    def width_of(self, fields: Fields) -> int:
        """How many numbers stand in a row of features."""
        return self.features_of(fields, self.number_of(fields)).shape[1]

    def boxes_of(self, fields: Fields, features: NDArray[Any], n: int) -> NDArray[np.float32]:
        """[rows, 4], as they lie there."""
        if "boxes" not in self.names:
            if not self.geometry:
                raise BadRecord("it has no boxes")
            boxes = features[:, self.size : self.size + 4]
        else:
            name, value = self.names["boxes"], self._needed(fields, "boxes")
            boxes = decode_boxes(value, name, n) if isinstance(value, str | bytes) else as_matrix(name, value)
        if len(boxes) != n or boxes.shape[1] < 4:
            raise BadRecord(f"boxes are {list(boxes.shape)}, features {list(features.shape)}")
        boxes = boxes[:, :4].astype(np.float32)
        if self.corners == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        return boxes

    def _in_pixels(self, boxes: NDArray[np.float32], fields: Fields) -> tuple[NDArray[np.float32], int, int]:
        """Boxes [n, 4] in pixels, and the size; where it is unknown, an image of 1 x 1."""
        if not np.isfinite(boxes).all():
            raise BadRecord("a box is not finite")
        width, height = self.size_of(fields)
        if self.unit == "shares":
            outside = ((boxes < 1 - _SHARE) | (boxes > _SHARE)).any(axis=1)
            limit = "the image, whose boxes are shares of it as all others of this source"
            width, height = width or 1, height or 1
            pixels = boxes * np.array([width, height, width, height], np.float32)
        elif width is None or height is None:
            raise BadRecord("boxes are in pixels, and the size of the image is unknown")
        else:
            pixels, limit = boxes, f"{width} x {height} pixels"
            slack = 0.01 * np.array([width, height, width, height]) + 1  # detectors run a little over the edge
            outside = ((boxes < -slack) | (boxes > np.array([width, height, width, height]) + slack)).any(axis=1)
        if outside.any():
            raise BadRecord(f"box {boxes[outside][0].tolist()} is outside of {limit}")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise BadRecord(f"box {boxes[(boxes[:, 2:] < boxes[:, :2]).any(axis=1)][0].tolist()} ends before it begins")
        return np.clip(pixels, 0, np.array([width, height, width, height], np.float32)), width, height

    def size_of(self, fields: Fields) -> tuple[int | None, int | None]:
        """Width and height in pixels, where they are told."""
        return _side("width", self._find(fields, "width")), _side("height", self._find(fields, "height"))

    def _classes(self, fields: Fields, n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        classes, confidences = None, None
        if "classes" in self.names:
            classes = as_numbers(self._needed(fields, "classes"), self.names["classes"], n, "iu").astype(np.int64)
            classes = classes - (self.background == "counted")
            if "probabilities" not in self.names and self.background == "counted" and (classes < 0).any():
                raise BadRecord(
                    f"{(classes < 0).sum()} of its regions are background, and no probabilities tell another class "
                    "(layout classes=none reads none)"
                )
        if "confidences" in self.names:
            value = self._needed(fields, "confidences")
            confidences = as_numbers(value, self.names["confidences"], n, "f").astype(np.float32)
        if "probabilities" in self.names:
            table = as_table(self._needed(fields, "probabilities"), self.names["probabilities"], n)
            real = without_background(table, self.background)
            if real.shape[1] != self.classes:
                raise BadRecord(f"it has {real.shape[1]} class probabilities, there are {self.classes} classes")
            best = real.argmax(axis=1)
            # Where the background is given, the best class.
            classes = best if classes is None else np.where(classes < 0, best, classes)
            if confidences is None:
                places = np.minimum(classes, real.shape[1] - 1)  # numbers without a class are refused behind this
                confidences = np.take_along_axis(real, places[:, None], axis=1)[:, 0]
        classes = np.zeros(n, np.int64) if classes is None else classes
        return classes, np.ones(n, np.float32) if confidences is None else confidences


# ------------------------------------------------------------------------------------------------------------ deciding


class Sample(NamedTuple):
    """One image of the sample."""

    where: str
    key: str
    fields: Fields


def decide(sample: Sequence[Sample], classes: int, given: Mapping[str, str] | None = None) -> Layout:
    """The layout of a source.

    Args:
        classes: how many classes have a name
        given: what is not to be decided, as text, by the names of a Layout or of NAMES

    Raises:
        UsageError: the sample does not tell, or contradicts itself, or what is given cannot be.
    """
    given = dict(given or {})
    fields = [one.fields for one in sample]
    names = _names(fields, given, any(one.key for one in sample))
    layout = Layout(names, 0, classes)
    for name, values in _CHOICES.items():
        if name in given and given[name] not in values:
            raise UsageError(f"layout {name}={given[name]}: give one of {', '.join(values)}")
    unknown = sorted(given.keys() - NAMES.keys() - _CHOICES.keys() - {"largest"})
    if unknown:
        raise UsageError(f"layout has no {unknown[0]!r}: it has {', '.join(sorted([*NAMES, *_CHOICES, 'largest']))}")
    if "largest" in given:
        layout = replace(layout, largest=_positive(given["largest"]))
    if any(isinstance(one.get(names["features"]), str | bytes) for one in fields):
        layout = replace(layout, encoded=True, numbers=given.get("numbers") or _numbers(layout, fields))
    elif "numbers" in given:
        raise UsageError("layout numbers=: its features say themselves of what type they are")
    layout = replace(layout, axis=given.get("axis") or _vote(fields, lambda one: _axis(layout, one), "axis"))
    width = int(_vote(fields, layout.width_of, "size"))
    geometry = width == VISUAL_GENOME_FEATURES + GEOMETRY
    layout = replace(layout, size=width - GEOMETRY * geometry, geometry=geometry)
    if "boxes" not in names and not geometry:
        raise UsageError(
            f"{sample[0].where} has no boxes, as ImageBERT needs them ({', '.join(NAMES['boxes'])}): it has "
            f"{_listed(fields[0])}. Name them with layout boxes=FIELD"
        )
    corners = given.get("corners") or _vote(fields, lambda one: _corners(layout, one), "corners", "xyxy")
    layout = replace(layout, corners=corners)
    layout = replace(layout, unit=given.get("unit") or _vote(fields, lambda one: _unit(layout, one), "unit"))
    return _with_classes(layout, fields, given.get("background"))


def _names(fields: Sequence[Fields], given: Mapping[str, str], named: bool) -> dict[str, str]:
    """`named`: whether an image's place in the file names it, too."""
    there = Counter(name for one in fields for name, value in one.items() if value is not None)
    names = {}
    vinvl = _is_vinvl(fields)
    for what, known in NAMES.items():
        wanted = given.get(what)
        if wanted is None:
            known = () if what == "key" and named else known
            known = (*known, _MASKRCNN[what]) if vinvl and what in _MASKRCNN else known
            found = next((name for name in known if 2 * there[name] > len(fields)), None)
            if found is not None:
                names[what] = found
        elif wanted != "none":
            if not there[wanted]:
                raise UsageError(f"layout {what}={wanted}: there is no such field, there are {_listed(there)}")
            names[what] = wanted
    if "key" not in names and not named:
        raise UsageError(f"no field names the image, there are {_listed(there)}: say which with layout key=FIELD")
    if "features" not in names:
        raise UsageError(
            f"no field of features is known ({', '.join(NAMES['features'])}), there are {_listed(there)}: name it "
            "with layout features=FIELD"
        )
    # MMF's extract_features_frcnn.py keeps the top class' probability alone under the table's name.
    table = names.get("probabilities")
    if table is not None and "probabilities" not in given:
        flat = sum(_is_flat(one.get(table)) for one in fields)
        if 2 * flat > len(fields):
            del names["probabilities"]
            names.setdefault("confidences", table)
    return names


def _is_vinvl(fields: Sequence[Fields]) -> bool:
    return 2 * sum("box_features" in one for one in fields) > len(fields)


def _is_flat(value: Any) -> bool:
    with suppress(BadRecord):
        return isinstance(value, np.ndarray | list) and _array("it", value).ndim == 1
    return False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names))[:30]) or "none"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"layout largest={text}: give a positive number")
    return value


def _vote(
    fields: Sequence[Fields], look: Callable[[Fields], Value | None], option: str, otherwise: Value | None = None
) -> Any:
    """What most of the sample says, which must be by far the most. Records that cannot be used have no say.

    Args:
        otherwise: what holds where none says anything; None: that is an error
    """
    votes: Counter[Hashable] = Counter()
    problem = None
    for one in fields:
        try:
            found = look(one)
        except BadRecord as error:
            problem = error
            continue
        if found is not None:
            votes[found] += 1
    if not votes and otherwise is not None and problem is None:
        return otherwise
    if not votes:
        raise UsageError(f"the sampled images do not tell their {option}" + (f": {problem}" if problem else ""))
    (winner, most), *others = votes.most_common(2)
    if most < _AGREED * votes.total():
        raise UsageError(
            f"of {votes.total()} sampled images {most} say {option}={winner} and {others[0][1]} "
            f"{option}={others[0][0]}: say which with layout {option}="
        )
    return winner


def _numbers(layout: Layout, fields: Sequence[Fields]) -> str:
    """Read as another type, half of the numbers are noise: not finite, or far from any feature."""
    name = layout.names["features"]
    options = {numbers: replace(layout, numbers=numbers) for numbers in ("float32", "float16")}
    fitting: Counter[str] = Counter()
    problem = ""
    for one in fields:
        for numbers, option in options.items():
            try:
                found = option.features_of(one, option.number_of(one)).reshape(-1)[:_LOOKED_AT]
            except BadRecord as error:
                problem = str(error)
                continue
            with np.errstate(invalid="ignore"):  # noise, as another type
                found = found.astype(np.float64)
            sizes = np.abs(found[found != 0])
            fitting[numbers] += bool(
                sizes.size and np.isfinite(sizes).all() and sizes.max() < 1e6 and (sizes < 1e-12).mean() < 0.01
            )
    good = [numbers for numbers in options if fitting[numbers] >= max(1, _AGREED * len(fields))]
    if len(good) == 2:  # then the common sizes tell
        good = [n for n in good if _vote(fields, options[n].width_of, "size") in _FEATURE_SIZES]
    if len(good) != 1:
        if problem and not fitting.total():
            raise UsageError(f"the features of no sampled image can be used: {problem}")
        raise UsageError(
            f"whether the bytes of {name} are float32 or float16 is not to be told: say it with layout numbers="
        )
    return good[0]


def _axis(layout: Layout, one: Fields) -> str | None:
    boxes, features = one.get(layout.names.get("boxes", "")), one.get(layout.names["features"])
    if boxes is None or isinstance(boxes, str | bytes) or isinstance(features, str | bytes):
        return "rows"
    n, shape = len(as_matrix(layout.names["boxes"], boxes)), as_matrix(layout.names["features"], features).shape
    if shape[0] == shape[1]:
        return None
    return "columns" if shape[1] == n and shape[0] != n else "rows"


def _boxes(layout: Layout, one: Fields) -> NDArray[np.float32]:
    features = layout.features_of(one, layout.number_of(one))
    boxes = layout.boxes_of(one, features, len(features))
    boxes = boxes[boxes.any(axis=1)]
    if len(boxes) == 0 or not np.isfinite(boxes).all():
        raise BadRecord("its boxes are zero, or not finite")
    return boxes


def _corners(layout: Layout, one: Fields) -> str | None:
    """What it can only be: the other leads out of the image, or ends before it begins."""
    boxes = _boxes(layout, one)
    width, height = layout.size_of(one)
    ordered = bool((boxes[:, 2:] >= boxes[:, :2]).all())
    if boxes.max() <= _SHARE:
        limit = np.array([_SHARE, _SHARE])
    elif width is None or height is None:
        return "xyxy" if ordered else "xywh"
    else:
        limit = 1.01 * np.array([width, height]) + 1
    within = bool((boxes[:, :2] + boxes[:, 2:] <= limit).all())
    return None if ordered == within else "xyxy" if ordered else "xywh"


def _unit(layout: Layout, one: Fields) -> str | None:
    """No detector's boxes all lie within one pixel, and none reaches so far out of the image."""
    largest = _boxes(layout, one).max()
    return "shares" if largest <= _SHARE else "pixels" if largest > 2 else None


def _with_classes(layout: Layout, fields: Sequence[Fields], given: str | None) -> Layout:
    """Where the background is among the probabilities, and whether the class numbers count it."""
    names = dict(layout.names)
    if "probabilities" not in names:
        if given in ("first", "last"):
            raise UsageError(f"layout background={given}: it has no probabilities")
        if "classes" not in names:
            return replace(layout, background="none")
        background = given or _background_of_numbers(names, fields)
        top = max((int(found.max()) for one in fields if len(found := _numbers_of(layout, one, "classes"))), default=0)
        if given is None and top - (background == "counted") >= layout.classes:
            raise UsageError(
                f"{names['classes']} has class {top}, and there are {layout.classes} classes: name them "
                "by `classes`; if class 0 is the background, say layout background=counted"
            )
        return replace(layout, background=background)
    tables, numbers = [], []
    for one in fields:
        try:
            rows = len(layout.features_of(one, layout.number_of(one)))
            tables.append(as_table(one.get(names["probabilities"]), names["probabilities"], rows))
        except BadRecord:
            continue
        found = _numbers_of(layout, one, "classes")
        numbers.append(found if len(found) == len(tables[-1]) else None)
    if not tables:
        raise UsageError(f"the {names['probabilities']} of no sampled image can be used")
    if "classes" in names and sum(found is not None for found in numbers) < _AGREED * len(numbers):
        del names["classes"]  # ViLBERT's own extraction loses the last
        numbers = [None] * len(tables)
    columns = Counter(table.shape[1] for table in tables).most_common(1)[0][0]
    if given is None:
        if columns not in (layout.classes, layout.classes + 1):
            raise UsageError(
                f"{names['probabilities']} has {columns} columns, and there are {layout.classes} classes: name them "
                "by `classes`"
            )
        given = "none" if columns == layout.classes else _background(tables, numbers)
    return replace(layout, names=names, background=given)


def _background_of_numbers(names: Mapping[str, str], fields: Sequence[Fields]) -> str:
    """Whether class numbers without probabilities count the background, which only those who wrote them know.

    Raises:
        UsageError: they are MMF's, which counts it or not.
    """
    if names["classes"] == _MASKRCNN["classes"] and _is_vinvl(fields):
        return "counted"
    if names["classes"] == "objects_id" and (names["features"], names.get("boxes")) == _BUA_PYTORCH:
        return "counted"
    if names["classes"] == "objects" and names.get("confidences") not in NAMES["probabilities"]:
        raise UsageError(
            "objects may count the background as class 0 (MMF's --background), and no cls_prob tells: say layout "
            "background=counted where they do, layout background=none where they do not"
        )
    return "none"


def _numbers_of(layout: Layout, one: Fields, what: str) -> NDArray[Any]:
    """The class numbers of a sampled image; none where they cannot be used."""
    value = layout._find(one, what)
    if value is None:
        return np.empty(0, np.int64)
    try:
        return as_numbers(value, layout.names[what], layout.number_of(one), "iu").astype(np.int64)
    except BadRecord:
        return np.empty(0, np.int64)


def _background(tables: Sequence[NDArray[Any]], numbers: Sequence[NDArray[Any] | None]) -> str:
    """Of tables with one column more than there are classes: where the class numbers, if there are any, say it is."""
    fits: dict[str, list[float]] = {"first": [], "last": [], "counted": []}
    for table, found in zip(tables, numbers, strict=True):
        if found is not None:
            fits["first"].append(float((table[:, 1:].argmax(axis=1) == found).mean()))
            fits["last"].append(float((table[:, :-1].argmax(axis=1) == found).mean()))
            fits["counted"].append(float((table.argmax(axis=1) == found).mean()))
    if not fits["first"]:
        return "first"
    mean = {where: float(np.mean(shares)) for where, shares in fits.items()}
    best = max(mean, key=lambda where: mean[where])
    if mean[best] < _AGREED:
        raise UsageError(
            "the class numbers fit the probabilities neither with the background in front nor behind: say where it is "
            "with layout background="
        )
    return best


# ------------------------------------------------------------------------------------------------------ arrays in bytes


def decode_base64(text: bytes | str, dtype: str, name: str, rows: int) -> NDArray[Any]:
    """An array [rows, what there is a row] that was written as base64 of its raw bytes, little-endian.

    Raises:
        BadRecord: no base64, or its length does not fit.
    """
    return _rows_of(base64_bytes(text, name), dtype, name, rows)


def _rows_of(data: bytes, dtype: str, name: str, rows: int) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize * max(rows, 1)
    if rows < 1 or len(data) % size or not data:
        raise BadRecord(f"{name} has {len(data)} bytes, which are not {rows} rows of {dtype}")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(rows, -1)


def base64_bytes(text: bytes | str, name: str) -> bytes:
    """What was written; as Python's text of bytes, b'...', too.

    Raises:
        BadRecord: it is no base64.
    """
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    if raw[:2] in (b"b'", b'b"') and raw[-1:] == raw[1:2]:
        raw = raw[2:-1]
    try:
        return pybase64.b64decode(raw, validate=True)
    except ValueError as error:  # of which binascii's is one
        raise BadRecord(f"{name} is no base64 ({error})") from None


def decode_boxes(text: bytes | str, name: str, rows: int) -> NDArray[Any]:
    """Of boxes the number of columns is known, so the length tells the type."""
    data = base64_bytes(text, name)
    dtype = {2: "float16", 4: "float32", 8: "float64"}.get(len(data) / (4 * max(rows, 1)))  # type: ignore[call-overload]
    if dtype is None:
        raise BadRecord(f"{name} has {len(data)} bytes for {rows} boxes")
    return _rows_of(data, dtype, name, rows)


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of lists of several lengths
        raise BadRecord(f"{name} is no array of numbers ({error})") from None


def as_matrix(name: str, value: Any) -> NDArray[Any]:
    """A table of numbers.

    Raises:
        BadRecord: it is none.
    """
    array = _array(name, value)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.size == 0:
        raise BadRecord(f"{name} is {array.dtype}{list(array.shape)}, not a table of numbers")
    return array


def as_numbers(value: Any, name: str, n: int | None, kinds: str) -> NDArray[Any]:
    """Numbers [n], whole ones ("iu") or others ("f").

    Raises:
        BadRecord: they are not, or not so many.
    """
    if isinstance(value, str | bytes):
        data = base64_bytes(value, name)
        size = len(data) / n if n else math.nan
        dtype = {("iu", 4.0): "<i4", ("iu", 8.0): "<i8", ("f", 2.0): "<f2", ("f", 4.0): "<f4", ("f", 8.0): "<f8"}
        if (kinds, size) not in dtype:
            raise BadRecord(f"{name} has {len(data)} bytes for {n} regions")
        return np.frombuffer(data, dtype[kinds, size])
    array = _array(name, value).reshape(-1)
    if (n is not None and len(array) != n) or array.dtype.kind not in kinds:
        raise BadRecord(f"{name} is {array.dtype}{list(array.shape)}, for {n} regions")
    return array


def as_table(value: Any, name: str, n: int) -> NDArray[Any]:
    """Class probabilities [n, C].

    Raises:
        BadRecord: they are none.
    """
    if isinstance(value, str | bytes):
        return decode_base64(value, "float32", name, n)
    table = _array(name, value)
    if table.ndim != 2 or table.dtype.kind != "f" or table.shape[1] < 2 or len(table) != n:
        raise BadRecord(f"{name} is {table.dtype}{list(table.shape)}, for {n} regions")
    return as_float32(table)


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Half floats through a table of them all, which takes a quarter of NumPy's time."""
    if array.dtype != np.float16:
        return array.astype(np.float32, copy=False)
    places = np.ascontiguousarray(array).view(np.uint16)
    return _halves().take(places.ravel(), mode="clip").reshape(array.shape)


@cache
def _halves() -> NDArray[np.float32]:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def without_background(table: NDArray[Any], background: str) -> NDArray[Any]:
    """The probabilities of the classes alone."""
    return {"none": table, "last": table[:, :-1]}.get(background, table[:, 1:])


def _rows(n: int | None) -> int:
    if n is None:
        raise BadRecord("its features are base64, and the number of its boxes is not told")
    return n


def _side(what: str, value: Any) -> int | None:
    size = None if value is None else _whole(what, value)
    if size is not None and not 0 < size < 1 << 20:
        raise BadRecord(f"{what} is {size}")
    return size


def _whole(what: str, value: Any) -> int:
    """A whole number, as such, as text, or as an array of one."""
    try:
        return int(np.asarray(value).reshape(-1)[0] if isinstance(value, np.ndarray) and value.size == 1 else value)
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"{what} is {shown(value)}") from None
