"""Web archives (WARC), as Common Crawl publishes them and crawlers write them. The gate of fastwarc.

An archive is a row of gzip members, one a record. Where one is damaged, reading goes on at the next member that begins
a record, and the damage is counted: a bad block costs its own records.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from imagebert.files import open_regular

SUFFIXES = (".warc", ".warc.gz")
_MEMBER = b"\x1f\x8b\x08"
_BLOCK = 1 << 20


class Response(NamedTuple):
    """What a server answered, as it was archived.

    Attributes:
        robots: its X-Robots-Tag headers
        date: when it was archived
        cut: whether more of the body was there than was read
    """

    url: str
    kind: str  # of its Content-Type, in lower case, "" where there is none
    charset: str | None
    robots: list[str]
    date: datetime
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
        start: int | None = 0
        while start is not None:
            file.seek(start)
            at = start
            try:
                # fastwarc counts from where it began; HTTP's head is parsed apart, so that a bad one is one record's.
                for record in ArchiveIterator(file, WarcRecordType.response, parse_http=False, quirks_mode=True):
                    at = start + record.stream_pos
                    found = _response(record, kinds, most, counts)
                    if found is not None:
                        yield found
                return
            except (OSError, ValueError, zlib.error) as error:
                if getattr(error, "errno", None):  # of the disk
                    raise
                counts["damaged records"] += 1
                start = _next_member(file, max(at, start) + 1)


def _next_member(file: BinaryIO, start: int) -> int | None:
    """Where the next gzip member begins that holds the beginning of a record."""
    file.seek(start)
    kept = b""
    while block := file.read(_BLOCK):
        held, place = kept + block, -1
        base = file.tell() - len(held)
        while (place := held.find(_MEMBER, place + 1)) >= 0:
            here = file.tell()
            if _begins_record(file, base + place):
                return base + place
            file.seek(here)
        kept = held[-2:]
    return None


def _begins_record(file: BinaryIO, start: int) -> bool:
    file.seek(start)
    try:
        return zlib.decompressobj(31).decompress(file.read(4096), 8).startswith(b"WARC/")
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
    encoding = (headers.get("Content-Encoding") or "").lower().strip()
    # What was kept as it was sent is smaller than what it holds, and no larger than what is read of a plain one.
    expected = min(record.content_length, most + 1)
    body = record.reader.read(most + 1)
    counts["cut records"] += len(body) < expected  # the archive ends in the middle of it
    cut = len(body) > most
    if (headers.get("Transfer-Encoding") or "").lower().strip() == "chunked":
        body = _joined(body)
    if encoding in ("gzip", "x-gzip") and body[:2] == b"\x1f\x8b":  # Common Crawl unpacks, and leaves such headers
        body, more = _unpacked(body, most, 31)
        cut |= more
    elif encoding == "deflate" and (body[:1] != b"<"):
        body, more = _unpacked(body, most, 15 if body[:1] == b"\x78" else -15)
        cut |= more
    elif encoding in ("br", "zstd") and b"<" not in body[:1000]:
        counts["packed in another way"] += 1
        return None
    robots = headers.get_multiple("X-Robots-Tag")
    return Response(url, kind, record.http_charset, list(robots), _date(record), body[:most], cut)


def _date(record: WarcRecord) -> datetime:
    """When it was archived; where it does not say, long ago, so that no date of an opt-out has passed."""
    found: datetime | None = record.record_date
    if found is None:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _joined(body: bytes) -> bytes:
    """A chunked body's bytes; what is not chunked stays as it is, since archives keep headers of what they unpacked."""
    parts, at = list[bytes](), 0
    while (end := body.find(b"\r\n", at, at + 20)) >= 0:
        try:
            size = int(body[at:end].partition(b";")[0], 16)
        except ValueError:
            break
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts) if parts and at >= len(body) else body


def _unpacked(body: bytes, most: int, window: int) -> tuple[bytes, bool]:
    """What a packed body holds, no more than `most` bytes, as far as it is whole; and whether there is more."""
    inflate = zlib.decompressobj(window)
    try:
        found = inflate.decompress(body, most)
    except zlib.error:
        return b"", False
    return found, bool(inflate.unconsumed_tail)
