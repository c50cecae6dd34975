"""Checkpoints on disk: written beside training, published atomically with a manifest of digests, verified when loaded.

    checkpoints/step-00001000/shard-00000.safetensors ...   each rank's part of weights and moments (shards.py)
                              manifest.json                 step, state, and of each shard size, SHA-256 and pieces;
                                                            sealed by its own digest

Training pauses while states are copied to the host's memory; a thread writes them. At the step boundaries after it the
ranks tell each other who has finished, in the sum that they take anyway; when all have, rank 0 gives the folder its
final name. So a folder that has it is complete. A save that fails, for a full disk, is a warning and tried again at the
next; one that was damaged later is passed over with a message, for the newest good one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.data.folder import incomplete, replace_folder
from imagebert.engine.shards import Snapshot, describes_a_shard, shard_problem, write_shard
from imagebert.files import read_json, read_sealed, write_json, write_sealed

log = logging.getLogger(__name__)

_VERSION = 2
_MOST = 2**53  # a step, a count: what a sum over ranks has exact


class Source(Protocol):
    """What a checkpoint is made of: the engine."""

    def snapshot(self) -> Snapshot: ...

    def counters(self) -> dict[str, int]: ...


class Checkpoints:
    """The checkpoints of one run. Collective: all ranks make the same calls, in the same order.

    Args:
        keep: how many of the newest stay
        keep_every: those at multiples of so many steps stay too; 0: none
        alive: called while a save is waited for
        holds: entries that the state of a good checkpoint has, and their types; float: any number from 0 on

    Attributes:
        failed: saves that failed since the last one that did not
        spoilt: of those, saves of a state that is not finite
        paused, took: seconds that training stood still for the last save, and that it took in all; 0: under way
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int = 0,
        alive: Callable[[], None] = lambda: None,
        holds: Mapping[str, type] | None = None,
    ) -> None:
        self.folder, self._alive, self._holds = folder, alive, holds or {}
        self.keep, self.keep_every = keep, keep_every
        self.failed = self.spoilt = 0
        self._saved = False  # all ranks have written one
        self._has_one = False  # a good one is there, as all ranks know
        self.paused = self.took = 0.0
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None], float] | None = None  # step, this rank's part, when it began
        self._publishing: Future[None] | None = None  # on rank 0

    def save(self, engine: Source, step: int, state: dict[str, Any]) -> None:
        """Begins to write what holds after `step` steps, with `state` (plain data); waits for the save before it."""
        began = time.perf_counter()
        self.wait()
        manifest = {"version": _VERSION, "step": step, "state": state, "counters": engine.counters()}
        snapshot = engine.snapshot()
        self.paused, self.took = time.perf_counter() - began, 0.0
        self._writing = step, self._pool.submit(self._write, step, snapshot, manifest), began

    def progress(self) -> tuple[int, int, int]:
        """Whether this rank has finished its part of the save under way, and whether it failed; and whether what all
        wrote could not be published: to be summed."""
        unpublished = self._publishing is not None and self._publishing.done() and self._publishing.exception()
        if self._writing is None or not self._writing[1].done():
            return 0, 0, int(bool(unpublished))
        return 1, int(self._writing[1].exception() is not None), int(bool(unpublished))

    def settle(self, finished: float, failed: float, unpublished: float) -> None:
        """Ends the save under way when all ranks have `finished`; takes the sums of `progress` over all ranks.

        Raises:
            OSError: it was the run's first and failed: what keeps nothing need not be trained.
            FloatingPointError: likewise, for weights or moments are not finite.
        """
        if unpublished:
            self._published()
        if self._writing is None or finished < distributed.world_size():
            return
        step, part, began = self._writing
        self._writing = None
        self.took = time.perf_counter() - began
        if failed:
            self.failed += 1
            if (error := part.exception()) is not None:
                self.spoilt += isinstance(error, FloatingPointError)
                log.warning("checkpoint %s could not be written (%s)", self._final(step), error)
            if distributed.rank() == 0:
                shutil.rmtree(incomplete(self._final(step)), ignore_errors=True)
                if self._has_one:
                    log.warning("training goes on without it, the earlier ones are kept; mend that before the next")
            self._stop_without_any()
            return
        self.failed = self.spoilt = 0
        self._saved = True
        if distributed.rank() == 0:
            self._publishing = self._pool.submit(self._publish, step)

    def wait(self) -> None:
        """Until the save under way is on disk, or has failed."""
        while self._writing is not None:  # asked again and again: a rank must not lose the others to a slow disk
            self.settle(*distributed.total(self.progress()))
            self._alive()
            time.sleep(0.01)
        self._published()

    def _published(self) -> None:
        """Until rank 0 has published what was written, if anything; all ranks learn how that went."""
        error = None
        if self._publishing is not None:
            error, self._publishing = self._publishing.exception(), None
            if error is not None:
                self.failed += 1
                log.warning("a checkpoint in %s could not be published: %s", self.folder, error)
                for left in self.folder.glob(".step-*.incomplete"):
                    shutil.rmtree(left, ignore_errors=True)
        (failed,) = distributed.total([error is not None])
        if failed:
            self._stop_without_any()
        elif self._saved:
            self._has_one = True

    def _stop_without_any(self) -> None:
        """Collective."""
        if self._has_one:
            return
        (spoilt,) = distributed.total([self.spoilt])
        if spoilt:
            raise FloatingPointError(
                f"weights or moments are not finite: they were not saved in {self.folder}, which holds no checkpoint; "
                "lower the learning rate"
            )
        raise OSError(
            f"the first checkpoint could not be written in {self.folder}: free some space, or give an output folder "
            "that all nodes see and may write; nothing is trained that cannot be kept"
        )

    def figures(self) -> dict[str, float]:
        """Of the last save that ended, for the log: seconds that training stood still for it, and that it took."""
        took, self.took = self.took, 0.0
        return {"checkpoint/seconds_paused": self.paused, "checkpoint/seconds": took} if took else {}

    def finish(self) -> None:
        """Waits for the last save.

        Raises:
            OSError: it failed: the run is not where it says that it is.
            FloatingPointError: weights or moments are not finite.
        """
        self.wait()
        failed, spoilt = distributed.total([self.failed, self.spoilt])
        if spoilt:
            raise FloatingPointError(
                f"weights or moments are not finite: they were not saved in {self.folder}, which holds those before; "
                "lower the learning rate"
            )
        if failed:
            raise OSError(
                f"the last checkpoint in {self.folder} could not be written: free some space; the same command goes "
                "on from the one before"
            )

    def close(self) -> None:
        """Until this process writes nothing here any more: then another may."""
        self._pool.shutdown()

    def _write(self, step: int, snapshot: Snapshot, manifest: dict[str, Any]) -> None:
        """This rank's part; the first one brings what is common to all.

        Raises:
            OSError: the disk is full or cannot be written.
            FloatingPointError: it would spoil whatever goes on from it.
        """
        if bad := [key for key, v in snapshot.values.items() if not v.sum(dtype=torch.float64).isfinite()]:
            raise FloatingPointError(f"not all of {', '.join(bad)} is finite")
        rank = distributed.rank()
        folder = incomplete(self._final(step))
        folder.mkdir(parents=True, exist_ok=True)
        shard = write_shard(folder / f"shard-{rank:05d}.safetensors", snapshot)
        write_json(folder / f"shard-{rank:05d}.json", shard)
        if rank == 0:
            write_json(folder / "manifest.json", manifest)

    def _publish(self, step: int) -> None:
        """Joins what the ranks wrote, gives the folder its name, and drops old ones."""
        folder = incomplete(self._final(step))
        parts = [folder / f"shard-{rank:05d}.json" for rank in range(distributed.world_size())]
        manifest = read_json(folder / "manifest.json")
        manifest["shards"] = [read_json(part) for part in parts]
        write_sealed(folder / "manifest.json", manifest)
        for part in parts:
            part.unlink()
        replace_folder(folder, self._final(step))
        self._drop_old()

    def _drop_old(self) -> None:
        for old in _complete(self.folder)[: -self.keep]:
            if not (self.keep_every and _step(old) % self.keep_every == 0):
                shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose files are what its manifest says, and that manifest.

        A damaged one is named and put aside, and what a killed run left, unfinished or too old, is removed. Ranks share
        the reading.

        Raises:
            UsageError: all are damaged, another version of this program made them, or they may not be read.
            OSError: the disk does not let them be read.
        """
        main = distributed.rank() == 0
        with distributed.together():
            _names(self.folder)  # before anything is changed
        if main:
            for left in self.folder.glob(".step-*.incomplete"):
                shutil.rmtree(left, ignore_errors=True)
        while True:
            with distributed.together():
                newest = max(map(_step, _complete(self.folder)), default=0)
                damaged = any(name.startswith(".damaged-") for name in _names(self.folder))
            step, all_damaged = distributed.total([newest * main, (newest == 0 and damaged) * main])
            if all_damaged:
                raise UsageError(
                    f"no good checkpoint is left in {self.folder}: restore one; or, to begin again, remove the folder"
                )
            if step == 0:
                return None
            folder = self._final(int(step))
            with distributed.together():
                manifest, problem = _check(folder, self._holds, distributed.rank(), distributed.world_size())
            if problem is not None:
                log.warning("checkpoint %s is passed over: %s", folder, problem)
            if distributed.total([problem is not None]) == [0]:
                assert manifest is not None
                if main:
                    self._drop_old()
                self._has_one = True
                return folder, manifest
            with distributed.together():
                if main:
                    aside = folder.with_name(f".damaged-{folder.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)

    def _final(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def find_newest(folder: Path, holds: Mapping[str, type] | None = None) -> tuple[Path, dict[str, Any]]:
    """The newest good checkpoint of another run, which may be under way: nothing is moved.

    Args:
        holds: as of `Checkpoints`

    Raises:
        UsageError: there is none, or it may not be read.
        OSError: the disk fails.
    """
    for checkpoint in reversed(_complete(folder)):
        manifest, problem = _check(checkpoint, holds or {}, 0, 1)
        if manifest is not None:
            return checkpoint, manifest
        log.warning("checkpoint %s is passed over: %s", checkpoint, problem)
    raise UsageError(f"{folder} holds no complete checkpoint: train first, or name another run")


def newest_manifest(folder: Path, holds: Mapping[str, type] | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose manifest is good, and that; its shards, which take long, are not looked at.

    Args:
        holds: as of `Checkpoints`

    Raises:
        UsageError: another version of this program made it, or it may not be read.
        OSError: the disk fails.
    """
    for checkpoint in reversed(_complete(folder)):
        manifest, _ = _check(checkpoint, holds or {}, 0, 0)
        if manifest is not None:
            return checkpoint, manifest
    return None


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where nothing is.

    Raises:
        UsageError: another version of this program made it, or it may not be read.
        OSError: the disk fails.
    """
    return _check(checkpoint, {}, 0, 1)[1]


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing, where there is none yet.

    Raises:
        UsageError: it is no folder, or may not be read.
        OSError: the disk fails.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (PermissionError, NotADirectoryError) as error:
        raise UsageError(f"cannot read {folder} ({error.strerror}): mend that, or give another output folder") from None
    except FileNotFoundError:
        if folder.is_symlink():
            raise UsageError(f"{folder} is a link to nothing: mend that, or give another output folder") from None
        return []


def _complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last; see `_names`."""
    return sorted((folder / n for n in _names(folder) if re.fullmatch(r"step-[0-9]{8,15}", n)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def _check(folder: Path, holds: Mapping[str, type], part: int, parts: int) -> tuple[dict[str, Any] | None, str | None]:
    """A checkpoint's manifest, and what is wrong with it or with every `parts`th shard from `part` on; 0: with none.

    Raises:
        UsageError: another version of this program made it, or it may not be read.
        OSError: it is there and cannot be read.
    """
    file = folder / "manifest.json"
    _may_be_read(file)
    try:
        manifest = read_json(file)
        if sealed := not isinstance(manifest, dict) or "digest" in manifest:
            manifest = read_sealed(file)
    except UsageError:
        return None, "its manifest.json is missing or damaged"
    version = manifest.get("version")
    if type(version) is int and version != _VERSION:
        raise UsageError(f"{folder} was made by another version of this program: go on with that, or move it away")
    if not sealed or version != _VERSION or not _is_whole(manifest, _step(folder), holds):
        return None, "its manifest.json is damaged"
    for shard in manifest["shards"][part::parts] if parts else []:
        _may_be_read(folder / shard["file"])
        if problem := shard_problem(folder, shard):
            return None, problem
    return manifest, None


def _is_whole(manifest: dict[str, Any], step: int, holds: Mapping[str, type]) -> bool:
    """Whether a manifest has all that is read from it."""
    state, counters, shards = (manifest.get(key) for key in ("state", "counters", "shards"))
    return (
        manifest.get("step") == step
        and isinstance(state, dict)
        and all(
            key in state and (_is_number(state[key]) if kind is float else isinstance(state[key], kind))
            for key, kind in holds.items()
        )
        and isinstance(counters, dict)
        and all(type(counters.get(key)) is int and _is_number(counters[key]) for key in ("updates", "skipped"))
        and isinstance(shards, list)
        and len(shards) > 0
        and all(map(describes_a_shard, shards))
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < _MOST  # type: ignore[operator]


def _may_be_read(file: Path) -> None:
    """Raises UsageError where there is a file that is not for us: it is not damaged."""
    if os.path.exists(file) and not os.access(file, os.R_OK):
        raise UsageError(f"{file} may not be read: mend that, or give another output folder")
