from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebert.endings import asked_to_stop, ending_of, keep_tracebacks, last_line, tell
from imagebert.errors import LostRank, MachineFault, UsageError
from imagebert.host import STOPPED
from imagebert.log import Place

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer [10.0.0.2]:4242"


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    job = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1", "SLURMD_NODENAME": "node7"}
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0", **job}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("imagebert.endings._tracebacks", None)
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "begins"),
    [
        (UsageError("no such recipe"), 2, "cause: rank 3 on node7: no such recipe"),
        (FloatingPointError("nan"), 1, "cause: rank 3 on node7: the work failed: nan"),
        (OSError(errno.ENOSPC, "No space left"), 1, "cause: rank 3 on node7: the work failed: [Errno 28]"),
        (OSError(errno.EIO, "Input/output error"), 1, "fault on node7: [Errno 5]"),
        (OSError(errno.ESTALE, "Stale file handle", "/data"), 1, "fault on node7: [Errno 116]"),
        (MachineFault("/data is not there"), 1, "fault on node7: /data is not there"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 1, "fault on node7: CUDA error: uncorr"),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), 1, "fault on node7: CUDA"),
        (RuntimeError("CUDA error: device-side assert triggered"), 1, "cause: rank 3 on node7: RuntimeError: CUDA"),
        (RuntimeError(GLOO), 1, "cause: rank 3 on node7: lost another rank ([../third_party"),
        (LostRank("lost another rank (it failed)"), 1, "cause: rank 3 on node7: lost another rank (it failed)"),
        (TimeoutError("timed out"), 1, "cause: rank 3 on node7: lost another rank (timed out)"),
        (ConnectionResetError(104, "reset"), 1, "cause: rank 3 on node7: lost another rank ("),
        (KeyError("x"), 1, "cause: rank 3 on node7: KeyError: 'x'"),
        (KeyboardInterrupt(), 1, "cause: rank 3 on node7: interrupted"),
    ],
)
def test_the_last_line_says_what_it_was(
    ranked: Callable[[], str], error: BaseException, code: int, begins: str
) -> None:
    assert tell(error) == code
    assert ranked().splitlines()[-1].startswith(f"imagebert: {begins}")


def test_alone_it_is_a_sentence() -> None:
    here = Place(0, 1, "laptop", False)
    assert last_line(ending_of(UsageError("no such recipe")), here) == "imagebert: no such recipe"
    assert last_line(ending_of(OSError("full")), here) == "imagebert: the work failed: full"
    assert not ending_of(RuntimeError(GLOO)).lost  # there is nobody to lose


def test_a_survivors_traceback_lies_in_a_file(ranked: Callable[[], str], tmp_path: Path) -> None:
    keep_tracebacks(tmp_path / "tracebacks")

    def waits() -> None:
        raise RuntimeError(GLOO)

    with pytest.raises(RuntimeError) as caught:
        waits()
    assert tell(caught.value) == 1
    file = tmp_path / "tracebacks/12-2-rank3-node7.txt"
    (line,) = ranked().splitlines()
    assert line.endswith(str(file))
    assert "in waits" in file.read_text()


def test_where_the_folder_cannot_be_written_it_is_in_the_log(ranked: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keep_tracebacks(tmp_path / "file")
    assert tell(RuntimeError(GLOO)) == 1
    *traceback, last = ranked().splitlines()
    assert traceback[0].endswith(GLOO)
    assert "[3 node7]" in traceback[0]
    assert last.startswith("imagebert: cause: ")


def test_what_was_not_foreseen_has_its_traceback_before_the_last_line(ranked: Callable[[], str]) -> None:
    try:
        {}["x"]
    except KeyError as error:
        tell(error)
    text = ranked()
    assert text.count("Traceback (most recent call last)") == 1
    assert text.splitlines()[-1].startswith("imagebert: cause: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_wish_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, asked_to_stop():
        os.kill(os.getpid(), number)
    assert caught.value.code == STOPPED
    with asked_to_stop() as stop:
        stop.at_once = False
        os.kill(os.getpid(), number)
        assert stop.asked
    assert signal.getsignal(number) is before
