from __future__ import annotations

from pathlib import Path

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
