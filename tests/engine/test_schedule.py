from __future__ import annotations

import pytest

from imagebert.config import OptimizerConfig, ScheduleConfig
from imagebert.engine.schedule import learning_rate


def test_warms_up_and_decays() -> None:
    optimizer = OptimizerConfig(learning_rate=1.0)
    schedule = ScheduleConfig(steps=100, warmup=0.1)
    rates = [learning_rate(s, 100, schedule, optimizer, 16) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert rates[10:] == pytest.approx([(100 - s) / 90 for s in range(10, 100)])
    constant = ScheduleConfig(steps=100, warmup=0.0, decay="constant")
    assert {learning_rate(s, 100, constant, optimizer, 16) for s in range(100)} == {1.0}
    assert learning_rate(0, 1, ScheduleConfig(steps=1, warmup=1.0), optimizer, 16) == 1.0


def test_the_rate_follows_the_batch() -> None:
    """1e-4 at the paper's 48 pairs, by the square root or linearly (docs/recipes.md)."""
    for scaling, expected in (("sqrt", 1e-4 * (1024 / 48) ** 0.5), ("linear", 1e-4 * 1024 / 48)):
        optimizer = OptimizerConfig(learning_rate=1e-4, learning_rate_batch=48, learning_rate_scaling=scaling)  # type: ignore[arg-type]
        schedule = ScheduleConfig(steps=10, warmup=0.0, decay="constant")
        assert learning_rate(3, 10, schedule, optimizer, 1024) == pytest.approx(expected)
