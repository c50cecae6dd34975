"""Asking hosts politely: whose turn it is, what robots.txt says, and how long an answer may take.

One clock counts all requests for a picture, and stands still while its host's turn is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import TypeVar

from imagebert.lait.failures import Failed
from imagebert.lait.fetch_limits import FetchLimits
from imagebert.lait.hosts import Host, is_blocked
from imagebert.lait.robots import ROBOTS_BYTES, Rules
from imagebert.lait.spool import DiskFailed
from imagebert.lait.web import MOVED, Moved, Response, Url, Web, chunks, failure_of, moved

LATER = {429, 503}  # a host has too much to do

_HOST_FAILED = {"dns_failed", "connection_failed", "tls_failed", "connection_lost", "timed_out"}
# Why robots.txt cannot be read, and the picture beside it neither.
_SAME_FOR_PICTURES = {"bad_url", "dns_failed", "connection_failed", "tls_failed", "private_address", "host_given_up"}
_ROBOTS_REDIRECTS = 5  # RFC 9309
_ROBOTS_CACHE = 8 << 20  # bytes of robots.txt whose rules are kept, which take up to twenty times as many
_RULES = 1 << 10  # bytes, about, that the rules of an empty one take

T = TypeVar("T")


class Clock:
    """Seconds that a picture, or a robots.txt, still has."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        """A block in which they pass; raises TimeoutError when they are over."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                yield
        finally:
            self._left -= time.monotonic() - begun


class Asker:
    """Asks hosts.

    Args:
        blocked: hosts that are never asked, in lower case, and none below them

    Attributes:
        answers: how many there were
    """

    def __init__(self, web: Web, limits: FetchLimits, blocked: Collection[str]) -> None:
        self.answers = 0
        self._web, self._limits, self._blocked = web, limits, blocked
        self._connections = asyncio.Semaphore(limits.connections)
        self._hosts: dict[str, Host] = {}
        self._robots = OrderedDict[Url, tuple[Rules | Failed | None, int]]()  # the one asked longest ago is first
        self._robots_bytes = 0
        self._reading: dict[Url, asyncio.Lock] = {}

    def host(self, url: Url) -> Host:
        """Whom a URL is asked of."""
        name = url.raw_host or ""
        if name not in self._hosts:
            self._hosts[name] = Host(self._connections, self._limits.per_host, self._limits.pause)
        return self._hosts[name]

    async def ask(self, url: Url, clock: Clock, take: Callable[[Response], Awaitable[T]]) -> T:
        """What `take` makes of an answer.

        Args:
            take: raises Failed where it is not wanted

        Raises:
            Failed: there is none, or `take` says so.
            DiskFailed: `take` says so.
            OSError: this machine is at its end, not the host.
        """
        host = self.host(url)
        self._give_up(host)  # without waiting for a turn
        async with host.turn():
            self._give_up(host)
            try:
                async with clock.runs(), self._web.get(url) as response:
                    self.answers += 1
                    answer, status = await take(response), response.status
            except DiskFailed:
                raise
            except Failed as failed:
                host.note(failed=failed.kind in _HOST_FAILED or failed.status in LATER)
                raise
            except TimeoutError:
                host.note(failed=True)
                raise Failed("timed_out", f"it takes longer than {self._limits.seconds:g} s") from None
            except Exception as error:
                found = failure_of(error)
                host.note(failed=found.kind in _HOST_FAILED)
                raise found from None
            host.note(failed=status in LATER)
        return answer

    def _give_up(self, host: Host) -> None:
        """Raises: Failed: a host is not asked any more."""
        if host.is_given_up(self._limits.host_failures, self._limits.host_seconds):
            raise Failed("host_given_up", "its host failed time after time, or took all its time")

    async def admit(self, url: Url) -> None:
        """Asks for robots.txt where it is not known.

        Raises:
            Failed: the URL may not be asked.
        """
        if is_blocked(url.raw_host or "", self._blocked):
            raise Failed("blocked", "its host is blocked")
        if not self._limits.follow_robots:
            return
        rules = await self._rules(url.origin())
        if isinstance(rules, Failed):
            raise Failed(rules.kind, rules.why, rules.status)
        if rules is not None and not rules.allow(str(url)):
            raise Failed("robots", "robots.txt disallows it")

    async def _rules(self, origin: Url) -> Rules | Failed | None:
        """None: all is allowed."""
        async with self._reading.setdefault(origin, asyncio.Lock()):
            rules, size = self._robots.pop(origin, (None, -1))
            if size < 0:
                rules, size = await self._read_robots(origin)
                self._robots_bytes += size
            self._robots[origin] = rules, size
            while self._robots_bytes > _ROBOTS_CACHE:
                _, (_, size) = self._robots.popitem(last=False)
                self._robots_bytes -= size
        if isinstance(rules, Rules):
            host = self.host(origin)
            host.pause = max(host.pause, rules.pause)
        return rules

    async def _read_robots(self, origin: Url) -> tuple[Rules | Failed | None, int]:
        """What robots.txt says, or why it cannot be read, and how many bytes are kept."""
        clock, url = Clock(self._limits.seconds), origin.with_path("/robots.txt")
        try:
            for _ in range(1 + _ROBOTS_REDIRECTS):
                answer = await self.ask(url, clock, _take_robots)
                if isinstance(answer, bytes):
                    return Rules(answer, self._limits.agent), _RULES + len(answer)
                if answer is None:
                    return None, 0
                url = answer.to
        except Failed as failed:
            if failed.kind in _SAME_FOR_PICTURES and url.origin() == origin:
                return failed, 0
            return Failed("robots_unreachable", f"robots.txt cannot be read: {failed.why}", failed.status), 0
        return None, 0


async def _take_robots(response: Response) -> bytes | Moved | None:
    """The text of a robots.txt; None: there is none, so all is allowed. Raises: Failed: that cannot be known."""
    if response.status in MOVED:
        return moved(response)
    if 400 <= response.status < 500:
        return None
    if not 200 <= response.status < 300:
        raise Failed("http_status", f"the server answers {response.status}", response.status)
    data = bytearray()
    async for chunk in chunks(response):
        data += chunk
        if len(data) > ROBOTS_BYTES:
            break
    return bytes(data)
