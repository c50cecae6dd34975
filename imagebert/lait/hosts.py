"""Whose turn it is to ask a host: few requests at once, and a pause between their beginnings.

Whoever waits for a host holds nothing that another host would need, so a slow one makes only its own pictures wait. A
host that fails time after time, or takes all its time, is given up with whatever is left of it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

import idna

from imagebert.errors import UsageError

_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)*|[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)


def hosts_of(lines: Iterable[str]) -> tuple[str, ...]:
    """The hosts of a list, sorted, in lower case; what is behind a # is a comment.

    Raises:
        UsageError: a line is no name of a host.
    """
    found = set[str]()
    for line in lines:
        name = line.partition("#")[0].strip().strip(".").removeprefix("*.")
        if not name:
            continue
        if _NAME.fullmatch(name) is None:
            raise UsageError(
                f"{line.strip()!r} is no name of a host to block: give a name such as example.org, without http and "
                "port; it stands for those below it, too"
            )
        try:
            found.add(name.lower() if name.isascii() else idna.encode(name, uts46=True).decode())
        except idna.IDNAError:
            raise UsageError(f"{name!r} is no name of a host to block: give it as browsers do") from None
    return tuple(sorted(found))


def is_blocked(host: str, blocked: Collection[str]) -> bool:
    """Whether a host, or one that it is below, is among those."""
    parts = host.rstrip(".").lower().split(".")
    return any(".".join(parts[at:]) in blocked for at in range(len(parts)))


class Host:
    """Turns at one host.

    Args:
        connections: of all hosts, each of which a request takes while it runs
        at_once: requests to this host
        pause: seconds from the beginning of a request to the next one's
    """

    def __init__(self, connections: asyncio.Semaphore, at_once: int, pause: float) -> None:
        self.pause = pause
        self._connections, self._slots = connections, asyncio.Semaphore(at_once)
        self._gate = asyncio.Lock()  # who has it is the next to begin
        self._free_at = 0.0
        self._failures = 0  # one after the other
        self._begun: float | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A request's time, after its turn has come."""
        async with self._slots:
            async with self._gate:
                while (wait := self._free_at - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                await self._connections.acquire()
                now = time.monotonic()
                self._free_at = max(self._free_at, now + self.pause)
                self._begun = self._begun or now
            try:
                yield
            finally:
                self._connections.release()

    def hold(self, seconds: float) -> None:
        """Nobody begins for so long: the host has asked for that."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)

    def note(self, failed: bool) -> None:
        """How a request ended: whether the host did not answer, or said that it has too much to do."""
        self._failures = self._failures + 1 if failed else 0

    def is_given_up(self, failures: int, seconds: float) -> bool:
        """Whether it has failed so many times without a break, or has been asked for so long."""
        late = self._begun is not None and time.monotonic() - self._begun > seconds
        return late or self._failures >= failures
