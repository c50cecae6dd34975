"""A server on this machine that misbehaves in every way that is known, and knows what each is to end in.

It speaks bytes, not HTTP: what it sends is written out. A path names a way and a picture, /way/name, and what is sent
for them is always the same. Any address in 127.0.0.0/8 is this server, so each may play another host.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import random
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image

# What each way ends in; where it depends on which packets come together, what else it may end in.
WAYS: dict[str, str] = {}
OR_ELSE = {"says_less": "bad_http", "bad_chunk": "bad_http"}
_SENDERS: dict[str, Callable[[Request], Awaitable[None]]] = {}


def _way(status: str, *names: str) -> Callable[[Callable[[Request], Awaitable[None]]], None]:
    def add(sender: Callable[[Request], Awaitable[None]]) -> None:
        for name in names:
            WAYS[name] = status
            _SENDERS[name] = sender

    return add


@cache
def _plain(form: str, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, form)
    return file.getvalue()


def picture(way: str, name: str) -> bytes:
    """The bytes that a way sends in the end, where it sends a picture: each name has others."""
    form = way if way in ("png", "webp", "gif", "avif") else "jpeg"
    width, height = {"small": (300, 400), "narrow": (1300, 400)}.get(way, (400, 310))
    data = _plain(form, width, height)
    if form != "jpeg":
        return data
    # As much in front of the size as some cameras write, where that is the way; then a note.
    note = name.encode()
    preview = (b"\xff\xe2\xff\xff" + bytes(0xFFFD)) * (5 if way == "far" else 0)
    return data[:2] + preview + b"\xff\xfe" + struct.pack("!H", 2 + len(note)) + note + data[2:]


def fits(way: str, status: str) -> bool:
    """Whether a way may end so."""
    return status in (WAYS[way], OR_ELSE.get(way))


class Request:
    """What was asked, and where the answer goes."""

    def __init__(self, server: Hostile, path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        self.server, self.path, self.headers, self.writer = server, path, headers, writer
        self.way, _, self.name = path.removeprefix("/").partition("/")
        self.times = server.asked[path]
        self.keep = headers.get("connection", "").lower() != "close"

    @property
    def data(self) -> bytes:
        return picture(self.way, self.name)

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"", status: str = "200 OK", length: int | None = None, *more: str) -> None:
        """An answer; where its length is a lie, the connection ends behind it."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *more]
        if length is not None:
            self.keep = False
        await self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    async def drip(self, data: bytes, pause: float) -> None:
        for at in range(len(data)):
            await self.raw(data[at : at + 1])
            await asyncio.sleep(pause)

    def reset(self) -> None:
        """Ends the connection by RST."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
        self.keep = False


# ----------------------------------------------------------------------------------------------------------- good ones


@_way("success", "jpeg", "png", "webp", "gif", "avif", "far")
async def _good(request: Request) -> None:
    await request.answer(request.data, "200 OK", None, "Content-Type: image/x-any")


@_way("success", "typed_html")
async def _typed_html(request: Request) -> None:
    await request.answer(request.data, "200 OK", None, "Content-Type: text/html")


@_way("success", "chunked")
async def _chunked(request: Request) -> None:
    await request.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    data = request.data
    for at in range(0, len(data), 1000):
        part = data[at : at + 1000]
        await request.raw(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    await request.raw(b"0\r\n\r\n")


@_way("success", "to_the_end")
async def _to_the_end(request: Request) -> None:
    await request.raw(b"HTTP/1.0 200 OK\r\n\r\n" + request.data)
    request.keep = False


@_way("success", "gzip")
async def _gzip(request: Request) -> None:
    assert request.headers["accept-encoding"] == "identity"
    await request.answer(gzip.compress(request.data, mtime=0), "200 OK", None, "Content-Encoding: gzip")


@_way("success", "deflate")
async def _deflate(request: Request) -> None:
    await request.answer(zlib.compress(request.data), "200 OK", None, "Content-Encoding: deflate")


@_way("success", "in_pieces")
async def _in_pieces(request: Request) -> None:
    data = request.data
    await request.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode())
    for at in range(0, len(data), 700):
        await request.raw(data[at : at + 700])
        await asyncio.sleep(0.005)


@_way("success", "redirected", "redirected_far", "redirected_strangely")
async def _redirected(request: Request) -> None:
    place = {
        "redirected": f"/jpeg/{request.name}",
        "redirected_far": f"http://127.9.9.9:{request.server.port}/jpeg/{request.name}",
        "redirected_strangely": f"../jpeg/./{request.name}#part",
    }[request.way]
    await request.answer(b"moved", "302 Found", None, f"Location: {place}")


@_way("success", "later", "later_by_date", "later_unsaid", "later_by_a_second")
async def _later(request: Request) -> None:
    if request.times > 1:
        return await request.answer(request.data)
    more = {"later": ["Retry-After: 0"], "later_by_a_second": ["Retry-After: 1"]}
    more |= {"later_by_date": ["Retry-After: Thu, 01 Jan 2026 00:00:00 GMT"]}
    return await request.answer(b"", "429 Too Many Requests", None, *more.get(request.way, []))


@_way("success", "for_other_crawlers")
async def _for_other_crawlers(request: Request) -> None:
    tags = ("X-Robots-Tag: otherbot: noindex, noai", "x-robots-tag: max-image-preview:large")
    await request.answer(request.data, "200 OK", None, *tags)


@_way("success", "early_hints")
async def _early_hints(request: Request) -> None:
    await request.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    await request.answer(request.data)


# ------------------------------------------------------------------------------------------------------ no such picture


@_way("http_status", "missing", "gone", "broken", "forbidden", "partial", "nothing")
async def _status(request: Request) -> None:
    status = {"missing": "404 Not Found", "gone": "410 Gone", "broken": "500 Internal Server Error"}
    status |= {"forbidden": "403 Forbidden", "partial": "206 Partial Content", "nothing": "204 No Content"}
    await request.answer(b"" if request.way == "nothing" else request.data, status[request.way])


@_way("http_status", "always_later", "much_later")
async def _always_later(request: Request) -> None:
    seconds = 0 if request.way == "always_later" else 9999
    await request.answer(b"", "503 Service Unavailable", None, f"Retry-After: {seconds}")


@_way("no_picture", "page")
async def _page(request: Request) -> None:
    await request.answer(b"<html>" + b"not found " * 1000, "200 OK", None, "Content-Type: image/jpeg")


@_way("no_picture", "empty")
async def _empty(request: Request) -> None:
    await request.answer(b"", "200 OK", None, "Content-Type: image/jpeg")


@_way("no_picture", "never_a_size")
async def _never_a_size(request: Request) -> None:
    await request.answer(b"\xff\xd8" + (b"\xff\xe1\xff\xff" + bytes(0xFFFD)) * 30)


@_way("too_small", "small")
async def _small(request: Request) -> None:
    await request.answer(request.data)


@_way("too_small", "small_and_endless")
async def _small_and_endless(request: Request) -> None:
    await request.raw(b"HTTP/1.1 200 OK\r\n\r\n" + picture("small", request.name)[:4000])
    await _for_ever(request)


@_way("too_narrow", "narrow")
async def _narrow(request: Request) -> None:
    await request.answer(request.data)


@_way("opted_out", "noai", "noindex", "own_name", "expired", "one_of_three")
async def _opted_out(request: Request) -> None:
    tags = {
        "noai": ["X-Robots-Tag: max-image-preview:large, noai"],
        "noindex": ["x-robots-tag: NOINDEX"],
        "own_name": ["X-Robots-Tag: imagebert: noimageai"],
        "expired": ["X-Robots-Tag: unavailable_after: 25 Jun 2010 15:00:00 GMT"],
        "one_of_three": ["X-Robots-Tag: all", "X-Robots-Tag: googlebot: noindex", "X-Robots-Tag: nofollow, none"],
    }
    await request.answer(request.data, "200 OK", None, *tags[request.way])


@_way("robots", "disallowed")
async def _disallowed(request: Request) -> None:
    raise AssertionError("it must not be asked for")


# ---------------------------------------------------------------------------------------------------------- wrong bytes


@_way("cut_off", "says_more", "half")
async def _says_more(request: Request) -> None:
    data = request.data
    if request.way == "half":
        return await request.answer(data[: len(data) // 2])
    return await request.answer(data, "200 OK", len(data) + 9)


@_way("cut_off", "says_less")
async def _says_less(request: Request) -> None:
    length = len(request.data) - 900
    await request.answer(request.data[:length], "200 OK", length)
    await asyncio.sleep(0.1)
    await request.raw(request.data[length:])


# What follows at once behind a body is taken for the next answer, and is none.
@_way("bad_http", "says_less_at_once")
async def _says_less_at_once(request: Request) -> None:
    await request.answer(request.data, "200 OK", len(request.data) - 900)


@_way("cut_off", "half_of_chunks")
async def _half_of_chunks(request: Request) -> None:
    await _first_chunk_and(request, b"")


# aiohttp closes the connection then, and tells nobody.
@_way("timed_out", "bad_chunk")
async def _bad_chunk(request: Request) -> None:
    await _first_chunk_and(request, b"zz\r\nno chunk\r\n")


async def _first_chunk_and(request: Request, end: bytes) -> None:
    await request.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5dc\r\n" + request.data[:1500] + b"\r\n")
    await asyncio.sleep(0.02)
    await request.raw(end)
    request.keep = False


@_way("cut_off", "reset_in_body")
async def _reset_in_body(request: Request) -> None:
    await request.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + request.data[:1500])
    await asyncio.sleep(0.05)
    request.reset()


@_way("cut_off", "gzip_cut")
async def _gzip_cut(request: Request) -> None:
    await request.answer(gzip.compress(request.data)[:-100], "200 OK", None, "Content-Encoding: gzip")


@_way("bad_encoding", "gzip_bad", "brotli", "gzip_twice")
async def _bad_encoding(request: Request) -> None:
    kind = {"gzip_bad": "gzip", "brotli": "br", "gzip_twice": "gzip, gzip"}[request.way]
    await request.answer(request.data, "200 OK", None, f"Content-Encoding: {kind}")


@_way("too_large", "says_large")
async def _says_large(request: Request) -> None:
    await request.answer(request.data, "200 OK", 1 << 40)


@_way("too_large", "endless", "endless_chunks")
async def _endless(request: Request) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked\r\n" if "chunks" in request.way else b"") + b"\r\n"
    await request.raw(head)
    if "chunks" not in request.way:
        await request.raw(request.data)
        return await _for_ever(request)
    data = request.data + bytes(50_000)
    while True:
        await request.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def _for_ever(request: Request) -> None:
    while True:
        await request.raw(bytes(1 << 16))


_UNPACKED = 64 << 20


@cache
def _bomb(first: bytes, size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(first)]
    for _ in range(size >> 20):
        parts.append(packer.compress(bytes(1 << 20)))
    return b"".join([*parts, packer.flush()])


@_way("too_large", "bomb")
async def _large_bomb(request: Request) -> None:
    await request.answer(_bomb(picture("jpeg", ""), _UNPACKED), "200 OK", None, "Content-Encoding: gzip")


@_way("no_picture", "bomb_of_zeros")
async def _bomb_of_zeros(request: Request) -> None:
    await request.answer(_bomb(b"", _UNPACKED), "200 OK", None, "Content-Encoding: gzip")


# ----------------------------------------------------------------------------------------------------------- no answers


@_way("timed_out", "silent", "drips_header", "drips_body", "hints_for_ever", "stops")
async def _slow(request: Request) -> None:
    if request.way == "drips_header":
        await request.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, 0.05)
    if request.way == "drips_body":
        await request.raw(b"HTTP/1.1 200 OK\r\n\r\n")
        await request.drip(request.data, 0.05)
    if request.way == "stops":
        await request.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + request.data[:2000])
    while request.way == "hints_for_ever":
        await request.raw(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.01)
    await asyncio.sleep(3600)


@_way("connection_lost", "closes", "resets")
async def _closes(request: Request) -> None:
    if request.way == "resets":
        request.reset()
    request.keep = False


@_way("bad_http", "garbage", "long_header", "endless_headers", "bad_version", "nul")
async def _bad_http(request: Request) -> None:
    request.keep = False
    match request.way:
        case "garbage":
            await request.raw(random.Random(1).randbytes(5000))
        case "long_header":
            await request.raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n")
        case "endless_headers":
            await request.raw(b"HTTP/1.1 200 OK\r\n")
            while True:
                await request.raw(b"X-Some: thing\r\n" * 1000)
        case "bad_version":
            await request.raw(b"HTTP/x.1 200 OK\r\n\r\n" + request.data)
        case "nul":
            await request.raw(b"HTTP/1.1 200 OK\r\nX\0: y\r\n\r\n" + request.data)


# ------------------------------------------------------------------------------------------------------------ redirects


async def _round(request: Request) -> None:
    await request.answer(b"", "301 Moved Permanently", None, f"Location: {request.path}")


_way("too_many_redirects", "round")(_round)


# Each answer comes in time, all together do not.
@_way("timed_out", "round_slowly")
async def _round_slowly(request: Request) -> None:
    await asyncio.sleep(2)
    await _round(request)


@_way("bad_url", "nowhere", "to_ftp", "to_file", "to_user", "to_nonsense", "to_endless_name")
async def _nowhere(request: Request) -> None:
    places = {"to_ftp": "ftp://127.0.0.1/x.jpg", "to_file": "file:///etc/passwd", "to_nonsense": "http://[::1/x"}
    places |= {"to_user": f"http://a:b@127.0.0.1:{request.server.port}/jpeg/1", "to_endless_name": "/" + "x" * 5000}
    more = [f"Location: {places[request.way]}"] if request.way in places else []
    await request.answer(b"", "307 Temporary Redirect", None, *more)


ROBOTS = b"""User-agent: otherbot
Disallow: /

User-agent: *
Allow: /
Disallow: /disallowed/
"""


class Hostile:
    """A server while it runs.

    Attributes:
        port: at every address of 127.0.0.0/8
        asked: how often each path was, /robots.txt also with its host
        most: requests at once, by host; `most_open`, of all hosts together
        robots: the text of robots.txt by host, or a way; None: there is none
        delay: seconds before an answer, at random up to so many
    """

    def __init__(self) -> None:
        self.port = 0
        self.asked, self.most, self.open = Counter[str](), Counter[str](), Counter[str]()
        self.most_open = 0
        self.times: dict[str, list[float]] = {}
        self.robots: dict[str, bytes | str | None] = {}
        self.delay = 0.0
        self._random = random.Random()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def url(self, way: str, name: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{way}/{name}"

    def pictures(self) -> Counter[str]:
        """How often each path was asked for, robots.txt left aside."""
        return Counter({path: times for path, times in self.asked.items() if not path.endswith("/robots.txt")})

    def start(self) -> None:
        for way in WAYS:  # so that no answer waits for another's picture
            picture(way, "")
        for first in (picture("jpeg", ""), b""):
            _bomb(first, _UNPACKED)
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "0.0.0.0", 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._over.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._request(reader, writer):
                pass
        with suppress(OSError):
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether another may follow."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        pairs = [line.partition(":") for line in lines[1:] if line]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        host = headers["host"].rpartition(":")[0]
        if path == "/robots.txt":
            self.asked[f"{host}/robots.txt"] += 1
        self.asked[path] += 1
        self.open[host] += 1
        self.most[host] = max(self.most[host], self.open[host])
        self.most_open = max(self.most_open, self.open.total())
        self.times.setdefault(host, []).append(asyncio.get_running_loop().time())
        request = Request(self, path, headers, writer)
        try:
            if self.delay:
                await asyncio.sleep(self._random.uniform(0, self.delay))
            if path == "/robots.txt":
                await self._send_robots(request, host)
            else:
                await _SENDERS[request.way](request)
        finally:
            self.open[host] -= 1
        return request.keep

    async def _send_robots(self, request: Request, host: str) -> None:
        robots = self.robots.get(host, ROBOTS)
        if robots is None:
            await request.answer(b"", "404 Not Found")
        elif isinstance(robots, bytes):
            await request.answer(robots, "200 OK", None, "Content-Type: text/plain")
        elif robots.startswith("/"):
            await request.answer(b"", "302 Found", None, f"Location: {robots}")
        else:
            request.way = robots
            await _SENDERS[robots](request)


@contextmanager
def hostile_server() -> Iterator[Hostile]:
    """A server for the block."""
    server = Hostile()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def key_of(number: int | str) -> str:
    """A key of a picture."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:16]
