"""Plans from Python: the command prints the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagebert import api
from imagebert.cli import main
from imagebert.config import UsageError


def test_the_command_prints_these_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = api.Cluster(nodes=2, gpu="h100")
    plans = {
        ("stage1_lait", "--pairs", "10M", "schedule.epochs=2"): api.plan(
            "stage1_lait", {"schedule.epochs": 2}, cluster=cluster, told=api.Told(pairs=10_000_000)
        ),
        ("--epochs", "3", "--zero", "2"): api.plan(cluster=cluster, schedule=api.Schedule(epochs=3, zero=2)),
        ("evaluate", "--images", "5k", "--captions", "25k"): api.plan_evaluation(5000, 25000, cluster=cluster),
    }
    assert capsys.readouterr().out == ""
    for words, plan in plans.items():
        call = ["plan", *words, "--nodes", "2", "--gpu", "h100", "--json", str(tmp_path / "plan.json")]
        assert main(call) == 0
        assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(json.dumps(plan.figures))
        out = capsys.readouterr().out
        assert plan.title.split(",")[0] in out
        assert all(note in out for note in plan.notes)


def test_more_gpus_of_a_node_take_less_time() -> None:
    plan = api.plan("stage1_lait", told=api.Told(pairs=10_000_000))
    hours = [size.hours for size in plan.sizes if size.gpus <= 8]
    assert len(hours) == 4
    assert hours == sorted(hours, reverse=True)
    assert plan.figures["more do not pay from, GPUs"] == plan.knee


def test_what_excludes_each_other() -> None:
    with pytest.raises(UsageError, match="a recipe has its own schedule"):
        api.plan("stage1_lait", schedule=api.Schedule())
    with pytest.raises(UsageError, match="no gpu 'h300': there are"):
        api.plan(cluster=api.Cluster(gpu="h300"))
