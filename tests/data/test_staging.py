from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.data.staging import check_records, shards_to_stage, stage
from tests.corpora import random_record


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegionStore:
    """Of six shards."""
    monkeypatch.setattr("imagebert.data.region_writer._COMMIT_RECORDS", 10)
    rng = np.random.default_rng(0)
    with write_regions(Target(tmp_path / "store", ["thing"] * 5, {}, "float32", shard_bytes=1)) as writer:
        for i in range(60):
            writer.add(f"{i:03d}", random_record(rng, 3, 700))
    found = RegionStore(tmp_path / "store")
    assert len(found.shards) == 6
    return found


def test_a_staged_part_reads_the_rest_from_afar(store: RegionStore, tmp_path: Path) -> None:
    local = tmp_path / "local"
    assert main(["store", "stage", str(store.path), str(local), "--part", "1/3"]) == 0
    assert sorted(p.name for p in local.glob("shard*")) == ["shard-000-0001", "shard-000-0004"]
    staged = RegionStore(local)
    (store.path / "shard-000-0001").rename(tmp_path / "gone")  # what is here is read here
    assert [bytes(a) for a in staged.raw(np.arange(60))] == [bytes(a) for a in RegionStore(local).raw(np.arange(60))]
    for image in range(60):
        assert staged.read(image).features.shape == (3, 700)
    (tmp_path / "gone").rename(store.path / "shard-000-0001")
    assert main(["store", "stage", str(store.path), str(local)]) == 0
    shutil.rmtree(store.path)
    assert len(RegionStore(local).read(59).features) == 3


def test_room_is_kept_to(store: RegionStore) -> None:
    size = store.shards[0]["file_bytes"]
    assert len(shards_to_stage(store, 0, 1, 3 * size + 1)) == 3
    assert shards_to_stage(store, 0, 1, size - 1) == []
    assert len(shards_to_stage(store, 1, 2, None)) == 3


def test_an_interrupted_copy_goes_on(store: RegionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.staging._BLOCK", 5000)
    local = tmp_path / "local"
    copying = stage(store, local, store.shards)
    size = store.shards[0]["file_bytes"]
    while next(copying) < size + 12_000:
        pass
    copying.close()  # as a kill would: the second shard is in part there
    assert sorted(p.name for p in local.iterdir()) == [
        ".shard-000-0001.part",
        "index.npy",
        "meta.json",
        "shard-000-0000",
    ]
    written = os.stat(local / ".shard-000-0001.part/data.mdb").st_size
    assert 0 < written < size
    assert len(RegionStore(local).read(59).features) == 3  # it is a store from the first moment on
    # It goes on behind what is there: the first block that is reported is a later one.
    first = next(iter(stage(store, local, store.shards)))
    assert first >= size + written
    *_, last = stage(store, local, store.shards)
    assert last == sum(shard["file_bytes"] for shard in store.shards)
    for name in ("shard-000-0000", "shard-000-0001"):
        assert (local / name / "data.mdb").read_bytes() == (store.path / name / "data.mdb").read_bytes()


def test_a_copy_that_differs_is_noticed(store: RegionStore, tmp_path: Path) -> None:
    file = store.path / "shard-000-0002/data.mdb"
    data = bytearray(file.read_bytes())
    data[9000] ^= 1
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"shard-000-0002/data.mdb does not have the SHA-256"):
        list(stage(store, tmp_path / "local", store.shards))
    assert sorted(p.name for p in (tmp_path / "local").glob("shard*")) == ["shard-000-0000", "shard-000-0001"]


def test_another_store_is_not_mixed_in(store: RegionStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    with write_regions(Target(tmp_path / "other", ["thing"] * 5, {}, "float32", shard_bytes=1)) as writer:
        for i in range(60):
            writer.add(f"{i:03d}", random_record(rng, 3, 700))
    copying = stage(store, tmp_path / "local", store.shards)
    while next(copying) < store.shards[0]["file_bytes"]:
        pass
    copying.close()
    other = RegionStore(tmp_path / "other")
    with pytest.raises(UsageError, match="is staged from another store, or another state of it"):
        list(stage(other, tmp_path / "local", other.shards))


def test_a_staged_store_is_staged_on(store: RegionStore, tmp_path: Path) -> None:
    list(stage(store, tmp_path / "rack", store.shards[:2]))
    rack = RegionStore(tmp_path / "rack")
    list(stage(rack, tmp_path / "node", rack.shards))
    shutil.rmtree(store.path)
    shutil.rmtree(tmp_path / "rack")
    assert len(RegionStore(tmp_path / "node").read(59).features) == 3


def test_no_room(store: RegionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r"has 10 bytes free, shard shard-000-0000 needs .* more"):
        list(stage(store, tmp_path / "local", store.shards))


def test_every_damaged_record_is_found(store: RegionStore) -> None:
    names = []
    for shard in ("shard-000-0001", "shard-000-0005"):
        file = store.path / shard / "data.mdb"
        data = bytearray(file.read_bytes())
        (record,) = store.raw(np.array([10 * int(shard[-1]) + 3]))
        at = bytes(data).index(bytes(record)) + 100
        data[at] ^= 1
        file.write_bytes(data)
        names.append(f"{10 * int(shard[-1]) + 3:03d}")
    found = [error for _, errors in check_records(RegionStore(store.path), 3) for error in errors]
    assert [name in error for name, error in zip(names, found, strict=True)] == [True, True]
    assert all("checksum does not match" in error for error in found)


def test_two_that_stage_at_once(store: RegionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second waits, and finds what the first has copied; where all is there, nothing is written."""
    local = tmp_path / "local"
    first = stage(store, local, store.shards)
    next(first)
    ends: list[int] = []
    second = threading.Thread(target=lambda: ends.extend(stage(store, local, store.shards)))
    second.start()
    while "waiting for its end" not in caplog.text:
        time.sleep(0.01)
    assert ends == []
    *_, whole = first
    second.join()
    assert ends == [whole]
    assert not (local / ".lock").exists()
    before = local.stat().st_mtime_ns
    assert list(stage(store, local, store.shards)) == [whole]
    assert local.stat().st_mtime_ns == before
