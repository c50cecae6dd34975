"""LMDB's files, written by lmdb (this is its gate: no other file imports it) and read by their pages.

LMDB maps a file and trusts it: where a page was changed or cut, the reading process is killed, without a word. Here
nothing is mapped and nothing is trusted. The tree is walked by its pages, each checked for its bounds; what it leads to
is a place in the file, and a record is read from there. A page that is damaged costs the records on it, no more.

The layout is that of LMDB 0.9 (mdb.c, MDB_page, MDB_node and MDB_meta; 64 bit, little-endian):

    page    8 number, 2 pad, 2 flags, 2 lower, 2 upper, then 2 for each node's place on the page
    node    4 size of its value (branch: with flags, the child's page), 2 flags, 2 size of its key, key, value
    meta    on pages 0 and 1: 4 magic, 4 version, 16, then two trees (free pages, records) of 48 bytes:
            4 page size, 2 flags, 2 depth, 24, 8 entries, 8 root page; behind them 8 last page, 8 transaction
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import lmdb

from imagebert.errors import UsageError
from imagebert.files import open_regular

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<IHH")
_META = struct.Struct("<II16x I2xH24xQQ I2xH24xQQ QQ")
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_ON_OWN_PAGES = 1  # flag of a node whose value is too large for a tree's page
_NOWHERE = (1 << 64) - 1


class Entry(NamedTuple):
    """A record's key, and where in the file its value lies."""

    key: bytes
    offset: int
    size: int


class Reader:
    """One LMDB file, opened for reading. Threads and forked processes may share it.

    Args:
        path: the folder of a data.mdb, or a bare file as some projects keep it

    Attributes:
        damaged: pages that could not be used, of those that `entries` has met: what is wrong with each

    Raises:
        UsageError: it is no LMDB, of another version, or truncated.
        OSError: the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "data.mdb" if path.is_dir() else path
        if not self.file.is_file():
            raise UsageError(f"{path} is no LMDB: it has no data.mdb")
        self._opened = open_regular(self.file)
        self.descriptor = self._opened.fileno()
        self.damaged: list[str] = []
        self._size = os.fstat(self.descriptor).st_size
        metas = [meta for size in (0, *_sizes_of_pages()) if (meta := self._meta(size)) is not None]
        if not metas:
            raise UsageError(f"cannot open {path} as LMDB: neither of its first pages is one of LMDB's. Restore it")
        self._page_size, self._depth, self._entries, self._root, last, _ = max(metas, key=lambda meta: meta[-1])
        if (needed := (last + 1) * self._page_size) > self._size:
            raise UsageError(f"{self.file} is truncated: it has {self._size} bytes and needs {needed}. Copy it again")

    def _meta(self, offset: int) -> tuple[int, int, int, int, int, int] | None:
        """Of the meta page there: page size, then depth, entries and root of the records' tree, last page, number of
        the transaction; None where there is none."""
        data = os.pread(self.descriptor, _PAGE.size + _META.size, offset)
        if len(data) < _PAGE.size + _META.size:
            return None
        magic, version, page_size, _, _, _, _, depth, entries, root, last, number = _META.unpack_from(data, _PAGE.size)
        if (magic, version) != (_MAGIC, _VERSION) or page_size not in _sizes_of_pages() or offset not in (0, page_size):
            return None
        return page_size, depth, entries, root, last, number

    def __len__(self) -> int:
        return self._entries

    def entries(self) -> Iterator[Entry]:
        """All records in the order of their keys. Pages that are damaged are noted in `damaged` and passed over."""
        self.damaged = []
        if self._root == _NOWHERE:
            return
        seen: set[int] = set()
        ahead = [(self._root, self._depth)]
        while ahead:
            number, depth = ahead.pop()
            page = os.pread(self.descriptor, self._page_size, number * self._page_size) if number < 1 << 48 else b""
            problem = self._problem(page, number, depth, seen)
            seen.add(number)
            if problem:
                self.damaged.append(f"page {number} of {self.file} {problem}")
                continue
            count = (_PAGE.unpack_from(page)[3] - _PAGE.size) // 2
            nodes = struct.unpack_from(f"<{count}H", page, _PAGE.size)
            if depth > 1:
                ahead += [(child, depth - 1) for child in reversed([_child(page, at) for at in nodes])]
                continue
            for at in nodes:
                entry = self._entry(page, at)
                if entry is None:
                    self.damaged.append(f"page {number} of {self.file} has a record that is not there")
                else:
                    yield entry

    def _problem(self, page: bytes, number: int, depth: int, seen: set[int]) -> str:
        """What is wrong with a page of the tree; "" where nothing is."""
        if len(page) < self._page_size:
            return "lies behind its end"
        if number in seen:
            return "is met twice"
        itself, _, flags, lower, upper = _PAGE.unpack_from(page)
        if itself != number or flags & (_BRANCH | _LEAF | _OVERFLOW) != (_BRANCH if depth > 1 else _LEAF):
            return "is not the page that it should be"
        if not (_PAGE.size <= lower <= upper <= self._page_size and lower % 2 == 0):
            return "has bounds that cannot be"
        for at in struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size):
            if at < upper or at + _NODE.size > self._page_size:
                return "has a record outside of it"
            if at + _NODE.size + _NODE.unpack_from(page, at)[2] > self._page_size:
                return "has a key outside of it"
        return ""

    def _entry(self, page: bytes, at: int) -> Entry | None:
        size, flags, key_size = _NODE.unpack_from(page, at)
        begin = at + _NODE.size
        place = begin + key_size
        number = _PAGE.unpack_from(page)[0]
        if flags == _ON_OWN_PAGES and place + 8 <= self._page_size:
            offset = struct.unpack_from("<Q", page, place)[0] * self._page_size + _PAGE.size
        elif flags == 0 and place + size <= self._page_size:
            offset = number * self._page_size + place
        else:
            return None
        return Entry(page[begin:place], offset, size) if offset + size <= self._size else None

    def read(self, entry: Entry) -> bytes:
        """A record's value; shorter than it should be where the file ends before it."""
        return os.pread(self.descriptor, entry.size, entry.offset)

    def will_read(self, offset: int, size: int) -> None:
        """Asks the system to fetch bytes of the file that will be read soon, all at once and without waiting."""
        os.posix_fadvise(self.descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def _sizes_of_pages() -> tuple[int, ...]:
    return 4096, 8192, 16384, 32768, 65536


def _child(page: bytes, at: int) -> int:
    low, high, _ = _NODE.unpack_from(page, at)
    return low | high << 32


class Writer:
    """One new LMDB environment that grows past its map size by itself. A commit is on disk when `put` returns."""

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
