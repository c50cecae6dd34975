"""The gate of lmdb: environments to read from and to write to; no other file imports it."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import numpy as np

from imagebert.config import UsageError

# LMDB refuses to open an environment twice in a process: readers that are open share it, the last one closes it.
_open_environments: WeakValueDictionary[tuple[int, str], lmdb.Environment] = WeakValueDictionary()
_opening = threading.Lock()


def _shared_environment(path: Path) -> lmdb.Environment:
    key = (os.getpid(), str(path.resolve()))
    until = time.monotonic() + 1
    while True:
        with _opening:
            environment = _open_environments.get(key)
            if environment is not None:
                return environment
            try:
                # A folder, or a bare file as some projects keep it.
                environment = lmdb.open(
                    key[1], readonly=True, lock=False, readahead=False, create=False, subdir=path.is_dir()
                )
                _open_environments[key] = environment
                return environment
            except lmdb.Error as error:
                # Another thread has let go of it and is just closing it.
                if "already open" not in str(error) or time.monotonic() > until:
                    raise
        time.sleep(0.01)


_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_WILL_NEED = 3  # MADV_WILLNEED on Linux


def will_need(value: memoryview) -> None:
    """Asks the system to fetch the pages of a value that will be read soon, all at once and without waiting.

    A page that is not in memory is otherwise fetched when it is touched, one after the other.
    """
    address: int = np.frombuffer(value, np.uint8).__array_interface__["data"][0]
    start = address & -mmap.PAGESIZE
    _madvise(start, address + len(value) - start, _WILL_NEED)


class Reader:
    """One LMDB environment opened read-only: no lock file, no read-ahead beyond what is asked for.

    Values are views into LMDB's pages, valid while the reader is. Not for a process forked from its own; each thread
    needs a reader of its own.

    Raises:
        UsageError: `path` is no LMDB environment that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._environment = _shared_environment(path)
            self._transaction = self._environment.begin(buffers=True)
        except lmdb.Error as error:
            raise UsageError(f"cannot open {path} as LMDB: {error}. Restore it") from None
        # Bound once: it is called for every record. Raises `Reader.Error` where the environment is damaged.
        self.get: Callable[[bytes, None], memoryview | None] = self._transaction.get

    Error = lmdb.Error

    def keys(self) -> Iterator[bytes]:
        try:
            for key in self._transaction.cursor().iternext(keys=True, values=False):
                yield bytes(key)
        except lmdb.Error as error:
            raise UsageError(f"{self.path} is damaged: {error}. Restore it") from None

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])


class Writer:
    """One LMDB environment that grows past its map size by itself. A commit is on disk when `put` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._environment = lmdb.open(str(path), map_size=64 << 20, lock=False)
        except lmdb.Error as error:
            raise OSError(f"cannot write {path}: {error}") from None

    def put(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Writes all records, or none.

        Raises:
            OSError: the disk is full or failing.
        """
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in records:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                free = shutil.disk_usage(self.path).free
                raise OSError(f"{error}; the disk of {self.path} has {free} bytes free") from None

    def keep_only(self, known: set[bytes]) -> None:
        """Deletes records of other keys: what a killed writer committed and did not note."""
        with self._environment.begin(write=True) as transaction:
            cursor = transaction.cursor()
            for key in [key for key in cursor.iternext(keys=True, values=False) if key not in known]:
                transaction.delete(key)

    def close(self) -> None:
        self._environment.close()
