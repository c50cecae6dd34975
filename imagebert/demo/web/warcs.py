"""Pages as a crawler keeps them: WARC 1.1, a gzip member a record; and such files damaged in ways that have a name."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from imagebert.demo.web.page import Page
from imagebert.errors import UsageError
from imagebert.files import replacing

Headers = Sequence[tuple[str, str]]

_DATE = "2023-09-21T{:02}:{:02}:{:02}Z"
_HTTP = "application/http; msgtype="
_PICTURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}


def write_warcs(
    pages: Sequence[Page], folder: Path, files: int, pictures: Mapping[str, bytes] | None = None
) -> list[Path]:
    """Writes pages as WARC files, web-00000.warc.gz and so on, and among them what else a crawl has.

    Each page has a request, its response (plain, in chunks, packed by gzip or both; or unpacked, with the headers of
    the packing renamed, as Common Crawl has it) and metadata. Among them are revisits, redirects, pages that are not
    found, answers that are no HTML, answers of name servers and robots.txt. The same pages give the same bytes.

    Args:
        folder: made where it is not there; files in it are written over
        files: how many; page number n is in file n modulo `files`
        pictures: bytes of images by URL; each is in the file of the first page that names it, or in the first file

    Raises:
        UsageError: files are fewer than one.
        OSError: the disk fails.
    """
    if files < 1:
        raise UsageError(f"{files} files hold no pages: ask for one at least")
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, int] = {}
    for number, page in enumerate(pages):
        for url in page.images:
            where.setdefault(url, number % files)
    paths = [folder / f"web-{number:05d}.warc.gz" for number in range(files)]
    for number, path in enumerate(paths):
        own = {url: data for url, data in (pictures or {}).items() if where.get(url, 0) == number}
        with replacing(path) as part, part.open("wb") as file:
            for at, block in enumerate(_records(pages[number::files], own, path.name)):
                file.write(gzip.compress(block(at), mtime=0))
    return paths


class _Record:
    """A record; called with its number, it is bytes, whose date and id are made of the number."""

    def __init__(self, kind: str, url: str, content_type: str, block: bytes, more: Headers = ()) -> None:
        self.kind, self.url, self.content_type, self.block, self.more = kind, url, content_type, block, more

    def __call__(self, number: int) -> bytes:
        name = uuid.uuid5(uuid.NAMESPACE_URL, f"{number} {self.kind} {self.url}")
        headers = [("WARC-Type", self.kind), ("WARC-Record-ID", f"<urn:uuid:{name}>")]
        headers.append(("WARC-Date", _DATE.format(number // 3600 % 24, number // 60 % 60, number % 60)))
        headers += [("WARC-Target-URI", self.url)] if self.url else []
        headers += [*self.more, ("WARC-Block-Digest", _digest(self.block)), ("Content-Type", self.content_type)]
        headers.append(("Content-Length", str(len(self.block))))
        return _lines("WARC/1.1", headers) + self.block + b"\r\n\r\n"


def _lines(first: str, headers: Headers) -> bytes:
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers), "", ""]).encode()


def _digest(data: bytes) -> str:
    return f"sha1:{base64.b32encode(hashlib.sha1(data).digest()).decode()}"


def _records(pages: Sequence[Page], pictures: Mapping[str, bytes], name: str) -> Iterator[_Record]:
    random = Random(f"{name} {pages[0].url if pages else ''}")
    about = f"software: imagebert demo web\r\nformat: WARC File Format 1.1\r\nisPartOf: {name}\r\nrobots: classic\r\n"
    yield _Record("warcinfo", "", "application/warc-fields", about.encode(), [("WARC-Filename", name)])
    for page in pages:
        yield from _besides(page, random)
        yield from _fetched(page.url, "200 OK", page.headers, page.html, random)
        detected = f"fetchTimeMs: {random.randrange(20, 900)}\r\n"
        yield _Record("metadata", page.url, "application/warc-fields", detected.encode())
        if random.random() < 0.05:
            yield _revisit(page)
    for url, data in pictures.items():
        kind = next((kind for start, kind in _PICTURES.items() if data.startswith(start)), "application/octet-stream")
        yield from _fetched(url, "200 OK", [("Content-Type", kind)], data, None)


def _fetched(url: str, status: str, headers: Headers, body: bytes, random: Random | None) -> Iterator[_Record]:
    """The request for a URL, and the answer: as it was sent if there is no random."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    asked = _lines(
        f"GET {target} HTTP/1.1", [("Host", parts.netloc), ("User-Agent", "examplebot/1.0"), ("Accept", "*/*")]
    )
    yield _Record("request", url, f"{_HTTP}request", asked)
    packing, sent = _packed(body, random)
    block = _lines(f"HTTP/1.1 {status}", [("Date", "Thu, 21 Sep 2023 10:00:00 GMT"), *headers, *packing]) + sent
    yield _Record("response", url, f"{_HTTP}response", block, [("WARC-Payload-Digest", _digest(body))])


def _packed(body: bytes, random: Random | None) -> tuple[list[tuple[str, str]], bytes]:
    """Headers of one of the ways to send a body, and what is sent."""
    chance = random.random() if random else 1.0
    headers, sent = [], body
    if chance < 0.15:  # the crawler has unpacked it
        packed = ("X-Crawl-Content-Encoding", "gzip"), ("X-Crawl-Transfer-Encoding", "chunked")
        return [*packed, ("Content-Length", str(len(body)))], body
    if 0.15 <= chance < 0.45:
        headers.append(("Content-Encoding", random.choice(["gzip", "GZIP"]) if random else "gzip"))
        sent = gzip.compress(body, mtime=0)
    if random and 0.3 <= chance < 0.6:
        headers.append(("Transfer-Encoding", "chunked"))
        pieces, at = [], 0
        while at < len(sent):
            piece = sent[at : at + random.randrange(500, 9000)]
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
            at += len(piece)
        return headers, b"".join([*pieces, b"0\r\n\r\n"])
    return [*headers, ("Content-Length", str(len(sent)))], sent


def _revisit(page: Page) -> _Record:
    """The page once more, unchanged: its headers, and where its body is."""
    profile = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"
    more = [("WARC-Profile", profile), ("WARC-Refers-To-Target-URI", page.url)]
    more.append(("WARC-Payload-Digest", _digest(page.html)))
    return _Record("revisit", page.url, f"{_HTTP}response", _lines("HTTP/1.1 200 OK", page.headers), more)


def _besides(page: Page, random: Random) -> Iterator[_Record]:
    """What a crawl has beside the page: now and then something that is none."""
    parts, number = urlsplit(page.url), random.randrange(10**6)
    site = f"{parts.scheme}://{parts.netloc}"
    photo = f'<p>Our photograph:</p><img src="/gone/{number}.jpg" width="800" height="600" alt="A dog on a beach.">'
    html, plain = ("Content-Type", "text/html; charset=utf-8"), ("Content-Type", "text/plain")
    elsewhere = ("Location", f"{site}/moved/{number}")
    match random.randrange(18):
        case 0:
            missing = f"<html><title>404 Not Found</title><body><h1>Not found</h1>{photo}</body></html>".encode()
            yield from _fetched(f"{site}/gone/{number}", "404 Not Found", [html], missing, random)
        case 1:
            moved = f'<html><body><a href="{elsewhere[1]}">moved</a>{photo}</body></html>'.encode()
            status = random.choice(["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
            yield from _fetched(f"{site}/old/{number}", status, [html, elsewhere], moved, random)
        case 2:
            rules = b"User-agent: *\nDisallow: /private/\n"
            yield from _fetched(f"{site}/robots.txt", "200 OK", [plain], rules, random)
        case 3:
            data = ("Content-Type", "application/json")
            yield from _fetched(f"{site}/api/{number}", "200 OK", [data], f'{{"html": "{number}"}}'.encode(), random)
        case 4:
            paper = ("Content-Type", "application/pdf")
            yield from _fetched(f"{site}/{number}.pdf", "200 OK", [paper], b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", random)
        case 5:
            yield from _fetched(f"{site}/{number}.css", "200 OK", [("Content-Type", "text/css")], b"p{}", random)
        case 6:
            yield _Record(
                "response", f"dns:{parts.netloc}", "text/dns", f"20230921\n{parts.netloc} A 192.0.2.1".encode()
            )
        case 7:
            yield from _fetched(f"{site}/empty/{number}", "200 OK", [html], b"", None)
        case 8:
            yield from _fetched(f"{site}/fault/{number}", "503 Service Unavailable", [html], photo.encode(), random)


# -------------------------------------------------------------------------------------------------------------- damaged

DAMAGES = ("cut", "flipped", "garbage", "zeros", "longer", "shorter", "whole", "plain")


def members(path: Path) -> list[bytes]:
    """The members of a file of gzip members, each as it lies there.

    Raises:
        OSError: the disk fails.
    """
    found, left = [], path.read_bytes()
    while left:
        unpacker = zlib.decompressobj(31)
        unpacker.decompress(left)
        member, left = left[: len(left) - len(unpacker.unused_data)], unpacker.unused_data
        found.append(member)
    return found


def damage_warc(path: Path, way: str, seed: int = 0) -> int:
    """Damages a WARC that `write_warcs` wrote, in place.

    Args:
        way: "cut": it ends in the middle of a member. "flipped": a byte in the middle of a member is another one.
            "garbage": 1,000 bytes that are none of gzip's lie before a member. "zeros": the second half of a member is
            NUL bytes. "longer" and "shorter": a record's Content-Length is, by 700, than its block. "whole": the file
            is one member. "plain": it is not packed, whatever its name says. The last two lose nothing.
        seed: of the choice of a response of a page

    Returns:
        The number of the member where the damage is, from 0; all before are whole. -1 where all are.

    Raises:
        UsageError: there is no such damage, or no response to damage.
        OSError: the disk fails.
    """
    random, all_members = Random(f"damage {seed}"), members(path)
    records = [gzip.decompress(member) for member in all_members]
    if way in ("whole", "plain"):
        path.write_bytes(gzip.compress(b"".join(records), mtime=0) if way == "whole" else b"".join(records))
        return -1
    good = [at for at, record in enumerate(records) if b"\r\nWARC-Type: response\r\n" in record and len(record) > 2000]
    if way not in DAMAGES or not good:
        ways = ", ".join(DAMAGES)
        raise UsageError(f"{way!r} cannot be done to {path}: give a WARC with pages, and one of {ways}")
    at = random.choice(good)
    member, middle = all_members[at], len(all_members[at]) // 2
    behind = all_members[at + 1 :]
    match way:
        case "cut":
            member, behind = member[:middle], []
        case "flipped":
            member = member[:middle] + bytes([member[middle] ^ 0x55]) + member[middle + 1 :]
        case "garbage":
            member = b"\x00garbage\xff" * 111 + b"\x00" + member
        case "zeros":
            member = member[:middle] + bytes(len(member) - middle)
        case _:
            member = gzip.compress(_with_wrong_length(records[at], 700 if way == "longer" else -700), mtime=0)
    path.write_bytes(b"".join([*all_members[:at], member, *behind]))
    return at


def _with_wrong_length(record: bytes, more: int) -> bytes:
    head, blank, block = record.partition(b"\r\n\r\n")
    length = re.compile(rb"\r\nContent-Length: (\d+)")
    return length.sub(lambda found: b"\r\nContent-Length: %d" % (int(found[1]) + more), head) + blank + block
