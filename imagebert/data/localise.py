"""Copies of a store's shards on a node's own disk, and the check of all records.

A local copy is a store in a folder of its own: index.npy, meta.json with the path of the store that it came from, and
the shards that were copied; the others are read where it came from. A shard is copied under another name, compared with
its SHA-256 and then renamed, so a call that was killed is made again and goes on behind the bytes that it has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from imagebert.data.folder import make_folder, sync
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.files import read_sealed, sealed, write_json
from imagebert.lock import lock

_BLOCK = 8 << 20
_CHECKED_AT_ONCE = 256  # records


def room_to_localise(folder: Path) -> int:
    """Bytes that may be copied into `folder`, what is in it included, so that a tenth of its disk stays free."""
    make_folder(folder)
    disk = shutil.disk_usage(folder)
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return max(0, disk.free + there - disk.total // 10)


def shards_to_localise(store: RegionStore, part: int, parts: int, room: int | None) -> list[dict[str, Any]]:
    """Every `parts`-th shard from the `part`-th on, as many as fit into `room` bytes."""
    chosen, total = [], 0
    for shard in store.shards[part::parts]:
        total += shard["file_bytes"]
        if room is not None and total > room:
            break
        chosen.append(shard)
    return chosen


def localise(store: RegionStore, folder: Path, shards: list[dict[str, Any]]) -> Iterator[int]:
    """Copies shards of a store into `folder`; yields the bytes that are there after each block.

    Waits while another process copies there, which then is found done.

    Raises:
        UsageError: `folder` holds something else, or a copy differs from what was written.
        OSError: the disk is full or failing; what was copied stays for the next call.
    """
    make_folder(folder)
    if (
        not (folder / ".lock").exists()
        and (folder / "meta.json").exists()
        and all((folder / shard["name"] / "data.mdb").exists() for shard in shards)
    ):
        yield from _localise(store, folder, shards)  # writes nothing, which it perhaps may not
        return
    with lock(folder / ".lock", folder, wait=True):
        yield from _localise(store, folder, shards)


def _localise(store: RegionStore, folder: Path, shards: list[dict[str, Any]]) -> Iterator[int]:
    meta_file = folder / "meta.json"
    meta = sealed({**store.meta, "origin": str(store.path.resolve())})
    if meta_file.exists() and read_sealed(meta_file, f"remove {folder}, localise again") != meta:
        raise UsageError(f"{folder} is a local copy of another store, or of another state of it: remove it")
    done = 0
    try:
        # First: from now on the folder is a store, which reads all that is not here where it came from.
        if not meta_file.exists():
            shutil.copyfile(store.path / "index.npy", folder / "index.npy")
            write_json(meta_file, meta)
        for shard in shards:
            name, size = shard["name"], shard["file_bytes"]
            if not (folder / name / "data.mdb").exists():
                part = folder / f".{name}.part"
                part.mkdir(exist_ok=True)
                target = part / "data.mdb"
                there = target.stat().st_size if target.exists() else 0
                free = shutil.disk_usage(folder).free
                if free < size - there:
                    raise OSError(f"{folder} has {free} bytes free, shard {name} needs {size - there} more")
                for at in _copy(store.folder_of(name) / "data.mdb", target, size, shard["sha256"]):
                    yield done + at
                part.rename(folder / name)
                sync(folder)
            done += size
    except OSError as error:
        raise OSError(f"localising {store.path} failed, the same call goes on from there: {error}") from error
    yield done


def _copy(source: Path, target: Path, size: int, sha256: str) -> Iterator[int]:
    """Copies a file behind what is there of it; yields bytes done."""
    digest, at = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("ab+") as writing:
        writing.truncate(min(writing.tell(), size))
        writing.seek(0)
        while block := writing.read(_BLOCK):
            digest.update(block)
            at += len(block)
        reading.seek(at)
        while at < size and (block := reading.read(min(_BLOCK, size - at))):
            writing.write(block)
            digest.update(block)
            at += len(block)
            yield at
        writing.flush()
        os.fsync(writing.fileno())
    if digest.hexdigest() != sha256:
        target.unlink()
        raise UsageError(f"{source} does not have the SHA-256 that it was written with: restore the store")


def check_records(store: RegionStore, threads: int) -> Iterator[tuple[int, list[str]]]:
    """Compares every record with its checksum; yields (records done, what is wrong with the last ones).

    Checksums are computed without Python's lock, so threads use all cores.
    """

    def check(first: int) -> tuple[int, list[str]]:
        errors = []
        last = min(first + _CHECKED_AT_ONCE, len(store))
        store.will_read(np.arange(first, last))
        for image in range(first, last):
            try:
                store.read(image)
            except UsageError as error:
                errors.append(str(error))
        return last - first, errors

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for count, errors in pool.map(check, range(0, len(store), _CHECKED_AT_ONCE)):
            done += count
            yield done, errors
