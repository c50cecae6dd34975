from __future__ import annotations

from pathlib import Path

from imagebert.regions.images import find_images


def test_finds_pictures_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "1.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_images(tmp_path)] == ["1.png", "2.JPG"]
