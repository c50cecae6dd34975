from __future__ import annotations

import numpy as np

from imagebert.feed.draws import Purpose, below, draw, stage_key, uniform


def _splitmix_chain(*words: int) -> int:
    """The same in Python's own integers."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    state = words[0]
    for word in words[1:]:
        state = mix(state ^ mix(word))
    return state


def test_equals_plain_integers() -> None:
    key = stage_key(3, "stage")
    got = draw(key, Purpose.WORD_MASK, 12, np.arange(5), 7)
    assert got.tolist() == [_splitmix_chain(key, Purpose.WORD_MASK, 12, i, 7) for i in range(5)]


def test_uniform_independent_and_keyed() -> None:
    key = stage_key(0, "a")
    numbers = uniform(key, Purpose.WORD_MASK, 5, np.arange(200)[:, None], np.arange(200))
    assert 0 <= numbers.min() < numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0] / numbers.size, 0.1, atol=0.01)
    others = [
        uniform(key, Purpose.REGION_MASK, 5, np.arange(200)[:, None], np.arange(200)),
        uniform(key, Purpose.WORD_MASK, 6, np.arange(200)[:, None], np.arange(200)),
        uniform(stage_key(1, "a"), Purpose.WORD_MASK, 5, np.arange(200)[:, None], np.arange(200)),
        uniform(stage_key(0, "b"), Purpose.WORD_MASK, 5, np.arange(200)[:, None], np.arange(200)),
        numbers.T,
    ]
    for other in others:
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.02


def test_below_covers_its_range() -> None:
    numbers = below(7, stage_key(0, "a"), Purpose.PARTNER, np.arange(7000))
    assert np.bincount(numbers, minlength=7).min() > 850
