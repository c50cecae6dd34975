"""Who writes: owners that live, died, beat elsewhere, are older or younger attempts; and what each of them is told."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebert import lock as module
from imagebert.errors import UsageError
from imagebert.lock import lock, token_of
from tests.disks import make_read_only, small_disk

BEAT, WATCH, SETTLE = 0.1, 0.6, 0.1

# Holds a lock, says so, and waits to be killed or told to end.
HOLDER = f"""
import pathlib, sys
from imagebert import lock
lock.BEAT, lock.WATCH, lock.SETTLE = {BEAT}, {WATCH}, {SETTLE}
def hold():
    with lock.lock(pathlib.Path(sys.argv[1]), "the store") as held:
        print("held", flush=True)
        sys.stdin.readline()
        held.check()
        print("kept", flush=True)
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BEAT", BEAT), ("WATCH", WATCH), ("SETTLE", SETTLE)):
        monkeypatch.setattr(module, name, value)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@contextlib.contextmanager
def holder(path: Path, before: str = "", **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    command = [sys.executable, "-c", HOLDER + before + "\nhold()", str(path)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, env=os.environ | env, text=True, **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def change(path: Path, **values: object) -> None:
    """Another owner's file in the place of this one, as from another machine."""
    line = json.dumps(content(path) | values).ljust(511) + "\n"
    new = path.with_name("new")
    new.write_text(line)
    new.replace(path)


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """A living owner on another machine."""
    over = threading.Event()

    def beat() -> None:
        number = 1000
        while not over.wait(BEAT):
            number += 1
            with path.open("r+b") as file:
                file.write((json.dumps(content(path) | {"beat": f"{number:012d}"}).ljust(511) + "\n").encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The lock of an owner that was killed on another machine."""
    path = tmp_path / ".lock"
    with holder(path) as process:
        process.kill()
        process.wait()
    change(path, host="elsewhere", process=1)
    return path


def taken(path: Path, **options: Any) -> float:
    """Seconds that it took to have the lock."""
    begun = time.monotonic()
    with lock(path, "the store", **options) as held:
        seconds = time.monotonic() - begun
        held.check()
        assert content(path)["process"] == os.getpid()
    assert not path.exists()
    return seconds


def test_a_line_of_fixed_length_that_is_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path, "the store") as held:
        first = content(path)
        time.sleep(3 * BEAT)
        held.check()
        assert path.stat().st_size == 512
        later = content(path)
        assert int(later.pop("beat")) > int(first.pop("beat"))
        assert later == first
        stat = Path("/proc/self/stat").read_text()
        assert first["started"] == int(stat[stat.rindex(")") :].split()[20])
    assert list(tmp_path.iterdir()) == []
    assert not any("lock of" in thread.name for thread in threading.enumerate())


def test_the_longest_names_fit() -> None:
    me = module._myself()
    longest = {"host": "é" * 99, "job": "é" * 99, "space": "pid:[4026531836]", "process": 2**22, "started": 2**62}
    short = {name: module._short(v) if name in ("host", "job") else v for name, v in longest.items()}
    assert len(module.replace(me, **short).line(10**11)) == 512  # type: ignore[arg-type]


def test_a_living_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1") as process:
        host = os.uname().nodename
        with (
            pytest.raises(
                UsageError,
                match=rf"^another process is writing the store: process {process.pid} on {host} \(job 77, attempt 2\) "
                r"since .*; wait for it to end, stop it, or name another place$",
            ),
            lock(path, "the store"),
        ):
            pass
        out, err = process.communicate("\n")
        assert (out, process.returncode) == ("kept\n", 0), err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_one_is_taken_over_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        assert taken(path) < WATCH
    assert f"taking over the store: process {process.pid} on " in caplog.text


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """Nor does it remove it, where it leaves the block."""
    path = tmp_path / ".lock"
    forks = """
import os, time
before = sys.stdin
class Stdin:
    def readline(self):
        if os.fork() == 0:
            return
        os.wait()
        if (child := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        before.readline()
sys.stdin = Stdin()
"""
    with holder(path, forks) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"  # the first child, at its end
        child = int(process.stdout.readline())
        with pytest.raises(UsageError, match=f"process {process.pid} on"), lock(path, "the store"):
            pass
        process.kill()
        process.wait()
        assert taken(path) < WATCH
        os.kill(child, signal.SIGKILL)  # it was there all the time


def test_a_copied_lock_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with lock(tmp_path / ".lock", "the store"):
        (tmp_path / "copy/.lock").write_bytes((tmp_path / ".lock").read_bytes())
        assert taken(tmp_path / "copy/.lock") < WATCH


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"boot": "another"}])
def test_one_of_another_machine_that_beats_is_left_alone(left: Path, other: dict[str, str]) -> None:
    change(left, host=os.uname().nodename)
    change(left, **other)
    with beating(left), pytest.raises(UsageError, match=r"another process is writing the store: process 1 on "):
        taken(left)


def test_one_of_another_machine_that_does_not_is_watched_then_taken_over(
    left: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert WATCH < taken(left) < 2 * WATCH + 1
    messages = [record.getMessage() for record in caplog.records]
    assert [m.split(":")[0] for m in messages] == [
        "another process is or was writing the store",
        "taking over the store",
    ]


def test_a_flock_that_a_server_keeps_for_a_dead_machine_is_waited_for_longer(left: Path) -> None:
    with left.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert taken(left) > 4 * WATCH


@pytest.mark.parametrize("host", ["elsewhere", os.uname().nodename])
def test_a_younger_attempt_takes_over_and_the_older_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    path = tmp_path / ".lock"
    with holder(path, SLURM_JOB_ID="77") as older:
        if host == "elsewhere":
            change(path, host=host)
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with lock(path, "the store") as held:
            number = path.stat().st_ino
            time.sleep(3 * BEAT)
            out, err = older.communicate("\n")
            assert out == ""
            assert "TakenOver: another process has taken the store over, process" in err
            assert "(job 77, attempt 2)" in err
            held.check()  # the older one has neither written into it nor removed it
            assert content(path)["attempt"] == 1
            assert path.stat().st_ino == number
        assert list(tmp_path.iterdir()) == []


def test_an_older_attempt_ends_where_a_younger_one_was(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    change(left, job="77", attempt=3)
    before = left.read_bytes()
    with pytest.raises(UsageError, match=r"a younger attempt of this job .*attempt 4.*this one, attempt 1, ends"):
        taken(left)
    assert left.read_bytes() == before


def test_another_job_is_no_older_attempt(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    change(left, job="77", attempt=3)
    assert taken(left) > WATCH


def test_a_stopped_owner_that_wakes_up_has_lost(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        process.send_signal(signal.SIGSTOP)
        change(path, host="elsewhere", flock=False)
        with lock(path, "the store") as held:
            process.send_signal(signal.SIGCONT)
            _, err = process.communicate("\n")
            assert "TakenOver" in err
            held.check()


def test_who_was_removed_by_hand_comes_back(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path, "the store") as held:
        token = token_of(path)
        path.unlink()
        time.sleep(4 * BEAT)
        held.check()
        assert token_of(path) == token
        with pytest.raises(UsageError, match=f"process {os.getpid()} on"), lock(path, "the store"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_a_living_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        threading.Timer(0.5, lambda: print(file=process.stdin, flush=True)).start()
        assert taken(path, wait=True) > 0.3
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert f"another process is writing the store: process {process.pid} on" in said[0]
    assert said[0].endswith("; waiting for its end")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process' number and its beginning tell."""

    def missing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / ".lock"
    refuse = f"import os\ndef no(*_): raise OSError({number}, '')\nlock.fcntl.flock = no\n"
    monkeypatch.setattr(fcntl, "flock", missing)
    assert taken(path) < WATCH
    with holder(path, refuse) as process:
        with pytest.raises(UsageError, match=f"process {process.pid} on"), lock(path, "the store"):
            pass
        process.kill()
        process.wait()
        assert taken(path) < WATCH
    with holder(path, refuse) as process:  # of a number that another process has now
        change(path, started=content(path)["started"] - 1)
        assert taken(path) < WATCH
    with holder(path, refuse) as process:  # in another container
        change(path, space="pid:[1]")
        process.kill()
        process.wait()
        assert taken(path) > WATCH


@pytest.mark.parametrize("flocks", [True, False])
@pytest.mark.parametrize("dead", [True, False])
def test_of_many_takers_at_once_one_goes_on(tmp_path: Path, left: Path, flocks: bool, dead: bool) -> None:
    """Six processes, again and again; where the work is done, nobody else is."""
    if not dead:
        left.unlink()
    worker = f"""
import os, pathlib, sys, time
from imagebert import lock
from imagebert.errors import UsageError
lock.BEAT, lock.WATCH, lock.SETTLE = 0.5, 0.5, 0.2
if not {flocks}:
    def no(*_): raise OSError(37, '')
    lock.fcntl.flock = no
path, mark, count = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 0
print("ready", flush=True); sys.stdin.readline()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        with lock.lock(path, "x") as held:
            mark.mkdir()
            time.sleep(0.02)
            mark.rmdir()
            count += 1
    except UsageError as error:
        assert "another process is writing" in str(error), error
        time.sleep(0.01)
print(count)
"""
    command = [sys.executable, "-c", worker, str(left), str(tmp_path / "mark")]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    running = [subprocess.Popen(command, text=True, **pipes) for _ in range(6)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        print(file=process.stdin, flush=True)
    ends = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * len(running), ends
    assert sum(int(out) for out, _ in ends) > 1
    assert list(tmp_path.iterdir()) == []


def test_what_was_removed_while_it_was_opened_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner ends between another's opening of the file and its flock."""
    path = tmp_path / ".lock"
    flock, calls = module._flock, 0

    def late(descriptor: int) -> bool | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
        return flock(descriptor)

    monkeypatch.setattr(module, "_flock", late)
    taken(path)
    assert calls == 2


def test_what_is_no_lock_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    for text in ("my notes", "{}", "[" * 512, json.dumps({"host": 1}).ljust(512), "x" * 512):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"\.lock is damaged, or no lock of this program: remove it if"):
            taken(path)
        assert path.read_text() == text
    path.unlink()
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere")):
        make()
        with pytest.raises(UsageError, match=r"no lock of this program: move it away|cannot write to"):
            taken(path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(b"")  # never written, for a power cut
    taken(path)
    path.write_bytes(bytes(512))
    taken(path)


def test_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "Not a directory"), (tmp_path / "nowhere", "No such file")):
        with pytest.raises(UsageError, match=f"cannot write to {folder}: {reason}"):
            taken(folder / ".lock")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:100], at))
    with pytest.raises(OSError, match=r"locking the store failed at .*/\.lock: No space left on device"):
        taken(tmp_path / ".lock")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with lock(tmp_path / ".lock", "the store") as held:
        monkeypatch.setattr(os, "pwrite", full)
        time.sleep(3 * BEAT)
        held.check()
        assert held._thread.is_alive()


def test_disks_that_are_full_or_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with lock(disk / ".lock", "the store") as held:
            with contextlib.suppress(OSError):
                (disk / "large").write_bytes(bytes(1 << 20))
            first = content(disk / ".lock")["beat"]
            time.sleep(4 * BEAT)
            held.check()
            assert content(disk / ".lock")["beat"] > first  # in place: that needs no room
        with contextlib.suppress(OSError):
            (disk / "larger").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match=r"locking the store failed at .*/\.lock: No space left on device"):
            taken(disk / ".lock")
        (disk / "large").unlink()
        with holder(disk / ".lock") as process:
            process.kill()
            process.wait()
        make_read_only(disk)
        with pytest.raises(UsageError, match=r"cannot write to .*disk: Read-only file system"):
            taken(disk / ".lock")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_users_lock_is_not_taken_over() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".lock"
        with holder(path) as process:
            process.kill()
            process.wait()
        os.chmod(folder, 0o777)
        os.setegid(65534)
        os.seteuid(65534)
        try:
            with pytest.raises(UsageError, match="is another user's lock, who is or was writing there: ask them"):
                taken(path)
        finally:
            os.seteuid(0)
            os.setegid(0)


def test_a_file_that_another_machine_removed_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, left = os.pread, 2.0

    def stale(descriptor: int, size: int, at: int) -> bytes:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", stale)
    taken(tmp_path / ".lock")
    left = float("inf")
    with pytest.raises(OSError, match=r"locking the store failed at .*: Stale file handle"):
        taken(tmp_path / ".lock")
