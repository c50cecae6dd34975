from __future__ import annotations

import pytest

from imagebert.training.stragglers import GATHERINGS, Stragglers, behind


def test_behind_the_median_or_of_two_behind_the_other() -> None:
    assert behind([1.0, 1.0, 1.2, 0.9]) == pytest.approx([0, 0, 0.2, -0.1])
    assert behind([1.0, 1.5]) == pytest.approx([-1 / 3, 0.5])
    assert behind([0.0, 0.0, 0.0]) == [0, 0, 0]


def test_a_slow_rank_is_named_once_until_it_recovers() -> None:
    stragglers = Stragglers(4)
    slow, well = [1.0, 1.0, 1.15, 1.0], [1.0] * 4
    told = [stragglers.look(slow) for _ in range(2 * GATHERINGS)]
    assert [i for i, found in enumerate(told) if found] == [GATHERINGS - 1]
    assert told[GATHERINGS - 1] == {2: pytest.approx(0.15)}
    assert stragglers.look(well) == {}
    told = [stragglers.look(slow) for _ in range(GATHERINGS)]
    assert [i for i, found in enumerate(told) if found] == [GATHERINGS - 1]


def test_now_and_then_is_not_in_a_row() -> None:
    stragglers = Stragglers(3)
    for n in range(5 * GATHERINGS):
        assert stragglers.look([1.0, 1.0, 1.0 if n % GATHERINGS == 0 else 2.0]) == {}


def test_a_tenth_is_not_behind_and_two_ranks_are_compared_with_each_other() -> None:
    stragglers = Stragglers(2)
    for _ in range(2 * GATHERINGS):
        assert stragglers.look([1.0, 1.09]) == {}
    found = [stragglers.look([1.2, 1.0]) for _ in range(GATHERINGS)][-1]
    assert found == {0: pytest.approx(0.2)}
