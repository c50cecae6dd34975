"""The demo's table, of folders as its runs leave them at a moment."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

import imagebert.demo.stages as stages_module
from imagebert.demo.stages import Stages
from imagebert.ladder import load_ladder


def rows(stages: Stages) -> dict[str, list[str]]:
    console = Console(file=(stream := io.StringIO()), width=160)
    console.print(stages._draw())
    cells = [[cell.strip() for cell in row.strip("│┃").split("│")] for row in stream.getvalue().splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == 4}


def leave(folder: Path, steps: list[int], of: int = 40) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(f"schedule: {{steps: {of}}}\n")
    lines = [{"step": step, "loss/total": 8.0 / step, "rate/pairs_per_second": 1234.0} for step in steps]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_stages_wait_run_and_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_module, "_SECONDS", 0.0)
    stages = Stages(tmp_path, load_ladder("demo"), 2800)
    assert rows(stages)["corpus"] == ["running", "2,800 pictures", ""]
    stages.corpus_is_done()
    leave(tmp_path / "stage1", [10, 20, 40])
    leave(tmp_path / "stage2", [10])
    leave(tmp_path / "mixed", [])
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune/log.jsonl").write_text('{"step": 5}\n')
    found = rows(stages)
    assert found["corpus"][0] == "done"
    assert found["after stage 1 only (weak pairs)"] == ["running", "evaluates", "0.200 █▃▁"]
    monkeypatch.setattr(stages, "_file", io.StringIO(), raising=False)
    stages.tell("finetune: 10:00:00 Scoring: 5 of 10 pairs, 1 a second, 0:00:05 left")
    assert rows(stages)["after stage 1 only (weak pairs)"][1] == "evaluates: 5 of 10 pairs, 1 a second, 0:00:05 left"
    stages.tell("finetune: 10:00:01 another line")
    assert rows(stages)["after stage 1 only (weak pairs)"][1] == "evaluates"
    assert found["after both, in two stages"] == ["running", "step 10 of 40, 1,234 pairs/s", "0.800 ▁"]
    assert found["after both mixed in one stage"] == ["running", "starts", ""]
    assert found["after stage 2 only (clean pairs)"] == ["waiting", "", ""]
    assert found["two stages, then fine-tuned"] == ["running", "", ""]  # its config is not there yet
    (tmp_path / "stage1/evaluation/test-1").mkdir(parents=True)
    recall = {"ir": {"r1": 31.64}, "tr": {"r1": 42.0}}
    (tmp_path / "stage1/evaluation/test-1/recall.json").write_text(json.dumps(recall))
    assert rows(stages)["after stage 1 only (weak pairs)"] == ["done", "31.6, 42.0", "0.200 █▃▁"]


def test_what_a_failed_run_said_last_comes_to_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    stages = Stages(tmp_path, load_ladder("demo"), 1)
    monkeypatch.setattr(stages._board, "start", lambda: None)
    with pytest.raises(OSError, match="failed"), stages:
        for number in range(30):
            stages.tell(f"mixed: line {number}")
            stages.tell(f"finetune: row {number}")
        raise OSError("training failed: mixed with 1; its message is above")
    said = stream.getvalue()
    assert "mixed: line 29\n" in said
    assert "line 14" not in said
    assert "row" not in said
    assert len((tmp_path / "demo.log").read_text().splitlines()) == 60
