"""The counted step: what a leaner step must not get back, and the model that turns counts into time."""

from __future__ import annotations

import json

import pytest

from benchmarks import counted
from tests.test_layout import ROOT


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, object], dict[str, object]]:
    before = json.loads((ROOT / "benchmarks/results/counted_before.json").read_text())["figures"]
    return before, counted.count()


def test_the_step_has_what_it_needs(both: tuple[dict, dict]) -> None:  # type: ignore[type-arg]
    before, now = both
    operators = now["by_operator"]
    assert operators["randint"] == 1
    assert operators["addmm_"] == 2 * 12  # each layer's two residuals, in place
    assert "copy for addmm" not in operators
    assert now["launches"] <= 507
    assert now["rows_read"] < 1.4 * now["rows_needed"] < 0.7 * before["rows_read"]
    assert now["gigabytes_of_pytorch"] < before["gigabytes_of_pytorch"] - 3


def test_three_milliseconds_are_saved_and_each_change_has_its_share(both: tuple[dict, dict]) -> None:  # type: ignore[type-arg]
    for card in counted.CARDS.values():
        saved = counted.savings(*both, card)
        assert len(saved) == 6
        assert all(milliseconds > 0.03 for milliseconds in saved.values())
        assert sum(saved.values()) >= 3
    assert set(counted.savings(both[1], both[1], card).values()) == {0}


def test_tokens_need_less_fill_than_pairs() -> None:
    assert 0 < counted.fill("real", by_tokens=True) < counted.fill("real", by_tokens=False) < 0.15
