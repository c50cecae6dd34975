"""Web archives (WARC), as Common Crawl publishes them and crawlers write them. The gate of fastwarc.

An archive is a row of gzip members, one a record. Where one is damaged, reading goes on at the next member that begins
a record, and the damage is counted: a bad block costs its own records.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from imagebert.files import open_regular

SUFFIXES = (".warc", ".warc.gz")
_MEMBER = b"\x1f\x8b\x08"
_BLOCK = 1 << 20
_BEGINNING = 4096  # bytes of a member that hold its first words
_PIECE = 256  # bytes of a damaged body that are unpacked at once
# A record that is longer than its block goes on with the next one, or with its first letters.
_OVERRUN = b"\r\n\r\nWARC/1."
_BEGUN = tuple(_OVERRUN[:length] for length in range(5, len(_OVERRUN)))
_HEAD = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,200})?\r\n")
_NO_TEXT = re.compile(rb"[\0-\x06\x0e-\x1a\x1c-\x1f]")


class Response(NamedTuple):
    """What a server answered, as it was archived.

    Attributes:
        robots: its X-Robots-Tag headers
        cut: whether more of the body was there than was read
    """

    url: str
    kind: str  # of its Content-Type, in lower case, "" where there is none
    charset: str | None
    robots: list[str]
    body: bytes
    cut: bool


def responses(path: Path, kinds: tuple[str, ...], most: int, counts: Counter[str]) -> Iterator[Response]:
    """The successful answers of an archive whose content type begins as one of `kinds`.

    Args:
        most: bytes of a body that are read
        counts: is told what is passed over, and what is damaged

    Raises:
        UsageError: there is no such file.
        OSError: the disk fails.
    """
    with open_regular(path) as file:
        packed = file.read(2) == _MEMBER[:2]
        start: int | None = 0
        while start is not None:
            file.seek(start)
            last, is_read, overran, failed = start, False, False, False
            try:
                # HTTP's head is parsed apart, so that a bad one is one record's.
                for record in ArchiveIterator(file, WarcRecordType.any_type, parse_http=False, quirks_mode=True):
                    last, is_read = record.stream_pos, False
                    if record.record_type == WarcRecordType.response:
                        before = counts["damaged records"]
                        found = _response(record, kinds, most, counts)
                        if found is not None:
                            yield found
                        overran = counts["damaged records"] > before
                    is_read = True
                    if overran and (not packed or _begins_record(file, last)):
                        break  # it has eaten the beginning of the next one
            except (OSError, ValueError, zlib.error) as error:
                if getattr(error, "errno", None):  # of the disk
                    raise
                failed = True
            if packed:
                start = _behind(file, start, last, is_read, counts)
            else:
                failed |= not is_read and file.seek(0, 2) > 0
                counts["damaged records"] += failed
                counts["cut records"] += not (failed or overran) and _is_cut(file, last)
                start = _next_plain(file, last + 1) if failed or overran else None


def _behind(file: BinaryIO, start: int, last: int, is_read: bool, counts: Counter[str]) -> int | None:
    """Where reading goes on behind the last record that was begun, at a whole member; None where the archive ends.

    fastwarc stops at damage, with an error or without a word, so each end is looked at.

    Args:
        start: where reading began
        is_read: whether that record was read; one that was not is counted once
    """
    before, size = counts.total(), file.seek(0, 2)
    place = last if _begins_record(file, last) else start
    end = _end_of_member(file, place, counts)
    counts["damaged records"] += not is_read and counts.total() == before
    while True:
        here = _next_member(file, place + 1 if end is None else end)
        # What stands between two members is none.
        counts["damaged records"] += end is not None and end < size and here != end
        if here is None or _end_of_member(file, here, counts) is not None:
            return here
        place, end = here, None


def _next_plain(file: BinaryIO, start: int) -> int | None:
    """Where the next record begins in an archive that is not packed."""
    file.seek(start)
    held, base = b"", start
    while block := file.read(_BLOCK):
        held += block
        if (place := held.find(_OVERRUN)) >= 0:
            return base + place + 4
        base, held = base + max(0, len(held) - len(_OVERRUN)), held[-len(_OVERRUN) :]
    return None


def _is_cut(file: BinaryIO, start: int) -> bool:
    """Whether an archive that is not packed ends in the middle of its last record, which begins there, or of more."""
    size = file.seek(0, 2)
    file.seek(start)
    head = _HEAD.search(file.read(_BLOCK))
    file.seek(start)
    for record in ArchiveIterator(file, WarcRecordType.any_type, parse_http=False, quirks_mode=True):
        # Behind it are two ends of lines.
        return head is None or not 0 <= size - start - head.end() - record.content_length <= 4
    return size > start


def _end_of_member(file: BinaryIO, start: int, counts: Counter[str]) -> int | None:
    """Where a gzip member ends; None where it is damaged or cut off, which is counted."""
    file.seek(start)
    inflate, at = zlib.decompressobj(31), start
    try:
        while block := file.read(_BLOCK // 16):
            at += len(block)
            while block and not inflate.eof:
                inflate.decompress(block, _BLOCK)
                block = inflate.unconsumed_tail
            if inflate.eof:
                return at - len(inflate.unused_data)
    except zlib.error:
        counts["damaged records"] += 1
        return None
    counts["cut records"] += 1
    return None


def _next_member(file: BinaryIO, start: int) -> int | None:
    """Where the next gzip member begins that holds the beginning of a record."""
    file.seek(start)
    held, base = file.read(_BLOCK), start
    while len(held) > 2:
        more = file.read(_BLOCK)
        # The beginning of each is whole: what is looked for stands before the last bytes, unless there are no others.
        until, place = len(held) - (_BEGINNING if more else 0), -1
        while 0 <= (place := held.find(_MEMBER, place + 1)) < until:
            if _is_beginning(held[place : place + _BEGINNING]):
                return base + place
        base, held = base + until, held[until:] + more
    return None


def _begins_record(file: BinaryIO, start: int) -> bool:
    """Whether a member begins there that holds the beginning of a record; the file stays where it is read."""
    here = file.tell()
    file.seek(start)
    beginning = file.read(_BEGINNING)
    file.seek(here)
    return _is_beginning(beginning)


def _is_beginning(member: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(member, 8).startswith(b"WARC/")
    except zlib.error:
        return False


def _response(record: WarcRecord, kinds: tuple[str, ...], most: int, counts: Counter[str]) -> Response | None:
    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
    try:
        record.parse_http(quirks_mode=True)
    except (OSError, ValueError):
        counts["not http"] += 1
        return None
    headers = record.http_headers
    if headers is None or not url.lower().startswith(("http://", "https://")):
        counts["not http"] += 1
        return None
    if headers.status_code != 200:
        counts["not 200"] += 1
        return None
    kind = (record.http_content_type or "").lower()
    if not kind.startswith(kinds):
        counts["another type"] += 1
        return None
    body = record.reader.read(most + 1)
    overrun = body.find(_OVERRUN) if _OVERRUN in body else body.rfind(b"\r\n\r\n") if body.endswith(_BEGUN) else -1
    if overrun >= 0:  # the record's length is wrong: the next one is in it
        counts["damaged records"] += 1
        body = body[:overrun]
    cut = len(body) > most
    whole = cut or len(body) >= _number(headers.get("Content-Length"))
    if (headers.get("Transfer-Encoding") or "").lower().strip() == "chunked":
        body, whole = _joined(body)
    encoding = (headers.get("Content-Encoding") or "").lower().strip()
    if encoding in ("gzip", "x-gzip", "deflate"):
        body, more, whole = _unpacked(body, most, encoding != "deflate", whole)
        cut |= more
    elif encoding not in ("", "identity") and _is_packed(body):
        counts["packed in another way"] += 1
        return None
    counts["cut bodies"] += not (whole or cut)
    robots = headers.get_multiple("X-Robots-Tag")
    charset = (record.http_charset or "").strip(" \t\"'") or None
    return Response(url, kind, charset, list(robots), body[:most], cut)


def _number(text: str | None) -> int:
    return int(text) if text and len(text) < 16 and text.isascii() and text.isdigit() else 0


def _joined(body: bytes) -> tuple[bytes, bool]:
    """A chunked body's bytes, and whether its end is there.

    What is not chunked stays as it is, since archives keep headers of what they unpacked.
    """
    parts, at = list[bytes](), 0
    while (size := _CHUNK.match(body, at)) is not None:
        length = int(size[1], 16)
        if length == 0:
            return b"".join(parts), True
        parts.append(body[size.end() : size.end() + length])
        at = size.end() + length
        if body[at : at + 2] not in (b"\r\n", b"\r", b""):
            break  # no chunk ends so
        at += 2
    if not parts or (at < len(body) and _CHUNK.match(body + b"0\r\n", at) is None and at + 20 < len(body)):
        return body, True
    return b"".join(parts), False


def _unpacked(body: bytes, most: int, gzip: bool, whole: bool) -> tuple[bytes, bool, bool]:
    """What a packed body holds, no more than `most` bytes and as far as it is right; whether there is more; whether
    its end is there.

    What is not packed stays as it is, since archives keep headers of what they unpacked.
    """
    is_packed = body[:2] == _MEMBER[:2] if gzip else _is_packed(body)
    # Deflate as the standard has it, and as some servers do.
    for window in ((31,) if gzip else (15, -15)) * is_packed:
        for piece in (len(body), _PIECE):  # what is damaged in small pieces, for what lies before
            found, right, ended = _inflated(body, most + 1, window, piece)
            if right:
                break
        if found:
            return found, len(found) > most, ended
    return body, False, whole


def _inflated(body: bytes, most: int, window: int, size: int) -> tuple[bytes, bool, bool]:
    """What a packed body holds up to damage or `most` bytes; whether there was none; whether its end is there."""
    inflate, parts, left = zlib.decompressobj(window), list[bytes](), most
    try:
        for at in range(0, len(body), max(1, size)):
            parts.append(inflate.decompress(body[at : at + size], left))
            left -= len(parts[-1])
            if inflate.eof or left == 0:
                break
    except zlib.error:
        return b"".join(parts), False, False
    return b"".join(parts), True, inflate.eof


def _is_packed(body: bytes) -> bool:
    """Whether a body's beginning is no text: what is packed has all bytes, a text no control characters."""
    return not body.startswith((b"\xff\xfe", b"\xfe\xff")) and _NO_TEXT.search(body, 0, 1000) is not None
