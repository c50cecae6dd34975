"""Pictures from their URLs to a shard: many hosts at once, each politely, none of them believed. The gate of aiohttp.

A picture's seconds count from connecting to its last byte, redirects and a second try included: a host that drips costs
its own pictures and nobody else's. Its bytes are counted as they come, whatever the header says of them. Addresses are
checked where a socket is made for them, so a name that means another address a moment later, or a redirect, leads
nowhere else. What a picture's first bytes say of its kind and size decides whether the rest is taken.

What comes lies on disk at once (spool.py) and the shard is written from there in the order in which it was wanted
(shards.py), so the same answers make the same bytes. A call that is killed is made again and goes on.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
import ssl
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from imagebert import __version__
from imagebert.errors import UsageError
from imagebert.files import digest_of
from imagebert.lait.addresses import is_public
from imagebert.lait.hosts import Host
from imagebert.lait.opt_out import header_opt_out
from imagebert.lait.picture_head import HEAD_BYTES, Head, NoPicture, ends, read_head
from imagebert.lait.robots import ROBOTS_BYTES, Rules
from imagebert.lait.shards import Row, read_rows, write_shard
from imagebert.lait.spool import Body, DiskFailed, Spool
from imagebert.lock import lock

# What may become of a picture: all that `status` is in a shard's Parquet. Those that are True may end otherwise another
# time: a call that goes on with a killed one asks for them again.
KINDS = {
    "success": False,
    "bad_url": False,  # no http or https, a user's name in it, or none that can be read; redirects' too
    "blocked": False,  # by the caller's list of hosts
    "private_address": False,  # its host has none that is public
    "dns_failed": True,  # its host has no address
    "connection_failed": True,  # refused, or nobody there
    "tls_failed": True,  # a certificate, or no TLS at all
    "connection_lost": True,  # before the answer's header was whole
    "cut_off": True,  # in the body; or the picture's own end is missing
    "timed_out": True,
    "bad_http": True,  # what came is no answer, or its header is too long
    "http_status": True,  # any but 200, after redirects
    "too_many_redirects": False,
    "robots": False,  # robots.txt disallows it
    "robots_unreachable": True,  # robots.txt cannot be read, which disallows all
    "opted_out": False,  # X-Robots-Tag says no
    "bad_encoding": False,  # packed in a way that is not asked for, or badly
    "no_picture": False,  # its bytes are none
    "too_small": False,
    "too_narrow": False,
    "too_large": False,
    "host_given_up": True,  # its host failed time after time, or took all its time
}
_NO_FAULT_OF_A_HOST = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_HOST_FAILED = {"dns_failed", "connection_failed", "tls_failed", "connection_lost", "timed_out"}
_SAME_FOR_ROBOTS = {"dns_failed", "connection_failed", "tls_failed", "private_address", "host_given_up"}

_URL_LENGTH = 4_000  # characters
_MOVED = {301, 302, 303, 307, 308}
_LATER = {429, 503}
_ROBOTS_REDIRECTS = 5  # RFC 9309
_ROBOTS_CACHE = 16 << 20  # bytes of robots.txt whose rules are kept
_HOSTS_AT_WORK = 4  # for each connection: those that pause between two requests hold none
_LOOKUPS = 256  # names that are looked up at once, each by a thread
_CLOSING = 5.0  # seconds
_KEPT_ALIVE = 2.0  # seconds
_SILENT_HOSTS = 50  # of which not one answers: it is this machine's network
_FIRST_LOOK = 4096  # bytes

T = TypeVar("T")


class Wanted(NamedTuple):
    """Names a picture that is wanted.

    Attributes:
        key: 16 hexadecimal digits, its name in the shard
        url: where it is asked for
    """

    key: str
    url: str


@dataclass(frozen=True)
class FetchLimits:
    """Says what fetching may cost, and how hosts are treated.

    Attributes:
        seconds: for a picture in all, redirects and a second try included; waiting for its host's turn is not
        picture_bytes: of its body
        redirects: that are followed for a picture
        connections: at once, to all hosts
        per_host: requests at once to one host
        pause: seconds from the beginning of a request to a host to the next one's; robots.txt may ask for more
        side: pixels that width and height both must exceed
        aspect: the longer side over the shorter, at most
        retry_seconds: that a host which says 429 or 503 is waited for, once for a picture; if it wants more, not at all
        host_failures: requests of a host that fail one after the other, until the rest of its pictures is given up
        host_seconds: that the shard has for one host, from its first request
        user_agent: what is said of whoever asks; its name, up to the slash, is what robots.txt and X-Robots-Tag call it
        follow_robots: whether robots.txt is asked for and followed
        allow_private: whether addresses that are not public may be asked, as of an intranet
    """

    seconds: float = 20.0
    picture_bytes: int = 20 << 20
    redirects: int = 5
    connections: int = 256
    per_host: int = 2
    pause: float = 0.1
    side: int = 300
    aspect: float = 3.0
    retry_seconds: float = 5.0
    host_failures: int = 8
    host_seconds: float = 1800.0
    user_agent: str = f"imagebert/{__version__}"
    follow_robots: bool = True
    allow_private: bool = False

    def __post_init__(self) -> None:
        for name in ("seconds", "picture_bytes", "connections", "per_host", "aspect", "host_failures", "host_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}: give a number above 0")
        for name in ("redirects", "pause", "side", "retry_seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}: give 0 or more")
        if not self.agent or not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise UsageError(f"user_agent is {self.user_agent!r}: give a name, as in a header of HTTP")

    @property
    def agent(self) -> str:
        """The name without its version."""
        return self.user_agent.partition("/")[0].partition(" ")[0]


class Failed(Exception):
    """A picture does not come.

    Args:
        kind: one of KINDS
    """

    def __init__(self, kind: str, why: str, status: int | None = None, head: Head | None = None) -> None:
        super().__init__(why)
        self.kind, self.why, self.status, self.head = kind, why, status, head


def fetch_shard(
    wanted: Sequence[Wanted], shard: Path, limits: FetchLimits | None = None, blocked: Collection[str] = ()
) -> Counter[str]:
    """Fetches pictures into NNNNN.tar and, beside it, NNNNN.parquet with a row for each; a shard that is there stays.

    What a killed call had fetched lies in a folder beside the shard, and is not asked for again.

    Args:
        shard: the tar, in a folder that exists
        limits: the defaults of `FetchLimits` where there are none
        blocked: hosts that are never asked, and none below them

    Returns:
        How many pictures have each `status`.

    Raises:
        UsageError: keys are none, or twice; the shard is there and holds others; another process fetches it.
        OSError: the disk or this machine's network fails.
    """
    limits = limits or FetchLimits()
    blocked = frozenset(host.lower().strip(".") for host in blocked)
    _check(wanted, shard)
    folder = shard.with_name(f".{shard.stem}.spool")
    if not _is_whole(shard, wanted):
        folder.mkdir(exist_ok=True)
        with lock(folder / "lock", shard):
            if not _is_whole(shard, wanted):
                identity = digest_of([wanted, asdict(limits), sorted(blocked)])
                with Spool(folder, identity) as spool:
                    _fetch(wanted, shard, limits, blocked, spool)
                    spool.remove()
    return Counter(row.status for row in read_rows(shard))


def _check(wanted: Sequence[Wanted], shard: Path) -> None:
    if shard.suffix != ".tar":
        raise UsageError(f"{shard} is no name of a shard: give one that ends in .tar")
    seen = set()
    for key, _ in wanted:
        if len(key) != 16 or set(key) - set("0123456789abcdef"):
            raise UsageError(f"{key!r} is no key of a picture: give 16 hexadecimal digits")
        if key in seen:
            raise UsageError(f"the key {key} comes twice: give each picture its own")
        seen.add(key)


def _is_whole(shard: Path, wanted: Sequence[Wanted]) -> bool:
    if not shard.exists():
        return False
    if [(row.key, row.url) for row in read_rows(shard)] != [tuple(each) for each in wanted]:
        raise UsageError(f"{shard} holds other pictures than are wanted: remove it, or name another place")
    return True


def _fetch(
    wanted: Sequence[Wanted], shard: Path, limits: FetchLimits, blocked: Collection[str], spool: Spool
) -> None:
    left = [each for each in wanted if each.key not in spool.rows]
    try:
        asyncio.run(_fetch_all(left, limits, blocked, spool))
    except BaseExceptionGroup as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, DiskFailed) and isinstance(error.__cause__, OSError):
            raise OSError(
                error.__cause__.errno, f"writing to {spool.folder} failed: {error.__cause__.strerror}"
            ) from None
        raise error from None
    write_shard(shard, [spool.rows[each.key] for each in wanted], spool.picture)


async def _fetch_all(wanted: Sequence[Wanted], limits: FetchLimits, blocked: Collection[str], spool: Spool) -> None:
    connector = aiohttp.TCPConnector(
        limit=0,  # turns are counted in hosts.py
        resolver=_Resolver(),
        ttl_dns_cache=None,
        keepalive_timeout=_KEPT_ALIVE,
        socket_factory=partial(_socket, limits.allow_private),
    )
    headers = {
        "User-Agent": limits.user_agent,
        "Accept": "image/jpeg,image/png,image/webp,image/*;q=0.8,*/*;q=0.5",
        "Accept-Encoding": "identity",
    }
    session = aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # one clock, _Clock
        auto_decompress=False,
    )
    try:
        await _Fetcher(session, limits, blocked, spool).fetch(wanted)
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(session.close(), _CLOSING)


# -------------------------------------------------------------------------------------------------- names and addresses


class _Private(OSError):
    """An address is not public. Its text is always the same, so that aiohttp raises it where all of a host's are so."""


def _socket(allow_private: bool, info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that is about to be connected to, unless that is not public."""
    family, kind, protocol, _, address = info
    if not allow_private and not is_public(address[0]):
        raise _Private("not a public address")
    return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Looks names up by threads that nobody waits for: the system's look-up cannot be stopped, and may take minutes."""

    def __init__(self) -> None:
        self._lookups = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        async with self._lookups:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[list[Any]] = loop.create_future()
            threading.Thread(target=_look_up, args=(host, port, family, loop, future), daemon=True).start()
            found = await future
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=protocol, flags=_NUMERIC)
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""


_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


def _look_up(
    host: str, port: int, family: int, loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[Any]]
) -> None:
    def settle(found: list[Any] | None) -> None:
        if future.done():
            return
        if found:
            future.set_result(found)
        else:
            future.set_exception(OSError("its host has no address"))

    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except (OSError, ValueError):  # a name that no name server would take
        found = []
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(settle, found)


def _parse(text: str, base: URL | None = None) -> URL:
    """A URL that may be asked.

    Raises:
        Failed: it may not.
    """
    if len(text) > _URL_LENGTH:
        raise Failed("bad_url", f"the URL has more than {_URL_LENGTH:,} characters")
    try:
        url = URL(text.strip())
        url = url if base is None else base.join(url)
        _ = url.raw_host, url.port
    except Exception:  # what its parser raises is no closed list
        raise Failed("bad_url", "the URL cannot be read") from None
    if url.scheme not in ("http", "https"):
        raise Failed("bad_url", "the URL is neither http nor https")
    if not url.raw_host:
        raise Failed("bad_url", "the URL has no host")
    if url.raw_user is not None or url.raw_password is not None:
        raise Failed("bad_url", "the URL has a user's name or password")
    return url.with_fragment(None)


# ------------------------------------------------------------------------------------------------------------ requests


class _Clock:
    """Seconds that a picture, or a robots.txt, still has."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        """Raises TimeoutError in the block when they are over."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                yield
        finally:
            self._left -= time.monotonic() - begun


class _Moved(NamedTuple):
    """An answer that sends on."""

    to: URL
    status: int


class _Later(NamedTuple):
    """An answer that says to come again."""

    seconds: float
    status: int


class _Came(NamedTuple):
    """A picture, whose bytes are in its body."""

    head: Head
    content_type: str


class _Fetcher:
    """Fetches what is wanted, host by host."""

    def __init__(
        self, session: aiohttp.ClientSession, limits: FetchLimits, blocked: Collection[str], spool: Spool
    ) -> None:
        self._session, self._limits, self._blocked, self._spool = session, limits, blocked, spool
        self._connections = asyncio.Semaphore(limits.connections)
        self._at_work = asyncio.Semaphore(_HOSTS_AT_WORK * limits.connections)
        self._hosts: dict[str, Host] = {}
        self._robots: OrderedDict[URL, tuple[Rules | Failed | None, int]] = OrderedDict()
        self._robots_locks: dict[URL, asyncio.Lock] = {}
        self._answers = 0  # of any host

    async def fetch(self, wanted: Sequence[Wanted]) -> None:
        queues: dict[str, deque[Wanted]] = {}
        for each in wanted:
            try:
                name = _parse(each.url).raw_host or ""
            except Failed as failed:
                self._note(each, failed, None)
                continue
            queues.setdefault(name, deque()).append(each)
        async with asyncio.TaskGroup() as group:
            for queue in queues.values():
                group.create_task(self._empty(queue))
        if not self._answers and not self._spool.any_before and len(queues) >= _SILENT_HOSTS:
            raise OSError(errno.ENETUNREACH, f"none of {len(queues):,} hosts answers: is this machine's network up?")

    async def _empty(self, queue: deque[Wanted]) -> None:
        """Fetches one host's pictures."""

        async def work() -> None:
            while queue:
                each = queue.popleft()
                with closing(self._spool.body()) as body:
                    result: _Came | Failed
                    try:
                        result = await self._picture(_parse(each.url), body, last=not queue)
                    except Failed as failed:
                        result = failed
                    self._note(each, result, body)

        async with self._at_work, asyncio.TaskGroup() as group:
            for _ in range(min(self._limits.per_host, len(queue))):
                group.create_task(work())

    def _note(self, wanted: Wanted, result: _Came | Failed, body: Body | None) -> None:
        row = Row(wanted.key, wanted.url, "success", 200)
        if isinstance(result, _Came) and body is not None:
            data = body.read()
            head, kind = result
            if ends(data, head.suffix):
                digest = hashlib.sha256(data).hexdigest()
                row = row._replace(width=head.width, height=head.height, bytes=len(data), sha256=digest)
                self._spool.add(row._replace(content_type=kind, suffix=head.suffix), data, final=True)
                return
            result = Failed("cut_off", "the picture's own end is missing", 200, head)
        assert isinstance(result, Failed)
        row = row._replace(status=result.kind, http_status=result.status, error_message=result.why)
        if result.head is not None:
            row = row._replace(width=result.head.width, height=result.head.height)
        final = not KINDS[result.kind] or (result.kind == "http_status" and 400 <= (result.status or 0) < 500)
        self._spool.add(row, b"", final and result.status not in _LATER)

    async def _picture(self, url: URL, body: Body, last: bool) -> _Came:
        """Raises: Failed: it does not come."""
        clock, redirects, waited = _Clock(self._limits.seconds), 0, False
        while True:
            await self._admit(url)
            body.clear()
            answer = await self._ask(url, clock, partial(self._take, body=body), close=last)
            match answer:
                case _Came():
                    return answer
                case _Moved(to, status):
                    redirects += 1
                    if redirects > self._limits.redirects:
                        raise Failed("too_many_redirects", f"it has more than {redirects - 1} redirects", status)
                    url = to
                case _Later(seconds, status):
                    if waited or seconds > self._limits.retry_seconds:
                        raise Failed("http_status", f"the server answers {status}", status)
                    waited = True
                    self._host(url).hold(seconds)

    def _host(self, url: URL) -> Host:
        name = url.raw_host or ""
        if name not in self._hosts:
            self._hosts[name] = Host(self._connections, self._limits.per_host, self._limits.pause)
        return self._hosts[name]

    async def _ask(
        self, url: URL, clock: _Clock, take: Callable[[aiohttp.ClientResponse], Awaitable[T]], close: bool = False
    ) -> T:
        """What `take` makes of an answer.

        Args:
            close: whether nothing else will be asked of this host

        Raises:
            Failed: there is none, or `take` says so.
            OSError: this machine is at its end, not the host.
        """
        host = self._host(url)
        async with host.turn():
            if host.is_given_up(self._limits.host_failures, self._limits.host_seconds):
                raise Failed("host_given_up", "its host failed time after time, or took all its time")
            failed = None
            try:
                async with clock.runs():
                    headers = {"Connection": "close"} if close else {}
                    async with self._session.get(url, allow_redirects=False, headers=headers) as response:
                        self._answers += 1
                        try:
                            answer = await take(response)
                        except BaseException:
                            response.close()
                            raise
            except (Failed, DiskFailed) as error:
                if isinstance(error, Failed):
                    failed = error
                raise
            except TimeoutError:
                failed = Failed("timed_out", f"it takes longer than {self._limits.seconds:g} s")
                raise failed from None
            except Exception as error:
                failed = _failed_by(error)
                raise failed from None
            finally:
                host.note(failed is not None and failed.kind in _HOST_FAILED)
        if isinstance(answer, _Later):
            host.note(failed=True)
        return answer

    async def _take(self, response: aiohttp.ClientResponse, body: Body) -> _Came | _Moved | _Later:
        """A picture's answer into its body; as little of it as shows that it is not to be taken.

        Raises:
            Failed: it is not.
            DiskFailed: the body cannot be written.
        """
        status, limits = response.status, self._limits
        if status in _MOVED:
            return _moved(response)
        if status in _LATER:
            return _Later(_retry_after(response.headers.get("Retry-After", "")), status)
        if status != 200:
            raise Failed("http_status", f"the server answers {status}", status)
        word = header_opt_out(response.headers.getall("X-Robots-Tag", ()), limits.agent, datetime.now(UTC))
        if word:
            raise Failed("opted_out", f"X-Robots-Tag says {word}", status)
        too_large = Failed("too_large", f"it has more than {limits.picture_bytes:,} bytes", status)
        if (response.content_length or 0) > limits.picture_bytes:
            raise too_large
        head, look_at = None, _FIRST_LOOK
        async for data in _chunks(response):
            body.write(data)
            if body.size > limits.picture_bytes:
                raise too_large
            if head is None and body.size >= look_at:
                head, look_at = self._look(body), 2 * body.size
                if head is None and body.size >= HEAD_BYTES:
                    raise Failed("no_picture", f"its first {HEAD_BYTES:,} bytes do not say its size", status)
        if head is None and (head := self._look(body)) is None:
            raise Failed("no_picture", "its bytes end before they say its size", status)
        return _Came(head, response.headers.get("Content-Type", "")[:200])

    def _look(self, body: Body) -> Head | None:
        """What the bytes that are there say; None: not enough yet.

        Raises:
            Failed: it is no picture that is wanted.
        """
        try:
            head = read_head(body.read(HEAD_BYTES))
        except NoPicture as error:
            raise Failed("no_picture", str(error), 200) from None
        if head is None:
            return None
        least, most = sorted((head.width, head.height))
        if least <= self._limits.side:
            raise Failed("too_small", f"it has {head.width} x {head.height} pixels", 200, head)
        if most > self._limits.aspect * least:
            raise Failed("too_narrow", f"it has {head.width} x {head.height} pixels", 200, head)
        return head

    # ------------------------------------------------------------------------------------------------------ robots.txt

    async def _admit(self, url: URL) -> None:
        """Raises: Failed: a URL may not be asked."""
        parts = (url.raw_host or "").rstrip(".").lower().split(".")
        if any(".".join(parts[at:]) in self._blocked for at in range(len(parts))):
            raise Failed("blocked", "its host is blocked")
        if not self._limits.follow_robots:
            return
        rules = await self._rules(url.origin())
        if isinstance(rules, Failed):
            raise Failed(rules.kind, rules.why, rules.status)
        if rules is not None and not rules.allow(str(url)):
            raise Failed("robots", "robots.txt disallows it")

    async def _rules(self, origin: URL) -> Rules | Failed | None:
        """None: all is allowed."""
        async with self._robots_locks.setdefault(origin, asyncio.Lock()):
            if origin not in self._robots:
                self._robots[origin] = await self._fetch_rules(origin)
                while sum(size for _, size in self._robots.values()) > _ROBOTS_CACHE:
                    self._robots.popitem(last=False)
            self._robots.move_to_end(origin)
            rules, _ = self._robots[origin]
            if isinstance(rules, Rules):
                host = self._host(origin)
                host.pause = max(host.pause, rules.pause)
        return rules

    async def _fetch_rules(self, origin: URL) -> tuple[Rules | Failed | None, int]:
        """What robots.txt says, or why it cannot be read, and how many bytes it has."""
        clock, url = _Clock(self._limits.seconds), origin.with_path("/robots.txt")
        try:
            for _ in range(1 + _ROBOTS_REDIRECTS):
                answer = await self._ask(url, clock, _take_robots)
                if isinstance(answer, bytes):
                    return Rules(answer, self._limits.agent), len(answer)
                if answer is None:
                    return None, 0
                url = answer.to
        except Failed as failed:
            if failed.kind in _SAME_FOR_ROBOTS and url.origin() == origin:
                return failed, 0
            return Failed("robots_unreachable", f"robots.txt cannot be read: {failed.why}", failed.status), 0
        return None, 0


async def _take_robots(response: aiohttp.ClientResponse) -> bytes | _Moved | None:
    """The text of a robots.txt; None: there is none, so that all is allowed. Raises: Failed: it cannot be known."""
    if response.status in _MOVED:
        return _moved(response)
    if 400 <= response.status < 500:
        return None
    if not 200 <= response.status < 300:
        raise Failed("http_status", f"the server answers {response.status}", response.status)
    data = bytearray()
    async for chunk in _chunks(response):
        data += chunk
        if len(data) > ROBOTS_BYTES:
            response.close()
            break
    return bytes(data)


def _moved(response: aiohttp.ClientResponse) -> _Moved:
    response.close()
    return _Moved(_parse(response.headers.get("Location", "http:"), response.url), response.status)


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After says, 1 where it says none."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        found = parsedate_to_datetime(text)
        return max(0.0, (found.replace(tzinfo=found.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 1.0


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A body, unpacked piece by piece where it is packed: no more is unpacked than is taken.

    Raises:
        Failed: it is packed otherwise than by gzip or deflate, or badly.
    """
    packed = response.headers.get("Content-Encoding", "").strip().lower()
    if packed in ("", "identity"):
        async for data in response.content.iter_any():
            yield data
        return
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise Failed("bad_encoding", "its body is packed in a way that was not asked for", response.status)
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # tells both by their header
    try:
        async for data in response.content.iter_any():
            while data and not unpacker.eof:
                yield unpacker.decompress(data, 1 << 16)
                data = unpacker.unconsumed_tail
    except zlib.error:
        raise Failed("bad_encoding", "its body is packed badly", response.status) from None
    if not unpacker.eof:
        raise Failed("cut_off", "its packed body ends before its end", response.status)


def _failed_by(error: Exception) -> Failed:
    """The kind of what aiohttp raised.

    Raises:
        OSError: this machine is at its end, not the host.
    """
    number = getattr(error, "errno", None)
    if number in _NO_FAULT_OF_A_HOST:
        raise OSError(
            number, f"{os.strerror(number)}: lower the connections, or raise what a process may have (ulimit -n)"
        ) from None
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, _Private):
        return Failed("private_address", "its host's address is not public")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Failed("dns_failed", "its host has no address")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | ssl.CertificateError):
        return Failed("tls_failed", f"its host is not to be trusted ({type(error).__name__})")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failed("connection_failed", f"its host cannot be reached ({os.strerror(number or 0)})")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failed("cut_off", "its body ends before its end", 200)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Failed("connection_lost", "its host closed the connection without an answer")
    if isinstance(error, aiohttp.InvalidURL):
        return Failed("bad_url", "the URL cannot be read")
    return Failed("bad_http", f"its host's answer is no HTTP ({type(error).__name__})")
