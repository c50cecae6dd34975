from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

import imagebert.log as log_module
from imagebert.log import BY_RANK_0, Place, Progress, place, say, set_up, track

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "terminal", "form"),
    [
        ({}, True, r"hello\n"),
        ({}, False, r"\d\d:\d\d:\d\d hello\n"),
        ({"SLURM_JOB_ID": "7"}, True, r"\d\d:\d\d:\d\d hello\n"),
        ({**TWO, "SLURMD_NODENAME": "node7"}, True, r"\d\d:\d\d:\d\d \[1 node7\] hello\n"),
    ],
)
def test_what_a_line_begins_with(env: dict[str, str], terminal: bool, form: str, alone: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        alone.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    alone.setattr(sys, "stderr", stream)
    say("hello")
    assert re.fullmatch(form, stream.getvalue())


def test_each_line_of_a_text_has_the_prefix(alone: pytest.MonkeyPatch) -> None:
    alone.setattr(sys, "stderr", stream := io.StringIO())
    say("one\ntwo")
    assert re.fullmatch(r"\d\d:\d\d:\d\d one\n\d\d:\d\d:\d\d two\n", stream.getvalue())


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_all_ranks_find_rank_0_says(alone: pytest.MonkeyPatch, rank: str) -> None:
    for name, value in {**TWO, "RANK": rank}.items():
        alone.setenv(name, value)
    alone.setattr(sys, "stderr", stream := io.StringIO())
    handler = log_module._Handler()
    for level, extra in ((logging.INFO, {}), (logging.WARNING, {}), (logging.WARNING, BY_RANK_0)):
        record = logging.makeLogRecord({"levelno": level, "msg": f"{level} {bool(extra)}", **extra})
        handler.emit(record)
    said = [line.split("] ")[1] for line in stream.getvalue().splitlines()]
    assert said == (["20 False", "30 False", "30 True"] if rank == "0" else ["30 False"])


def test_a_launcher_that_is_half_set_is_no_rank() -> None:
    assert place({"RANK": "9", "WORLD_SIZE": "2", "SLURMD_NODENAME": "a"}) == Place(0, 1, "a", False)
    assert place({**TWO, "SLURMD_NODENAME": "a"})[:2] == (1, 2)  # though it has no rendezvous


def test_progress_says_count_rate_and_time_left() -> None:
    progress = Progress("Writing", 3_000, "images")
    progress.done = 1_000
    assert progress.text(10) == "1,000 of 3,000 images, 100 a second, 0:00:20 left"
    assert Progress("Copying", 4e9, "GB", scale=1e9).text(1) == "0.00 of 4.00 GB, 0 a second"
    progress = Progress("Reading", None, "captions")
    progress.done, progress.note = 5, "a note"
    assert progress.text(2) == "5 captions, 2.5 a second, a note"


def test_progress_is_told_while_one_item_takes_long(alone: pytest.MonkeyPatch) -> None:
    alone.setattr(log_module, "_SECONDS", 0.02)
    alone.setattr(sys, "stderr", stream := io.StringIO())
    items = track(["a", "b"], "Working", "items")
    next(items)
    deadline = time.monotonic() + 20
    while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(items) == ["b"]
    first, second, *_ = stream.getvalue().splitlines()
    for line in (first, second):
        assert re.fullmatch(r"\d\d:\d\d:\d\d Working: 0 of 2 items, 0 a second", line)


def test_other_ranks_show_no_progress(alone: pytest.MonkeyPatch) -> None:
    for name, value in TWO.items():
        alone.setenv(name, value)
    with Progress("Working", 2) as progress:
        assert progress._thread is None


def test_set_up_twice_says_things_once(alone: pytest.MonkeyPatch) -> None:
    alone.setattr(logging.getLogger(), "handlers", [])
    alone.setattr(sys, "stderr", stream := io.StringIO())
    set_up()
    set_up()
    logging.getLogger("imagebert.x").warning("hello %d", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d hello 1\n", stream.getvalue())
    logging.captureWarnings(False)
