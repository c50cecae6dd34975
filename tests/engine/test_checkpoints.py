from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imagebert.engine.checkpoints as checkpoints_module
from imagebert.config import UsageError
from imagebert.engine.checkpoints import Checkpoints, find_newest
from imagebert.engine.shards import Piece, Shards, Snapshot, write_shard


class Source:
    """One rank's engine with two parameters, the second of which it holds a part of; the step is its every value."""

    def __init__(self) -> None:
        self.memory = {key: torch.zeros(5) for key in ("weight", "exp_avg", "exp_avg_sq")}
        self.step = 0

    def snapshot(self) -> Snapshot:
        for value in self.memory.values():
            value.fill_(self.step)
        return Snapshot([Piece("a", 0, 2), Piece("b", 4, 3)], self.memory)

    def counters(self) -> dict[str, int]:
        return {"updates": self.step}

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        self.step = step
        checkpoints.save(self, step, {"seed": step})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def step_names(*steps: int) -> list[str]:
    return [f"step-{step:08d}" for step in steps]


def newest_step(checkpoints: Checkpoints) -> int:
    found = checkpoints.newest()
    assert found is not None
    folder, manifest = found
    assert manifest["state"] == {"seed": manifest["step"]}
    weight = torch.empty(3)
    Shards(folder, manifest["shards"]).read("b", "weight", 4, weight)
    assert weight.tolist() == [manifest["step"]] * 3
    return int(manifest["step"])


def test_keeps_the_newest_and_every_so_many(tmp_path: Path) -> None:
    checkpoints, source = Checkpoints(tmp_path, keep=2, keep_every=3), Source()
    assert checkpoints.newest() is None
    for step in range(1, 9):
        source.save(checkpoints, step)
    checkpoints.finish()
    assert names(tmp_path) == step_names(3, 6, 7, 8)
    assert newest_step(checkpoints) == 8
    assert find_newest(tmp_path)[1]["step"] == 8


def test_training_goes_on_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()

    def slow(path: Path, snapshot: Snapshot) -> dict[str, Any]:
        assert may_write.wait(10)
        return write_shard(path, snapshot)

    monkeypatch.setattr(checkpoints_module, "write_shard", slow)
    checkpoints, source = Checkpoints(tmp_path, keep=2), Source()
    source.save(checkpoints, 1)
    for _ in range(3):  # steps
        progress = checkpoints.progress()
        assert progress == (0, 0)
        checkpoints.settle(*progress)
    assert checkpoints.figures() == {}
    may_write.set()
    while checkpoints.progress() != (1, 0):
        pass
    checkpoints.settle(1, 0)
    assert checkpoints.figures()["checkpoint/seconds"] > 0
    checkpoints.finish()
    assert names(tmp_path) == step_names(1)


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_keeps_the_earlier_ones_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: int
) -> None:
    checkpoints, source = Checkpoints(tmp_path, keep=2), Source()
    source.save(checkpoints, 1)
    checkpoints.wait()

    def fail(path: Path, snapshot: Snapshot) -> dict[str, Any]:
        path.write_bytes(b"half")
        raise OSError(problem, "cannot")

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints_module, "write_shard", fail)
        source.save(checkpoints, 2)
        checkpoints.wait()
        assert names(tmp_path) == step_names(1)
        assert "step-00000002 could not be written" in caplog.text
        source.save(checkpoints, 3)
        with pytest.raises(OSError, match="free some space; the same command goes on from the one before"):
            checkpoints.finish()
    source.save(checkpoints, 4)
    checkpoints.finish()
    assert names(tmp_path) == step_names(1, 4)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints, source = Checkpoints(tmp_path, keep=3), Source()
    for step in (1, 2):
        source.save(checkpoints, step)
    checkpoints.finish()
    shard = tmp_path / "step-00000002/shard-00000.safetensors"
    data = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncate":
        shard.write_bytes(data[:-1])
    elif damage == "remove":
        shard.unlink()
    else:
        (shard.parent / "manifest.json").write_text("{")
    (tmp_path / ".step-00000009.incomplete").mkdir()  # what a killed save leaves
    assert find_newest(tmp_path)[1]["step"] == 1
    assert len(names(tmp_path)) == 3  # it may be another run's: nothing is touched
    assert newest_step(checkpoints) == 1
    assert "step-00000002 is passed over" in caplog.text
    # It is put aside, so that it does not count among the newest that are kept.
    checkpoints.keep = 1
    source.save(checkpoints, 2)
    checkpoints.finish()
    assert names(tmp_path) == [".damaged-step-00000002", "step-00000002"]


def test_shards_give_any_cut_of_a_parameter(tmp_path: Path) -> None:
    """Written in unequal parts by three ranks, read in all parts that there are; safetensors' own reader agrees."""
    values = np.random.default_rng(0).normal(size=11).astype(np.float32)
    shards = []
    for rank, (start, end) in enumerate(((0, 4), (4, 5), (5, 11))):
        memory = {key: torch.from_numpy(values[start:end] + i) for i, key in enumerate(("weight", "exp_avg"))}
        shards.append(write_shard(tmp_path / str(rank), Snapshot([Piece("p", start, end - start)], memory)))
    reader = Shards(tmp_path, shards)
    for start in range(11):
        for end in range(start + 1, 12):
            into = torch.empty(end - start)
            reader.read("p", "exp_avg", start, into)
            np.testing.assert_array_equal(into.numpy(), values[start:end] + 1)
    with pytest.raises(UsageError, match="lacks 1 of 2 elements of p: it is of another model"):
        reader.read("p", "weight", 10, torch.empty(2))


def test_a_run_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    """All checkpoints damaged, or none that this version reads: a person has to decide."""
    checkpoints, source = Checkpoints(tmp_path, keep=1), Source()
    source.save(checkpoints, 1)
    checkpoints.finish()
    manifest = tmp_path / "step-00000001/manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"version": 1', '"version": 99'))
    with pytest.raises(UsageError, match="made by another version of this program"):
        checkpoints.newest()
    manifest.write_text(whole)
    assert newest_step(checkpoints) == 1
    (tmp_path / "step-00000001/shard-00000.safetensors").unlink()
    for _ in range(2):  # and again, when the job is started again
        with pytest.raises(UsageError, match="no good checkpoint is left in"):
            checkpoints.newest()
