from __future__ import annotations

import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import imagebert.log as log_module
from imagebert.log import BY_RANK_0, Board, Place, Progress, has_board, place, say, set_up, track, trend

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


@pytest.mark.parametrize(
    ("values", "width", "blocks"),
    [
        ([], 5, ""),
        ([3.0], 5, "▁"),
        ([2.0, 2.0], 5, "▁▁"),
        ([0.0, 7.0, 3.5], 5, "▁█▅"),
        ([0.0, 0.0, 4.0, 4.0, 8.0, 8.0], 3, "▁▅█"),  # means of two each
        ([float(n) for n in range(1000)], 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_trend_goes_from_least_to_largest(values: list[float], width: int, blocks: str) -> None:
    assert trend(values, width) == blocks


@pytest.mark.parametrize(("term", "has"), [("xterm", True), ("dumb", False), (None, False)])
def test_a_table_needs_a_terminal_that_moves_its_cursor(term: str | None, has: bool, alone: pytest.MonkeyPatch) -> None:
    alone.setattr(sys, "stderr", Terminal())
    alone.delenv("TERM", raising=False)
    if term is not None:
        alone.setenv("TERM", term)
    assert has_board() is has
    alone.setattr(sys, "stderr", io.StringIO())
    assert not has_board()


# What a process does at a terminal: each says or shows what it is called with, then waits, fails, or ends.
SHOWS = """
import signal, sys, time
from rich.text import Text
from imagebert.log import Board, Progress, say, set_up
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background are deaf to it
set_up()
what, end = sys.argv[1:]
shown = Board(lambda: Text("THE TABLE")) if what == "board" else Progress("Scoring", 10, "pairs")
with shown:
    say("a line")
    print("an answer", flush=True)
    if what == "board":
        with Progress("Writing", 4, "pictures") as progress:
            progress.update(3)
            time.sleep(0.6)
    else:
        shown.update(3)
        time.sleep(0.6)
    say("ready")
    if end == "error":
        raise ValueError("went wrong")
    if end == "wait":
        time.sleep(60)
print("after", flush=True)
"""


def at_terminal(*arguments: str, ends_with: int | None = None) -> tuple[int, str, str]:
    """Exit code, standard output, which is a pipe, and what came to the terminal."""
    above, below = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    process = subprocess.Popen(
        [sys.executable, "-c", SHOWS, *arguments],
        stdin=below,
        stdout=subprocess.PIPE,
        stderr=below,
        text=True,
        cwd=Path(__file__).parents[1],
        env=env | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(below)
    seen, sent = b"", False
    while True:
        try:
            seen += os.read(above, 1 << 16)
        except OSError:  # the other end is closed
            break
        if ends_with is not None and not sent and b"ready" in seen:
            sent = True
            process.send_signal(ends_with)
    out, _ = process.communicate(timeout=30)
    os.close(above)
    return process.returncode, out, seen.decode()


@pytest.mark.parametrize("what", ["board", "bar"])
@pytest.mark.parametrize(
    ("end", "number", "code"),
    [
        ("end", None, 0),
        ("error", None, 1),
        ("wait", signal.SIGINT, -signal.SIGINT),
        ("wait", signal.SIGTERM, -signal.SIGTERM),
        ("wait", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_terminal_is_left_clean(what: str, end: str, number: int | None, code: int) -> None:
    """The cursor is to be seen however it ends, lines stand above, and what is printed goes where stdout goes."""
    returned, out, seen = at_terminal(what, end, ends_with=number)
    assert returned == code
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0
    assert out == "an answer\n" + "after\n" * (end == "end")
    assert "a line" in seen
    if what == "board":
        assert "Writing: 3 of 4 pictures, " in seen
        if number not in (signal.SIGKILL, signal.SIGTERM):
            assert seen.rfind("THE TABLE") > max(
                seen.rfind("ready"), seen.rfind("Writing")
            )  # it stays, below the lines
    else:
        assert "3 of 10 pairs, " in seen
    if end == "error":
        assert "ValueError: went wrong" in seen[seen.rfind("\x1b[?25h") :]


def test_without_a_start_a_table_shows_nothing() -> None:
    def draw() -> str:
        raise AssertionError("nobody looks")

    Board(draw).stop()
