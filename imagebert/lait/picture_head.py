"""Kind, width and height of a picture by its first bytes: no decoder runs, and nothing behind them is needed.

The bytes are anybody's. Each kind is walked by its own lengths, within what is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from imagebert.decoder import jpeg_facts

# Of a picture whose size is not among them, it is never known: some JPEGs have as much of previews in front.
HEAD_BYTES = 1 << 20


class Head(NamedTuple):
    """A picture's kind, as its file's name ends (jpg, png, webp, gif, avif), and its pixels before it is turned."""

    suffix: str
    width: int
    height: int


class NoPicture(Exception):
    """It is none, whatever follows; the message says why."""


def read_head(data: bytes) -> Head | None:
    """What a picture's first bytes say; None: more of them are needed.

    Raises:
        NoPicture: it is none of the kinds.
    """
    if len(data) < 16:
        return None
    if data.startswith(b"\xff\xd8\xff"):
        facts = jpeg_facts(data)
        return None if facts is None else Head("jpg", facts.width, facts.height)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Head("gif", *struct.unpack_from("<HH", data, 6))
    if data[4:8] == b"ftyp":
        return _avif(data)
    raise NoPicture("its bytes are none of a JPEG, PNG, WebP, GIF or AVIF")


def ends(data: bytes, suffix: str) -> bool:
    """Whether a whole file's end is there, as its kind says it. Of a GIF that is never known without decoding it."""
    if suffix == "jpg":
        facts = jpeg_facts(data)
        return facts is not None and facts.ends
    if suffix == "png":
        return data.rfind(b"IEND\xaeB`\x82") >= 0
    if suffix == "webp":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if suffix == "avif":
        return all(end <= len(data) for _, _, end in _boxes(data, 0, len(data)))
    return True


def _png(data: bytes) -> Head | None:
    if data[12:16] != b"IHDR":
        raise NoPicture("it is a PNG without its header")
    return Head("png", *struct.unpack_from("!II", data, 16)) if len(data) >= 24 else None


def _webp(data: bytes) -> Head | None:
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        size = [1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)]
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        size = [1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)]
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        size = [length & 0x3FFF for length in struct.unpack_from("<HH", data, 26)]
    else:
        raise NoPicture("it is a WebP without its header")
    return Head("webp", *size)


_BRANDS = {b"avif", b"avis"}


def _avif(data: bytes) -> Head | None:
    length = int.from_bytes(data[:4], "big")
    if length > len(data):
        return None
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if not brands & _BRANDS:
        raise NoPicture("it is a film or a picture of another kind than AVIF")
    meta = next((box for box in _boxes(data, 0, len(data)) if box[0] == b"meta"), None)
    if meta is None or meta[2] > len(data):
        return None
    _, begin, end = meta
    begin += 4  # its version
    for name in (b"iprp", b"ipco"):
        inner = next((box for box in _boxes(data, begin, end) if box[0] == name), None)
        if inner is None:
            raise NoPicture("it is an AVIF that does not say its size")
        begin, end = inner[1], min(end, inner[2])
    # Each part of the picture says its size: tiles, the whole, its transparency. None is larger than the whole.
    sizes = [
        struct.unpack_from("!II", data, begin + 4)
        for kind, begin, stop in _boxes(data, begin, end)
        if kind == b"ispe" and begin + 12 <= min(stop, end)
    ]
    if not sizes:
        raise NoPicture("it is an AVIF that does not say its size")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Head("avif", width, height)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Boxes of an ISO media file: their kind, where what they hold begins, and where it ends, which may lie behind."""
    while at + 8 <= end:
        length, kind = struct.unpack_from("!I4s", data, at)
        begin = at + 8
        if length == 1:
            length, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
        if length == 0:  # to the end
            length = end - at
        if length < begin - at:
            return
        yield kind, begin, at + length
        at += length
