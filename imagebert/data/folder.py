"""A folder that exists whole or not at all: written under a temporary name, fsynced, then renamed.

Who writes it holds a lock beside it (lock.py), `.NAME.lock`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagebert.config import UsageError
from imagebert.lock import lock


@contextmanager
def publish(path: Path, replaces: str | None = None, wait: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `path`; when the block ends well, it becomes `path`.

    Left by an exception, the folder is removed and `path` is as it was. Killed, it stays behind under its temporary
    name, and the next call with the same `path` clears it.

    Args:
        replaces: name of a file by which a folder that may be replaced is known; without it, none is
        wait: while another process writes `path`, instead of refusing

    Raises:
        UsageError: `path` exists and is not to be replaced, another process writes it, or its parent cannot be written.
        OSError: the disk filled up or failed.
    """
    temporary = incomplete(path)
    make_folder(temporary.parent)
    with lock(lock_of(path), path, wait=wait) as held:
        check_free(path, replaces)
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        try:
            yield temporary
            held.check()
            replace_folder(temporary, path)
        except BaseException as error:
            held.look()
            if not held.lost:  # else what lies there is another's
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise OSError(f"writing {path} failed, nothing was kept: {error.strerror or error}") from error
            raise


def check_free(path: Path, replaces: str | None = None) -> None:
    """Whether a folder may be written at `path`; see `publish`.

    Raises:
        UsageError: it exists and is not to be replaced.
    """
    if path.exists() and (replaces is None or not (path / replaces).is_file()):
        what = "exists" if replaces is None else f"exists and has no {replaces}, it is not ours to replace"
        raise UsageError(f"{path} {what}: remove it, or name another place")


def incomplete(path: Path) -> Path:
    """Where a folder lies until it is whole."""
    path = path.absolute()  # "." has no name
    return path.with_name(f".{path.name}.incomplete")


def clear_lock(path: Path) -> None:
    """Removes the lock that a writer of `path` left, who was killed when all was written."""
    if lock_of(path).exists():
        with lock(lock_of(path), path, wait=True):
            pass


def lock_of(path: Path) -> Path:
    """The lock of who writes a folder, beside it."""
    path = path.absolute()
    return path.with_name(f".{path.name}.lock")


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they are missing.

    Raises:
        UsageError: there cannot be one.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {path.parent}: {error.strerror}") from None


def replace_folder(complete: Path, path: Path) -> None:
    """Makes the written folder `complete` durable and gives it its final name, replacing what stood there."""
    for file in sorted(complete.rglob("*")):
        sync(file)
    sync(complete)
    if path.exists():
        # A folder cannot be renamed onto a full one; for a moment the old one has another name, never none.
        old = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        complete.rename(path)
        shutil.rmtree(old)
    else:
        complete.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file's or a folder's own entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
