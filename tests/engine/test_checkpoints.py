from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imagebert.engine.checkpoints as checkpoints_module
from imagebert.config import UsageError
from imagebert.engine.checkpoints import Checkpoints, find_newest
from imagebert.engine.shards import Piece, Shards, Snapshot, write_shard
from imagebert.files import write_json, write_sealed


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
        return {"updates": self.step, "skipped": 0}

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
        assert progress == (0, 0, 0)
        checkpoints.settle(*progress)
    assert checkpoints.figures() == {}
    may_write.set()
    while checkpoints.progress() != (1, 0, 0):
        pass
    checkpoints.settle(1, 0, 0)
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


@pytest.mark.parametrize("part", ["write_shard", "replace_folder"])
def test_a_first_save_that_fails_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Be it that a shard cannot be written, or that rank 0 does not see those of the others."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "cannot")

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints_module, part, fail)
        checkpoints, source = Checkpoints(tmp_path, keep=2), Source()
        source.save(checkpoints, 1)
        with pytest.raises(OSError, match="the first checkpoint could not be written in"):
            checkpoints.wait()
        assert names(tmp_path) == []
    Source().save(checkpoints := Checkpoints(tmp_path, keep=2), 1)
    checkpoints.finish()
    with monkeypatch.context() as broken:  # a later attempt has one
        broken.setattr(checkpoints_module, part, fail)
        checkpoints = Checkpoints(tmp_path, keep=2)
        assert checkpoints.newest() is not None
        Source().save(checkpoints, 2)
        checkpoints.wait()
        assert checkpoints.failed == 1


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
    content = json.loads(whole)
    del content["digest"]
    for write, version in ((write_json, 1), (write_sealed, 99)):  # the first had no digest
        write(manifest, {**content, "version": version})
        with pytest.raises(UsageError, match="made by another version of this program"):
            checkpoints.newest()
    manifest.write_text(whole)
    assert newest_step(checkpoints) == 1
    (tmp_path / "step-00000001/shard-00000.safetensors").unlink()
    for _ in range(2):  # and again, when the job is started again
        with pytest.raises(UsageError, match="no good checkpoint is left in"):
            checkpoints.newest()


def two(folder: Path) -> tuple[Checkpoints, Path]:
    """Checkpoints at steps 1 and 2, and the manifest of the second."""
    checkpoints, source = Checkpoints(folder, keep=3, holds={"seed": float}), Source()
    for step in (1, 2):
        source.save(checkpoints, step)
    checkpoints.finish()
    return checkpoints, folder / "step-00000002/manifest.json"


def test_any_changed_byte_of_a_manifest_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints, manifest = two(tmp_path)
    data = manifest.read_bytes()
    assert b'"step": 2' in data
    for at in range(len(data)):
        for changed in (data[at] ^ 1, data[at] ^ 128):
            manifest.write_bytes(data[:at] + bytes([changed]) + data[at + 1 :])
            step = find_newest(tmp_path)[1]["step"]
            assert step == 1 or json.loads(manifest.read_bytes()) == json.loads(data), (at, changed)  # white space
    manifest.write_bytes(data.replace(b'"step": 2', b'"step": 3'))
    caplog.clear()
    assert newest_step(checkpoints) == 1
    assert "step-00000002 is passed over: its manifest.json is missing or damaged" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"[" * 200_000,
        b'{"version": 1e999}',
        b'{"a": ' * 90 + b"1" + b"}" * 90,
    ],
)
def test_what_is_no_manifest_is_passed_over(tmp_path: Path, data: bytes) -> None:
    checkpoints, manifest = two(tmp_path)
    manifest.write_bytes(data)
    assert find_newest(tmp_path)[1]["step"] == 1
    assert newest_step(checkpoints) == 1
    assert sorted(names(tmp_path)) == [".damaged-step-00000002", "step-00000001"]


HUGE, GONE = 10**400, object()
OTHERS = [GONE, None, "2", [], [7], {}, 1.5, HUGE]
# Ways from the top of a manifest, and what does not belong at their ends.
WRONG: dict[tuple[str | int, ...], list[Any]] = {
    ("version",): OTHERS[:-1],
    ("step",): [*OTHERS, 3, float("inf")],
    ("state",): OTHERS,
    ("state", "seed"): [GONE, None, "2", [], HUGE, float("inf"), float("nan"), -1],
    ("counters",): OTHERS,
    ("counters", "updates"): [*OTHERS, -1, True],
    ("counters", "skipped"): OTHERS,
    ("shards",): OTHERS,
    ("shards", 0, "file"): [*OTHERS, "../x", "/etc/passwd", "", "shard-00001.safetensors"],
    ("shards", 0, "bytes"): [*OTHERS, -1],
    ("shards", 0, "sha256"): OTHERS,
    ("shards", 0, "pieces"): [
        *OTHERS,
        *([["a", 0, n]] for n in (4, -5, 5.0, HUGE)),
        *([["a", 0]], [["a", -1, 5]], [[5, 0, 5]], [["a", 0, 5, 0]]),
    ],
}


@pytest.mark.parametrize("place", WRONG, ids=str)
def test_a_manifest_of_another_form_is_passed_over(tmp_path: Path, place: tuple[str | int, ...]) -> None:
    """However it came to be: its digest is right."""
    _, manifest = two(tmp_path)
    whole = json.loads(manifest.read_text())
    for value in WRONG[place]:
        content = json.loads(json.dumps(whole))
        del content["digest"]
        *way, last = place
        at = reduce(lambda node, key: node[key], way, content)
        at[last] = value
        if value is GONE:
            del at[last]
        write_sealed(manifest, content)
        assert find_newest(tmp_path, {"seed": float})[1]["step"] == 1, value


def test_a_folder_under_another_name_is_passed_over(tmp_path: Path) -> None:
    checkpoints, manifest = two(tmp_path)
    shutil.copytree(manifest.parent, tmp_path / "step-00000005")
    (tmp_path / "step-00000007").write_text("a file")
    assert newest_step(checkpoints) == 2


def test_a_shard_of_another_form_is_passed_over(tmp_path: Path) -> None:
    """Its digest is right, it is no float32 [n] of each."""
    checkpoints, manifest = two(tmp_path)
    content = json.loads(manifest.read_text())
    del content["digest"]
    values = {key: torch.zeros(5) for key in ("weight", "exp_avg", "other")}
    pieces = [Piece(*piece) for piece in content["shards"][0]["pieces"]]
    content["shards"] = [write_shard(manifest.parent / "shard-00000.safetensors", Snapshot(pieces, values))]
    write_sealed(manifest, content)
    assert newest_step(checkpoints) == 1


@pytest.mark.parametrize("problem", ["forbidden", "file", "link"])
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    """Else the run would begin again, and its log with it."""
    folder = tmp_path / "checkpoints"
    if problem == "forbidden":
        two(folder)

        def forbid(path: Any) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", forbid)
    elif problem == "file":
        folder.write_text("")
    else:
        folder.symlink_to(tmp_path / "lost")
    for ask in (Checkpoints(folder, keep=1).newest, lambda: find_newest(folder)):
        with pytest.raises(UsageError, match=r"checkpoints .*mend that, or give another output folder"):
            ask()


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.safetensors"])
def test_what_may_not_be_read_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    checkpoints, _ = two(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name)
    with pytest.raises(UsageError, match=f"{name} may not be read"):
        checkpoints.newest()
    assert names(tmp_path) == step_names(1, 2)


def test_steps_of_more_digits(tmp_path: Path) -> None:
    checkpoints, source = Checkpoints(tmp_path, keep=2), Source()
    for step in (99_999_998, 99_999_999, 100_000_000):
        source.step = step
        checkpoints.save(source, step, {})
    checkpoints.finish()
    assert names(tmp_path) == sorted(step_names(99_999_999, 100_000_000))
    assert find_newest(tmp_path)[1]["step"] == 100_000_000


def test_what_a_kill_kept_from_being_dropped_is_dropped_by_the_next_start(tmp_path: Path) -> None:
    """Killed between the newest one's rename and the end of the oldest."""
    patient, source = Checkpoints(tmp_path, keep=9), Source()
    for step in range(1, 5):
        source.save(patient, step)
    patient.finish()
    assert newest_step(Checkpoints(tmp_path, keep=2)) == 4
    assert names(tmp_path) == step_names(3, 4)
