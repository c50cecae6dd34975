from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebert.config import load_recipe
from imagebert.training.profile import PARTS, breakdown
from imagebert.training.run import run


def event(name: str, start: float, duration: float, kind: str = "user_annotation") -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": kind, "ts": start, "dur": duration}


def test_what_is_hidden_is_not_counted_twice() -> None:
    """Two steps of 100 us on a GPU; in each, 20 us of communication, 5 of it beside no kernel."""
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name"}]
    for begin in (0.0, 100.0):
        events += [
            event("ProfilerStep#1", begin, 100),
            event("data", begin, 10),
            event("forward", begin + 1, 2),  # launched on the host, done on the GPU later
            event("forward", begin + 10, 30, "gpu_user_annotation"),
            event("backward", begin + 40, 50, "gpu_user_annotation"),
            event("a kernel", begin + 10, 30, "kernel"),
            event("another", begin + 40, 45, "kernel"),
            event("ncclKernel_AllReduce", begin + 70, 20, "kernel"),
        ]
    figures = breakdown(events)
    expected = {"data": 10, "forward": 30, "backward": 45, "optimizer": 0, "communication": 5}
    expected |= {"communication_hidden": 15, "rest": 10, "step": 100}
    assert {name: 1e6 * seconds for name, seconds in figures.items()} == pytest.approx(expected)


def test_a_profiled_run_tells_where_its_time_goes(recipe: list[str], tmp_path: Path) -> None:
    run(load_recipe("tests/recipe.yaml", [*recipe, "schedule.steps=12"]), profile=4)
    figures = json.loads((tmp_path / "run/profile/profile.json").read_text())
    assert sum(figures[part] for part in (*PARTS, "communication", "rest")) == pytest.approx(figures["step"], rel=0.02)
    assert min(figures["forward"], figures["backward"], figures["optimizer"]) > 0.05 * figures["step"]
    trace = json.loads((tmp_path / "run/profile/trace.json").read_text())
    assert (
        sum(
            e["name"].startswith("ProfilerStep#") and e["cat"] == "user_annotation"
            for e in trace["traceEvents"]
            if "cat" in e
        )
        == 4
    )
