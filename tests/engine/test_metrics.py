from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

import imagebert.engine.metrics as metrics
from imagebert.engine.metrics import Meter, examine_log, line_checksum, read_log


def test_rates_are_counts_over_elapsed_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    meter = Meter(tmp_path, 0, 100, seconds=50.0, enabled=True)
    for _ in range(4):
        now[0] += 0.5
        meter.count(pairs=64, tokens=1280, seconds_data=0.1)
    with meter.paused():
        now[0] += 30  # a checkpoint does not count
    line = meter.write(4, {"loss/total": 1.0})
    assert line["rate/pairs_per_second"] == pytest.approx(4 * 64 / 2.0)
    assert line["rate/tokens_per_second"] == pytest.approx(4 * 1280 / 2.0)
    assert line["rate/share_waiting_for_data"] == pytest.approx(0.2)
    assert line["time/seconds"] == pytest.approx(52.0)
    status = Path("/proc/self/status").read_text()  # the kernel's own account of the peak, in kB
    peak = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
    assert line["memory/host_peak_gib"] == pytest.approx(peak / 2**20, rel=0.05)
    now[0] += 1
    meter.count(10, 100, 0)
    assert meter.write(5, {"loss/total": 1.0})["rate/pairs_per_second"] == pytest.approx(10)
    meter.close()
    assert [x["step"] for x in read_log(tmp_path / "log.jsonl")] == [4, 5]


def test_a_resumed_log_drops_what_comes_again(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s}) for s in range(1, 8)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 8, "lo')  # cut by a crash
    Meter(tmp_path, 5, 100, 0.0, enabled=True).close()
    assert [x["step"] for x in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]  # a line that a crash cut short is no damage


DAMAGED = [
    b"\xff\xfe\n",
    b"{\n",
    b"[]\n",
    b"null\n",
    b'{"loss/total": 1.0}\n',
    b'{"step": "4"}\n',
    b'{"step": 4.0}\n',
    b'{"step": -4}\n',
    b'{"step": true}\n',
    b'{"step": 4, "loss/total": "much"}\n',
    b'{"step": 4, "loss/total": 1' + b"0" * 400 + b"}\n",
    b'{"step": 1' + b"0" * 6000 + b"}\n",
    b'{"step": 4, "lo{"step": 5, "loss/total": 1.0}\n',
    b'{"step": ' + b"[" * 100_000 + b"\n",
    b'{"step": 4, "a": ' + b"[" * 90 + b"]" * 90 + b"}\n",
    b"\0" * 3_000_000,
    b"x" * 3_000_000 + b"\n",
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_costs_itself(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    good = [json.dumps({"step": s, "loss/total": 0.5}).encode() + b"\n" for s in range(1, 7)]
    path = tmp_path / "log.jsonl"
    data = b"".join([*good[:3], damage, *good[3:]])
    path.write_bytes(data)
    steps = [1, 2, 3, 4, 5, 6] if damage.endswith(b"\n") else [1, 2, 3, 5, 6]
    assert [x["step"] for x in read_log(path)] == steps
    Meter(tmp_path, 5, 100, 0.0, enabled=True).close()
    assert [x["step"] for x in read_log(path)] == steps[:-1]
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == data
    (message,) = caplog.messages
    assert "log.jsonl is damaged: it is kept as" in message
    assert "log.jsonl.damaged" in message
    Meter(tmp_path, 5, 100, 0.0, enabled=True).close()  # it is whole now
    assert len(caplog.messages) == 1
    path.write_bytes(b"again\n")
    Meter(tmp_path, 5, 100, 0.0, enabled=True).close()
    assert (tmp_path / "log.jsonl.damaged").read_bytes() == data
    assert (tmp_path / "log.jsonl.damaged2").read_bytes() == b"again\n"


def test_lines_that_come_twice_are_damage(tmp_path: Path) -> None:
    """As of a log that was appended to itself; a step that was run again took another time."""
    meter = Meter(tmp_path, 0, 100, 0.0, enabled=True)
    meter.close()
    lines = [{"step": step, "loss/total": 0.5, "seconds": 0.1 * step + again} for again in (0, 1) for step in (1, 2)]
    text = b"".join(json.dumps({**line, "crc32": line_checksum(line)}).encode() + b"\n" for line in lines)
    (tmp_path / "log.jsonl").write_bytes(text)
    assert examine_log(tmp_path / "log.jsonl") == (lines, False)
    (tmp_path / "log.jsonl").write_bytes(text + text)
    assert examine_log(tmp_path / "log.jsonl") == (lines, True)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_log_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log.jsonl"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("lost")}[kind]()
    assert read_log(path) == []
    meter = Meter(tmp_path, 0, 100, 0.0, enabled=True)
    meter.write(1, {})
    meter.close()
    assert [x["step"] for x in read_log(path)] == [1]
    assert os.path.lexists(tmp_path / "log.jsonl.damaged")


class Disk(io.FileIO):
    """A file on a disk with so much room left; None: enough."""

    room: int | None = None

    def write(self, data: Any) -> int:
        if self.room is not None:
            data = bytes(data)[: self.room]
            self.room -= len(data)
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_lines_wait_for_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter(tmp_path, 0, 100, 0.0, enabled=True)
    path = tmp_path / "log.jsonl"
    assert meter._log is not None
    meter._log._file = disk = Disk(path, "ab")
    meter.write(1, {"loss/total": 1.0})
    for step in (2, 3, 4):
        disk.room = 20  # a part of a line
        meter.write(step, {"loss/total": 1.0})
        assert [x["step"] for x in read_log(path)] == [1]
        assert path.read_bytes().endswith(b"}\n")
    (message,) = caplog.messages
    assert "log.jsonl (No space left on device): its lines wait" in message
    disk.room = None
    meter.write(5, {"loss/total": 1.0})
    assert [x["step"] for x in read_log(path)] == [1, 2, 3, 4, 5]
    disk.room = 0
    meter.write(6, {})
    meter.close()
    assert "the last 1 lines of" in caplog.text


def test_few_lines_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_WAITING", 3)
    meter = Meter(tmp_path, 0, 100, 0.0, enabled=True)
    assert meter._log is not None
    meter._log._file = disk = Disk(tmp_path / "log.jsonl", "ab")
    disk.room = 0
    for step in range(1, 8):
        meter.write(step, {})
    disk.room = None
    meter.write(8, {})
    meter.close()
    assert [x["step"] for x in read_log(tmp_path / "log.jsonl")] == [6, 7, 8]


def test_a_console_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error may go to a file there."""
    meter = Meter(tmp_path, 0, 1, 0.0, enabled=True)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "say", fail)
    meter.write(1, {})
    meter.close()
    assert len(read_log(tmp_path / "log.jsonl")) == 1


def test_a_start_on_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nbroken\n')

    def fail(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics, "write_bytes", fail)
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot write .*log.jsonl \(No space left on device\): free some space"):
            Meter(tmp_path, 1, 100, 0.0, enabled=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "log.jsonl.damaged"]
    assert [x["step"] for x in read_log(path)] == [1]  # it is kept for the next start
