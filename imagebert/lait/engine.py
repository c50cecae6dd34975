"""A step's tasks, done by whatever is there: this process, processes of its own, ranks, or a Ray cluster.

A task is a function of one file, whose result is a file: NAME.parquet, and what else it writes beside it, in the
step's folder. Behind each stands NAME.json, sealed, which says what it was made from, what became of its input and
what its files' digests are; it is written last. A call that was killed is made again, and does what has no such note.
When all are done the folder gets step.json, by which the next step knows it for whole. Results are the same bytes
whatever does the tasks, in whatever order.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imagebert.claims import Claims
from imagebert.data.folder import lock_of, make_folder
from imagebert.errors import UsageError
from imagebert.files import digest_of, file_digest, open_regular, read_sealed, write_sealed
from imagebert.lait.ray_cluster import ray_pool
from imagebert.lock import lock
from imagebert.log import Progress
from imagebert.workers import ALONE, Workers

STEP = "step.json"
_BEGUN = ".begun.json"  # while a step is not whole: its name, and those of all tasks that it has had
_ENDS = 1 << 16  # bytes at both ends of a file that tell it from others
_ONE = {"take": "fetch"}  # steps that write the same, each in its way
NOTE = {"made_from", "counts", "files", "digest"}  # what a task's note has
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_AHEAD = 2  # tasks for each process that are handed out at once

# What a task does: it is given its arguments and the stem of its results' paths; what became of its input is counted.
Work = Callable[..., Mapping[str, int]]


class Task(NamedTuple):
    """One file of a step.

    Attributes:
        name: of its results, without a suffix
        source: plain data that says what it is made from
        arguments: what its function is given, before the stem of its results
    """

    name: str
    source: Any
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Engine:
    """What does a step's tasks.

    Attributes:
        workers: the ranks of this job
        processes: of each rank; 1: the rank itself
        ray: the address of a Ray cluster, "auto", or "" for none
    """

    workers: Workers = ALONE
    processes: int = 1
    ray: str = ""


class Done(NamedTuple):
    """A step that is whole.

    Attributes:
        folder: of its results
        names: of its tasks, in order
        counts: what became of its input, of all tasks together
        digest: of all that it holds
        before: the digests of the steps that it was made from
    """

    folder: Path
    names: tuple[str, ...]
    counts: dict[str, int]
    digest: str
    before: tuple[str, ...]

    def files(self, suffix: str = ".parquet") -> list[Path]:
        """The tasks' results of a suffix, in order."""
        return [self.folder / f"{name}{suffix}" for name in self.names]


class Pool(Protocol):
    """Runs tasks elsewhere."""

    def submit(self, work: Work, /, *arguments: Any) -> Future[Mapping[str, int]]: ...


def run_step(
    step: str,
    folder: Path,
    work: Work,
    tasks: Sequence[Task],
    source: Any,
    engine: Engine = Engine(),
    before: Sequence[Done] = (),
) -> Done:
    """Does a step's tasks, those that were done before apart, and says that it is whole.

    Args:
        step: its name, for people
        work: a function of a module, given a task's arguments and the stem of its results, folder/NAME
        source: plain data that all tasks depend on: thresholds, models
        before: the steps that it is made from

    Raises:
        UsageError: a task's input is wrong, two have one name, another process writes the folder, or another step has
            written it.
        OSError: the disk is full or fails, or a process or rank was killed.
    """
    workers = engine.workers
    _check_names(tasks)
    with held(folder, workers):
        begun = begun_in(step, folder)
        made_from = {task.name: digest_of([step, source, task.source]) for task in tasks}
        claims = Claims(folder, workers)
        # The first rank looks, and the sum tells the others: a network's file system may show each something else.
        first = workers.rank == 0
        is_done = [int(first and _is_done(folder, task.name, made_from[task.name])) for task in tasks]
        left = [number for number, done in enumerate(workers.total(is_done)) if not done]
        if first and (left or begun != made_from.keys()):
            write_sealed(folder / _BEGUN, {"step": step, "names": sorted(begun | made_from.keys())})
            (folder / STEP).unlink(missing_ok=True)  # until it is whole again
        with Progress(f"lait {step}", len(tasks), "files", enabled=len(left) > 0) as progress:
            done = len(tasks) - len(left)
            for task, counts in _do(work, _cleared((tasks[n] for n in claims.pieces(left)), folder), folder, engine):
                _note(folder, task.name, made_from[task.name], counts)
                done += 1
                progress.update(done if workers.size == 1 else len(tasks) - len(left) + claims.reached)
        workers.barrier()
        if first:
            claims.clear()
            _finish(step, folder, tasks, made_from, [done.digest for done in before])
        workers.barrier()
    return read_step(folder)


def _check_names(tasks: Sequence[Task]) -> None:
    for name, times in Counter(task.name for task in tasks).items():
        if times > 1:
            raise UsageError(f"{times} files would be written as {name}: give each a name of its own, and each once")
        if f"{name}.json" == STEP or name.startswith("."):
            raise UsageError(f"a file {name} cannot be told from this program's own: give it another name")


def begun_in(step: str, folder: Path) -> set[str]:
    """The tasks that a step's folder holds, or has begun to hold; asked before any work.

    Raises:
        UsageError: it is another step's, whose results would go.
    """
    names = set[str]()
    for name in (STEP, _BEGUN):
        try:
            content = read_sealed(folder / name)
        except UsageError:  # it is not there, or damaged, and made again
            continue
        theirs = content.get("step", "")
        if _ONE.get(theirs, theirs) != _ONE.get(step, step):
            raise UsageError(f"{folder} is what another step wrote ({theirs}): name another folder for `lait {step}`")
        names |= set(content.get("tasks", content.get("names", ())))
    return names


@contextmanager
def held(folder: Path, workers: Workers) -> Iterator[None]:
    """A folder is this job's, held by its first rank; made where it is missing.

    Raises:
        UsageError: another process writes it, or it cannot be made.
    """
    make_folder(folder)
    if workers.rank > 0:
        workers.barrier()
        yield
        return
    with lock(lock_of(folder), folder):
        workers.barrier()
        yield


def _do(work: Work, tasks: Iterator[Task], folder: Path, engine: Engine) -> Iterator[tuple[Task, Mapping[str, int]]]:
    """Each task with what became of its input, as they end."""
    if engine.processes == 1 and not engine.ray:
        for task in tasks:
            with _named(folder / task.name):
                counts = work(*task.arguments, folder / task.name)
            yield task, counts
        return
    running: dict[Future[Mapping[str, int]], Task] = {}
    following: Task | None = None
    with _pool(engine) as (pool, width):
        try:
            more = True
            while more or running:
                while more and len(running) < _AHEAD * width:
                    following = next(tasks, None)
                    if following is None:
                        more = False
                    else:
                        running[pool.submit(work, *following.arguments, folder / following.name)] = following
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    following = running[future]
                    with _named(folder / following.name):
                        counts = future.result()
                    yield following, counts
                    del running[future]
        except BrokenProcessPool:
            at = {task.name for future, task in running.items() if not future.done() or future.exception()}
            names = ", ".join(sorted(at | ({following.name} if following else set()))[:5])
            raise OSError(
                f"a process was killed at one of {names}, by a lack of memory most likely: give fewer processes; "
                "the same call goes on"
            ) from None


@contextmanager
def _named(stem: Path) -> Iterator[None]:
    """What fails of the disk while a task is done is said of its result."""
    try:
        yield
    except OSError as error:
        said = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else error.strerror or error
        raise OSError(error.errno, f"{stem} was not made ({said}): the same call goes on when it can") from None


def _pool(engine: Engine) -> AbstractContextManager[tuple[Pool, int]]:
    return ray_pool(engine.ray) if engine.ray else _processes(engine.processes)


@contextmanager
def _processes(count: int) -> Iterator[tuple[Pool, int]]:
    """Processes that end with this one, however it ends."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),))
    try:
        yield pool, count
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when
    if os.getppid() != parent:  # it has gone already
        os._exit(1)


# ------------------------------------------------------------------------------------------------------------- notes


def _cleared(tasks: Iterator[Task], folder: Path) -> Iterator[Task]:
    """The tasks, whose results that were made from something else are gone."""
    for task in tasks:
        _remove(folder, task.name)
        yield task


def _results(folder: Path, name: str) -> list[Path]:
    """What a task has written, but its note. Another's name may begin alike: 00000 and 00000.more."""
    found = folder.glob(f"{glob.escape(name)}.*")
    return sorted(path for path in found if path.stem == name and path.suffix != ".json")


def _remove(folder: Path, name: str) -> None:
    """Removes what a note stands behind, and the note, last: files of others may lie in the folder, too."""
    note = folder / f"{name}.json"
    try:
        content = _read_note(note, "")
    except UsageError:
        return
    for file in content["files"]:
        if Path(file).stem == name and Path(file).name == file:
            (folder / file).unlink(missing_ok=True)
    note.unlink()


def forget(folder: Path, name: str) -> None:
    """Takes a task for one that is not done, if it is, and leaves its results: it is to go on from them."""
    (folder / f"{name}.json").unlink(missing_ok=True)


def _note(folder: Path, name: str, made_from: str, counts: Mapping[str, int]) -> None:
    described = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in _results(folder, name)
    }
    write_sealed(
        folder / f"{name}.json", {"made_from": made_from, "counts": dict(sorted(counts.items())), "files": described}
    )


def _is_done(folder: Path, name: str, made_from: str) -> bool:
    note = folder / f"{name}.json"
    if not note.is_file():
        return False
    try:
        content = _read_note(note, "")
        return content["made_from"] == made_from and all(
            (folder / file).stat().st_size == entry["bytes"] for file, entry in content["files"].items()
        )
    except (UsageError, OSError):  # what is damaged is made again
        return False


def _finish(
    step: str, folder: Path, tasks: Sequence[Task], made_from: Mapping[str, str], before: Sequence[str]
) -> None:
    """Removes what belongs to no task, as another input's results, and says that the step is whole."""
    counts, notes = Counter[str](), {}
    for task in tasks:
        if not _is_done(folder, task.name, made_from[task.name]):
            raise OSError(f"{folder / task.name} was not made: make the call again")
        content = read_sealed(folder / f"{task.name}.json")
        counts.update(content["counts"])
        notes[task.name] = content["digest"]
    for note in sorted(folder.glob("*.json")):
        if note.stem not in notes and note.name != STEP:
            _remove(folder, note.stem)
    for name in begun_in(step, folder) - notes.keys():  # killed before it was noted
        for path in _results(folder, name):
            path.unlink()
    content = {"step": step, "counts": dict(sorted(counts.items())), "tasks": notes, "before": list(before)}
    write_sealed(folder / STEP, content)
    (folder / _BEGUN).unlink(missing_ok=True)


def read_step(folder: Path, command: str = "the step before", *steps: str) -> Done:
    """A step's folder, which is whole.

    Args:
        command: what makes it, for people
        steps: names that it may have; none: any

    Raises:
        UsageError: it is not there, not whole, or another step's.
    """
    if not (folder / STEP).is_file():
        raise UsageError(f"{folder} has no {STEP}: {command} has not ended well there, make it again")
    content = _read_step(folder)
    if steps and content["step"] not in steps:
        raise UsageError(f"{folder} is what another step wrote ({content['step']}): give what {command} writes")
    return Done(folder, tuple(content["tasks"]), content["counts"], content["digest"], tuple(content["before"]))


def _read_step(folder: Path) -> dict[str, Any]:
    content = read_sealed(folder / STEP, "make the step again")
    if content.keys() != {"step", "counts", "tasks", "before", "digest"}:
        raise UsageError(f"{folder / STEP} is another file of this program: make the step again")
    return content


def _read_note(note: Path, cure: str) -> dict[str, Any]:
    content = read_sealed(note, cure)
    if content.keys() != NOTE:
        raise UsageError(f"{note} is another file of this program: {cure}")
    return content


def check_step(folder: Path) -> int:
    """How many files a step's folder holds, each compared with its digest.

    Raises:
        UsageError: one has changed or is gone.
    """
    checked = 0
    cure = "make the step again"
    for name, digest in _read_step(folder)["tasks"].items():
        note = _read_note(folder / f"{name}.json", cure)
        if note["digest"] != digest:
            raise UsageError(f"{folder / name}.json is of another call: {cure}")
        for file, entry in note["files"].items():
            if not (folder / file).is_file() or file_digest(folder / file) != entry["sha256"]:
                raise UsageError(f"{folder / file} has changed since it was written, or is gone: {cure}")
            checked += 1
    return checked


def check_result(path: Path) -> None:
    """Compares a file of a step with its digest, before what it holds is used.

    Raises:
        UsageError: it has changed or is gone.
    """
    cure = "make the step before again"
    entry = _read_note(path.with_name(f"{path.stem}.json"), cure)["files"].get(path.name)
    if entry is None or not path.is_file() or file_digest(path) != entry["sha256"]:
        raise UsageError(f"{path} has changed since it was written, or is gone: {cure}")


def identity_of(path: Path) -> list[Any]:
    """What tells an input file from others: of another step's results the digest that was noted, of what is not ours,
    and may be large, its size, time and both ends.
    """
    try:
        entry = _read_note(path.with_name(f"{path.stem}.json"), "")["files"].get(path.name)
    except UsageError:
        entry = None
    found = path.stat()
    if entry is not None and entry["bytes"] == found.st_size:
        return [path.name, entry["sha256"]]
    with open_regular(path) as file:
        first = file.read(_ENDS)
        file.seek(max(0, found.st_size - _ENDS))
        ends = hashlib.sha256(first + file.read(_ENDS)).hexdigest()
    return [path.name, found.st_size, found.st_mtime_ns, ends]
