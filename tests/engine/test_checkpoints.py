from __future__ import annotations

import errno
from pathlib import Path

import pytest

from imagebert.engine.checkpoints import Checkpoints


class FakeEngine:
    """Writes what DeepSpeed would, in small."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    def save(self, folder: Path) -> None:
        (folder / "shard").write_text(folder.name * 10)
        if self.fail:
            raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        checkpoints.save(FakeEngine(), step, {"seed": step})  # type: ignore[arg-type]
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert checkpoints.newest() == (tmp_path / "step-00000003", {"seed": 3})


def test_a_full_disk_keeps_the_earlier_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(FakeEngine(), 1, {})  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"No space left on device.*earlier ones are kept"):
        checkpoints.save(FakeEngine(fail=True), 2, {})  # type: ignore[arg-type]
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(FakeEngine(), step, {})  # type: ignore[arg-type]
    shard = tmp_path / "step-00000002/shard"
    if damage == "flip":
        shard.write_text("x" + shard.read_text()[1:])
    elif damage == "truncate":
        shard.write_text(shard.read_text()[:-1])
    elif damage == "remove":
        shard.unlink()
    else:
        (shard.parent / "manifest.json").write_text("{")
    (tmp_path / ".step-00000009.incomplete").mkdir()  # what a killed save leaves
    assert checkpoints.newest() == (tmp_path / "step-00000001", {})
    assert "step-00000002 is passed over" in caplog.text
    # It is put aside, so that it does not count among the newest that are kept.
    Checkpoints(tmp_path, keep=1).save(FakeEngine(), 2, {})  # type: ignore[arg-type]
    assert names(tmp_path)[-1:] == ["step-00000002"]
