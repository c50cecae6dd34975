"""Images with their regions from a reader to a store: what cannot be used is named and counted, nothing is dropped.

All workers of a job share the input out. A call that was killed is made again and goes on: images that are written are
not read again. What came in is what was stored and what was refused, counted apart and compared in the end.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.data.readers import Item, Loaded, Reader, share_of
from imagebert.data.region_writer import Encoded, RegionWriter, Target, finished, write_regions
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.files import open_regular
from imagebert.log import Progress
from imagebert.workers import ALONE, Workers

log = logging.getLogger(__name__)

_THREADS = 8  # that read and encode


class Transferred(NamedTuple):
    """Counts the images that were brought into a region store: each one that came is either stored or refused.

    Attributes:
        came: The number of images in the sources.
        stored: The number of images in the store.
        refused: The number of images that cannot be used.
        padding: The number of rows that only filled tables up to their size, which are left out.
    """

    came: int
    stored: int
    refused: int
    padding: int = 0


def transfer(
    reader: Reader, target: Target, job: dict[str, Any], *, strict: bool = False, workers: Workers = ALONE
) -> Transferred:
    """Writes all that a reader gives.

    Args:
        job: plain data that identifies the input; an unfinished store of the same job is gone on with, a finished one
            is left as it is
        strict: the first image that cannot be used is an error

    Raises:
        UsageError: with `strict`, an image cannot be used; without, none can.
        OSError: the disk is full or failing; what was written stays for the next call.
    """
    before = None
    if workers.rank == 0 and not target.overwrite:
        before = finished(target, job)
    there, refused = workers.total([before is not None, before or 0])
    if there:
        return _of_store(target.path, refused)
    came = refused = 0
    with write_regions(target, job=job, workers=workers) as writer:
        for item, encoded in _encoded(_shown(reader, target.path, workers), writer):
            came += 1
            try:
                if (found := encoded.result()) is not None:
                    writer.append(found)
            except UsageError as error:
                if strict:
                    raise UsageError(f"{item.where}: {error}") from None
                refused += 1
                writer.refused += 1
                log.warning("%s is refused: %s", item.where, error)
        came, refused = workers.total([came, refused])
        if refused == came:
            raise UsageError(f"none of the {came} images can be used: {target.path} is not written")
    (twice,) = workers.total([writer.twice])
    if twice:
        log.warning("%d images came at two workers: of each, one is refused", twice)
    done = _of_store(target.path, refused + twice)
    if came != done.came:
        raise OSError(
            f"{came} images came, {done.stored} are in {target.path}, {done.refused} were refused: do not use it"
        )
    return done


def _of_store(path: Path, refused: int) -> Transferred:
    store = RegionStore(path)
    return Transferred(len(store) + refused, len(store), refused, store.meta.get("padding", 0))


def _encoded(items: Iterable[Item], writer: RegionWriter) -> Iterator[tuple[Item, Future[Encoded | None]]]:
    """Images in their order, read and encoded some ahead by threads; None where an earlier call wrote it."""

    def encode(item: Item) -> Encoded:
        loaded = item.load()
        return writer.encode(loaded.key, loaded.record, loaded.padding)

    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    ahead: deque[tuple[Item, Future[Encoded | None]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            future: Future[Encoded | None] = Future()
            try:
                if item.key and writer.has(item.key):
                    future.set_result(None)
                else:
                    future = pool.submit(encode, item)
            except UsageError as error:
                future.set_exception(error)
            ahead.append((item, future))
            if len(ahead) > 2 * threads:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


def describe_sources(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What files or folders hold, as far as can be told without reading all of it: for a job.

    Names, sizes and times of all files, and a digest of samples: of some files, each of its ends and middle.

    Raises:
        UsageError: one is not there, or cannot be read.
        OSError: the disk fails.
    """
    found = []
    for path in paths:
        files = [path]
        if not path.is_dir():
            open_regular(path).close()
        else:
            files = sorted(file for file in path.rglob("*") if file.is_file())
            # Not what writers leave behind, nor what whoever reads an LMDB may write to.
            files = [f for f in files if f.name != "lock.mdb" and f.relative_to(path).parts[0][0] != "."]
        found.append(describe_files(path, files))
    return found


def describe_files(path: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What these files, sorted, of a folder, or a file itself, hold: as `describe_sources`."""
    sampled = set(np.linspace(0, max(0, len(files) - 1), _SAMPLES).astype(int).tolist())
    listing, sample = hashlib.sha256(), hashlib.sha256()
    for number, file in enumerate(files):
        stat = file.stat()
        listing.update(os.fsencode(f"{file.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        if number in sampled:
            with open_regular(file) as opened:
                for at in np.linspace(0, max(0, stat.st_size - _SAMPLE_BYTES), 3).astype(int).tolist():
                    opened.seek(at)
                    sample.update(opened.read(_SAMPLE_BYTES))
    return {"path": str(path.resolve()), "files": listing.hexdigest(), "sample": sample.hexdigest()}


def _shown(reader: Reader, path: Path, workers: Workers) -> Iterator[Item]:
    """This worker's items. The first worker shows how far it is, which is about how far all are."""
    total = reader.size(workers.rank, workers.size)
    with Progress(f"Writing {path.name}", total, enabled=workers.rank == 0) as progress:
        for number, item in enumerate(reader.items(workers.rank, workers.size), 1):
            yield item
            progress.update(item.done, f"{number:,} images")


class StoreReader:
    """Region stores as the input: all their images, or chosen ones.

    Raises:
        UsageError: the stores do not fit together, or a chosen image is in none.
    """

    beside: Sequence[Path] = ()

    def __init__(self, paths: Sequence[Path], keys: Sequence[str] | None = None) -> None:
        self._stores = [RegionStore(path) for path in paths]
        first = self._stores[0]
        for store in self._stores[1:]:
            for name in ("feature_size", "classes", "has_classes", "attributes"):
                if getattr(store, name) != getattr(first, name):
                    raise UsageError(f"{first.path} and {store.path} differ in their {name.replace('_', ' ')}")
        self.feature_type = first.feature_type
        self.classes, self.has_classes, self.attributes = first.classes, first.has_classes, first.attributes
        self.contents = [store.content for store in self._stores]
        self.extractor = first.extractor
        if any(store.extractor != first.extractor for store in self._stores):
            self.extractor = {"name": "several", "digest": None, "of": [store.extractor for store in self._stores]}
        self._images = [np.arange(len(store)) for store in self._stores]
        if keys is not None:
            self._images = self._choose(keys)

    def _choose(self, keys: Sequence[str]) -> list[NDArray[np.int64]]:
        names = np.array([key.encode() for key in keys])
        found = [store.find(names) for store in self._stores]
        missing = np.flatnonzero(np.all([places < 0 for places in found], axis=0))
        if len(missing):
            raise UsageError(f"image {keys[missing[0]]!r} (one of {len(missing)}) is not in {self._stores[0].path}")
        return [np.unique(places[places >= 0]) for places in found]

    def size(self, share: int, shares: int) -> int:
        return sum(len(share_of(len(images), share, shares)) for images in self._images)

    def items(self, share: int, shares: int) -> Iterator[Item]:
        done = 0
        for store, images in zip(self._stores, self._images, strict=True):
            for number in share_of(len(images), share, shares):
                image = int(images[number])
                done += 1
                key = store.key(image)
                yield Item(f"{store.path}, image {key!r}", key, partial(_loaded, store, image, key), done)


def _loaded(store: RegionStore, image: int, key: str) -> Loaded:
    return Loaded(key, store.read(image))
