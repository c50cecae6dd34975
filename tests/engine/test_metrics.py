from __future__ import annotations

import json
from pathlib import Path

import pytest

import imagebert.engine.metrics as metrics
from imagebert.engine.metrics import Meter, read_log


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
