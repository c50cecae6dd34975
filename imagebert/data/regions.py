"""RegionStore: the regions of many images, in a folder of LMDB shards.

    meta.json          format, feature size and type, class names, extractor and its statistics, shards
    index.npy          one row per image, sorted by key: key, regions, shard
    shard-0000/        LMDB environments: image key -> record (records.py)

A store exists whole or not at all (folder.py). Reading is zero-copy, lock-free and lazy: each process opens a shard
when it first reads from it. The gate of lmdb: no other file imports it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.folder import publish
from imagebert.data.records import (
    FEATURE_TYPES,
    WHOLE_IMAGE,
    FeatureType,
    RegionRecord,
    decode_record,
    encode_record,
)

_FORMAT, _VERSION = "imagebert-regions", 1
_SHARD_BYTES = 16 << 30
_BATCH = 256  # records per LMDB transaction


class RegionStore:
    """A store opened for reading. `len` is its images; images are numbered by their sorted keys.

    Raises:
        UsageError: not a store, of another version, empty, or not whole.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        self.path = Path(path)
        self.verify = verify
        meta = read_meta(self.path, _FORMAT, _VERSION, "imagebert extract")
        try:
            self.feature_size: int = meta["feature_size"]
            self.feature_type: FeatureType = meta["feature_type"]
            self.classes: list[str] = meta["classes"]
            self.extractor: dict[str, Any] = meta["extractor"]
            self.statistics: dict[str, float] = meta["statistics"]
            self.shards: list[dict[str, Any]] = meta["shards"]
            self.whole_image: bool = meta["whole_image"]
            self.index = np.load(self.path / "index.npy", mmap_mode="r", allow_pickle=False)
            for shard in self.shards:
                file = self.path / shard["name"] / "data.mdb"
                if not file.is_file():
                    raise UsageError(f"{self.path} lacks its shard {shard['name']}: copy the whole folder")
                if file.stat().st_size < shard["file_bytes"]:  # LMDB would read past its end and kill the process
                    raise UsageError(f"{file} is truncated, it had {shard['file_bytes']} bytes: copy it again")
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{self.path} is damaged, meta.json or index.npy ({error}): copy it again") from None
        self.region_counts: NDArray[np.uint16] = np.ascontiguousarray(self.index["regions"])
        if len(self.index) == 0:
            raise UsageError(f"the region store {self.path} is empty: extract or import images into it first")
        if sum(shard["records"] for shard in self.shards) != len(self.index):
            raise UsageError(f"{self.path}: the shards do not hold as many records as the index: restore the folder")
        self._transactions: dict[int, lmdb.Transaction] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.index)

    def key(self, image: int) -> str:
        """The key of image number `image`, mostly its file name."""
        name: bytes = self.index[image]["key"]
        return name.decode("utf-8")

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """The number of each key [n] of UTF-8 bytes; -1 where there is no such image."""
        known = self.index["key"]
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        found: NDArray[np.int64] = np.where(known[at] == keys, at, -1)
        return found

    def read(self, image: int) -> RegionRecord:
        """The regions of image number `image`: views into LMDB's pages, valid while the store is."""
        if self._process != os.getpid():  # forked: LMDB environments must not be shared
            self._transactions, self._process = {}, os.getpid()
        row = self.index[image]
        transaction = self._transactions.get(row["shard"])
        if transaction is None:
            transaction = self._open(int(row["shard"]))
        where = f"record {row['key'].decode()!r} of {self.path}"
        try:
            data = transaction.get(row["key"], None)
        except lmdb.Error as error:
            raise UsageError(f"{where} cannot be read ({error}): restore the store") from None
        if data is None:
            raise UsageError(f"{where} is missing: restore the store")
        record = decode_record(data, where, self.verify)
        if record.features.shape != (row["regions"], self.feature_size):
            raise UsageError(
                f"{where} has features {record.features.shape}, the index says {(row['regions'], self.feature_size)}"
            )
        return record

    def _open(self, shard: int) -> lmdb.Transaction:
        transaction = _environment(self.path / self.shards[shard]["name"]).begin(buffers=True)
        self._transactions[shard] = transaction
        return transaction


# LMDB refuses to open an environment twice in a process: stores that are open share it, the last one closes it.
_open_environments: WeakValueDictionary[tuple[int, str], lmdb.Environment] = WeakValueDictionary()


def _environment(path: Path) -> lmdb.Environment:
    key = (os.getpid(), str(path.resolve()))
    environment = _open_environments.get(key)
    if environment is None:
        try:
            environment = lmdb.open(key[1], readonly=True, lock=False, readahead=False, create=False)
        except lmdb.Error as error:
            raise UsageError(f"cannot open {path}: {error}. Restore the store") from None
        _open_environments[key] = environment
    return environment


def read_meta(path: Path, expected_format: str, version: int, command: str) -> dict[str, Any]:
    """A store folder's meta.json, checked for what it is."""
    if not path.is_dir():
        raise UsageError(
            f"{path} is {'a file' if path.exists() else 'not there'}: a store is a folder made by `{command}`"
        )
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        found = (meta["format"], meta["version"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} has no readable meta.json: it is no store, make it with `{command}`") from None
    if found != (expected_format, version):
        raise UsageError(
            f"{path} holds {found[0]} version {found[1]}, not {expected_format} version {version}: "
            f"name one that `{command}` made"
        )
    return dict(meta)


class RegionWriter:
    """Adds records to a store that is being written; made by `write_regions`."""

    def __init__(
        self, folder: Path, classes: Sequence[str], feature_type: FeatureType, shard_bytes: int = _SHARD_BYTES
    ) -> None:
        self.folder = folder
        self.classes = list(classes)
        self.feature_type = feature_type
        self.feature_size: int | None = None
        self.shards: list[dict[str, Any]] = []
        self.rows: list[tuple[bytes, int, int]] = []
        self.whole_image = True
        self._shard_bytes = shard_bytes
        self._seen: set[bytes] = set()
        self._pending: list[tuple[bytes, bytes]] = []
        self._environment: lmdb.Environment | None = None
        self._sums = np.zeros(3)  # features: count, sum, sum of squares
        self._range = [np.inf, -np.inf]
        self._square_error = 0.0

    def add(self, key: str, record: RegionRecord) -> None:
        """Appends one image.

        Raises:
            UsageError: a key twice or too long, no region, an unknown class, another feature size, or bad numbers.
        """
        name = key.encode("utf-8")
        n, feature_size = record.features.shape
        self.feature_size = self.feature_size or feature_size
        if name in self._seen:
            raise UsageError(f"image {key!r} comes twice: give each image one key")
        if not 0 < len(name) <= 511:
            raise UsageError(f"image key {key!r} has {len(name)} bytes: LMDB allows 1 to 511")
        if n == 0:
            raise UsageError(f"image {key!r} has no region: keep at least the whole image as one")
        if feature_size != self.feature_size:
            raise UsageError(f"image {key!r} has features of size {feature_size}, those before {self.feature_size}")
        known = (record.classes < len(self.classes)) | (record.classes == WHOLE_IMAGE)
        if not known.all():
            raise UsageError(
                f"image {key!r} has unknown class {record.classes[~known][0]}: there are {len(self.classes)}"
            )
        features = record.dequantized()
        if not (np.isfinite(features).all() and np.isfinite(record.boxes).all()):
            raise UsageError(f"image {key!r} has a feature or a box that is not finite")
        data = encode_record(record, self.feature_type)
        stored = decode_record(data, key, verify=False)
        self._sums += features.size, features.sum(dtype=np.float64), np.square(features, dtype=np.float64).sum()
        self._range = [min(self._range[0], features.min()), max(self._range[1], features.max())]
        self._square_error += float(np.square(stored.dequantized() - features, dtype=np.float64).sum())
        self.whole_image &= bool(record.classes[0] == WHOLE_IMAGE)
        self._seen.add(name)
        self._pending.append((name, data))
        if len(self._pending) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._environment is None or self.shards[-1]["bytes"] >= self._shard_bytes:
            self._open_shard()
        assert self._environment is not None
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for name, data in self._pending:
                        transaction.put(name, data)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.DiskError as error:
                raise OSError(f"the disk is full or failing: {error}") from None
        shard = self.shards[-1]
        for name, data in self._pending:
            self.rows.append((name, int.from_bytes(data[2:4], "little"), len(self.shards) - 1))
            shard["records"] += 1
            shard["bytes"] += len(data)
        self._pending = []

    def _open_shard(self) -> None:
        if self._environment is not None:
            self._environment.close()
        name = f"shard-{len(self.shards):04d}"
        self.shards.append({"name": name, "records": 0, "bytes": 0})
        self._environment = lmdb.open(str(self.folder / name), map_size=64 << 20, lock=False, sync=False)

    def finish(self, extractor: dict[str, Any]) -> None:
        self._flush()
        if self._environment is not None:
            self._environment.sync(True)
            self._environment.close()
        for shard in self.shards:
            shard["file_bytes"] = (self.folder / shard["name"] / "data.mdb").stat().st_size
        width = max((len(row[0]) for row in self.rows), default=1)
        index = np.array(sorted(self.rows), dtype=[("key", f"S{width}"), ("regions", "<u2"), ("shard", "<u2")])
        np.save(self.folder / "index.npy", index, allow_pickle=False)
        count, total, squares = self._sums
        mean = total / max(count, 1)
        meta = {
            "format": _FORMAT,
            "version": _VERSION,
            "feature_size": self.feature_size,
            "feature_type": self.feature_type,
            "classes": self.classes,
            "whole_image": bool(self.rows) and self.whole_image,
            "extractor": extractor,
            "records": len(index),
            "regions": int(index["regions"].sum()),
            "statistics": {
                "mean": float(mean),
                "std": float(np.sqrt(max(squares / max(count, 1) - mean**2, 0))),
                "min": float(self._range[0]) if count else 0.0,
                "max": float(self._range[1]) if count else 0.0,
                # Root-mean-square error of storing as feature_type, relative to the features' own.
                "relative_storage_error": float(np.sqrt(self._square_error / squares)) if squares else 0.0,
            },
            "shards": self.shards,
        }
        (self.folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


@contextmanager
def write_regions(
    path: Path | str,
    classes: Sequence[str],
    extractor: dict[str, Any],
    feature_type: FeatureType = "int8",
    shard_bytes: int = _SHARD_BYTES,
    overwrite: bool = False,
) -> Iterator[RegionWriter]:
    """Opens a new store for writing; it appears at `path` when the block ends without an error."""
    if feature_type not in FEATURE_TYPES:
        raise UsageError(f"feature type {feature_type!r}: give one of {', '.join(FEATURE_TYPES)}")
    with publish(Path(path), "meta.json" if overwrite else None) as folder:
        writer = RegionWriter(folder, classes, feature_type, shard_bytes)
        yield writer
        writer.finish(extractor)
