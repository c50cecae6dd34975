"""Tars as webdataset writes them: the files of one sample follow each other, KEY.jpg, KEY.json, KEY.npz.

A key is a name up to the first dot of its last part. A tar has no list of what it holds. So the headers are walked from
its beginning, whoever reads it, and here: `tarfile` takes whatever they say, and takes a broken one for the end.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

_BLOCK = 512  # bytes that a tar consists of
_HEADER = 1 << 20  # bytes of a long name, or of pax's headers


class Member(NamedTuple):
    """One file of a sample."""

    key: str
    suffix: str  # what stands behind the key's dot
    header: int  # where it begins, with what belongs to it
    offset: int  # of its bytes
    size: int


class BrokenTar(Exception):
    """Nothing can be found behind `offset`."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.offset = offset


def members(opened: IO[bytes], size: int, left_out: Counter[str] | None = None) -> Iterator[Member]:
    """Regular files, in their order. `opened` then stands at the file's bytes, and may be moved.

    Args:
        size: of the whole tar, or more
        left_out: counts what is no file and may stand for one: links, which have no bytes of their own

    Raises:
        BrokenTar: a header is damaged, or the end is missing.
    """
    at = header = 0
    told: dict[str, str] = {}  # of the next file, by the headers in front of its own
    ended = False
    while True:
        opened.seek(at)
        block = opened.read(_BLOCK)
        if not block and ended:
            return
        if not block:
            raise BrokenTar(at, "it has no end")
        ended = block == bytes(_BLOCK)
        if ended:  # unless another tar stands behind
            header = at = at + _BLOCK
            continue
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            special = found.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
            length = found.size if special else int(told.get("size", found.size))
            begin = at + _BLOCK
            if not 0 <= length <= size - begin:
                raise ValueError(f"it says {length} bytes, there are {size - begin}")
            at = begin + (length + _BLOCK - 1) // _BLOCK * _BLOCK
            if special:
                if length > _HEADER:
                    raise ValueError(f"a name has {length} bytes")
                data = opened.read(length)
                told |= {"path": _text(data)} if found.type == tarfile.GNUTYPE_LONGNAME else _pax(data)
                continue
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise BrokenTar(header, f"a header is damaged ({error})") from None
        # Sparse ones hold other bytes than their file; links, folders and devices none.
        is_regular = found.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and found.name[-1:] != "/"
        if is_regular and not any(name.startswith("GNU.sparse.") for name in told):
            folder, slash, name = told.get("path", found.name).removeprefix("./").rpartition("/")
            stem, _, suffix = name.partition(".")
            if stem and not (stem.startswith("__") and stem.endswith("__")):  # webdataset's own
                yield Member(folder + slash + stem, suffix, header, begin, length)
        if left_out is not None and found.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            left_out["link"] += 1
        header, told = at, {}


def _pax(data: bytes) -> dict[str, str]:
    """Records "LENGTH KEYWORD=VALUE\\n".

    Raises:
        ValueError: they are none.
    """
    records = {}
    while data:
        digits, _, _ = data[:20].partition(b" ")
        length = int(digits)
        keyword, equal, value = data[len(digits) + 1 : length].partition(b"=")
        if not equal or not len(digits) < length <= len(data):
            raise ValueError("pax's records do not fit")
        records[_text(keyword)] = _text(value.removesuffix(b"\n"))
        data = data[length:]
    return records


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
