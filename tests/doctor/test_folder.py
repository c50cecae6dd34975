"""Ranks look for what rank 0 writes; each of them is a process, which may be given another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebert.doctor.folder import see_together
from tests.forked import free_port, start

SEES = """
import sys
from pathlib import Path
from imagebert import distributed
from imagebert.doctor import folder
folder._PATIENCE = 0.5
distributed.start(1)
print(folder.see_together(Path(sys.argv[1])))
"""


def ask(*folders: Path) -> list[str]:
    layout = {"WORLD_SIZE": str(len(folders)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(SEES, folder, **layout, RANK=str(rank)) for rank, folder in enumerate(folders)]
    return [process.communicate()[0].strip() for process in ranks]


@pytest.mark.ranks
def test_one_folder_and_another(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    assert ask(tmp_path / "new/run", tmp_path / "new/run", tmp_path / "other") == ["seen", "seen", "absent"]
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


@pytest.mark.ranks
def test_a_folder_that_cannot_be_written_is_no_question(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert ask(tmp_path / "file/run", tmp_path / "file/run") == ["", ""]


def test_alone_there_is_nobody_to_tell(tmp_path: Path) -> None:
    assert see_together(tmp_path / "run") == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("hide", "expected"), [(False, "stale"), (True, "absent")])
def test_an_old_name_that_stays_and_a_new_one_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: bool, expected: str
) -> None:
    monkeypatch.setattr("imagebert.doctor.folder._PATIENCE", 0.2)
    monkeypatch.setattr("imagebert.distributed.world_size", lambda: 2)
    monkeypatch.setattr("imagebert.distributed.gather", lambda text: [text, text])
    rename = Path.rename

    def keeps(path: Path, target: Path) -> Path:
        content = path.read_text()
        moved = rename(path, target)
        path.write_text(content)
        if hide:
            moved.unlink()
        return moved

    monkeypatch.setattr(Path, "rename", keeps)
    assert see_together(tmp_path) == expected
    assert list(tmp_path.iterdir()) == []
