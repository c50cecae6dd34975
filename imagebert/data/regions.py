"""RegionStore: the regions of many images, in a folder of LMDB shards.

    meta.json          format, feature size and type, class names, extractor, statistics, shards with digests
    index.npy          one row per image, sorted by key: key, regions, shard, and where in its file the record begins
    shard-000-0000/    LMDB environments: image key -> record (records.py)

A store exists whole or not at all (region_writer.py). Reading is zero-copy, lock-free and lazy: each thread of each
process opens a shard when it first reads from it. Of a staged store (staging.py) some shards lie in its own folder and
the others where it came from.
"""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.environments import Reader
from imagebert.data.records import FeatureType, RegionRecord, Sections, decode_record

FORMAT, VERSION = "imagebert-regions", 2
_NOTHING = memoryview(b"")
INDEX_FIELDS = ("key", "regions", "shard", "offset")


class RegionStore:
    """A store opened for reading. `len` is its images; images are numbered by their sorted keys.

    Args:
        verify: compare every record that is read with its checksum

    Raises:
        UsageError: not a store, of another version, empty, or not whole.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        self.path = Path(path)
        self.verify = verify
        self.meta = read_meta(self.path, FORMAT, VERSION, "imagebert extract")
        try:
            self.feature_size: int = self.meta["feature_size"]
            self.feature_type: FeatureType = self.meta["feature_type"]
            self.classes: list[str] = self.meta["classes"]
            self.extractor: dict[str, Any] = self.meta["extractor"]
            self.statistics: dict[str, float] = self.meta["statistics"]
            self.shards: list[dict[str, Any]] = self.meta["shards"]
            self.whole_image: bool = self.meta["whole_image"]
            self.index = np.load(self.path / "index.npy", mmap_mode="r", allow_pickle=False)
            self._feature_bytes = self.feature_size * np.dtype(self.feature_type).itemsize if self.feature_size else 0
            origin = self.meta.get("origin")
            self._folders = [_find_shard(self.path, origin, shard) for shard in self.shards]
            self.region_counts: NDArray[np.uint16] = np.ascontiguousarray(self.index["regions"])
            if self.index.dtype.names != INDEX_FIELDS or (self.index["shard"] >= len(self.shards)).any():
                raise ValueError("the index does not fit")
        except UsageError:
            raise
        except Exception as error:  # what a damaged .npy may raise is no closed list
            raise UsageError(f"{self.path} is damaged, meta.json or index.npy ({error}): copy it again") from None
        if len(self.index) == 0:
            raise UsageError(f"the region store {self.path} is empty: extract or import images into it first")
        if sum(shard["records"] for shard in self.shards) != len(self.index):
            raise UsageError(f"{self.path}: the shards do not hold as many records as the index: restore the folder")
        self._opened = threading.local()
        _allow_files(2 * len(self.shards))

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
        """The regions of image number `image`: views into LMDB's pages, valid while the store is.

        Raises:
            UsageError: the record is missing or damaged.
        """
        where = f"record {self.key(image)!r} of {self.path}"
        row = self.index[image]
        try:
            data = self._readers(row[None]["shard"])[int(row["shard"])].get(row["key"], None)
        except Reader.Error as error:
            raise UsageError(f"{where}: {error}. Restore the store") from None
        if data is None:
            raise UsageError(f"{where} is missing: restore the store")
        record = decode_record(data, where, self.verify)
        found = f"{record.features.dtype}{list(record.features.shape)}"
        expected = f"{self.feature_type}{[int(self.region_counts[image]), self.feature_size]}"
        if found != expected:
            raise UsageError(f"{where} has features {found}, the index says {expected}: restore the store")
        return record

    def raw(self, images: NDArray[np.int64]) -> Iterator[memoryview]:
        """The records of images [n] as bytes in LMDB's pages, unchecked; empty where LMDB finds none."""
        rows = self.index[images]
        readers = self._readers(rows["shard"])
        for key, shard in zip(rows["key"].tolist(), rows["shard"].tolist(), strict=True):
            try:
                data = readers[shard].get(key, None)
            except Reader.Error:
                data = None
            yield _NOTHING if data is None else data

    def will_read(self, images: NDArray[np.int64]) -> None:
        """Has the system fetch the records of images [n] while other work goes on."""
        rows = self.index[images]
        readers = self._readers(rows["shard"])
        sizes = Sections.of(rows["regions"].astype(np.int64), self._feature_bytes).end
        columns = rows["shard"].tolist(), rows["offset"].tolist(), sizes.tolist()
        for shard, offset, size in zip(*columns, strict=True):
            readers[shard].will_read(offset, size)

    def folder_of(self, shard: str) -> Path:
        """Where a shard lies: in the store's folder, or in the one that it was staged from."""
        return next(folder for folder in self._folders if folder.name == shard)

    def _readers(self, shards: NDArray[np.uint16]) -> dict[int, Reader]:
        """This thread's open shards, with `shards` among them. A forked process must not use its parent's."""
        if getattr(self._opened, "process", None) != os.getpid():
            self._opened.process, self._opened.readers = os.getpid(), {}
        readers: dict[int, Reader] = self._opened.readers
        for shard in set(shards.tolist()) - readers.keys():
            readers[shard] = Reader(self._folders[shard])
        return readers


def _find_shard(store: Path, origin: str | None, shard: dict[str, Any]) -> Path:
    """The shard's folder: the store's own, or else the one it was staged from."""
    folder = store / shard["name"]
    if origin is not None and not folder.exists():
        folder = Path(origin) / shard["name"]
    file = folder / "data.mdb"
    if not file.is_file():
        raise UsageError(f"{store} lacks its shard {folder}: copy the whole folder")
    if file.stat().st_size < shard["file_bytes"]:  # LMDB would read past its end and kill the process
        raise UsageError(f"{file} is truncated, it had {shard['file_bytes']} bytes: copy it again")
    return folder


def _allow_files(more: int) -> None:
    """Raises this process' limit of open files, where the shards of a store would come near it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 512  # those of everything else
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


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
