"""Readers of published region features: each gives images with their arrays, of one share of the input.

A reader knows how a kind of file lies on disk, and gives an image's arrays under the file's own names. What they mean
is decided for a whole source (layout.py, source.py). A file is read by its bounds, never by trust: what does not fit is
a BadRecord that names file, place and expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imagebert.config import UsageError
from imagebert.data.records import RegionRecord
from imagebert.files import open_regular

LARGEST = 1 << 30  # bytes of an array that any image's regions could have


class BadRecord(UsageError):
    """One image's regions cannot be used; the message says why."""


class Loaded(NamedTuple):
    """One image's regions, what its record calls it, and how many rows of padding it had."""

    key: str
    record: RegionRecord
    padding: int = 0


class Item(NamedTuple):
    """One image that a reader found."""

    where: str  # file, and place in it
    key: str  # "" where not even that can be read, or where the record itself names the image
    parse: Callable[[], Any]  # its arrays, or what is `Loaded`
    done: int  # how much of `Reader.size` has been read with it

    def load(self) -> Any:
        """What `parse` gives.

        Raises:
            BadRecord: it cannot be used.
            OSError: the file cannot be read.
        """
        try:
            return self.parse()
        except (UsageError, OSError):
            raise
        except Exception as error:  # what parsers raise on damaged bytes is no closed list
            raise BadRecord(f"it is damaged ({type(error).__name__}: {error})") from None


def lost(where: str, problem: str, done: int) -> Item:
    """In place of images that cannot be found: one that is refused, so that they are named and counted."""

    def parse() -> Any:
        raise BadRecord(f"it is lost: {problem}")

    return Item(where, "", parse, done)


class Reader(Protocol):
    """One kind of file. Workers read the shares 0 to shares-1, which are disjoint and together all.

    Attributes:
        beside: files that it reads besides its sources
    """

    beside: Sequence[Path]

    def size(self, share: int, shares: int) -> int:
        """How much there is to read, in units of the reader's own."""

    def items(self, share: int, shares: int) -> Iterator[Item]: ...


class ListedReader:
    """A reader that knows all its images from the beginning, `_images`. Shares are runs of them, in their order."""

    beside: Sequence[Path] = ()
    _images: Sequence[Any]

    def size(self, share: int, shares: int) -> int:
        return len(share_of(len(self._images), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        mine = share_of(len(self._images), share, shares)
        for number in mine:
            yield Item(*self._item(self._images[number]), number + 1 - mine.start)

    def _item(self, image: Any) -> tuple[str, str, Callable[[], Any]]:
        """Of one of the images what an Item has: where, key and parse."""
        raise NotImplementedError


def find_files(sources: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files as they are given, and of folders those below whose names end so, sorted.

    Raises:
        UsageError: there are none, or one is no regular file.
    """
    files: list[Path] = []
    for source in sources:
        below = sorted(source.rglob("*")) if source.is_dir() else []
        files += [file for file in below if file.name.endswith(tuple(suffixes))] if source.is_dir() else [source]
    if not files:
        raise UsageError(f"{sources[0]} holds no {' and no '.join(suffixes)}")
    check_files(files)
    return files


def check_files(paths: Iterable[Path]) -> None:
    """Before they are opened by what would wait for a pipe, or take it for an empty file.

    Raises:
        UsageError: one is not there, or is no regular file.
    """
    for path in paths:
        open_regular(path).close()


def share_of(total: int, share: int, shares: int) -> range:
    """The part of `total` things that belongs to one share."""
    return range(total * share // shares, total * (share + 1) // shares)


class Part(NamedTuple):
    """What of one of several things belongs to a share."""

    number: int  # of the thing
    start: int
    stop: int
    done: int  # with what stands at 0 of the thing, so much of the share is done; it may begin before the share


def parts_of(sizes: Sequence[int], share: int, shares: int) -> Iterator[Part]:
    """The parts of things, one behind the other, that belong to one share."""
    mine = share_of(sum(sizes), share, shares)
    before = 0
    for number, size in enumerate(sizes):
        start, stop = max(mine.start - before, 0), min(mine.stop - before, size)
        if start < stop:
            yield Part(number, start, stop, before - mine.start)
        before += size
