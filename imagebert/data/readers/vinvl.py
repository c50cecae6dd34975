"""VinVL: features.tsv beside predictions.tsv, label.tsv or labels.tsv, each with the offsets of its lines in .lineidx.
Or X.feature.tsv beside X.label.tsv, as its captioning data has them; X_img_frcnn_feats.tsv alone, as Oscar's VQA; the
predictions.tsv of its own extraction, with hw.tsv beside; or the .yaml that names such files.

features     key, number of boxes, base64 of float32; or key, {"num_boxes", "features"}. 2054 numbers a box: 2048 and
             the box itself as shares of the image
labels       key, {"image_h", "image_w", "objects": [{"class", "conf", "rect"}]}; or key, [{"class", "conf", "rect"}]
predictions  key, {"objects": [{"class", "conf", "rect", "feature"}]}, the feature as base64 of float32
hw           key, [{"height", "width"}]; or the dictionary alone; or height and width
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, check_files
from imagebert.data.readers.layout import GEOMETRY, VISUAL_GENOME_FEATURES, decode_base64
from imagebert.data.readers.tsv import LONGEST, LineReader, read_line
from imagebert.files import open_regular, parse_json, read_text
from imagebert.strict_yaml import read_yaml, shown

_LABELS = ("predictions.tsv", "label.tsv", "labels.tsv", "predictions_gt.tsv")


class VinvlReader(LineReader):
    """Files of features, folders that hold some, or yaml files that name one."""

    def __init__(self, sources: Sequence[Path], classes: Sequence[str]) -> None:
        found = [named for source in sources for named in _named(source)]
        if not found:
            raise UsageError(f"{sources[0]} holds no features.tsv, NAME.feature.tsv, predictions.tsv or NAME_feats.tsv")
        self.files = [named.features for named in found]
        self.beside = [path for named in found for path in named if path is not None]
        check_files(self.files)
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._labels = {named.features: _Lines(named.labels) if named.labels else None for named in found}
        self._sizes = {named.features: _Lines(named.sizes) if named.sizes else None for named in found}
        if not classes and any(named.labels or named.features.name.startswith("predictions") for named in found):
            raise UsageError("VinVL's labels hold class names: give their list as `classes`, a file of one a line")

    def _image(self, file: Path, line: bytes) -> tuple[str, Callable[[], Any]]:
        columns = line.split(b"\t", 3)
        key = columns[0].decode("utf-8", "surrogateescape").strip() if len(columns) > 1 else ""
        return key, partial(self._fields, file, key, columns)

    def _fields(self, file: Path, key: str, columns: list[bytes]) -> dict[str, Any]:
        sizes = self._sizes[file]
        size = {} if sizes is None else _size(sizes.read(key))
        if len(columns) == 2:
            described = _json(columns[1], "features")
            if isinstance(described, dict) and "objects" in described:
                return {**size, **self._predicted(described)}
            if not isinstance(described, dict) or not {"num_boxes", "features"} <= described.keys():
                raise BadRecord("its features are no {num_boxes, features}, and no {objects}")
            number, features = described["num_boxes"], described["features"]
        elif len(columns) == 3:
            number, features = columns[1], columns[2]
        else:
            raise BadRecord(f"it has {len(columns)} columns, not 2 or 3")
        try:
            rows = int(number)
        except (TypeError, ValueError, OverflowError):
            raise BadRecord(f"its number of boxes is {shown(number)}") from None
        fields: dict[str, Any] = {**size, "features": features, "num_boxes": rows}
        labels = self._labels[file]
        if labels is not None:
            fields |= self._objects(_json(labels.read(key), "label"), rows)
            _check_regions(fields, labels.path.name)
            if "image_w" not in fields:  # the boxes behind the features are shares of an image whose size is not told
                del fields["boxes"]
        return fields

    def _predicted(self, described: dict[str, Any]) -> dict[str, Any]:
        """What the extraction itself writes: a feature an object."""
        objects = described["objects"]
        if not isinstance(objects, list) or not objects:
            raise BadRecord("it has no objects")
        if not all(isinstance(one, dict) and isinstance(one.get("feature"), str) for one in objects):
            raise BadRecord("an object of it has no feature: extract with feature in TEST.TSV_SAVE_SUBSET")
        rows = [decode_base64(one["feature"], "float32", "feature", 1)[0] for one in objects]
        if len({len(row) for row in rows}) != 1:
            raise BadRecord("its objects' features differ in size")
        return {"features": np.stack(rows), **self._objects(described, len(rows))}

    def _objects(self, label: Any, rows: int) -> dict[str, Any]:
        objects = label.get("objects") if isinstance(label, dict) else label
        if not isinstance(objects, list) or len(objects) != rows:
            found = len(objects) if isinstance(objects, list) else "no"
            raise BadRecord(f"its label has {found} objects, not {rows}: they are of other regions")
        try:
            fields: dict[str, Any] = {
                "objects_id": np.array([self._numbers[found["class"]] for found in objects], np.int64),
                "objects_conf": np.array([float(found.get("conf", 1.0)) for found in objects], np.float32),
                "boxes": np.array([[float(v) for v in found["rect"]] for found in objects], np.float32),
            }
        except KeyError as error:
            raise BadRecord(f"its label has no {error}, or the list of classes has not") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise BadRecord(f"its label is damaged ({error})") from None
        if isinstance(label, dict):
            fields |= {name: label[name] for name in ("image_w", "image_h") if name in label}
        return fields


def _check_regions(fields: dict[str, Any], labels: str) -> None:
    """Compares the labels' boxes with those behind the features, where there are such.

    Args:
        labels: what their file is called

    Raises:
        BadRecord: they are of other regions, or in another order.
    """
    wide = decode_base64(fields["features"], "float32", "features", fields["num_boxes"])
    boxes, shares = fields["boxes"], wide[:, -GEOMETRY:][:, :4]
    if wide.shape[1] != VISUAL_GENOME_FEATURES + GEOMETRY or boxes.shape != shares.shape:
        return
    size = np.array([fields.get("image_w"), fields.get("image_h")], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if not (size > 0).all():  # not told, but what reaches farthest is the same box in both
            size = boxes[:, 2:].max(axis=0) / np.maximum(shares[:, 2:].max(axis=0), 1e-6)
        same = np.abs(boxes - shares * np.tile(size, 2)) <= 1 + 0.01 * np.tile(size, 2)  # detectors' boxes are rounded
    if not same.all():
        raise BadRecord(
            f"the boxes in {labels} are of other regions than its features, or in another order: where all are, import "
            f"the features from a folder without {labels}"
        )


class _Named(NamedTuple):
    """The files of one set of features."""

    features: Path
    labels: Path | None
    sizes: Path | None


def _named(source: Path) -> list[_Named]:
    if source.suffix in (".yaml", ".yml"):
        return [_of_yaml(source)]
    if source.is_file():
        return [_beside(source)]
    tables = sorted(source.rglob("*.tsv"))
    found = [file for file in tables if file.name == "features.tsv" or ".feature." in file.name]
    found = found or [file for file in tables if file.name == "predictions.tsv"]
    return [_beside(file) for file in found or [file for file in tables if file.stem.endswith("_feats")]]


def _beside(features: Path) -> _Named:
    """With the labels and sizes that lie in the same folder."""
    own = features.name.replace(".feature.", ".label.")  # such as train.feature.tsv and train.label.tsv
    labels = [own] if own != features.name else [name for name in _LABELS if name != features.name]
    sizes = [features.name.replace(".feature.", ".hw."), "hw.tsv"]
    predicted = features.name.startswith("predictions")
    return _Named(
        features,
        None if predicted else _there(features, labels),
        _there(features, [name for name in sizes if name != features.name]),
    )


def _there(features: Path, names: Sequence[str]) -> Path | None:
    return next((path for name in names if (path := features.with_name(name)).exists()), None)


def _of_yaml(source: Path) -> _Named:
    """A data set's yaml: paths of feature, label and hw, from its own folder."""
    named = read_yaml(source)
    if not isinstance(named, dict) or not isinstance(named.get("feature"), str):
        raise UsageError(f"{source} names no feature: give VinVL's yaml of a data set with features, or their folder")
    paths = {
        what: source.parent / named[what] if isinstance(named.get(what), str) else None
        for what in ("feature", "label", "hw")
    }
    assert paths["feature"] is not None
    return _Named(paths["feature"], paths["label"], paths["hw"])


def _size(text: bytes) -> dict[str, Any]:
    """Height and width, in one of the three ways that hw.tsv has them."""
    words = text.split()
    if len(words) == 2 and all(word.isdigit() for word in words):
        return {"image_h": int(words[0]), "image_w": int(words[1])}
    found = _json(text, "size")
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(found, dict) or not {"height", "width"} <= found.keys():
        raise BadRecord(f"its size is {shown(found)}, not height and width")
    return {"image_h": found["height"], "image_w": found["width"]}


class _Lines:
    """Lines that are found by their keys, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path)
        self._reading = threading.Lock()
        size = os.fstat(self._file.fileno()).st_size
        self._offsets: dict[bytes, int] = {}
        for offset in _line_offsets(path, size):
            self._file.seek(offset)
            head = self._file.read(512)
            self._offsets[head[: head.find(b"\t")].strip()] = offset

    def read(self, key: str) -> bytes:
        """What stands behind the key."""
        offset = self._offsets.get(key.encode("utf-8", "surrogateescape"))
        if offset is None:
            raise BadRecord(f"it has no line in {self.path.name}, as its label or size")
        with self._reading:
            self._file.seek(offset)
            return self._file.readline(LONGEST).split(b"\t", 1)[1]


def _line_offsets(path: Path, size: int) -> list[int]:
    """Where the lines of a TSV begin: from its .lineidx, or by reading it.

    Raises:
        UsageError: the index does not fit the file.
    """
    index = path.with_suffix(".lineidx")
    if index.exists():
        try:
            offsets = [int(line) for line in read_text(index).split()]
        except ValueError as error:
            raise UsageError(f"{index} is no list of offsets ({error}): remove it, and {path.name} is read") from None
        with open_regular(path) as file:
            for offset in offsets:
                if not 0 <= offset < size or (file.seek(max(offset - 1, 0)) != offset and file.read(1) != b"\n"):
                    raise UsageError(
                        f"{index}: no line of {path.name} begins at {offset}: remove it, and the file is read"
                    )
        return offsets
    offsets, at = [], 0
    with open_regular(path) as file:
        while line := read_line(file, path, at):
            offsets.append(at)
            at += len(line)
    return offsets


def _json(text: bytes | str, what: str) -> Any:
    try:
        return parse_json(text, f"its {what}")
    except UsageError as error:
        raise BadRecord(str(error)) from None
