"""One request over HTTP: where it may go, what comes of it, and of which kind its failure is. The gate of aiohttp.

An address is checked where a socket is made for it, so a name that means another one a moment later, or a redirect,
leads nowhere else. Bodies come as they are, or unpacked piece by piece. Whatever aiohttp raises has a kind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from imagebert.lait.addresses import is_public
from imagebert.lait.failures import Failed

Url = URL
Response = aiohttp.ClientResponse

MOVED = {301, 302, 303, 307, 308}

_URL_LENGTH = 4_000  # characters
_LOOKUPS = 256  # names that are looked up at once, each by a thread
_CLOSING = 5.0  # seconds
_PIECE = 1 << 16  # bytes that are unpacked at once
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
_THIS_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Web:
    """Asks for URLs, one request each: no redirect is followed, no cookie kept, no proxy asked."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @asynccontextmanager
    async def get(self, url: Url) -> AsyncIterator[Response]:
        """An answer, of which the header has come.

        Raises:
            Exception: there is none; `failure_of` says of which kind that is.
        """
        async with self._session.get(url, allow_redirects=False) as response:
            try:
                yield response
            except BaseException:
                response.close()
                raise


@asynccontextmanager
async def open_web(user_agent: str, allow_private: bool) -> AsyncIterator[Web]:
    """What asks while the block runs. Closing it takes seconds at most.

    Args:
        allow_private: whether addresses that are not public may be asked
    """
    connector = aiohttp.TCPConnector(
        limit=0,  # turns are counted by whoever asks
        resolver=_Resolver(),
        ttl_dns_cache=None,
        force_close=True,  # what a server sends too much would be the next picture's; and few stay open
        socket_factory=partial(_socket, allow_private),
    )
    session = aiohttp.ClientSession(
        connector=connector,
        headers={
            "User-Agent": user_agent,
            "Accept": "image/jpeg,image/png,image/webp,image/*;q=0.8,*/*;q=0.5",
            "Accept-Encoding": "identity",
            "Connection": "close",
        },
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # whoever asks has one clock for all
        auto_decompress=False,
    )
    try:
        yield Web(session)
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(session.close(), _CLOSING)


def parse(text: str, base: Url | None = None) -> Url:
    """A URL that may be asked, without its fragment.

    Args:
        base: what a redirect's is relative to

    Raises:
        Failed: it may not.
    """
    if len(text) > _URL_LENGTH:
        raise Failed("bad_url", f"the URL has more than {_URL_LENGTH:,} characters")
    try:
        url = URL(text.strip())
        url = url if base is None else base.join(url)
        host, _ = url.raw_host, url.port
        url = url.with_fragment(None)
    except Exception:  # what its parser raises is no closed list
        raise Failed("bad_url", "the URL cannot be read") from None
    if url.scheme not in ("http", "https"):
        raise Failed("bad_url", "the URL is neither http nor https")
    if not host:
        raise Failed("bad_url", "the URL has no host")
    if url.raw_user is not None or url.raw_password is not None:
        raise Failed("bad_url", "the URL has a user's name or password")
    return url


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


def _look_up(
    host: str, port: int, family: int, loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[Any]]
) -> None:
    def settle(found: list[Any]) -> None:
        if future.done():
            return
        if found:
            future.set_result(found)
        else:
            future.set_exception(OSError("no address"))

    try:
        found = list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG))
    except (OSError, ValueError):  # a name that no name server would take
        found = []
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(settle, found)


# -------------------------------------------------------------------------------------------------------------- answers


class Moved(NamedTuple):
    """An answer that sends on."""

    to: Url
    status: int


def moved(response: Response) -> Moved:
    """Where an answer sends to. Raises: Failed: that may not be asked."""
    place = response.headers.get("Location")
    if place is None:
        raise Failed("bad_url", "the server sends on without saying where", response.status)
    return Moved(parse(place, response.url), response.status)


def retry_after(response: Response) -> float:
    """Seconds after which an answer says to come again, 1 where it says none."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        found = parsedate_to_datetime(text)
        return max(0.0, (found.replace(tzinfo=found.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 1.0


async def chunks(response: Response) -> AsyncIterator[bytes]:
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
                yield unpacker.decompress(data, _PIECE)
                data = unpacker.unconsumed_tail
    except zlib.error:
        raise Failed("bad_encoding", "its body is packed badly", response.status) from None
    if not unpacker.eof:
        raise Failed("cut_off", "its packed body ends before its end", response.status)


def failure_of(error: Exception) -> Failed:
    """The kind of what was raised instead of an answer.

    Raises:
        OSError: this machine is at its end, not the host.
    """
    number = getattr(error, "errno", None)
    if number in _THIS_MACHINE:
        raise OSError(
            number, f"{os.strerror(number)}: lower the connections, or raise what a process may have (ulimit -n)"
        ) from None
    match error:
        case aiohttp.ClientConnectorDNSError():
            return Failed("dns_failed", "its host has no address")
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return Failed("tls_failed", f"its host is not to be trusted ({type(error).__name__})")
        case aiohttp.ClientConnectorError(os_error=_Private()):
            return Failed("private_address", "its host's address is not public")
        case aiohttp.ClientConnectorError():
            why = os.strerror(number) if number else "none of its addresses answers"
            return Failed("connection_failed", f"its host cannot be reached ({why})")
        case aiohttp.ClientPayloadError():
            return Failed("cut_off", "its body ends before its end", 200)
        case aiohttp.ClientConnectionError() | OSError():
            return Failed("connection_lost", "its host closed the connection before it had answered")
        case aiohttp.InvalidURL():
            return Failed("bad_url", "the URL cannot be read")
    return Failed("bad_http", f"its host's answer is no HTTP ({type(error).__name__})")
