"""The connections of a page: how many there may be, how long each may take, what is logged of them, how it all ends.

uvicorn serves whoever comes for as long as they like. Here a request's head, its body and its answer have so many
seconds each; where there are as many connections as may be, the one that has waited longest without asking anything
makes room; a burst of log lines is summed up; and the end comes within seconds, whatever is half sent.

The gate of uvicorn: no other file imports it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagebert.config import UsageError

CONNECTIONS = 1024
SECONDS = {"head": 10, "body": 35, "answer": 120}
LINES, LINES_SECONDS = 5, 10
_GRACE, _END = 2, 4.5  # seconds after a signal: answers are waited for; the process is there at all
_BACKLOG = 256  # accepted at once, too


class _Connection(H11Protocol):
    """One that is dropped where it takes longer than SECONDS, or makes room for others.

    Args:
        waiting: those whose request is not there yet, the longest first; shared by all
        most: connections
    """

    def __init__(self, *arguments: Any, waiting: dict[_Connection, None], most: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._waiting, self._most = waiting, most
        self._stage = ""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        if len(self.connections) > self._most:
            next(iter(self._waiting)).drop()  # this one itself, where all others have asked something

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()

    def shutdown(self) -> None:
        if self._stage == "answer":
            self.cycle.keep_alive = False
        else:
            self.drop()

    def drop(self) -> None:
        """Ends it at once: `close` would wait for a reader that does not read."""
        self._waiting.pop(self, None)
        self.transport.abort()

    def _late(self) -> None:
        if self._stage == "head" and self.transport.get_write_buffer_size():  # the answer before is still on its way
            self._deadline = self.loop.call_later(SECONDS["answer"], self.drop)
        else:
            self.drop()

    def _look(self) -> None:
        """Gives a stage that has begun its seconds."""
        if self.conn.their_state is h11.SEND_BODY:
            stage = "body"
        elif self.cycle is not None and not self.cycle.response_complete:
            stage = "answer"
        else:
            stage = "head"
        if stage == self._stage or self.transport.is_closing():
            return
        self._stage = stage
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(SECONDS[stage], self._late)
        if stage == "head":
            self._waiting[self] = None
        else:
            self._waiting.pop(self, None)


class _FewLines(logging.Filter):
    """Lets LINES lines of a logger through in LINES_SECONDS; the next one says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._passed, self._left_out = -float("inf"), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        if time.monotonic() - self._since > LINES_SECONDS:
            if self._left_out:
                record.msg, record.args = f"{record.getMessage()} (before it {self._left_out:,} were left out)", ()
            self._since, self._passed, self._left_out = time.monotonic(), 0, 0
        self._passed += 1
        if self._passed == LINES:
            record.msg, record.args = f"{record.getMessage()} (more in the next {LINES_SECONDS} s are left out)", ()
        self._left_out += self._passed > LINES
        return self._passed <= LINES


class _Server(uvicorn.Server):
    """Says its address when it listens, and is gone within _END seconds of a signal."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"imagebert: open {self._address} in a browser; Ctrl-C ends", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A thread that works for minutes would be waited for.
        last = threading.Timer(_END, os._exit, [128 + sig])
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)


def run(app: Any, host: str, port: int, loggers: tuple[str, ...] = ()) -> None:
    """Serves until SIGINT or SIGTERM, with which it ends.

    Args:
        app: an ASGI application
        loggers: whose lines are limited, besides the server's own

    Raises:
        UsageError: the address cannot be used.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 2 * _BACKLOG
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard >= 0 else wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(16, min(CONNECTIONS, soft - 2 * _BACKLOG))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(_Connection, waiting={}, most=most),  # type: ignore[arg-type]  # called as a class is
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE,
    )
    for name in ("uvicorn.error", "asyncio", *loggers):
        logging.getLogger(name).addFilter(_FewLines())
    try:
        listening = config.bind_socket()
    except (SystemExit, OverflowError):  # uvicorn's answer to an address in use; no port
        raise UsageError(f"{host}:{port} cannot be used, something may be there already: take another `port`") from None
    name = f"[{host}]" if ":" in host else host
    _Server(config, f"http://{name}:{listening.getsockname()[1]}").run([listening])
