from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from imagebert.regions.images import find_images


def test_finds_pictures_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "1.png", "notes.txt", "b/film.mp4", "b/more.TXT", "README"):
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert [p.name for p in found.pictures] == ["1.png", "2.JPG"]
    assert found.others == {".txt": 2, ".mp4": 1, "none": 1}
    assert found.links == 0


def test_linked_folders_are_walked_once(tmp_path: Path) -> None:
    for name in ("photos/own.jpg", "elsewhere/far.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    photos = tmp_path / "photos"
    (photos / "there").symlink_to(tmp_path / "elsewhere")
    (photos / "there too").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    (photos / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "far.jpg")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = find_images(photos)
    assert [p.relative_to(photos).as_posix() for p in found.pictures] == ["linked.jpg", "own.jpg", "there/far.jpg"]
    assert found.links == 1
    assert found.others == {".jpg": 1}  # a link that leads nowhere


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_pictures_without_a_suffix_are_told_by_their_beginning(tmp_path: Path, kind: str) -> None:
    """As downloads that are named by numbers."""
    Image.new("RGB", (20, 10)).save(tmp_path / "123_4567", kind)
    (tmp_path / "Makefile").write_text("BM: all of it\n")
    (tmp_path / "empty").touch()
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = find_images(tmp_path)
    assert [path.name for path in found.pictures] == ["123_4567"]
    assert found.others == {"none": 3}


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def scandir(place: str) -> object:
        if Path(place).name == "a":
            raise PermissionError(13, "Permission denied", place)
        return listed(place)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    found = find_images(tmp_path)
    assert [path.name for path in found.pictures] == ["2.jpg"]
    assert [error.filename for error in found.closed] == [str(tmp_path / "a")]
