"""RegionStore: the regions of many images, in a folder of LMDB shards.

    meta.json          what the store is: kind of features, class names, extractor, statistics, digests (files.py)
    index.npy          one row per image, sorted by key: key, regions, whether the first is the whole image, shard,
                       where in its file the record begins, and the record's CRC-32
    shard-000-0000/    LMDB environments: image key -> record (records.py)

A store exists whole or not at all (region_writer.py). A record is read from its place in the file, without LMDB and
without mapping it: no damage can kill the reader. meta.json is sealed, it has the index's checksum, and the index has
every record's, so what is read is what was written, or an error. Of a local copy (localise.py) some shards lie in its
own folder and the others where it came from.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from imagebert.data.records import WHOLE_IMAGE, FeatureType, RegionRecord, Sections, crc32, decode_record
from imagebert.errors import UsageError
from imagebert.files import check_sealed, digest_of, open_regular, read_json

FORMAT, VERSION = "imagebert-regions", 3
INDEX_FIELDS = ("key", "regions", "whole", "shard", "offset", "checksum")

# Fills buffers with a record's bytes, one behind the other; how many bytes there were: fewer where it is cut short.
Read = Callable[[Sequence[Any]], int]


class RegionStore:
    """Reads a region store. `len` is the number of its images, which are numbered by their sorted keys.

    Threads and forked processes may share it. What it hands out is the caller's own.

    Args:
        verify: compare every record that is read with its checksum

    Attributes:
        content: SHA-256 of what the store holds, whatever shards that is cut into
        has_classes: whether a detector named the regions; else all are of class 0, which is no class
        attributes: the names of the attributes; none: the records have no attributes
        region_counts: [I] uint16, regions of each image, the whole-image region included
        whole_image: [I] bool, whether an image's first region is the whole image

    Raises:
        UsageError: not a store, of another version, empty, changed since it was written, or not whole.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        self.path = Path(path)
        self.verify = verify
        self.meta = read_meta(self.path, FORMAT, VERSION, "imagebert extract")
        self.feature_size: int = self.meta["feature_size"]
        self.feature_type: FeatureType = self.meta["feature_type"]
        self.classes: list[str] = self.meta["classes"]
        self.has_classes: bool = self.meta.get("has_classes", True)
        self.attributes: list[str] = self.meta.get("attributes", [])
        self.extractor: dict[str, Any] = self.meta["extractor"]
        self.statistics: dict[str, float] = self.meta["statistics"]
        self.shards: list[dict[str, Any]] = self.meta["shards"]
        self.content: str = self.meta["content"]
        self.index = read_array(self.path / "index.npy", self.meta["index"])
        self._feature_bytes = self.feature_size * np.dtype(self.feature_type).itemsize if self.feature_size else 0
        self._folders = [find_shard(self.path, self.meta.get("origin"), shard) for shard in self.shards]
        self.region_counts: NDArray[np.uint16] = np.ascontiguousarray(self.index["regions"])
        self.whole_image: NDArray[np.bool_] = self.index["whole"] > 0
        if len(self.index) == 0:
            raise UsageError(f"the region store {self.path} is empty: extract or import images into it first")
        self._files: dict[int, BinaryIO] = {}
        self._opening = threading.Lock()
        _allow_files(len(self.shards))

    def __len__(self) -> int:
        return len(self.index)

    def key(self, image: int) -> str:
        """Returns the key of image number `image`, mostly its file name."""
        name: bytes = self.index[image]["key"]
        return name.decode("utf-8")

    def class_name(self, number: int) -> str:
        """Returns the name of the region class `number`."""
        if number == WHOLE_IMAGE:
            return "whole image"
        return self.classes[number] if self.has_classes else "region"

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Finds the number of each key [n] of UTF-8 bytes; it is -1 where there is no such image."""
        return find_sorted(self.index["key"], keys)

    def read(self, image: int) -> RegionRecord:
        """Reads the regions of image number `image`.

        Raises:
            UsageError: The record is missing, damaged, or not the one that the index names.
        """
        where = f"record {self.key(image)!r} of {self.path}"
        (data,) = self.raw(np.array([image]))
        record = decode_record(data, where, self.verify)
        found = f"{record.features.dtype}{list(record.features.shape)}"
        expected = f"{self.feature_type}{[int(self.region_counts[image]), self.feature_size]}"
        found += " with attributes" * (record.attributes is not None)
        expected += " with attributes" * bool(self.attributes)
        if found != expected:
            raise UsageError(f"{where} has features {found}, the index says {expected}: restore the store")
        if self.verify and int.from_bytes(data[-4:], "little") != self.index[image]["checksum"]:
            raise UsageError(f"{where} is not the one that was written there, its shard is another: restore the store")
        return record

    def raw(self, images: NDArray[np.int64]) -> Iterator[bytes]:
        """The records of images [n] as bytes, unchecked; short or empty where they cannot be read."""
        for record, size in zip(self.records(images), self._sizes(images).tolist(), strict=True):
            data = bytearray(size)
            yield bytes(data[: record([data])])

    def records(self, images: NDArray[np.int64]) -> Iterator[Read]:
        """The records of images [n], each to be read into buffers, unchecked."""
        rows = self.index[images]
        for shard, offset in zip(rows["shard"].tolist(), rows["offset"].tolist(), strict=True):
            yield partial(_read, self._file(shard), offset)

    def checksums(self, images: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The CRC-32 of each record of images [n], without the four bytes that hold it."""
        return self.index["checksum"][images]

    def will_read(self, images: NDArray[np.int64]) -> None:
        """Has the system fetch the records of images [n] while other work goes on: all at once, not page by page."""
        rows = self.index[images]
        columns = rows["shard"].tolist(), rows["offset"].tolist(), self._sizes(images).tolist()
        for shard, offset, size in zip(*columns, strict=True):
            os.posix_fadvise(self._file(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def _sizes(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = self.region_counts[images].astype(np.int64)
        sizes: NDArray[np.int64] = Sections.of(counts, self._feature_bytes, bool(self.attributes)).end
        return sizes

    def folder_of(self, shard: str) -> Path:
        """Where a shard lies: in the store's folder, or in the one that it is a local copy of."""
        return next(folder for folder in self._folders if folder.name == shard)

    def _file(self, shard: int) -> int:
        """The shard's descriptor; it is opened when it is first asked for."""
        if shard not in self._files:
            with self._opening:
                if shard not in self._files:
                    self._files[shard] = open_regular(self._folders[shard] / "data.mdb")
        return self._files[shard].fileno()


def _read(descriptor: int, offset: int, buffers: Sequence[Any]) -> int:
    try:
        return os.preadv(descriptor, buffers, offset)
    except OSError:  # a bad sector, a network disk that is gone
        return 0


def find_sorted(known: NDArray[np.bytes_], keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """The place of each key [n] among the sorted `known` [K]; -1 where it is none of them."""
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: NDArray[np.int64] = np.where(known[at] == keys, at, -1)
    return found


def content_of(meta: dict[str, Any], index: NDArray[Any]) -> str:
    """SHA-256 of what makes a store what it is: its kind of features, classes, keys and every record's checksum.

    Where a record lies is not part of it: a merged or resumed store has the content of one that was written at once.
    """
    digest = hashlib.sha256()
    named = "feature_size", "feature_type", "classes", "has_classes", "attributes"
    kinds = [name for name in named if name in meta]
    digest.update(digest_of({name: meta[name] for name in kinds}).encode())
    for name in ("key", "regions", "whole", "checksum"):
        for start in range(0, len(index), 1 << 20):
            column = np.ascontiguousarray(index[name][start : start + (1 << 20)])
            # Keys with their lengths, so that it does not matter how wide the column is.
            digest.update(b"\0".join(column.tolist()) + b"\0" if name == "key" else column.tobytes())
    return digest.hexdigest()


def find_shard(store: Path, origin: str | None, shard: dict[str, Any]) -> Path:
    """The shard's folder: the store's own, or else the one it is a local copy of."""
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
    """A store folder's meta.json, checked for what it is and whether it has changed."""
    if not path.is_dir():
        raise UsageError(
            f"{path} is {'a file' if path.exists() else 'not there'}: a store is a folder made by `{command}`"
        )
    try:
        meta = read_json(path / "meta.json")
        found = (meta["format"], meta["version"])
    except (UsageError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} has no readable meta.json ({error}): restore it, or make the store with `{command}`"
        ) from None
    if found[0] != expected_format:
        raise UsageError(f"{path} holds {str(found[0])[:40]}, not {expected_format}: name one that `{command}` made")
    if found[1] in range(1, version) and "digest" not in meta:
        raise UsageError(
            f"{path} is of an older version, without digests: `imagebert verify --accept {path}` adds them"
        )
    if found[1] != version:
        raise UsageError(f"{path} is of version {str(found[1])[:40]}, not {version}: it is newer, or damaged")
    return check_sealed(meta, path / "meta.json", "restore the store")


def describe_array(path: Path) -> dict[str, int]:
    """Size and CRC-32 of an .npy file, for `read_array`."""
    with open_regular(path) as file:
        data = _mapped(file)
    return {"bytes": len(data), "crc32": crc32(data)}


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def read_array(path: Path, described: dict[str, int]) -> NDArray[Any]:
    """An .npy file, mapped, after it was compared with what `describe_array` said of it.

    Raises:
        UsageError: it is missing, or has changed since it was written.
        OSError: the disk fails.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != described["bytes"] or crc32(_mapped(file)) != described["crc32"]:
            raise UsageError(f"{path} has changed since it was written: restore the store")
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
