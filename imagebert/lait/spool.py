"""Pictures on disk while their shard is fetched, in the order in which they come: `bodies`, and `journal` beside it.

A line of the journal is a row, where the picture's bytes lie, and the digest of these; it is written behind the bytes.
So what a killed call had fetched is there in the next one: lines are read up to the first that is not whole, and each
picture is compared with its own digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from imagebert.errors import UsageError
from imagebert.files import digest_of, parse_json, read_sealed, write_sealed
from imagebert.lait.shards import Row

_IN_MEMORY = 1 << 18  # bytes of a picture that is coming; a longer one has a file of its own until it is whole
_LINE = 1 << 17  # bytes of the journal


class DiskFailed(Exception):
    """The spool's disk fails, and no host: whoever fetches ends. Its cause is an OSError."""


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFailed from error


class Body:
    """A picture's bytes while they come."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115  # closed with the picture
        self.size = 0

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        self.size += len(data)
        with _disk():
            self._file.write(data)

    def read(self, most: int = -1) -> bytes:
        """All bytes, or the first ones."""
        with _disk():
            self._file.seek(0)
            data = self._file.read(most)
            self._file.seek(0, os.SEEK_END)
        return data

    def clear(self) -> None:
        """Forgets them: another answer comes."""
        self.size = 0
        with _disk():
            self._file.seek(0)
            self._file.truncate()

    def close(self) -> None:
        """Lets go of them."""
        with suppress(OSError):
            self._file.close()


class Spool:
    """What there is of a shard.

    Args:
        folder: where it lies; whoever opens it has locked it
        identity: digest of what is fetched, and how: what another one left is removed

    Attributes:
        rows: by key, of pictures that need not be asked for again
        any_before: whether an earlier call has left such
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.rows = folder, dict[str, Row]()
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._opened = ExitStack()
        self._begin(identity)
        try:
            self._bodies = self._opened.enter_context((folder / "bodies").open("rb+", buffering=0))
            self._journal = self._opened.enter_context((folder / "journal").open("rb+"))
            self._recover()
            self.any_before = bool(self.rows)
        except BaseException:
            self._opened.close()
            raise

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()

    def _begin(self, identity: str) -> None:
        """Leaves an older call's files if they are of the same work, else empty ones."""
        job = self.folder / "job.json"
        try:
            same = read_sealed(job)["identity"] == identity
        except (UsageError, KeyError):
            same = False
        if same and (self.folder / "bodies").is_file() and (self.folder / "journal").is_file():
            return
        job.unlink(missing_ok=True)
        for name in ("bodies", "journal"):
            (self.folder / name).write_bytes(b"")
        write_sealed(job, {"identity": identity})

    def _recover(self) -> None:
        """Reads the journal, and cuts off what a killed call left half done."""
        whole = 0
        while (line := self._journal.readline(_LINE)).endswith(b"\n"):
            entry = _entry(line)
            if entry is None:
                break
            whole += len(line)
            row, at, length = entry
            self._end = max(self._end, at + length)
            if row.status == "success":
                if hashlib.sha256(self._read(at, length)).hexdigest() != row.sha256:
                    continue  # asked for again
                self._places[row.key] = at, length
            self.rows[row.key] = row
        self._journal.truncate(whole)
        self._journal.seek(whole)
        self._bodies.truncate(self._end)

    def _read(self, at: int, length: int) -> bytes:
        return b"".join(_read_at(self._bodies.fileno(), at, length))

    def body(self) -> Body:
        """For a picture that is coming."""
        return Body(self.folder)

    def add(self, row: Row, data: bytes, final: bool) -> None:
        """Notes what became of a picture.

        Args:
            data: its bytes, or none
            final: whether a later call need not ask for it again

        Raises:
            DiskFailed: there is no room.
        """
        self.rows[row.key] = row
        if not final:
            return
        with _disk():
            _write_at(self._bodies.fileno(), self._end, data)
            content = {"row": list(row), "at": self._end, "length": len(data)}
            self._journal.write(json.dumps({**content, "digest": digest_of(content)}).encode() + b"\n")
            self._journal.flush()
        if data:
            self._places[row.key] = self._end, len(data)
        self._end += len(data)

    def picture(self, row: Row) -> bytes:
        """The bytes of a picture that has come.

        Raises:
            OSError: the disk gives others than it was given.
        """
        data = self._read(*self._places[row.key])
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise OSError(errno.EIO, f"{self.folder / 'bodies'} gives other bytes than were written")
        return data

    def remove(self) -> None:
        """Removes its folder: the shard is whole."""
        self._opened.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _entry(line: bytes) -> tuple[Row, int, int] | None:
    """None: the line is damaged."""
    try:
        content: Any = parse_json(line, "a line of the journal")
        digest = content.pop("digest")
        if digest != digest_of(content):
            return None
        return Row(*content["row"]), content["at"], content["length"]
    except (UsageError, AttributeError, KeyError, TypeError):
        return None


def _read_at(descriptor: int, at: int, length: int) -> Iterator[bytes]:
    while length > 0 and (data := os.pread(descriptor, length, at)):
        yield data
        at, length = at + len(data), length - len(data)


def _write_at(descriptor: int, at: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        at, left = at + written, left[written:]
