"""TSV of base64, or a gzip of it: one image a line, arrays as base64 of their raw bytes, no header.

bottom-up-attention: image_id, image_w, image_h, num_boxes, boxes, features; ViLBERT: the same with cls_prob
LXMERT: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features[, more]
VOLTA: the same with cls_prob, attrs, classes
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, Item, check_files, share_of
from imagebert.files import open_regular

LONGEST = 1 << 26  # bytes of a line: 100 boxes of 2,048 numbers are a million
_AHEAD = 1 << 20  # bytes read at once
_EMPTY = 1 << 16  # lines in a row: a gzip of them unpacks to a thousand times its size
_GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\3\4": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_VILBERT = (*_BOTTOM_UP, "cls_prob")
_CLASSES = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
_LXMERT = ("img_id", "img_h", "img_w", *_CLASSES, "num_boxes", "boxes", "features")
_VOLTA = (*_LXMERT, "cls_prob", "attrs", "classes")
_MOST = 20  # columns
LAYOUTS = {len(names): names for names in (_BOTTOM_UP, _VILBERT, _LXMERT, _VOLTA)}


class LineReader:
    """A reader of files with an image a line. Shares are runs of bytes, cut at the next line."""

    beside: Sequence[Path] = ()
    files: Sequence[Path]

    def size(self, share: int, shares: int) -> int:
        return len(share_of(sum(file.stat().st_size for file in self.files), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        for file, offset, line, done in lines_of_share(self.files, share, shares):
            key, parse = self._image(file, line)
            yield Item(f"{file}, byte {offset}, image {key!r}", key, parse, done)

    def _image(self, file: Path, line: bytes) -> tuple[str, Callable[[], Any]]:
        """Of a line what an Item has: key and parse."""
        raise NotImplementedError


class TsvReader(LineReader):
    """All layouts, told apart by their number of columns."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self.files = [
            file for source in sources for file in (sorted(source.glob("*.tsv*")) if source.is_dir() else [source])
        ]
        if not self.files:
            raise UsageError(f"{sources[0]} holds no TSV file")
        check_files(self.files)

    def _image(self, file: Path, line: bytes) -> tuple[str, Callable[[], Any]]:
        columns = line.split(b"\t", _MOST)
        key = columns[0].decode("utf-8", "surrogateescape") if len(columns) > 1 else ""
        return key, partial(_fields, columns)


@contextmanager
def text_of(file: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked where it is a gzip.

    Raises:
        UsageError: it is packed in another way.
    """
    raw = open_regular(file).detach()  # type: ignore[attr-defined]
    with io.BufferedReader(raw, _AHEAD) as opened:
        head = opened.peek(8)
        for magic, name in _PACKED.items():
            if head.startswith(magic):
                raise UsageError(f"{file} is packed by {name}: unpack it, or pack it by gzip")
        yield gzip.GzipFile(fileobj=opened) if head.startswith(_GZIP) else opened  # type: ignore[misc]


def lines_of_share(files: Sequence[Path], share: int, shares: int) -> Iterator[tuple[Path, int, bytes, int]]:
    """File, offset, line without its end, bytes read so far; a line belongs to the share that its first byte is in.

    All lines of a gzip belong to the share that its own first byte is in, since none but the first can be found.

    Raises:
        UsageError: a line is longer than any image's, too many are empty, or a gzip is damaged.
        OSError: the disk fails.
    """
    mine = share_of(sum(file.stat().st_size for file in files), share, shares)
    before = empty = 0  # bytes of the files before this one; lines
    for file in files:
        size = file.stat().st_size
        start, stop = max(mine.start - before, 0), min(mine.stop - before, size)
        if start < stop:
            with text_of(file) as opened:
                packed = isinstance(opened, gzip.GzipFile)
                if packed:
                    stop = sys.maxsize if start == 0 else 0
                elif start > 0:  # to the next line's beginning, which may be here
                    opened.seek(start - 1)
                    opened.readline(LONGEST)
                while (offset := opened.tell()) < stop and (line := read_line(opened, file, offset)):
                    content = line.rstrip(b"\r\n")
                    empty = 0 if content else empty + 1
                    if empty > _EMPTY:
                        raise UsageError(f"{file}, byte {offset}: more than {_EMPTY} empty lines: is it a TSV?")
                    if content:
                        read = opened.fileobj.tell() if packed else opened.tell()  # type: ignore[attr-defined]
                        yield file, offset, content, min(before + read - mine.start, len(mine))
        before += size


def read_line(opened: IO[bytes], file: Path, offset: int) -> bytes:
    """The next line; "" at the end.

    Raises:
        UsageError: it is longer than any image's, or its gzip is damaged.
    """
    try:
        line = opened.readline(LONGEST)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{file} is a damaged gzip behind byte {offset} of what it holds ({error})") from None
    if len(line) == LONGEST:
        raise UsageError(f"{file}, byte {offset}: a line has more than {LONGEST} bytes: is it a TSV?")
    return line


def _fields(columns: list[bytes]) -> dict[str, Any]:
    names = LAYOUTS.get(len(columns)) or (_LXMERT if len(columns) > len(_LXMERT) else None)
    if names is None:
        raise BadRecord(f"it has {len(columns)} columns, not 6 (bottom-up-attention), 7 (ViLBERT) or 10 (LXMERT)")
    return dict(zip(names, columns, strict=False))
