"""Readers of published region features: each gives images with their records, of one share of the input.

A file is read by its bounds, never by trust: what does not fit is a BadRecord that names file, place and expectation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from imagebert.config import UsageError
from imagebert.data.records import RegionRecord
from imagebert.files import open_regular


class BadRecord(UsageError):
    """One image's regions cannot be used; the message says why."""


class Item(NamedTuple):
    """One image that a reader found."""

    where: str  # file, and place in it
    key: str  # "" where not even that can be read: `load` says why
    parse: Callable[[], RegionRecord]
    done: int  # how much of `Reader.size` has been read with it

    def load(self) -> RegionRecord:
        """The image's regions.

        Raises:
            BadRecord: they cannot be used.
            OSError: the file cannot be read.
        """
        try:
            return self.parse()
        except (UsageError, OSError):
            raise
        except Exception as error:  # what parsers raise on damaged bytes is no closed list
            raise BadRecord(f"it is damaged ({type(error).__name__}: {error})") from None


class Reader(Protocol):
    """One published format. Workers read the shares 0 to shares-1, which are disjoint and together all."""

    def size(self, share: int, shares: int) -> int:
        """How much there is to read, in units of the reader's own."""

    def items(self, share: int, shares: int) -> Iterator[Item]: ...


def open_reader(name: str, sources: Sequence[Path], classes: Sequence[str]) -> Reader:
    """The reader of a format.

    Args:
        name: one of FORMATS
        sources: files or folders
        classes: names of the region classes, for formats that hold names instead of numbers

    Raises:
        UsageError: a source is missing, or is not of that format.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}: there are {', '.join(FORMATS)}")
    for source in sources:
        if not os.path.isdir(source):
            check_files([source])
    # Imported as they are wanted: some need packages of their own.
    if name in ("bottom-up-attention", "lxmert"):
        from imagebert.data.readers.tsv import TsvReader

        return TsvReader(sources)
    if name == "vinvl":
        from imagebert.data.readers.vinvl import VinvlReader

        return VinvlReader(sources, classes)
    if name == "uniter":
        from imagebert.data.readers.lmdbs import UniterReader

        return UniterReader(sources)
    if name == "vilbert":
        from imagebert.data.readers.lmdbs import VilbertReader

        return VilbertReader(sources)
    if name in ("mmf", "npz"):
        from imagebert.data.readers.folders import FolderReader

        return FolderReader(sources)
    from imagebert.data.readers.hdf5 import Hdf5Reader

    return Hdf5Reader(sources)


FORMATS = {
    "bottom-up-attention": "TSV of base64 (Anderson et al. 2018)",
    "lxmert": "TSV of base64 with classes and confidences (Tan & Bansal 2019)",
    "vinvl": "folder of features.tsv with predictions.tsv or label.tsv (Zhang et al. 2021)",
    "uniter": "LMDB of msgpack or compressed npz, with its nbb json (Chen et al. 2020)",
    "vilbert": "LMDB of pickles (Lu et al. 2019), also MMF's",
    "mmf": "folder of .npy with _info.npy, or of .npz",
    "npz": "folder of one .npz an image",
    "hdf5": "HDF5 with its imgid2idx.pkl (bottom-up-attention-vqa)",
}


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
