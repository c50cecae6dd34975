"""Tars as webdataset writes them: the files of one image follow each other, KEY.npz, or KEY.npy with KEY.json.

KEY.npy is the features, KEY.boxes.npy the field `boxes`; KEY.npz, .pth (of torch.save), .pkl (arrays and builtins) and
.json hold several fields, and what is an array counts more than what a json says.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, Item, find_files, lost, parts_of, share_of
from imagebert.data.readers.folders import flat, read_npy, read_npz
from imagebert.data.readers.tensors import SUFFIXES as TORCH
from imagebert.data.readers.tensors import read_tensors
from imagebert.data.readers.tsv import text_of
from imagebert.data.readers.unpickle import unpickle
from imagebert.data.tars import BrokenTar, members
from imagebert.files import open_regular, parse_json

_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_JSON = 1 << 26  # bytes of a json
_MOST = 1000  # files of an image
_LOOKED_AT = 1000  # images, before a tar is said to hold no features


class _File(NamedTuple):
    """One file of an image."""

    name: str  # what stands behind the key
    offset: int
    size: int
    data: bytes | None  # of a compressed tar, which cannot be read again there

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2].lower()


class _Image(NamedTuple):
    key: str
    offset: int  # of its first header
    files: list[_File]
    read: int = 0  # bytes of the tar
    problem: str = ""  # why nothing behind `offset` can be read; then there is no image


class WebdatasetReader:
    """Shares are runs of bytes: an image belongs to the share that its first header's first byte is in.

    All images of a compressed tar belong to the share that its own first byte is in.
    """

    beside: Sequence[Path] = ()

    def __init__(self, sources: Sequence[Path]) -> None:
        self._tars = find_files(sources, _SUFFIXES)
        self._sizes = [max(1, tar.stat().st_size) for tar in self._tars]  # an empty one is to be named, too
        kinds: set[str] = set()
        for image in islice(_images(self._tars[0], 0, self._sizes[0]), _LOOKED_AT):
            kinds |= {file.kind for file in image.files}
            if kinds & _ARRAYS:
                return
        if kinds:
            raise UsageError(
                f"{self._tars[0]} holds {', '.join(sorted(kinds)[:5])}: no npz and no npy, so no region features. Of "
                "its pictures `imagebert extract` makes some"
            )

    def size(self, share: int, shares: int) -> int:
        return len(share_of(sum(self._sizes), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        for part in parts_of(self._sizes, share, shares):
            tar = self._tars[part.number]
            for image in _images(tar, part.start, part.stop):
                done = part.done + min(max(image.read, part.start), part.stop)
                if image.problem:
                    yield lost(f"{tar}, from byte {image.offset} on", image.problem, done)
                else:
                    yield Item(f"{tar}, image {image.key!r}", image.key, partial(_fields, tar, image.files), done)


# -------------------------------------------------------------------------------------------------------------- a tar


def _images(tar: Path, start: int, stop: int) -> Iterator[_Image]:
    """Those that begin from `start` to `stop`; of a compressed tar all, where `start` is its beginning."""
    with text_of(tar) as buffered:
        packed = isinstance(buffered, gzip.GzipFile)
        raw: Any = buffered.fileobj if packed else buffered.raw  # type: ignore[attr-defined]
        opened = buffered if packed else raw  # of which headers are read, and nothing ahead
        size = os.fstat(raw.fileno()).st_size
        if packed:
            if start:
                return
            size = stop = 1 << 63  # how much it unpacks to is not known
        image = problem = None
        try:
            for member in members(opened, size):
                if image is None or image.key != member.key:
                    if image is not None and image.offset >= start:
                        yield image._replace(read=raw.tell())
                    if member.header >= stop:
                        return
                    image, left = _Image(member.key, member.header, []), LARGEST
                file = _File(member.suffix, member.offset, member.size, None)
                if packed and file.kind in _READERS:
                    left -= file.size
                    file = file._replace(data=opened.read(file.size) if left >= 0 else b"")  # else it is refused
                if len(image.files) <= _MOST:
                    image.files.append(file)
        except (BrokenTar, EOFError, zlib.error, gzip.BadGzipFile) as error:
            at = error.offset if isinstance(error, BrokenTar) else opened.tell()
            problem = _Image("", at, [], raw.tell(), " ".join(str(error).split())[:300])
        if image is not None and image.offset >= start:  # where the tar is broken, its other files may be lost
            yield image._replace(read=raw.tell())
        if problem is not None and start <= min(problem.offset, max(0, size - 1)) < stop:
            yield problem


# ----------------------------------------------------------------------------------------------------------- an image


def _npy(name: str, data: bytes) -> dict[str, Any]:
    return flat({name: read_npy(io.BytesIO(data), len(data))})


def _pickle(name: str, data: bytes) -> dict[str, Any]:
    return flat({name: unpickle(data)})


def _json(name: str, data: bytes) -> dict[str, Any]:
    if len(data) > _JSON:
        raise BadRecord(f"its json has {len(data)} bytes, more than {_JSON}")
    found = parse_json(data, "its json")
    if not isinstance(found, dict):
        raise BadRecord(f"its json holds {type(found).__name__}, not an object")
    return found


# By how names end; what stands further behind counts more.
_READERS: dict[str, Callable[[str, bytes], dict[str, Any]]] = {
    "json": _json,
    **dict.fromkeys(("pkl", "pickle", "pyd"), _pickle),
    **dict.fromkeys((suffix[1:] for suffix in TORCH), lambda name, data: read_tensors(data)),
    "npz": lambda name, data: read_npz(data),
    "npy": _npy,
}
_ARRAYS = _READERS.keys() - {"json"}


def _fields(tar: Path, files: Sequence[_File]) -> dict[str, Any]:
    read = [file for file in files if file.kind in _READERS]
    if not any(file.kind in _ARRAYS for file in read):
        raise BadRecord(f"it has {', '.join(file.name for file in files)[:200]}: no npz and no npy")
    size = sum(file.size for file in read)
    if size > LARGEST or len(files) > _MOST:
        raise BadRecord(f"it has {len(files)} files of {size} bytes: more than {_MOST}, or than {LARGEST}")
    fields: dict[str, Any] = {}
    with open_regular(tar) as opened:
        for file in sorted(read, key=lambda file: list(_READERS).index(file.kind)):
            data = file.data
            if data is None:
                opened.seek(file.offset)
                data = opened.read(file.size)
            if len(data) != file.size:
                raise BadRecord(f"its {file.name} is cut off")
            fields |= _READERS[file.kind](file.name.rpartition(".")[0] or "features", data)
    return fields
