"""VinVL: features.tsv beside predictions.tsv, label.tsv or labels.tsv, each with the offsets of its lines in .lineidx.
Or X.feature.tsv beside X.label.tsv, as its captioning data has them.

features     key, number of boxes, base64 of float32; or key, {"num_boxes", "features"}. 2054 numbers a box: 2048 and
             the box itself as shares of the image
labels       key, {"image_h", "image_w", "objects": [{"class", "conf", "rect"}]}; or key, [{"class", "conf", "rect"}]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imagebert.config import UsageError, shown
from imagebert.data.readers import BadRecord, Item, check_files, share_of
from imagebert.data.readers.fields import decode_base64, record_from
from imagebert.data.readers.tsv import LONGEST, lines_of_share
from imagebert.data.records import RegionRecord
from imagebert.files import open_regular, parse_json, read_text

_LABELS = ("predictions.tsv", "label.tsv", "labels.tsv", "predictions_gt.tsv")


class VinvlReader:
    """Files of features, or folders that hold some. Shares are runs of their bytes."""

    def __init__(self, sources: Sequence[Path], classes: Sequence[str]) -> None:
        self.files = [file for source in sources for file in _feature_files(source)]
        if not self.files:
            raise UsageError(f"{sources[0]} holds no features.tsv and no NAME.feature.tsv")
        check_files(self.files)
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._labels = {file: _Labels.beside(file) for file in self.files}
        if any(self._labels.values()) and not classes:
            raise UsageError("VinVL's labels hold class names: give their list with --classes FILE, one a line")

    def size(self, share: int, shares: int) -> int:
        return len(share_of(sum(file.stat().st_size for file in self.files), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        for file, offset, line, done in lines_of_share(self.files, share, shares):
            columns = line.split(b"\t", 3)
            key = columns[0].decode("utf-8", "replace").strip() if len(columns) > 1 else ""
            load = partial(self._record, file, key, columns)
            yield Item(f"{file}, byte {offset}, image {key!r}", key, load, done)

    def _record(self, file: Path, key: str, columns: list[bytes]) -> RegionRecord:
        if len(columns) == 2:
            described = _json(columns[1], "features")
            if not isinstance(described, dict) or not {"num_boxes", "features"} <= described.keys():
                raise BadRecord("its features are no {num_boxes, features}")
            number, features = described["num_boxes"], described["features"]
        elif len(columns) == 3:
            number, features = columns[1], columns[2]
        else:
            raise BadRecord(f"it has {len(columns)} columns, not 2 or 3")
        try:
            rows = int(number)
        except (TypeError, ValueError, OverflowError):
            raise BadRecord(f"its number of boxes is {shown(number)}") from None
        fields: dict[str, Any] = {"features": decode_base64(features, "<f4", "features", rows), "num_boxes": rows}
        labels = self._labels[file]
        return record_from(fields if labels is None else {**fields, **self._objects(labels.read(key), rows)})

    def _objects(self, label: Any, rows: int) -> dict[str, Any]:
        objects = label.get("objects") if isinstance(label, dict) else label
        if not isinstance(objects, list) or len(objects) != rows:
            raise BadRecord(f"its label has {len(objects) if isinstance(objects, list) else 'no'} objects, not {rows}")
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
        if "image_w" not in fields:  # the boxes behind the features are shares of an image whose size is not told
            del fields["boxes"]
        return fields


def _feature_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(file for file in source.rglob("*.tsv") if file.name == "features.tsv" or ".feature." in file.name)


class _Labels:
    """A file of labels, found by key."""

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)
        size = os.fstat(self._file.fileno()).st_size
        self._offsets: dict[bytes, int] = {}
        for offset in _line_offsets(path, size):
            self._file.seek(offset)
            head = self._file.read(512)
            self._offsets[head[: head.find(b"\t")].strip()] = offset

    @classmethod
    def beside(cls, features: Path) -> _Labels | None:
        own = features.name.replace(".feature.", ".label.")  # such as train.feature.tsv and train.label.tsv
        names = [own] if own != features.name else _LABELS
        return next((cls(path) for name in names if (path := features.with_name(name)).exists()), None)

    def read(self, key: str) -> Any:
        offset = self._offsets.get(key.encode())
        if offset is None:
            raise BadRecord("it has no label")
        self._file.seek(offset)
        return _json(self._file.readline(LONGEST).split(b"\t", 1)[1], "label")


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
        while line := file.readline(LONGEST):
            if len(line) == LONGEST:
                raise UsageError(f"{path}, byte {at}: a line has more than {LONGEST} bytes: is it a TSV?")
            offsets.append(at)
            at += len(line)
    return offsets


def _json(text: bytes | str, what: str) -> Any:
    try:
        return parse_json(text, f"its {what}")
    except UsageError as error:
        raise BadRecord(str(error)) from None
