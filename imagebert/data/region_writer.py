"""Writes region stores, by one process or several, so that a kill at any instant loses little and damages nothing.

The store grows in `.NAME.incomplete` beside its place and is renamed when it is whole. Every commit of some records
is on disk before a line about it goes to the writer's journal; a second call reads the journals, ends the shard that
was begun and goes on with another. What was committed and not noted comes again, and stays in its shard, in no index.
Writers of one job share the folder: each has its own shards and its own journal. Lines and notes are sealed (files.py):
what a changed line and those behind it say is written anew.

    job.json               what is being written; another job is refused
    journal-000.jsonl      one line a commit: shard, keys, statistics; one line a finished shard: size and SHA-256
    shard-000-0000/        the first shard of writer 0
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.data.environments import Reader, Writer
from imagebert.data.folder import check_free, clear_lock, incomplete, lock_of, make_folder, replace_folder
from imagebert.data.records import (
    FEATURE_TYPES,
    WHOLE_IMAGE,
    FeatureType,
    RegionRecord,
    convert,
    crc32,
    pack_record,
)
from imagebert.data.regions import FORMAT, INDEX_FIELDS, VERSION, RegionStore, content_of, describe_array
from imagebert.errors import UsageError
from imagebert.files import digest_of, file_digest, open_regular, parse_json, read_sealed, sealed, write_sealed
from imagebert.lock import Held, lock
from imagebert.workers import ALONE, Workers

SHARD_BYTES = 4 << 30
_COMMIT_RECORDS, _COMMIT_BYTES, _COMMIT_SECONDS = 256, 64 << 20, 30.0  # whichever comes first

_Row = tuple[int, int, int]  # regions, whether the first is the whole image, CRC-32
# A feature so large that int8's steps, a 127th of it, leave nothing of so many others.
_OTHERS, _VANISHED = 16, 0.95


class Target(NamedTuple):
    """The store to write."""

    path: Path
    classes: Sequence[str]
    extractor: dict[str, Any]  # where the regions come from, for meta.json
    feature_type: FeatureType = "int8"
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False
    made_from: Sequence[str] = ()  # contents of the stores that it is made of
    feature_size: int | None = None  # that all images have; None: that of the first
    has_classes: bool = True  # whether a detector named the regions; else all are of class 0, which is no class
    attributes: Sequence[str] = ()  # their names; none: the records have none


class Encoded(NamedTuple):
    """One image, checked and packed."""

    key: str
    data: bytes
    row: _Row
    feature_size: int
    statistics: _Statistics


@dataclass
class _Shard:
    """What is known of a shard, packed: a store has millions of rows."""

    name: str
    names: bytearray = field(default_factory=bytearray)  # keys in UTF-8, a zero byte behind each
    regions: array[int] = field(default_factory=lambda: array("H"))
    whole: array[int] = field(default_factory=lambda: array("B"))  # whether the first of them is the whole image
    checksums: array[int] = field(default_factory=lambda: array("I"))
    stored_bytes: int = 0
    sealed: dict[str, Any] | None = None  # file_bytes and sha256
    offsets: array[int] = field(default_factory=lambda: array("Q"))  # of the records in the file, once it is sealed

    @property
    def keys(self) -> list[bytes]:
        return bytes(self.names).split(b"\0")[:-1]


@dataclass
class _Statistics:
    """Of the features as they came, and of what storing them lost; kept per commit and added up in the end."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0
    square_error: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    padding: int = 0  # rows that filled tables up and were left out

    def add(self, other: _Statistics) -> None:
        self.count += other.count
        self.sum += other.sum
        self.squares += other.squares
        self.square_error += other.square_error
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.padding += other.padding

    def of_store(self) -> dict[str, float]:
        mean = self.sum / max(self.count, 1)
        return {
            "mean": mean,
            "std": math.sqrt(max(self.squares / max(self.count, 1) - mean**2, 0)),
            "min": self.low if self.count else 0.0,
            "max": self.high if self.count else 0.0,
            # Root-mean-square error of storing as feature_type, relative to the features' own.
            "relative_storage_error": math.sqrt(self.square_error / self.squares) if self.squares else 0.0,
        }


class _Journal:
    """What one writer has committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards: dict[str, _Shard] = {}
        self.statistics = _Statistics()
        self.feature_size: int | None = None
        self._size = 0
        seen = set[str]()
        if path.exists():
            with open_regular(path) as file:
                for line in file:
                    try:
                        entry = parse_json(line, str(path)) if line.endswith(b"\n") else {}
                    except UsageError:
                        entry = {}
                    if not isinstance(entry, dict) or sealed(entry) != entry or entry["digest"] in seen:
                        break  # cut off by a kill, or damaged: what it and those behind it say is written anew
                    seen.add(entry["digest"])
                    self._note(entry)
                    self._size += len(line)

    def _note(self, entry: dict[str, Any]) -> None:
        shard = self.shards.setdefault(entry["shard"], _Shard(entry["shard"]))
        if "sha256" in entry:
            shard.sealed = {"file_bytes": entry["file_bytes"], "sha256": entry["sha256"]}
            shard.offsets.extend(entry["offsets"])
        else:
            keys, regions, whole, checksums = zip(*entry["rows"], strict=True)
            shard.names += b"".join(key.encode("utf-8") + b"\0" for key in keys)
            shard.regions.extend(regions)
            shard.whole.extend(whole)
            shard.checksums.extend(checksums)
            shard.stored_bytes += entry["bytes"]
            self.feature_size = entry["feature_size"]
            self.statistics.add(_Statistics(**entry["statistics"]))

    def open(self) -> FileIO:
        """For appending, behind the last whole line; unbuffered, so that closing it has nothing left to write."""
        file = FileIO(self.path, "a")
        file.truncate(self._size)
        return file

    def append(self, file: FileIO, entry: dict[str, Any]) -> None:
        line = json.dumps(sealed(entry)).encode() + b"\n"
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
        self._note(entry)


class RegionWriter:
    """Adds records to a store that is being written; made by `write_regions`."""

    def __init__(self, target: Target, rank: int) -> None:
        self.classes, self.attributes = list(target.classes), list(target.attributes)
        self.feature_type = target.feature_type
        self._folder, self._rank, self._shard_bytes = incomplete(target.path), rank, target.shard_bytes
        self._feature_size = target.feature_size
        self._journal = _Journal(self._folder / f"journal-{rank:03d}.jsonl")
        written = []
        for journal in [self._journal, *_journals(self._folder, but=rank)]:
            written += [_digest(key) for shard in journal.shards.values() for key in shard.keys]
            self._feature_size = self._feature_size or journal.feature_size
        self._written = np.sort(np.array(written, "S16"))
        self._seen: set[str] = set()
        self._file = self._journal.open()
        self._pending: list[tuple[str, bytes, _Row]] = []
        self._pending_bytes = 0
        self._committed = time.monotonic()
        self._statistics = _Statistics()
        self._environment: Writer | None = None
        shards = list(self._journal.shards.values())
        self._shard = shards[-1] if shards and shards[-1].sealed is None else None
        self._seal(check=True)  # of an earlier call
        self.accepted = 0  # images that this writer has, by this call or an earlier one
        self.held: Held | None = None  # the lock, at the first worker
        self.refused = 0  # images that this writer was not given, for meta.json
        self.twice = 0  # after the end: how many came twice, at different writers

    def has(self, key: str) -> bool:
        """Whether an earlier call wrote `key`, which then need not be read again.

        Raises:
            UsageError: it is asked for the second time.
        """
        if key in self._seen:
            raise UsageError(f"image {key!r} comes twice: give each image one key")
        if not self.wrote(key):
            return False
        self._seen.add(key)
        self.accepted += 1
        return True

    def wrote(self, key: str) -> bool:
        """Whether an earlier call wrote `key`, at any worker. Unlike `has` it counts nothing and may be asked again."""
        digest = _digest(key.encode("utf-8", "surrogatepass"))
        at = int(np.searchsorted(self._written, digest))
        return at < len(self._written) and bool(self._written[at] == digest.rstrip(b"\0"))

    def add(self, key: str, record: RegionRecord) -> None:
        """Appends one image; see `encode` for what is raised."""
        if not self.has(key):
            self.append(self.encode(key, record))

    def append(self, image: Encoded) -> None:
        """Appends one image that was encoded.

        Raises:
            UsageError: a key for the second time, or another feature size.
            OSError: the disk is full or failing.
        """
        if self.has(image.key):
            return
        if image.feature_size != (self._feature_size or image.feature_size):
            raise UsageError(
                f"image {image.key!r} has features of size {image.feature_size}, those before {self._feature_size}"
            )
        self._seen.add(image.key)
        self.accepted += 1
        self._feature_size = image.feature_size
        self._statistics.add(image.statistics)
        self._pending.append((image.key, image.data, image.row))
        self._pending_bytes += len(image.data)
        full = len(self._pending) >= _COMMIT_RECORDS or self._pending_bytes >= _COMMIT_BYTES
        if full or time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self._commit()

    def _check(self, key: str, record: RegionRecord) -> None:
        n = len(record.features)
        try:
            size = len(key.encode("utf-8"))
        except UnicodeEncodeError:
            raise UsageError(f"image key {key!r} is no text that UTF-8 can hold: rename it") from None
        if not 0 < size <= 511 or "\0" in key:
            raise UsageError(f"image key {key!r} has {size} bytes: LMDB allows 1 to 511, none of them zero")
        if n == 0:
            raise UsageError(f"image {key!r} has no region: none was found in it, or none was given")
        if n > 65535 or record.width < 1 or record.height < 1:
            raise UsageError(f"image {key!r} has {n} regions on {record.width} x {record.height} pixels")
        known = (record.classes < len(self.classes)) | (record.classes == WHOLE_IMAGE)
        if not known.all():
            raise UsageError(
                f"image {key!r} has unknown class {record.classes[~known][0]}: there are {len(self.classes)}"
            )
        if not np.isfinite(record.boxes).all():
            raise UsageError(f"image {key!r} has a box that is not finite")
        if (record.attributes is None) == bool(self.attributes):
            has = "no attributes" if record.attributes is None else "attributes"
            raise UsageError(
                f"image {key!r} has {has}, the store is for regions with{'' if self.attributes else 'out'}"
            )
        if record.attributes is not None:
            unknown = (record.attributes >= len(self.attributes)) & (record.classes != WHOLE_IMAGE)
            if unknown.any():
                number = record.attributes[unknown][0]
                raise UsageError(f"image {key!r} has unknown attribute {number}: there are {len(self.attributes)}")

    def encode(self, key: str, record: RegionRecord, padding: int = 0) -> Encoded:
        """Checks and packs one image, from any thread.

        Args:
            padding: how many rows were left out of it

        Raises:
            UsageError: a key too long, no region, an unknown class, or numbers that cannot be stored.
        """
        self._check(key, record)
        features = record.dequantized()
        squares = np.einsum("nf,nf->n", features, features)
        if not np.isfinite(squares).all():
            raise UsageError(f"image {key!r} has a feature that is not finite")
        stored, scales, lost = convert(record, features, self.feature_type)
        if record.features.dtype != self.feature_type and self.feature_type == "int8":
            _check_steps(key, features, stored, scales, squares)
        square_error = float(np.dot(lost.reshape(-1), lost.reshape(-1)))
        if not math.isfinite(square_error):
            raise UsageError(f"image {key!r} has a feature too large for {self.feature_type}")
        data = pack_record(record, stored, scales)
        total = float(features.sum(axis=1).sum(dtype=np.float64))
        extremes = float(features.min()), float(features.max())
        statistics = _Statistics(
            *(features.size, total, float(squares.sum(dtype=np.float64)), square_error, *extremes, padding)
        )
        row = (len(features), int(record.classes[0] == WHOLE_IMAGE), int.from_bytes(data[-4:], "little"))
        return Encoded(key, data, row, features.shape[1], statistics)

    def _commit(self) -> None:
        self._committed = time.monotonic()
        if not self._pending:
            return
        pending, self._pending = self._pending, []  # whatever becomes of them, once
        if self._shard is not None and self._shard.stored_bytes >= self._shard_bytes:
            self._seal()
        if self._shard is None:
            name = f"shard-{self._rank:03d}-{len(self._journal.shards):04d}"
            shutil.rmtree(self._folder / name, ignore_errors=True)  # begun and never noted
            self._environment = Writer(self._folder / name)
        else:
            name = self._shard.name
        assert self._environment is not None
        if self.held is not None:
            self.held.check()  # else two would write one journal
        self._environment.put([(key.encode("utf-8"), data) for key, data, _ in pending])
        entry = {
            "shard": name,
            "rows": [(key, *row) for key, _, row in pending],
            "bytes": self._pending_bytes,
            "feature_size": self._feature_size,
            "statistics": vars(self._statistics),
        }
        self._journal.append(self._file, entry)
        self._shard = self._journal.shards[name]
        self._pending_bytes, self._statistics = 0, _Statistics()

    def _seal(self, check: bool = False) -> None:
        """The shard is complete: its size and digest are noted, and where in it the records are.

        Args:
            check: whether they are what was written; another call may have been the last to see them
        """
        if self._shard is None:
            return
        if self._environment is not None:
            self._environment.close()
        reader = Reader(self._folder / self._shard.name)
        places = {entry.key: entry.offset for entry in reader.entries()}
        lost = [key for key in self._shard.keys if key not in places]
        if check and not lost:
            noted = dict(zip(self._shard.keys, self._shard.checksums, strict=True))
            entries = (entry for entry in reader.entries() if entry.key in noted)
            lost = [entry.key for entry in entries if crc32(reader.read(entry)[:-4]) != noted[entry.key]]
        if lost or reader.damaged:
            problem = (reader.damaged or [f"image {lost[0].decode()!r} is not in it"])[0]
            raise UsageError(f"{reader.file} is damaged ({problem}): remove {self._folder}, start anew")
        end = {
            "shard": self._shard.name,
            "file_bytes": reader.file.stat().st_size,
            "sha256": file_digest(reader.file),
            "offsets": [places[key] for key in self._shard.keys],
        }
        self._journal.append(self._file, end)
        self._shard = self._environment = None

    def close(self) -> None:
        """Keeps what it has, as far as the disk does, and lets go of the files; the next call adds the rest."""
        with suppress(OSError, UsageError):
            self._commit()
        if self._environment is not None:
            self._environment.close()
        self._file.close()

    def finish(self) -> None:
        self._commit()
        self._seal()
        self._file.close()


@contextmanager
def write_regions(
    target: Target, *, job: dict[str, Any] | None = None, workers: Workers = ALONE
) -> Iterator[RegionWriter]:
    """A writer of a store, which appears in its place when the block ends without an error, on all workers.

    Args:
        job: plain data that identifies the work. Where it is given, what was written stays when the block ends early,
            and a call with the same job goes on; otherwise it is removed.

    Raises:
        UsageError: its place is taken, cannot be written, is being written, or holds the beginning of another job.
        OSError: the disk is full or failing.
    """
    job = job and _whole_job(target, job)
    if target.feature_type not in FEATURE_TYPES:
        raise UsageError(f"feature type {target.feature_type!r}: give one of {', '.join(FEATURE_TYPES)}")
    folder, replaces = incomplete(target.path), "meta.json" if target.overwrite else None
    described = {
        "classes": list(target.classes),
        # Only where it says something, so that stores keep the content that they had before this was known.
        **({} if target.has_classes else {"has_classes": False}),
        **({"attributes": list(target.attributes)} if target.attributes else {}),
        "extractor": target.extractor,
        "job": digest_of(job) if job else None,
        "made_from": list(target.made_from),
    }
    if workers.rank > 0:
        with _written(target, described, workers, keep=job is not None) as writer:
            yield writer
        return
    make_folder(folder.parent)
    with lock(lock_of(target.path), target.path) as held:
        check_free(target.path, replaces)
        make_folder(folder)
        _begin(folder, target.path, job)
        with _written(target, described, workers, held, keep=job is not None) as writer:
            yield writer


@contextmanager
def _written(
    target: Target, described: dict[str, Any], workers: Workers, held: Held | None = None, *, keep: bool
) -> Iterator[RegionWriter]:
    """`write_regions` without its lock, which the first worker has. `keep`: what was written, when it ends early."""
    path, folder = target.path, incomplete(target.path)
    workers.barrier()
    writer = None
    try:
        writer = RegionWriter(target, workers.rank)
        writer.held = held
        workers.barrier()  # all have read the journals before one writes on
        yield writer
        writer.finish()
        accepted, refused = workers.total([writer.accepted, writer.refused])
        if workers.rank == 0:
            for left_behind in filter(lambda rank: rank >= workers.size, map(_rank_of, _journal_files(folder))):
                RegionWriter(target, left_behind).finish()
            described = {**described, "feature_type": writer.feature_type, "refused": refused}
            writer.twice = accepted - _describe(folder, described, accepted)
            if writer.twice < 0:
                raise UsageError(
                    f"{folder} has {-writer.twice} images that do not come any more: remove it, start anew"
                )
            if held is not None:
                held.check()
            replace_folder(folder, path)
            _drop_notes(path)
        workers.barrier()
    except BaseException as error:
        if writer is not None:
            writer.close()
        if held is not None and held.look() and held.lost:
            raise  # what lies there is another's
        kept = sum(len(shard.regions) for journal in _journals(folder) for shard in journal.shards.values())
        if workers.size == 1 and not (keep and kept):
            shutil.rmtree(folder, ignore_errors=True)
            kept = 0
        if isinstance(error, OSError):
            what = f"{kept} images are kept, the same call goes on from there" if kept else "nothing was kept"
            raise OSError(f"writing {path} failed, {what}: {error.strerror or error}") from error
        raise


def finished(target: Target, job: dict[str, Any]) -> int | None:
    """Of a store that this very job has written: how many images were refused; None where there is none."""
    if not (target.path / "meta.json").is_file():
        return None
    meta = RegionStore(target.path).meta
    if meta["job"] != digest_of(_whole_job(target, job)):
        return None
    _drop_notes(target.path)  # where it was killed just behind its last rename
    clear_lock(target.path)
    return int(meta["refused"])


def _whole_job(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "feature_type": target.feature_type, "shard_bytes": target.shard_bytes}


def _begin(folder: Path, path: Path, job: dict[str, Any] | None) -> None:
    """Empties the folder, unless it holds the beginning of this very job."""
    note = folder / "job.json"
    if job is not None and note.exists():
        wanted, begun = sealed(job), read_sealed(note, f"remove {folder}, start anew")
        if begun == wanted:
            return
        different = sorted(
            name for name in (begun.keys() | job.keys()) - {"digest"} if begun.get(name) != wanted.get(name)
        )
        raise UsageError(
            f"{folder} holds the beginning of another {path.name} (other {', '.join(different)}): "
            "go on with the call that made it, or remove it"
        )
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if job is not None:
        write_sealed(note, job)


def _drop_notes(folder: Path) -> None:
    """Removes what only the writing needs."""
    for note in [*folder.glob("*job.json*"), *_journal_files(folder)]:
        note.unlink()


def _journal_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*.jsonl"))


def _rank_of(journal: Path) -> int:
    return int(journal.stem.split("-")[1])


def _journals(folder: Path, but: int | None = None) -> Iterator[_Journal]:
    """Read one by one: they are large."""
    return (_Journal(path) for path in _journal_files(folder) if _rank_of(path) != but)


def _check_steps(
    key: str,
    features: NDArray[np.float32],
    stored: NDArray[np.generic],
    scales: NDArray[np.float32],
    squares: NDArray[np.float32],
) -> None:
    """Whether one number of a region turns its others to zeros; `squares` are the regions' sums of squares [n].

    Raises:
        UsageError: it does.
    """
    # Others that become zero are below half a step each, so few regions have to be looked at.
    suspects = np.flatnonzero(squares <= scales**2 * (127**2 * 1.01 + features.shape[1] / 4))
    there = np.count_nonzero(features[suspects], axis=1)
    lost = there - np.count_nonzero(stored[suspects], axis=1)
    bad = np.flatnonzero((there > _OTHERS) & (lost >= _VANISHED * (there - 1)))
    if len(bad):
        region = suspects[bad[0]]
        raise UsageError(
            f"image {key!r}: beside the {np.abs(features[region]).max():g} of region {region}, {lost[bad[0]]} of its "
            f"{there[bad[0]]} features are 0 as int8: store them with features float16, or repair it"
        )


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=16).digest()


def _describe(folder: Path, described: dict[str, Any], accepted: int) -> int:
    """Writes index.npy and meta.json of a folder whose writers have finished; the number of images.

    Raises:
        UsageError: the writers had features of different sizes.
    """
    journals = list(_journals(folder))
    statistics = _Statistics()
    for journal in journals:
        statistics.add(journal.statistics)
    feature_sizes = {journal.feature_size for journal in journals if journal.feature_size}
    if len(feature_sizes) > 1:
        raise UsageError(f"the input has features of sizes {sorted(feature_sizes)}: import each by itself")
    shards = [shard for journal in journals for shard in journal.shards.values()]
    names = np.array([key for shard in shards for key in shard.keys] or [b""])[: sum(len(s.regions) for s in shards)]
    order = np.argsort(names, kind="stable")
    first = np.concatenate([[True], names[order][1:] != names[order][:-1]])[: len(order)]
    order = order[first]  # of those that came twice, the first
    index = np.empty(
        len(order), dtype=list(zip(INDEX_FIELDS, (names.dtype, "<u2", "u1", "<u2", "<u8", "<u4"), strict=True))
    )
    index["key"] = names[order]
    index["shard"] = np.repeat(np.arange(len(shards)), [len(shard.regions) for shard in shards])[order]
    for name in ("regions", "whole", "offset", "checksum"):
        column = {"offset": "offsets", "checksum": "checksums"}.get(name, name)
        parts = [np.array(getattr(shard, column), index.dtype[name]) for shard in shards]
        index[name] = np.concatenate([np.empty(0, index.dtype[name]), *parts])[order]
    np.save(folder / "index.npy", index, allow_pickle=False)
    held = np.bincount(index["shard"], minlength=len(shards)).tolist()
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "feature_size": next(iter(feature_sizes), None),
        **described,
        "refused": described["refused"] + accepted - len(index),
        "padding": statistics.padding,
        "records": len(index),
        "whole_images": int(index["whole"].sum()),
        "regions": int(index["regions"].sum()),
        "statistics": statistics.of_store(),
        "shards": [
            {"name": shard.name, "records": count, "bytes": shard.stored_bytes, **(shard.sealed or {})}
            for shard, count in zip(shards, held, strict=True)
        ],
        "index": describe_array(folder / "index.npy"),
    }
    write_sealed(folder / "meta.json", {**meta, "content": content_of(meta, index)})
    return len(index)
