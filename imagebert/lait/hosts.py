"""Whose turn it is to ask a host: few requests at once, and a pause between their beginnings.

Whoever waits for a host holds nothing that another host would need, so a slow one makes only its own pictures wait. A
host that fails time after time, or takes all its time, is given up with whatever is left of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


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
