"""Who writes: one lock for stores, runs and evaluations, so that writers exclude each other on one machine or several.

A lock is a file of one line that says whose it is and carries a beat, which its owner's thread moves every `BEAT`
seconds. The owner also holds flock(2) on it, where the file system has that. Who wants a lock that has an owner asks:

- Is it an attempt of the same Slurm job? A younger attempt takes over at once, for Slurm starts it when the older one
  has ended, or when it has given the older one's node up. An older one stops: it has been given up.
- Is it of this machine, by host and boot? The kernel knows: it lets go of an flock when its process ends, however that
  ends, in any container, and a copied lock file has none. Without flock: is there a process of that number that began
  when the owner did (where process numbers mean the same, in one PID namespace)?
- Else the beat is watched for `WATCH` seconds. It moves: the owner lives. It stands still: it is dead. A refused flock
  of another machine proves nothing by itself, for an NFS server keeps those of a dead client for its lease, or for
  ever, but four times as long is waited. A host of the same name that boots anew may be another one: watched too.

To take over is to replace the file, not to write into it, wherever the old owner might still beat: its beats go to a
file that has no name any more. Each owner looks at each beat, and whenever `check` is called, whether the file that has
the name is still its own; if not, it has lost. So what was taken for dead (a stopped process, a machine without its
network) and wakes up ends before it writes what others would read. Files are opened anew for each look, which is when
NFS asks its server, and beats are flushed.

What remains: where no flock reaches from one taker to another, one that stops for a second between its look and its
claim may claim what the other has meanwhile; both go on until the other's next look, at most a beat later. An owner
that wakes up may append to its log until its next look. One that cannot run Python, or reach the disk, for `WATCH`
seconds may be taken over from another machine, and then ends. `release` looks before it removes the file; who takes
over between the two puts its own back at its next beat.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import logging
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from imagebert.errors import UsageError
from imagebert.files import parse_json
from imagebert.launch import find_job

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds
WATCH = 35.0  # three beats, and what an NFS server may take
SETTLE = 1.0  # until who took a lock looks whether it stands

_BYTES = 512  # fixed: a beat is written in place, also where the disk is full
# What the caller can do something about; anything else the disk has.
_CALLERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_CALLERS |= {errno.ENAMETOOLONG, errno.ENXIO, errno.ETXTBSY}
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class TakenOver(UsageError):
    """Another process has the lock now: what it was for is no longer this one's to write. Exit code 2: no requeue."""


@dataclass(frozen=True)
class _Owner:
    host: str
    boot: str
    space: str  # what process numbers are counted in
    process: int
    started: int  # clock ticks after the boot
    flock: bool  # whether it holds one
    job: str
    attempt: int
    since: str  # for people
    token: str

    def line(self, beat: int) -> bytes:
        # Digits of a fixed number: what is read while it is written is still a line.
        text = json.dumps({**asdict(self), "beat": f"{beat:012d}"})
        return text.encode().ljust(_BYTES - 1) + b"\n"

    def __str__(self) -> str:
        job = f" (job {self.job}, attempt {self.attempt + 1})" if self.job else ""
        return f"process {self.process} on {self.host}{job} since {self.since}"


class Held:
    """A lock that this process has.

    Attributes:
        lost: whether another process has it now, as far as the last look could tell
    """

    def __init__(self, path: Path, what: str, descriptor: int, owner: _Owner) -> None:
        self.path, self.what, self.lost = path, what, False
        self._descriptor, self._owner, self._by = descriptor, owner, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"lock of {path}", daemon=True)
        _all.add(self)
        self._thread.start()

    def check(self) -> None:
        """Looks at the file: to be called before what has been written is given its name.

        Raises:
            TakenOver: it is another's.
        """
        self.look()
        if self.lost:
            raise TakenOver(
                f"another process has taken {self.what} over, {self._by}: this one ends and leaves it to that"
            )

    def look(self) -> bool:
        """Whether the file is there; sets `lost` where it is another's."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                found = _parse(os.pread(descriptor, _BYTES + 1, 0), self.path)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return False
        except (OSError, UsageError):  # the disk may answer at the next beat; what is no lock is nobody's claim
            return True
        if found is not None and found.token != self._owner.token:
            self.lost, self._by = True, str(found)
        return True

    def _live(self) -> None:
        beat, pause = 0, SETTLE
        while not self._over.wait(pause):
            pause, beat = BEAT, beat + 1
            there = self.look()
            if self.lost:
                log.warning("another process has taken %s over: %s", self.what, self._by)
                return
            with suppress(OSError):  # a full or slow disk must not end the work
                if not there:  # somebody removed it by hand: it is still in use
                    old = self._descriptor
                    self._descriptor, self._owner = _create(self.path, self._owner, anew=True)
                    os.close(old)
                _write(self._descriptor, self._owner.line(beat))

    def release(self) -> None:
        """Removes the file, if it is this process'. Does not fail: what stays behind is a dead owner's."""
        if os.getpid() != self._owner.process:  # a forked child leaves the block too
            return
        self._over.set()
        self._thread.join(BEAT)
        with suppress(OSError):
            if token_of(self.path) == self._owner.token:
                os.unlink(self.path)  # with the flock in hand: who waits for that sees that the name has gone
        if not self._thread.is_alive():  # else it hangs in a write, and its number must not become another file's
            os.close(self._descriptor)
            self._descriptor = -1


_all: weakref.WeakSet[Held] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked child must not keep the flock of an owner that has died."""
    for held in list(_all):
        with suppress(OSError):
            os.close(held._descriptor)
        held._descriptor = -1


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def lock(path: Path, what: object, cure: str = "name another place", wait: bool = False) -> Iterator[Held]:
    """Holds the lock file `path`, in a folder that exists, while the block runs.

    Args:
        what: is written, for sentences
        cure: what else a person could do than wait for the other process, or stop it
        wait: for as long as a living owner has it, instead of refusing

    Raises:
        UsageError: a living process has it, or a younger attempt of this job; or the folder cannot be written.
        OSError: the disk is full or failing.
    """
    try:
        descriptor, owner = _acquire(path, str(what), cure, wait)
    except OSError as error:
        if error.errno in _CALLERS:
            raise UsageError(f"cannot write to {path.parent}: {error.strerror} ({path.name})") from None
        raise OSError(error.errno, f"locking {what} failed at {path}: {error.strerror or error}") from None
    held = Held(path, str(what), descriptor, owner)
    try:
        yield held
    finally:
        held.release()


def _acquire(path: Path, what: str, cure: str, wait: bool) -> tuple[int, _Owner]:
    me = _myself()
    seen, token, since, told, pause = b"", "", time.monotonic(), False, SETTLE / 100
    begun = since
    while True:
        descriptor, flocked = _open(path)
        keep = False
        try:
            if not _has_name(descriptor, path):  # released or taken over since it was opened
                continue
            data = os.pread(descriptor, _BYTES + 1, 0)
            try:
                owner = _parse(data, path)
            except UsageError:
                if time.monotonic() - since > SETTLE:
                    raise
                time.sleep(pause)  # it is just being written
                continue
            beats = bool(token) and owner is not None and owner.token == token and data != seen
            if data != seen:
                seen, token, since = data, owner.token if owner else "", time.monotonic()
            silent = time.monotonic() - since
            alive = _judge(owner, me, what, flocked, beats, silent)
            if alive is not False:
                theirs = f"{what}: {owner or 'one that has just begun'}"
                if alive and not wait:
                    raise UsageError(f"another process is writing {theirs}; wait for it to end, stop it, or {cure}")
                if not told and alive:
                    told = True
                    log.warning("another process is writing %s; waiting for its end", theirs)
                elif not told and silent > SETTLE:
                    told = True
                    log.warning(
                        "another process is or was writing %s; waiting %.0f s or more to see whether it lives",
                        *(theirs, WATCH),
                    )
                time.sleep(pause)
                pause = min(1.5 * pause, SETTLE)
                continue
            if owner is not None:
                log.warning("taking over %s: %s has ended without a word", what, owner)
            # In place where nobody else can be writing into this very file; that needs no room either.
            if flocked and (owner is None or (owner.flock and _here(owner, me))):
                me = replace(me, flock=True)
                try:
                    _write(descriptor, me.line(0))
                except OSError:
                    if owner is None and _has_name(descriptor, path):
                        path.unlink()
                    raise
                keep = True
                return descriptor, me
            try:
                new, me = _create(path, me)
            except FileNotFoundError:
                if not path.parent.is_dir():
                    raise
                continue  # another taker has cleared it away: it is first
        except OSError as error:
            if error.errno != errno.ESTALE or time.monotonic() - begun > WATCH:
                raise
            time.sleep(pause)  # a file of NFS that was removed from another machine: there is another now, or none
            continue
        finally:
            if not keep:
                os.close(descriptor)
        if flocked is None:  # two takers at once: the later one's stands
            time.sleep(SETTLE)
            if token_of(path) != me.token:
                os.close(new)
                continue
        return new, me


def _judge(
    owner: _Owner | None, me: _Owner, what: str, flocked: bool | None, beats: bool, silent: float
) -> bool | None:
    """Whether an owner lives; None: that will be seen.

    Args:
        flocked: whether the flock is this process' now; None: there are none
        beats: whether its beat has moved since the last look
        silent: seconds since it did

    Raises:
        UsageError: it is a younger attempt of this job.
    """
    if owner is None:  # refused: it is just being taken
        return False if flocked is not False else None if silent < 5 * SETTLE else True
    if owner.job and owner.job == me.job and owner.attempt != me.attempt:
        if owner.attempt > me.attempt:
            raise UsageError(
                f"a younger attempt of this job has taken {what} over ({owner}): this one, attempt {me.attempt + 1}, "
                "ends and leaves it to that"
            )
        return False
    if _here(owner, me):
        if owner.flock and flocked:
            return False
        runs = _runs(owner) if owner.space == me.space else None
        if owner.flock and flocked is False:
            # Where the owner has ended, another taker has the flock, and will be in the file in a moment.
            return None if runs is False and silent < SETTLE else True
        if runs is not None:
            return runs
    if beats:
        return True
    return False if silent > (4 * WATCH if flocked is False else WATCH) else None


def _here(owner: _Owner, me: _Owner) -> bool:
    # Neither alone: names come twice, and copies of a virtual machine have one boot.
    return (owner.host, owner.boot) == (me.host, me.boot)


def _runs(owner: _Owner) -> bool:
    """Whether its process is there; of this machine and this PID namespace."""
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    started = _started(owner.process)
    return started in (0, owner.started)


def _myself() -> _Owner:
    job, attempt = find_job(os.environ)
    return _Owner(
        host=_short(os.uname().nodename),
        boot=_first_line("/proc/sys/kernel/random/boot_id"),
        space=_space(),
        process=os.getpid(),
        started=_started(os.getpid()),
        flock=False,
        job=_short(job),
        attempt=attempt,
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        token=secrets.token_hex(8),
    )


def _short(text: str) -> str:
    return text.encode("ascii", "replace").decode()[:64]


def _started(process: int) -> int:
    """When a process began; 0: that cannot be known."""
    after_name = _first_line(f"/proc/{process}/stat").rpartition(")")[2].split()  # a name may hold anything
    return int(after_name[19]) if len(after_name) > 19 else 0


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").split("\n")[0]
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


# ----------------------------------------------------------------------------------------------------------- the file


def _open(path: Path) -> tuple[int, bool | None]:
    """The file, made where it is missing, and whether its flock could be had; None: there are none here.

    Raises:
        UsageError: another user's, or no file of ours.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        if path.exists():
            raise UsageError(
                f"{path} is another user's lock, who is or was writing there: ask them, or remove it when they are done"
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is no lock of this program: move it away")
    return descriptor, _flock(descriptor)


def _flock(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            os.close(descriptor)
            raise
        return None
    return True


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _parse(data: bytes, path: Path) -> _Owner | None:
    """Whose a lock is; None: nobody's.

    Raises:
        UsageError: it is none.
    """
    if not data.strip(b"\0"):  # just made, or never written for a power cut
        return None
    foreign = UsageError(f"{path} is damaged, or no lock of this program: remove it if nothing writes there")
    if len(data) != _BYTES:
        raise foreign
    try:
        content = parse_json(data, str(path))
    except UsageError:
        raise foreign from None
    kinds = {field.name: {"str": str, "int": int, "bool": bool}[str(field.type)] for field in fields(_Owner)}
    if not isinstance(content, dict) or content.keys() != kinds.keys() | {"beat"}:
        raise foreign
    if any(type(content[name]) is not kind for name, kind in kinds.items()) or not re.fullmatch(
        r"[0-9a-f]{16}", content["token"]
    ):
        raise foreign
    return _Owner(**{name: content[name] for name in kinds})


def token_of(path: Path) -> str:
    """The token in a lock file, read anew; empty: there is none."""
    try:
        with path.open("rb") as file:
            owner = _parse(file.read(_BYTES + 1), path)
    except (OSError, UsageError):
        return ""
    return owner.token if owner else ""


def _write(descriptor: int, line: bytes) -> None:
    if os.pwrite(descriptor, line, 0) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)


def _create(path: Path, owner: _Owner, anew: bool = False) -> tuple[int, _Owner]:
    """Puts an owner's own file, with its flock where there are any, in the place of what is there.

    Args:
        anew: only where there is none

    Raises:
        OSError: there is one (`anew`), there is no room, or another taker removed this one before it had its name.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):  # of takers that were killed
        left.unlink(missing_ok=True)
    part = path.with_name(f"{path.name}.{owner.token}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        owner = replace(owner, flock=_flock(descriptor) is True)
        _write(descriptor, owner.line(0))
        if anew:
            os.link(part, path)
        else:
            os.replace(part, path)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        part.unlink(missing_ok=True)
    return descriptor, owner
