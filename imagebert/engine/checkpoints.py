"""Checkpoints on disk: written beside training, published atomically with a manifest of digests, verified when loaded.

    checkpoints/step-00001000/shard-00000.safetensors ...   each rank's part of weights and moments (shards.py)
                              manifest.json                 step, state, and of each shard size, SHA-256 and pieces

Training pauses while states are copied to the host's memory; a thread writes them. At the step boundaries after it the
ranks tell each other who has finished, in the sum that they take anyway; when all have, rank 0 gives the folder its
final name. So a folder that has it is complete. A save that fails, for a full disk, is a warning and tried again at the
next; one that was damaged later is passed over with a message, for the newest good one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.data.folder import incomplete, replace_folder
from imagebert.engine.shards import Snapshot, write_shard
from imagebert.files import file_digest

log = logging.getLogger(__name__)

_VERSION = 1


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

    Attributes:
        failed: saves that failed since the last one that did not
        paused, took: seconds that training stood still for the last save, and that it took in all; 0: under way
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, alive: Callable[[], None] = lambda: None) -> None:
        self.folder, self._alive = folder, alive
        self.keep, self.keep_every = keep, keep_every
        self.failed = 0
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

    def progress(self) -> tuple[int, int]:
        """Whether this rank has finished its part of the save under way, and whether it failed: to be summed."""
        if self._writing is None or not self._writing[1].done():
            return 0, 0
        return 1, int(self._writing[1].exception() is not None)

    def settle(self, finished: float, failed: float) -> None:
        """Ends the save under way when all ranks have `finished`; takes the sums of `progress` over all ranks."""
        if self._writing is None or finished < distributed.world_size():
            return
        step, part, began = self._writing
        self._writing = None
        self.took = time.perf_counter() - began
        if failed:
            self.failed += 1
            if (error := part.exception()) is not None:
                log.warning("checkpoint %s could not be written (%s)", self._final(step), error)
            if distributed.rank() == 0:
                shutil.rmtree(incomplete(self._final(step)), ignore_errors=True)
                log.warning("training goes on without it, the earlier ones are kept; free some space before the next")
            return
        self.failed = 0
        if distributed.rank() == 0:
            self._publishing = self._pool.submit(self._publish, step)

    def wait(self) -> None:
        """Until the save under way is on disk, or has failed."""
        while self._writing is not None:  # asked again and again: a rank must not lose the others to a slow disk
            self.settle(*distributed.total(self.progress()))
            self._alive()
            time.sleep(0.01)
        if self._publishing is not None:
            error, self._publishing = self._publishing.exception(), None
            if error is not None:
                self.failed += 1
                log.warning("a checkpoint in %s could not be published: %s", self.folder, error)
                for left in self.folder.glob(".step-*.incomplete"):
                    shutil.rmtree(left, ignore_errors=True)

    def figures(self) -> dict[str, float]:
        """Of the last save that ended, for the log: seconds that training stood still for it, and that it took."""
        took, self.took = self.took, 0.0
        return {"checkpoint/seconds_paused": self.paused, "checkpoint/seconds": took} if took else {}

    def finish(self) -> None:
        """Waits for the last save.

        Raises:
            OSError: it failed: the run is not where it says that it is.
        """
        self.wait()
        (failed,) = distributed.total([self.failed])
        if failed:
            raise OSError(
                f"the last checkpoint in {self.folder} could not be written: free some space; the same command goes "
                "on from the one before"
            )

    def _write(self, step: int, snapshot: Snapshot, manifest: dict[str, Any]) -> None:
        """This rank's part; the first one brings what is common to all."""
        rank = distributed.rank()
        folder = incomplete(self._final(step))
        folder.mkdir(parents=True, exist_ok=True)
        shard = write_shard(folder / f"shard-{rank:05d}.safetensors", snapshot)
        _write_json(folder / f"shard-{rank:05d}.json", shard)
        if rank == 0:
            _write_json(folder / "manifest.json", manifest)

    def _publish(self, step: int) -> None:
        """Joins what the ranks wrote, gives the folder its name, and drops old ones."""
        folder = incomplete(self._final(step))
        parts = [folder / f"shard-{rank:05d}.json" for rank in range(distributed.world_size())]
        manifest = _read_json(folder / "manifest.json")
        manifest["shards"] = [_read_json(part) for part in parts]
        _write_json(folder / "manifest.json", manifest)
        for part in parts:
            part.unlink()
        replace_folder(folder, self._final(step))
        kept = _complete(self.folder)
        for old in kept[: -self.keep]:
            if not (self.keep_every and int(old.name[5:]) % self.keep_every == 0):
                shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose files are what its manifest says, and that manifest.

        A damaged one is named and put aside, and what a killed run left unfinished is removed. Ranks share the reading.

        Raises:
            UsageError: all are damaged, or another version of this program made them.
            OSError: the disk does not let them be read.
        """
        main = distributed.rank() == 0
        if main:
            for left in self.folder.glob(".step-*.incomplete"):
                shutil.rmtree(left, ignore_errors=True)
        while True:
            newest = max((int(p.name[5:]) for p in _complete(self.folder)), default=0)
            damaged = any(self.folder.glob(".damaged-*"))
            step, all_damaged = distributed.total([newest * main, (newest == 0 and damaged) * main])
            if all_damaged:
                raise UsageError(
                    f"no good checkpoint is left in {self.folder}: restore one; or, to begin again, remove the folder"
                )
            if step == 0:
                return None
            folder = self._final(int(step))
            with distributed.together():
                manifest, problem = _check(folder, distributed.rank(), distributed.world_size())
            if problem is not None:
                log.warning("checkpoint %s is passed over: %s", folder, problem)
            if distributed.total([problem is not None]) == [0]:
                assert manifest is not None
                return folder, manifest
            with distributed.together():
                if main:
                    aside = folder.with_name(f".damaged-{folder.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)

    def _final(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def find_newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest good checkpoint of another run, which may be under way: nothing is moved.

    Raises:
        UsageError: there is none.
    """
    for checkpoint in reversed(_complete(folder)):
        manifest, problem = _check(checkpoint, 0, 1)
        if manifest is not None:
            return checkpoint, manifest
        log.warning("checkpoint %s is passed over: %s", checkpoint, problem)
    raise UsageError(f"{folder} holds no complete checkpoint: train first, or name another run")


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))


def _check(folder: Path, part: int, parts: int) -> tuple[dict[str, Any] | None, str | None]:
    """A checkpoint's manifest, and what is wrong with every `parts`th shard from `part` on.

    Raises:
        UsageError: another version of this program made it.
        OSError: it is there and cannot be read.
    """
    try:
        manifest = _read_json(folder / "manifest.json")
    except (FileNotFoundError, ValueError):
        return None, "its manifest.json is missing or damaged"
    if manifest.get("version") != _VERSION:
        raise UsageError(f"{folder} was made by another version of this program: go on with that, or move it away")
    for shard in manifest["shards"][part::parts]:
        file = folder / shard["file"]
        if not file.is_file():
            return None, f"{file.name} is missing"
        if file.stat().st_size != shard["bytes"] or file_digest(file) != shard["sha256"]:
            return None, f"{file.name} has changed since it was written"
    return manifest, None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
