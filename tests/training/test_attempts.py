from __future__ import annotations

import json
from pathlib import Path

import pytest

import imagebert.training.attempts as attempts_module
from imagebert.config import UsageError
from imagebert.host import STOPPED
from imagebert.training.attempts import FILE, append, attempt, ended, read_attempts


def test_an_attempt_leaves_its_start_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    with attempt(tmp_path) as this:
        this.begin(300, 500)
        this.end = ended(420, False)
    with pytest.raises(OSError, match="full"), attempt(tmp_path) as this:
        this.begin(420)
        raise OSError("the disk is full")
    with pytest.raises(SystemExit), attempt(tmp_path):
        raise SystemExit(STOPPED)
    lines = read_attempts(tmp_path)
    assert [(x["event"], x["job"], x["attempt"]) for x in lines] == [
        *[("start", "12", 2), ("end", "12", 2)] * 2,
        ("end", "12", 2),
    ]
    assert [(x["step"], x["of"]) for x in lines if x["event"] == "start"] == [(300, 500), (420, None)]
    ends = [(x["exit"], x["why"]) for x in lines if x["event"] == "end"]
    assert ends[0] == (75, "stopped at step 420")
    assert ends[1] == (1, "the work failed: the disk is full")
    assert ends[2][0] == 75


def test_a_wrong_call_leaves_nothing_where_no_run_was(tmp_path: Path) -> None:
    with pytest.raises(UsageError), attempt(tmp_path):
        raise UsageError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b'{"event": "st', b"\xff\xfe\n", b"[]\n", b"x" * 20_000 + b"\n", b"{}\n"])
def test_a_damaged_line_costs_itself(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / FILE
    path.write_bytes(b'{"event": "start", "step": 1}\n' + left)
    append(path, b'{"event": "end", "exit": 0}\n')
    assert [x["event"] for x in read_attempts(tmp_path)] == ["start", "end"]


def test_it_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "_MOST", 1000)
    for n in range(200):
        append(tmp_path / FILE, json.dumps({"event": "end", "exit": n}).encode() + b"\n")
        assert (tmp_path / FILE).stat().st_size < 1100
    exits = [x["exit"] for x in read_attempts(tmp_path)]
    assert exits == list(range(exits[0], 200))
    assert len(exits) > 10


def test_what_is_no_file_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()
    with attempt(tmp_path) as this:
        this.begin(0)
    assert "cannot write" in caplog.text
    assert read_attempts(tmp_path) == []
