from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebert.regions.decoding import decode
from imagebert.regions.images import UnreadableImage


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """More than a batch of smooth JPEGs of odd sizes and samplings, and what is not an ordinary JPEG."""
    rng = np.random.default_rng(0)
    for number in range(40):
        small = rng.integers(0, 256, (5, 7, 3), np.uint8)
        size = int(rng.integers(17, 120)), int(rng.integers(17, 120))
        picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8  # all orientations
        picture.save(tmp_path / f"{number:02d}.jpg", quality=60 + number, subsampling=number % 3, exif=exif)
    Image.fromarray(small).convert("L").resize((50, 40)).save(tmp_path / "grey.jpg")
    Image.fromarray(small).convert("CMYK").resize((50, 40)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(small).convert("P").resize((50, 40)).save(tmp_path / "palette.png")
    Image.fromarray(small).resize((50, 40)).save(tmp_path / "progressive.jpg", progressive=True)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "07.jpg").read_bytes()[:-300])
    (tmp_path / "text.jpg").write_text("no picture")
    return sorted(tmp_path.iterdir())


def test_dali_gives_pillows_pixels_and_refuses_what_pillow_refuses(pictures: list[Path]) -> None:
    by_pillow, by_dali = dict(decode(pictures, dali=False)), dict(decode(pictures, dali=True))
    assert list(by_dali) == list(by_pillow) == pictures
    refused = [path.name for path, image in by_pillow.items() if isinstance(image, UnreadableImage)]
    assert refused == ["cut.jpg", "text.jpg"]
    for path, expected in by_pillow.items():
        got = by_dali[path]
        if isinstance(expected, UnreadableImage):
            assert str(got) == str(expected)
            continue
        assert isinstance(got, Image.Image)
        assert got.mode == "RGB"
        assert got.size == expected.size
        difference = np.abs(np.asarray(got, int) - np.asarray(expected, int))
        assert difference.max() <= 1, path.name  # CPU's; nvJPEG may round otherwise


def test_without_dali_pillow_decodes(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert [path for path, _ in decode(pictures)] == pictures
    with pytest.raises(ImportError):
        next(decode(pictures, dali=True))


def test_nothing_to_decode() -> None:
    assert list(decode([])) == []


def test_dali_is_not_imported_before_it_is_used() -> None:
    code = "import sys, imagebert.regions.extract, imagebert.training.run; print('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
