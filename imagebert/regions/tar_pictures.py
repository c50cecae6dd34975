"""Pictures in tars as webdataset and img2dataset write them: KEY.jpg, with KEY.json and KEY.txt beside it.

A picture's key is KEY, what the readers of captions call its image (data/captions/tars.py; img2dataset's Parquet has it
as `key`). A tar is walked once by its headers, by whichever worker claims it, and what was found is noted beside the
store that is written; a picture's bytes are read when it is decoded. What is packed has no places to read at, so it is
no tar here.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from imagebert.claims import Claims
from imagebert.data.folder import make_folder
from imagebert.data.tars import BrokenTar, members
from imagebert.errors import UsageError
from imagebert.files import open_regular, read_sealed, write_sealed
from imagebert.pictures import FILE_BYTES, UnreadableImage
from imagebert.regions.images import SUFFIXES
from imagebert.workers import Workers

_PICTURES = {suffix[1:] for suffix in SUFFIXES}
_CAPTIONS = {"json", "txt"}  # of a picture, which `imagebert pairs` reads


class TarPicture(NamedTuple):
    """Where a picture lies. With a problem there is none, but the end of what can be found in its tar."""

    tar: Path
    key: str
    suffix: str
    offset: int  # of its bytes
    size: int
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"{self.tar}, from byte {self.offset} on,"
        return f"{self.tar}, {self.key}.{self.suffix}"


class Listing(NamedTuple):
    """What a tar holds."""

    pictures: list[TarPicture]
    others: Counter[str]  # files that are no pictures and no pictures' captions, by suffix; links, hard and symbolic


def list_tar(tar: Path) -> Listing:
    """Walks a tar by its headers; where it is damaged, a last picture with a problem says so.

    Raises:
        OSError: the disk fails.
    """
    pictures: list[TarPicture] = []
    others, beside = Counter[str](), Counter[str]()
    key, found = None, False  # of the sample at which the walk is
    try:
        with open_regular(tar) as opened:
            _refuse_packed(opened)
            for member in members(opened, os.fstat(opened.fileno()).st_size, others):
                if member.key != key:
                    others += Counter() if found else beside
                    key, found, beside = member.key, False, Counter()
                suffix = member.suffix.lower()
                if suffix in _PICTURES:
                    found = True
                    pictures.append(TarPicture(tar, member.key, member.suffix, member.offset, member.size))
                else:
                    counted = beside if suffix in _CAPTIONS else others
                    counted[f".{suffix[:20]}" if suffix else "none"] += 1
    except (BrokenTar, UsageError) as error:
        at = error.offset if isinstance(error, BrokenTar) else 0
        pictures.append(TarPicture(tar, "", "", at, 0, f"it is lost: {error}"))
    return Listing(pictures, others + (Counter() if found else beside))


def _refuse_packed(opened: BinaryIO) -> None:
    """Raises: BrokenTar: it is a gzip. Else it stands at its beginning."""
    if opened.read(2) == b"\x1f\x8b":
        raise BrokenTar(0, "it is packed by gzip: unpack it")
    opened.seek(0)


def list_tars(tars: Sequence[Path], folder: Path, claims: Claims, workers: Workers) -> list[Listing]:
    """What each tar holds, at every worker. Each is walked by one of them, or was by an earlier call.

    Args:
        folder: where it is noted, which all workers see

    Raises:
        UsageError: a note is gone or damaged.
        OSError: the disk fails.
    """
    if not tars:
        return []
    notes = [_notes(folder) / f"{number:06d}.json" for number in range(len(tars))]
    if workers.rank == 0:
        make_folder(_notes(folder))
    workers.barrier()
    for tar, note in zip(tars, notes, strict=True):
        # Looked at by who claims it alone: a network's file system may remember for a while that a file was not there.
        if claims.take(f"tar-{note.stem}") and not _is_of(note, tar):
            write_sealed(note, _content(tar))
    workers.barrier()
    return [_listing(tar, read_sealed(note, "make the call again")) for tar, note in zip(tars, notes, strict=True)]


def clear_notes(folder: Path) -> None:
    """Removes what `list_tars` noted."""
    shutil.rmtree(_notes(folder), ignore_errors=True)


def _notes(folder: Path) -> Path:
    return folder / "tars"


def _identity(tar: Path) -> list[Any]:
    try:
        found = tar.stat()
    except OSError:
        return [str(tar)]
    return [str(tar), found.st_size, found.st_mtime_ns]


def _content(tar: Path) -> dict[str, Any]:
    identity = _identity(tar)  # before it is read: if it changes meanwhile, the next call walks it again
    pictures, others = list_tar(tar)
    rows = [list(picture[1:]) for picture in pictures]
    return {"tar": identity, "pictures": rows, "others": dict(others)}


def _is_of(note: Path, tar: Path) -> bool:
    try:
        return note.exists() and read_sealed(note)["tar"] == _identity(tar)
    except UsageError:
        return False


def _listing(tar: Path, content: Mapping[str, Any]) -> Listing:
    return Listing([TarPicture(tar, *row) for row in content["pictures"]], Counter(content["others"]))


class TarReader:
    """Reads pictures, and keeps the tar of the last one open: those of one tar follow each other."""

    def __init__(self) -> None:
        self._tar: Path | None = None
        self._opened: BinaryIO | None = None

    def read(self, picture: TarPicture) -> bytes:
        """A picture's bytes.

        Raises:
            UsageError: there is none, it is too large or cut off, or its tar cannot be read.
            OSError: the disk fails.
        """
        if picture.problem:
            raise UnreadableImage(picture.problem)
        if picture.size > FILE_BYTES:
            raise UnreadableImage(f"it has {picture.size:,} bytes, more than {FILE_BYTES:,}: that is no picture")
        if self._opened is None or self._tar != picture.tar:
            self.close()
            self._opened, self._tar = open_regular(picture.tar), picture.tar
        self._opened.seek(picture.offset)
        data = self._opened.read(picture.size)
        if len(data) != picture.size:
            raise UnreadableImage(f"it is cut off: {len(data):,} of its {picture.size:,} bytes are there")
        return data

    def close(self) -> None:
        """Lets go of the tar."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None


@contextmanager
def open_tars() -> Iterator[TarReader]:
    """A reader that is closed with the block."""
    reader = TarReader()
    try:
        yield reader
    finally:
        reader.close()
