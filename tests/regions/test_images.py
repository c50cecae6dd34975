from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebert.regions import images
from imagebert.regions.images import UnreadableImage, find_images, load_image


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Red left half, blue right half."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def corners(image: Image.Image) -> list[str]:
    pixels = np.asarray(image).astype(int)
    return ["red" if p[0] > p[2] else "blue" for p in (pixels[2, 2], pixels[2, -3], pixels[-3, 2], pixels[-3, -3])]


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        (1, (40, 30), ["red", "blue", "red", "blue"]),
        (3, (40, 30), ["blue", "red", "blue", "red"]),
        (6, (30, 40), ["red", "red", "blue", "blue"]),
        (8, (30, 40), ["blue", "blue", "red", "red"]),
    ],
)
def test_exif_rotation(tmp_path: Path, orientation: int, size: tuple[int, int], expected: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / "x.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "x.jpg")
    assert (image.mode, image.size, corners(image)) == ("RGB", size, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode in ("L", "CMYK") else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((30, 40), 40000, np.uint16)).save(path)
    else:
        picture().convert(mode).save(path)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    if mode in ("CMYK", "P", "RGBA"):
        assert corners(image) == ["red", "blue"] * 2
    if mode == "I;16":
        assert np.asarray(image).mean() == pytest.approx(40000 / 256, abs=1)


def test_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert np.asarray(load_image(tmp_path / "x.png")).min() == 255


def test_what_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    picture().save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    picture().save(tmp_path / "large.png")
    with pytest.raises(UnreadableImage, match="known format"):
        load_image(tmp_path / "text.jpg")
    with pytest.raises(UnreadableImage, match=r"(?i)truncated"):
        load_image(tmp_path / "cut.jpg")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="40 x 30 pixels are more"):
        load_image(tmp_path / "large.png")


def test_finds_pictures_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "1.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_images(tmp_path)] == ["1.png", "2.JPG"]
