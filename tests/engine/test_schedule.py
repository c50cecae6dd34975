from __future__ import annotations

import pytest

from imagebert.config import OptimizerConfig, ScheduleConfig
from imagebert.engine.schedule import learning_rate


def test_warms_up_and_decays() -> None:
    optimizer = OptimizerConfig(learning_rate=1.0)
    schedule = ScheduleConfig(steps=100, warmup=0.1)
    rates = [learning_rate(s, 100, schedule, optimizer) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert rates[10:] == pytest.approx([(100 - s) / 90 for s in range(10, 100)])
    constant = ScheduleConfig(steps=100, warmup=0.0, decay="constant")
    assert {learning_rate(s, 100, constant, optimizer) for s in range(100)} == {1.0}
    assert learning_rate(0, 1, ScheduleConfig(steps=1, warmup=1.0), optimizer) == 1.0
