from __future__ import annotations

import re
import signal
import subprocess
import sys
from io import FileIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.environments import Writer
from imagebert.data.region_writer import Target, finished, write_regions
from imagebert.data.regions import RegionStore
from imagebert.workers import Workers
from tests.corpora import random_record
from tests.disks import make_read_only, small_disk

NAMES = [f"class{i}" for i in range(5)]
IMAGES = 40
JOB = {"what": "test"}

# Writes the store, and kills itself at the Nth call of whatever touches the disk for good.
KILLED = """
import os, pathlib, signal, sys
import imagebert.data.folder as folder, imagebert.data.region_writer as writer
from imagebert.data.environments import Reader, Writer
sys.path.insert(0, {root!r})
from tests.data.test_region_writer import write
calls, last = 0, int(sys.argv[2])
def counted(function):
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == 2 * last - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        calls += 1
        if calls == 2 * last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
Writer.put, os.fsync, pathlib.Path.rename = counted(Writer.put), counted(os.fsync), counted(pathlib.Path.rename)
pathlib.Path.unlink = counted(pathlib.Path.unlink)
write(pathlib.Path(sys.argv[1]))
print("calls", calls)
"""


def records() -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    return {f"image{i}": random_record(rng, int(rng.integers(1, 5))) for i in range(IMAGES)}


def write(path: Path) -> list[str]:
    """Small commits in small shards; what had to be read."""
    import imagebert.data.region_writer as module

    module._COMMIT_RECORDS = 4
    read = []
    with write_regions(Target(path, NAMES, {"name": "x"}, "float32", shard_bytes=2000), job=JOB) as writer:
        for key, record in records().items():
            if not writer.has(key):
                read.append(key)
                writer.add(key, record)
    return read


def same(store: RegionStore) -> None:
    expected = records()
    assert len(store) == IMAGES
    for image in range(IMAGES):
        np.testing.assert_array_equal(store.read(image).features, expected[store.key(image)].features)
    features = np.concatenate([record.features for record in expected.values()])
    assert store.statistics["mean"] == pytest.approx(features.mean(), rel=1e-5)
    assert store.statistics["max"] == features.max()
    assert sum(shard["records"] for shard in store.shards) == IMAGES


def killed(path: Path, at: int) -> subprocess.CompletedProcess[str]:
    code = KILLED.format(root=str(Path(__file__).parents[2]))
    return subprocess.run([sys.executable, "-c", code, str(path), str(at)], capture_output=True, text=True, check=False)


def test_killed_anywhere_the_store_is_absent_or_whole_and_is_gone_on_with(tmp_path: Path) -> None:
    whole = killed(tmp_path / "whole", 10**6)
    (calls,) = map(int, re.findall(r"calls (\d+)", whole.stdout))
    same(RegionStore(tmp_path / "whole"))
    read = []
    # Every eleventh of the many moments, and all at the end, where the store is put together.
    moments = sorted({*range(1, calls // 2, 11), *range(calls // 2 - 8, calls // 2 + 1)})
    for moment in moments:
        path = tmp_path / f"at{moment}"
        assert killed(path, moment).returncode == -signal.SIGKILL, moment
        if path.exists():
            assert finished(Target(path, NAMES, {"name": "x"}, "float32", 2000), JOB) == 0
        else:
            read.append(len(write(path)))
        same(RegionStore(path))
        assert RegionStore(path).content == RegionStore(tmp_path / "whole").content
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(f".at{moment}.")] == []
    # The later the kill, the less is read again: at most two commits of four more than what was left.
    assert read[0] == IMAGES
    assert all(earlier >= later for earlier, later in pairwise(read))
    assert read[-1] == 0


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, puts = Writer.put, 0

    def full(self: Writer, found: list[tuple[bytes, bytes]]) -> None:
        nonlocal puts
        puts += 1
        if puts == 4:
            raise OSError(28, "No space left on device")
        put(self, found)

    monkeypatch.setattr(Writer, "put", full)
    with pytest.raises(OSError, match="12 images are kept, the same call goes on from there: No space left"):
        write(tmp_path / "store")
    assert len(write(tmp_path / "store")) == IMAGES - 12
    same(RegionStore(tmp_path / "store"))


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "1m") as disk:
        rng = np.random.default_rng(0)
        with (
            pytest.raises(
                OSError, match=r"writing .* failed, \d+ images are kept, .*; the disk of .* has \d+ bytes free"
            ),
            write_regions(Target(disk / "store", NAMES, {}, "float32"), job=JOB) as writer,
        ):
            for i in range(600):
                writer.add(str(i), random_record(rng, 20))
        assert not (disk / "store").exists()
        make_read_only(disk)
        with (
            pytest.raises(UsageError, match=r"cannot write to .*small: Read-only file system"),
            write_regions(Target(disk / "other", NAMES, {})),
        ):
            pass


def test_another_job_is_not_mixed_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def begin(job: dict[str, object]) -> None:
        with write_regions(Target(tmp_path / "store", NAMES, {}), job=job) as writer:
            writer.add("a", random_record(rng, 1))
            writer._commit()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin({"source": "one"})
    with pytest.raises(UsageError, match=r"beginning of another store \(other source\)"):
        begin({"source": "two"})


def test_two_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="another process is writing"),
        write_regions(Target(tmp_path / "store", NAMES, {}), job=JOB),
        write_regions(Target(tmp_path / "store", NAMES, {}), job=JOB),
    ):
        pass


def test_a_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"), write_regions(Target(tmp_path / "file/store", NAMES, {})):
        pass


def test_fewer_writers_go_on_with_what_more_began(tmp_path: Path) -> None:
    """Two workers, one after the other as far as this process is concerned; then one alone."""
    rng = np.random.default_rng(0)
    found = {f"image{i}": random_record(rng, 2) for i in range(20)}
    keys = list(found)
    for rank in (0, 1):
        with (
            pytest.raises(KeyboardInterrupt),
            write_regions(
                Target(tmp_path / "store", NAMES, {}, "float32"), job=JOB, workers=Workers(rank, 2)
            ) as writer,
        ):
            for key in keys[rank:10:2]:
                writer.add(key, found[key])
            writer._commit()
            raise KeyboardInterrupt
    with write_regions(Target(tmp_path / "store", NAMES, {}, "float32"), job=JOB) as writer:
        missing = [key for key in keys if not writer.has(key)]
        for key in missing:
            writer.add(key, found[key])
    assert missing == keys[10:]
    store = RegionStore(tmp_path / "store")
    # What was begun is ended where it is.
    assert [shard["name"] for shard in store.shards] == ["shard-000-0000", "shard-000-0001", "shard-001-0000"]
    assert len(store) == 20
    for image in range(20):
        np.testing.assert_array_equal(store.read(image).features, found[store.key(image)].features)


def test_a_journal_that_says_everything_twice(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    half = list(records().items())[: IMAGES // 2]
    with (
        pytest.raises(KeyboardInterrupt),
        write_regions(Target(tmp_path / "store", NAMES, {"name": "x"}, "float32", shard_bytes=2000), job=JOB) as writer,
    ):
        for key, record in half:
            writer.add(key, record)
        raise KeyboardInterrupt
    journal = tmp_path / ".store.incomplete/journal-000.jsonl"
    assert journal.stat().st_size
    journal.write_bytes(journal.read_bytes() * 2)
    assert len(write(tmp_path / "store")) == IMAGES - len(half)
    same(RegionStore(tmp_path / "store"))
    told = [RegionStore(tmp_path / name).meta["statistics"] for name in ("store", "whole")]
    assert told[0] == pytest.approx(told[1])


def test_a_full_disk_at_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imagebert.data.region_writer as module

    class Full(FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            return super().write(data[: len(data) // 2])

    monkeypatch.setattr(module, "FileIO", Full)
    with pytest.raises(OSError, match=r"writing .*store failed, nothing was kept: No space left"):
        write(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_no_text(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="is no text that UTF-8 can hold: rename it"),
        write_regions(Target(tmp_path / "store", NAMES, {})) as writer,
    ):
        writer.add("bad\udcff.jpg", random_record(np.random.default_rng(0), 1))


def test_features_too_large_for_half_precision(tmp_path: Path) -> None:
    record = random_record(np.random.default_rng(0), 1)
    record.features[0, 0] = 1e5
    with (
        pytest.raises(UsageError, match="too large for float16"),
        write_regions(Target(tmp_path / "store", NAMES, {}, "float16")) as writer,
    ):
        writer.add("a", record)
