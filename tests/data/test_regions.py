from __future__ import annotations

import gc
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from imagebert.config import SourceConfig, UsageError
from imagebert.data.records import WHOLE_IMAGE
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from tests.corpora import random_record

NAMES = [f"class{i}" for i in range(5)]


def test_many_shards_keep_every_record(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = {f"folder/{i}.jpg": random_record(rng, int(rng.integers(1, 5))) for i in rng.permutation(700)}
    with write_regions(Target(tmp_path / "store", NAMES, {"name": "x"}, "float32", shard_bytes=10_000)) as writer:
        for key, record in records.items():
            writer.add(key, record)
    store = RegionStore(tmp_path / "store")
    assert len(store) == 700
    assert len(store.shards) > 1
    assert store.whole_image.all()
    keys = np.array([key.encode() for key in records])
    for key, number in zip(records, store.find(keys), strict=True):
        assert store.key(number) == key
        np.testing.assert_array_equal(store.read(number).features, records[key].features)
    assert (store.find(np.array([b"a", b"zzz", b"folder/1.jp"])) == -1).all()
    features = np.concatenate([r.features for r in records.values()])
    assert store.statistics["mean"] == pytest.approx(features.mean(), abs=1e-6)
    assert store.statistics["std"] == pytest.approx(features.std(), rel=1e-5)
    assert store.statistics["relative_storage_error"] == 0


def test_grows_past_its_map_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with write_regions(Target(tmp_path / "store", NAMES, {}, "float32")) as writer:
        for i in range(300):  # 300 x 40 x 2048 x 4 bytes = 98 MB, more than the first map of 64 MiB
            writer.add(str(i), random_record(rng, 40, 2048))
    assert len(RegionStore(tmp_path / "store")) == 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": np.array([7], np.uint16)}, "unknown class 7: there are 5"),
        ({"features": np.full((1, 12), np.nan, np.float32)}, "not finite"),
        ({"features": np.zeros((1, 9), np.float32)}, "features of size 9, those before 12"),
        ({"features": np.zeros((0, 12), np.float32), "scales": np.ones(0, np.float32)}, "has no region"),
    ],
)
def test_bad_records_are_named_and_nothing_is_left(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rng = np.random.default_rng(0)
    good = random_record(rng, 1)
    with (
        pytest.raises(UsageError, match=f"'bad.jpg'.*{message}"),
        write_regions(Target(tmp_path / "store", NAMES, {})) as writer,
    ):
        writer.add("good.jpg", good)
        writer.add("bad.jpg", good._replace(**change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_key_twice(tmp_path: Path) -> None:
    record = random_record(np.random.default_rng(0), 1)
    with pytest.raises(UsageError, match="comes twice"), write_regions(Target(tmp_path / "store", NAMES, {})) as writer:
        writer.add("a", record)
        writer.add("a", record)


def test_empty_store(tmp_path: Path) -> None:
    with write_regions(Target(tmp_path / "store", NAMES, {})):
        pass
    with pytest.raises(UsageError, match="is empty"):
        RegionStore(tmp_path / "store")


def test_a_damaged_record_is_named(source: SourceConfig, tmp_path: Path) -> None:
    shutil.copytree(source.regions, tmp_path / "store")
    store = RegionStore(tmp_path / "store")
    shard = store.path / "shard-000-0000/data.mdb"
    data = bytearray(shard.read_bytes())
    data[int(store.index["offset"][3]) + 40] ^= 1
    data[int(store.index["offset"][4]) + 2] += 1  # its number of regions
    shard.write_bytes(data)
    with pytest.raises(UsageError, match=r"image003.jpg.*checksum"):
        store.read(3)
    with pytest.raises(UsageError, match=r"image004.jpg.*truncated"):
        store.read(4)
    assert store.read(5).classes[0] == WHOLE_IMAGE


def test_a_shard_that_shrinks_under_its_reader(source: SourceConfig, tmp_path: Path) -> None:
    """Mapped, it would kill the process."""
    shutil.copytree(source.regions, tmp_path / "store")
    store = RegionStore(tmp_path / "store")
    store.read(0)
    os.truncate(store.path / "shard-000-0000/data.mdb", int(store.index["offset"][3]) + 50)
    with pytest.raises(UsageError, match=r"'image003.jpg' .* is truncated: 50 bytes"):
        store.read(3)


def test_a_record_of_another_store_is_named(source: SourceConfig, tmp_path: Path) -> None:
    """Its own checksum is right; it is not what the index names."""
    for name, seed in (("a", 1), ("b", 2)):
        with write_regions(Target(tmp_path / name, NAMES, {})) as writer:
            writer.add("image.jpg", random_record(np.random.default_rng(seed), 3))
    shutil.copy(tmp_path / "b/shard-000-0000/data.mdb", tmp_path / "a/shard-000-0000/data.mdb")
    with pytest.raises(UsageError, match=r"'image.jpg' of .*a is not the one that was written there"):
        RegionStore(tmp_path / "a").read(0)
    assert len(RegionStore(tmp_path / "a", verify=False).read(0).boxes) == 3


def test_what_is_handed_out_outlives_the_store(source: SourceConfig) -> None:
    record = RegionStore(source.regions).read(0)
    gc.collect()
    assert np.isfinite(record.features.sum())
    assert len(record.boxes) == len(record.features)


def test_lmdbs_own_pages_do_not_matter_to_a_reader(source: SourceConfig, tmp_path: Path) -> None:
    """Damaged, they killed the process; now they are not looked at."""
    shutil.copytree(source.regions, tmp_path / "store")
    store = RegionStore(tmp_path / "store")
    expected = [bytes(record) for record in store.raw(np.arange(24))]
    shard = store.path / "shard-000-0000/data.mdb"
    data = np.frombuffer(shard.read_bytes(), np.uint8).copy()
    inside = np.zeros(len(data), bool)
    for offset, record in zip(store.index["offset"].tolist(), expected, strict=True):
        inside[offset : offset + len(record)] = True
    data[~inside] = 255
    shard.write_bytes(data.tobytes())
    assert [bytes(record) for record in RegionStore(tmp_path / "store").raw(np.arange(24))] == expected


def test_content_is_what_is_in_a_store_not_how_it_is_cut(tmp_path: Path) -> None:
    records = {f"{i}": random_record(np.random.default_rng(i), 2) for i in range(8)}

    def content(name: str, keys: list[str], shard_bytes: int = 1 << 20, classes: list[str] = NAMES) -> str:
        with write_regions(Target(tmp_path / name, classes, {"name": name}, "float32", shard_bytes)) as writer:
            for key in keys:
                writer.add(key, records[key])
                writer._commit()
        return RegionStore(tmp_path / name).content

    first = content("a", list(records))
    assert content("b", list(records)[::-1], shard_bytes=1) == first
    assert len(RegionStore(tmp_path / "b").shards) == 8
    assert content("c", list(records)[:-1]) != first
    assert content("d", list(records), classes=[*NAMES[1:], NAMES[0]]) != first
    records["3"].features[1, 5] += 0.5
    assert content("e", list(records)) != first


def test_not_a_store(tmp_path: Path, source: SourceConfig) -> None:
    with pytest.raises(UsageError, match="is not there: a store is a folder made by `imagebert extract`"):
        RegionStore(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"no readable meta.json"):
        RegionStore(tmp_path)
    with pytest.raises(UsageError, match="holds imagebert-pairs"):
        RegionStore(source.pairs)
    shutil.copytree(source.regions, tmp_path / "store")
    shard = tmp_path / "store/shard-000-0000/data.mdb"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"data.mdb is truncated"):
        RegionStore(tmp_path / "store")
    shard.write_bytes(whole)
    index = tmp_path / "store/index.npy"
    plain = io.BytesIO()
    np.save(plain, np.zeros(24))
    for content in (index.read_bytes()[:100], b"", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((  ", plain.getvalue()):
        index.write_bytes(content)
        with pytest.raises(UsageError, match=r"index.npy has changed since it was written"):
            RegionStore(tmp_path / "store")
    shutil.copy(Path(source.regions) / "index.npy", index)
    shutil.rmtree(tmp_path / "store/shard-000-0000")
    with pytest.raises(UsageError, match="lacks its shard"):
        RegionStore(tmp_path / "store")
