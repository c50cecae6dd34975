"""The gate of lmdb: environments to read from and to write to; no other file imports it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def _data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


class Reader:
    """One LMDB environment opened read-only: no lock file, and no read-ahead but what is asked for.

    Values are views into LMDB's pages, valid while the reader is. Not for a process forked from its own; each thread
    needs a reader of its own.

    Raises:
        UsageError: `path` is no LMDB environment that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not _data_file(path).is_file():
            raise UsageError(f"{path} is no LMDB: it has no data.mdb")
        try:
            self._environment = _shared_environment(path)
            self._transaction = self._environment.begin(buffers=True)
            used = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        except lmdb.Error as error:
            raise UsageError(f"cannot open {path} as LMDB: {error}. Restore it") from None
        size = _data_file(path).stat().st_size
        if used > size:  # LMDB would read past its end, and the system kill the process
            raise UsageError(f"{_data_file(path)} is truncated: it has {size} bytes and needs {used}. Copy it again")
        # Bound once: it is called for every record. Raises `Reader.Error` where the environment is damaged.
        self.get: Callable[[bytes, None], memoryview | None] = self._transaction.get
        self._file: int | None = None

    Error = lmdb.Error

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    def will_read(self, offset: int, size: int) -> None:
        """Asks the system to fetch bytes of the file that will be read soon, all at once and without waiting.

        Otherwise LMDB fetches a value page by page, each when it is touched: on a disk, 20 times slower.
        """
        if self._file is None:  # not sooner: threads that only read need none
            self._file = os.open(_data_file(self.path), os.O_RDONLY)
        os.posix_fadvise(self._file, offset, size, os.POSIX_FADV_WILLNEED)

    def offsets(self, keys: Iterable[bytes]) -> list[int]:
        """Where in the file the value of each key begins; LMDB itself does not tell."""
        file = str(_data_file(self.path).resolve())
        with open("/proc/self/maps", encoding="utf-8") as maps:
            base = next(int(line.split("-")[0], 16) for line in maps if line.rstrip("\n").endswith(file))
        values = (np.frombuffer(self.get(key, None) or b"", np.uint8) for key in keys)
        return [value.__array_interface__["data"][0] - base for value in values]

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

    def close(self) -> None:
        self._environment.close()
