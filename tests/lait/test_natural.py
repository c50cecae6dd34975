"""What tells photographs from drawings, on pictures that are made here: rendered drawings, and noise whose spectrum
falls as that of photographs does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray
from PIL import Image

from benchmarks.not_natural import KINDS
from imagebert.errors import UsageError
from imagebert.files import write_sealed
from imagebert.lait.natural import FEATURES, WEIGHTS, Natural, features

NATURAL = Natural()


def like_a_photograph(seed: int, height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    """Noise whose amplitude falls as 1/f, alike in all channels, with areas of other light: as of a landscape."""
    rng = np.random.default_rng(seed)

    def noise() -> NDArray[np.float64]:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
        spectrum = np.fft.rfft2(rng.normal(0, 1, (height, width))) / np.maximum(frequency, 1)
        made = np.fft.irfft2(spectrum, s=(height, width))
        return (made - made.mean()) / made.std()

    light = noise()
    light = np.where(noise() > 0.3, light * 0.5 + 1, light)
    channels = np.stack([light + 0.3 * noise() for _ in range(3)], axis=2)
    return np.clip(channels * 45 + np.array([120, 110, 95]), 0, 255).astype(np.uint8)


def drawings(kind: str, count: int) -> list[NDArray[np.uint8]]:
    photographs = [Image.fromarray(like_a_photograph(seed)) for seed in range(3)]
    return [np.asarray(KINDS[kind](np.random.default_rng([9, n]), photographs)) for n in range(count)]


def test_noise_with_the_spectrum_of_photographs_passes() -> None:
    assert np.mean([NATURAL.probability(like_a_photograph(seed)) > 0.5 for seed in range(20)]) >= 0.9


@pytest.mark.parametrize(
    "kind",
    ["bar_chart", "table", "flow_diagram", "logo", "icons", "window", "terminal", "text_card", "qr_code", "banner"],
)
def test_drawings_do_not(kind: str) -> None:
    assert max(NATURAL.probability(pixels) for pixels in drawings(kind, 3)) < 0.5


@pytest.mark.parametrize("kind", ["bar_chart", "contours", "page_with_photographs", "scanned_page", "illustration"])
def test_what_was_drawn_a_second_time_is_the_same(kind: str) -> None:
    assert np.array_equal(*(drawings(kind, 1)[0] for _ in range(2)))


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (20, 20, 30), (200, 30, 90)])
def test_plain_colours_do_not(color: tuple[int, int, int]) -> None:
    assert NATURAL.probability(np.full((200, 300, 3), color, np.uint8)) < 0.2


def test_these_weights_give_these_probabilities() -> None:
    """Weights that are trained again give others: look at them before you write them here."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    made = [like_a_photograph(0), noise, np.zeros((200, 300, 3), np.uint8), np.full((200, 300, 3), 255, np.uint8)]
    assert [NATURAL.probability(pixels) for pixels in made] == pytest.approx([0.997, 0.0067, 0.0819, 0.0004], abs=1e-3)


def test_a_page_of_text_around_it_makes_it_a_drawing() -> None:
    """The more of a white page with lines there is, the less probable is a photograph."""
    page = np.full((400, 400, 3), 255, np.uint8)
    page[::8, 20:-20] = 30
    found = []
    for side in (400, 300, 200, 100, 0):
        mixed = page.copy()
        mixed[:side, :side] = like_a_photograph(1, 400, 400)[:side, :side]
        found.append(NATURAL.probability(mixed))
    assert found[0] > 0.5 > found[-2]
    assert found == sorted(found, reverse=True)


def test_a_picture_may_be_larger_without_being_another() -> None:
    pixels = like_a_photograph(3, 256, 256)
    larger = pixels.repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(features(larger), features(pixels))


@settings(max_examples=40, deadline=None)
@given(some.integers(1, 700), some.integers(1, 700), some.integers(0, 2**32))
def test_any_size_is_measured(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    measured = features(pixels)
    assert measured.shape == (len(FEATURES),)
    assert np.isfinite(measured).all()
    assert 0 <= NATURAL.probability(pixels) <= 1


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (7, 2), (2500, 2500)])
def test_sizes_at_the_ends(size: tuple[int, int]) -> None:
    for value in (0, 128, 255):
        assert np.isfinite(features(np.full((*size, 3), value, np.uint8))).all()


def measured(pixels: NDArray[np.uint8]) -> dict[str, float]:
    return dict(zip(FEATURES, features(pixels).tolist(), strict=True))


def test_features_are_what_their_names_say() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, 64:] = (255, 0, 0)
    found = measured(stripes)
    assert found["covered by 1 colours"] == 0.5
    assert found["covered by 2 colours"] == 1
    assert found["colours"] == 1
    assert found["entropy of colours"] == 1
    assert found["strong colours"] == 0.5
    assert found["grey"] == 0.5  # black has no colour
    assert found["steps to 0"] == pytest.approx(1 - 128 / (2 * 127 * 128))  # one step in each row
    assert found["flat columns"] == 1
    assert found["flat rows"] == 0
    assert found["edges"] == pytest.approx(2 / 126)  # those two pixels from which the step is seen
    assert found["upright edges"] == pytest.approx(253 / 256)
    assert found["blocks of 0 to 2"] == 1  # the step lies between blocks


def test_names_are_different() -> None:
    assert len(set(FEATURES)) == len(FEATURES)


def test_weights_of_other_features_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    content = json.loads(WEIGHTS.read_text())
    write_sealed(tmp_path / "other.json", {**content, "features": FEATURES[1:]})
    with pytest.raises(UsageError, match=r"other.json belongs to another version's features: train it again"):
        Natural(tmp_path / "other.json")
    (tmp_path / "damaged.json").write_text(json.dumps({**content, "bias": 0}))
    with pytest.raises(UsageError, match=r"damaged.json has changed since it was written: install imagebert again"):
        Natural(tmp_path / "damaged.json")


def test_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size < 16_000
