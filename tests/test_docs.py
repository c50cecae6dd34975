"""Pages that are written by a command are what the command writes."""

from __future__ import annotations

from benchmarks.performance import PAGE, render


def test_performance_is_written_from_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m benchmarks.performance"
