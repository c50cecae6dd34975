from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imagebert.config import UsageError
from imagebert.data.folder import publish
from imagebert.lock import TakenOver


def test_appears_whole(tmp_path: Path) -> None:
    with publish(tmp_path / "a/b") as folder:
        (folder / "file").write_text("1")
        assert not (tmp_path / "a/b").exists()
    assert (tmp_path / "a/b/file").read_text() == "1"
    with pytest.raises(UsageError, match="exists"), publish(tmp_path / "a/b"):
        pass
    with pytest.raises(UsageError, match=r"has no meta.json"), publish(tmp_path / "a/b", replaces="meta.json"):
        pass
    with publish(tmp_path / "a/b", replaces="file") as folder:
        (folder / "other").write_text("2")
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["other"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing was kept: No space left"), publish(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib, sys; from imagebert.data.folder import publish\n"
        "with publish(pathlib.Path(sys.argv[1])) as f:\n"
        "    (f / 'x').write_text('1'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    with publish(tmp_path / "store") as folder:
        assert list(folder.iterdir()) == []
    assert (tmp_path / "store").is_dir()


def test_two_at_once_and_one_after_the_other(tmp_path: Path) -> None:
    with publish(tmp_path / "store") as folder:
        (folder / "x").write_text("first")
        with (
            pytest.raises(UsageError, match=rf"another process is writing .*store: process {os.getpid()} on .* since"),
            publish(tmp_path / "store"),
        ):
            pass
        with publish(tmp_path / "other"):
            pass
        assert (folder / "x").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "store"]
    with pytest.raises(UsageError, match="exists"), publish(tmp_path / "store"):
        pass


def test_who_was_taken_for_dead_publishes_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".store.lock"
    with pytest.raises(TakenOver, match=r"another process has taken .*store over"), publish(tmp_path / "store"):
        text = lock.read_text()
        lock.unlink()
        lock.write_text(text.replace(json.loads(text)["token"], "0" * 16))
    assert not (tmp_path / "store").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".store.incomplete", ".store.lock"]  # the other's


def test_waiting_for_the_other(tmp_path: Path) -> None:
    def other() -> None:
        with publish(tmp_path / "store") as folder:
            (folder / "x").write_text("first")
            begun.set()
            time.sleep(0.3)

    begun = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    with publish(tmp_path / "store", replaces="x", wait=True) as folder:
        assert (tmp_path / "store/x").read_text() == "first"
        (folder / "x").write_text("second")
    thread.join()
    assert (tmp_path / "store/x").read_text() == "second"
