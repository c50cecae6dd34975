"""Pictures from their URLs to a shard: many hosts at once, each politely, and none of them believed.

A picture's seconds count from connecting to its last byte, redirects and a second try included: a host that drips costs
its own pictures and nobody else's. Its bytes are counted as they come, whatever the header says of them. What its first
bytes say of its kind and size decides whether the rest is taken.

What comes lies on disk at once (spool.py), and the shard is written from there in the order in which it was wanted
(shards.py), so the same answers make the same bytes. A call that is killed is made again and goes on.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections import Counter, deque
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imagebert.data.tars import BrokenTar, members
from imagebert.errors import UsageError
from imagebert.files import digest_of, open_regular
from imagebert.lait.asking import LATER, Asker, Clock
from imagebert.lait.failures import KINDS, Failed, check_size
from imagebert.lait.fetch_limits import FetchLimits
from imagebert.lait.opt_out import header_opt_out
from imagebert.lait.picture_head import HEAD_BYTES, Head, NoPicture, ends, read_head
from imagebert.lait.shards import Row, identity_of_shard, read_rows, write_shard
from imagebert.lait.spool import Body, DiskFailed, Spool
from imagebert.lait.web import MOVED, Moved, Response, Url, chunks, moved, open_web, parse, retry_after
from imagebert.lock import lock

__all__ = ["KINDS", "FetchLimits", "Wanted", "fetch_shard"]

_HOSTS_AT_WORK = 4  # for each connection: those that pause between two requests hold none
_SILENT_HOSTS = 50  # of which not one answers: it is this machine's network
_FIRST_LOOK = 4096  # bytes


class Wanted(NamedTuple):
    """Names a picture that is wanted.

    Attributes:
        key: 16 hexadecimal digits, its name in the shard
        url: where it is asked for
    """

    key: str
    url: str


def fetch_shard(
    wanted: Sequence[Wanted],
    shard: Path,
    limits: FetchLimits | None = None,
    blocked: Collection[str] = (),
    again: bool = False,
) -> Counter[str]:
    """Fetches pictures into NNNNN.tar and, beside it, NNNNN.parquet with a row for each; a shard that is there stays.

    What a killed call had fetched lies in a folder beside the shard, and is not asked for again.

    Args:
        shard: the tar, in a folder that exists
        limits: None: the defaults of `FetchLimits`
        blocked: hosts that are never asked, and none below them
        again: whether what a shard that is there lacks is asked for once more, where it may come another time

    Returns:
        How many pictures have each `status`, one of `KINDS`.

    Raises:
        UsageError: keys are none, or twice; the shard is there and holds others; another process fetches it.
        OSError: the disk or this machine's network fails.
    """
    limits = limits or FetchLimits()
    hosts = frozenset(blocked)
    _check(wanted, shard)
    folder = shard.with_name(f".{shard.stem}.spool")
    identity = digest_of([wanted, asdict(limits), sorted(hosts)])
    if not _is_whole(shard, wanted, identity) or (again and _lacks_any(shard)):
        folder.mkdir(exist_ok=True)
        with lock(folder / "lock", shard):
            is_whole = _is_whole(shard, wanted, identity)
            if not is_whole or (again and _lacks_any(shard)):
                with Spool(folder, identity) as spool:
                    if is_whole:
                        _fill(spool, shard)
                    _fetch([each for each in wanted if each.key not in spool.rows], limits, hosts, spool)
                    write_shard(shard, [spool.rows[each.key] for each in wanted], spool.picture, identity)
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


def _is_whole(shard: Path, wanted: Sequence[Wanted], identity: str) -> bool:
    """Whether a shard is there; what was fetched by other limits is fetched again."""
    if not shard.exists():
        return False
    if [(row.key, row.url) for row in read_rows(shard)] != [tuple(each) for each in wanted]:
        raise UsageError(f"{shard} holds other pictures than are wanted: remove it, or name another place")
    return identity_of_shard(shard) == identity


def _lacks_any(shard: Path) -> bool:
    """Whether a shard lacks what may come another time."""
    return not all(_is_final(row.status, row.http_status) for row in read_rows(shard))


def _fill(spool: Spool, shard: Path) -> None:
    """What a shard has for good, into the spool. Raises: OSError: the disk is full or fails."""
    rows = {row.key: row for row in read_rows(shard) if _is_final(row.status, row.http_status)}
    left = {key: row for key, row in rows.items() if key not in spool.rows}
    try:
        with open_regular(shard) as opened, suppress(BrokenTar):  # what is not there is asked for
            for member in members(opened, shard.stat().st_size):
                row = left.get(member.key)
                if row is not None and row.status == "success" and member.suffix == row.suffix:
                    opened.seek(member.offset)
                    spool.add(row, opened.read(member.size), final=True)
        for row in left.values():
            if row.status != "success":
                spool.add(row, b"", final=True)
    except DiskFailed as error:
        raise _disk_failed(spool, error) from None


def _disk_failed(spool: Spool, error: DiskFailed) -> OSError:
    cause = error.__cause__
    assert isinstance(cause, OSError)
    return OSError(cause.errno, f"writing to {spool.folder} failed: {cause.strerror}")


def _is_final(kind: str, status: int | None) -> bool:
    """Whether a picture would end so another time, too."""
    is_gone = kind == "http_status" and 400 <= (status or 0) < 500 and status not in LATER
    return is_gone or not KINDS[kind]


def _fetch(wanted: Sequence[Wanted], limits: FetchLimits, blocked: Collection[str], spool: Spool) -> None:
    """Raises: OSError: the disk or this machine's network fails."""

    async def fetch() -> None:
        with ThreadPoolExecutor(1) as writer:
            async with open_web(limits.user_agent, limits.allow_private) as web:
                await _Fetcher(Asker(web, limits, blocked), limits, spool, writer).fetch(wanted)

    try:
        asyncio.run(fetch())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, DiskFailed):
            raise _disk_failed(spool, error) from None
        raise error from None


class _Came(NamedTuple):
    """A picture, whose bytes are in its body."""

    head: Head
    content_type: str


class _Later(NamedTuple):
    """An answer that says to come again."""

    seconds: float
    status: int


class _Fetcher:
    """Fetches what is wanted, host by host, into a spool.

    Args:
        writer: a thread that writes: a slow disk stops no clock and no other picture
    """

    def __init__(self, asker: Asker, limits: FetchLimits, spool: Spool, writer: ThreadPoolExecutor) -> None:
        self._asker, self._limits, self._spool, self._writer = asker, limits, spool, writer
        self._at_work = asyncio.Semaphore(_HOSTS_AT_WORK * limits.connections)

    async def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Raises: ExceptionGroup: of DiskFailed or OSError; nothing else ends it."""
        queues: dict[str, deque[tuple[Wanted, Url]]] = {}
        for each in wanted:
            try:
                url = parse(each.url)
            except Failed as failed:
                self._note_failed(each, failed)
                continue
            queues.setdefault(url.raw_host or "", deque()).append((each, url))
        async with asyncio.TaskGroup() as group:
            for queue in queues.values():
                group.create_task(self._empty(queue))
        if not self._asker.answers and not self._spool.any_before and len(queues) >= _SILENT_HOSTS:
            raise OSError(errno.ENETUNREACH, f"none of {len(queues):,} hosts answers: is this machine's network up?")

    async def _empty(self, queue: deque[tuple[Wanted, Url]]) -> None:
        """Fetches one host's pictures."""

        async def work() -> None:
            while queue:
                each, url = queue.popleft()
                with closing(self._spool.body()) as body:
                    came: _Came | Failed
                    try:
                        came = await self._picture(url, body)
                    except Failed as failed:
                        came = failed
                    await asyncio.get_running_loop().run_in_executor(self._writer, self._note, each, came, body)

        async with self._at_work, asyncio.TaskGroup() as group:
            for _ in range(min(self._limits.per_host, len(queue))):
                group.create_task(work())

    def _note(self, wanted: Wanted, came: _Came | Failed, body: Body) -> None:
        """Into the spool, what became of a picture."""
        if isinstance(came, _Came):
            data, (head, kind) = body.read(), came
            if ends(data, head.suffix):
                digest = hashlib.sha256(data).hexdigest()
                size = head.width, head.height, len(data)
                row = Row(wanted.key, wanted.url, "success", 200, *size, digest, kind, head.suffix)
                self._spool.add(row, data, final=True)
            else:
                self._note_failed(wanted, Failed("cut_off", "the picture's own end is missing", 200, head))
        else:
            self._note_failed(wanted, came)

    def _note_failed(self, wanted: Wanted, failed: Failed) -> None:
        width, height = (failed.head.width, failed.head.height) if failed.head else (None, None)
        row = Row(wanted.key, wanted.url, failed.kind, failed.status, width, height, error_message=failed.why)
        self._spool.add(row, b"", final=_is_final(failed.kind, failed.status))

    async def _picture(self, url: Url, body: Body) -> _Came:
        """Raises: Failed: it does not come."""
        clock, redirects, waited = Clock(self._limits.seconds), 0, False
        while True:
            await self._asker.admit(url)
            body.clear()
            answer = await self._asker.ask(url, clock, partial(self._take, body=body))
            match answer:
                case _Came():
                    return answer
                case Moved(to, status):
                    redirects += 1
                    if redirects > self._limits.redirects:
                        raise Failed("too_many_redirects", f"it has more than {redirects - 1} redirects", status)
                    url = to
                case _Later(seconds, status):
                    if waited or seconds > self._limits.retry_seconds:
                        raise Failed("http_status", f"the server answers {status}", status)
                    waited = True
                    self._asker.host(url).hold(seconds)

    async def _take(self, response: Response, body: Body) -> _Came | Moved | _Later:
        """A picture's answer into its body; no more of it than shows that it is not to be taken.

        Raises:
            Failed: it is not.
            DiskFailed: the body cannot be written.
        """
        status, limits = response.status, self._limits
        if status in LATER:
            return _Later(retry_after(response), status)
        if status != 200 and status not in MOVED:  # of which what is said of robots is of the page of an error
            raise Failed("http_status", f"the server answers {status}", status)
        if word := header_opt_out(response.headers.getall("X-Robots-Tag", ()), limits.agent, datetime.now(UTC)):
            raise Failed("opted_out", f"X-Robots-Tag says {word}", status)
        if status in MOVED:
            return moved(response)
        too_large = Failed("too_large", f"it has more than {limits.picture_bytes:,} bytes", status)
        if (response.content_length or 0) > limits.picture_bytes:
            raise too_large
        no_size = Failed("no_picture", f"its bytes do not say its size, up to {HEAD_BYTES:,} of them", status)
        head, look_at = None, _FIRST_LOOK
        async for data in chunks(response):
            body.write(data)
            if body.size > limits.picture_bytes:
                raise too_large
            if head is None and body.size >= look_at:
                head, look_at = self._look(body), 2 * body.size
                if head is None and body.size >= HEAD_BYTES:
                    raise no_size
        if head is None and (head := self._look(body)) is None:
            raise no_size
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
        check_size(head, self._limits.side, self._limits.aspect)
        return head
