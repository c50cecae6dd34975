"""What a terminal shows of a run: its figures as text, drawn by rich into a string."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import imagebert.log as log_module
from imagebert.engine.metrics import Meter
from imagebert.engine.table import RunTable


def drawn(table: RunTable) -> list[str]:
    console = Console(file=(stream := io.StringIO()), width=100, markup=False)
    console.print(table.draw())
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_run_from_its_first_step_to_an_evaluation() -> None:
    table = RunTable("runs/[red]x", 40, 1000)
    table.step()
    assert drawn(table)[0] == "runs/[red]x: step 41 of 1,000"
    line = {"step": 50, "loss/mlm": 2.0, "loss/total": 4.0, "rate/pairs_per_second": 1234.5, "skipped_updates": 0.0}
    table.add(line, left=3725.9)
    table.step()
    table.add({"step": 60, "loss/mlm": math.nan, "skipped_updates": 1.0}, left=60)
    recall = {"recall/ir_r1": 12.34, "recall/tr_r1": 20.0, "recall/rsum": 150.0}
    table.add(
        {"step": 70, "loss/total": 1.0, "rate/share_waiting_for_data": 0.125, "skipped_updates": 1.0, **recall},
        left=59.9,
    )
    table.step()
    text = drawn(table)
    assert text[0] == "runs/[red]x: step 71 of 1,000, 0:00:59 left"
    rows = {m[1]: m[2] for row in text if (m := re.fullmatch(r"(\S.*?)  +(\S.*)", row))}
    assert rows == {
        "mlm": "2.0000  ▁",
        "total": "1.0000  █▁",
        "pairs a second": "1,234  ▁",
        "waiting for data, %": "12.5  ▁",
        "R@1, text finds image": "12.3  ▁ at step 70",
        "R@1, image finds text": "20.0  ▁ at step 70",
        "R-sum": "150.0  ▁ at step 70",
        "skipped updates": "1",
    }


def test_a_long_run_is_kept_short() -> None:
    table = RunTable("run", 0, 10**6)
    for step in range(1, 20_001):
        table.add({"step": step, "loss/total": float(step)}, 0)
    assert len(table._figures["loss/total"].values) <= 4096
    (row,) = (row for row in drawn(table) if row.startswith("total"))
    assert row.split()[1:] == ["20000.0000", "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_meter_shows_a_table_or_says_lines(tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "stderr", stream := Terminal() if terminal else io.StringIO())
    meter = Meter(tmp_path, 0, 2, 0.0, enabled=True)
    assert log_module._board is None  # nothing is to be put right where training fails before its first step
    for step in (1, 2):
        meter.count(4, 80, 0.0)
        meter.write(step, {"loss/total": 1.5})
    meter.close()
    assert log_module._board is None
    assert (": step 2 of 2, 0:00:00 left" in stream.getvalue()) is terminal
    lines = re.findall(
        r"(?m)^\d\d:\d\d:\d\d step 2/2  total 1.5000  \d+ pairs/s  \d+ tokens/s  0:00 left$", stream.getvalue()
    )
    assert len(lines) == (not terminal)
