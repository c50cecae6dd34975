from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.corpus import StoreImages
from imagebert.data.readers import Item, Loaded, share_of
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.data.transfer import Transferred, transfer
from imagebert.feed.packer import Limits
from imagebert.workers import Workers
from tests.corpora import random_record, write_corpus, write_vocabulary
from tests.data.readers.checks import Write, make
from tests.data.readers.test_hdf5 import write_hdf5_adaptive
from tests.data.readers.test_lmdbs import write_uniter
from tests.data.readers.test_tsv import write_bottom_up, write_lxmert
from tests.data.readers.test_vinvl import write_vinvl, write_vinvl_yaml

IMAGEBERT = [sys.executable, "-m", "imagebert"]
MPIRUN = Path(sys.executable).with_name("mpirun")


NEEDS_MPI = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")


def mpirun(ranks: int) -> list[str | Path]:
    return [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), *IMAGEBERT]


def bottom_up(folder: Path) -> Path:
    """Five images, of which the second is damaged and the fifth has the key of the first."""
    _, path = write_bottom_up(folder, make())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:-100] + b"\r\n"
    lines[4] = b"\t".join([lines[0].split(b"\t")[0], *lines[4].split(b"\t")[1:]])
    path.write_bytes(b"".join(lines))
    return path


def test_what_is_found_is_said_before_it_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = write_lxmert(tmp_path, make())
    (tmp_path / "names").write_text("\n".join(f"thing {i}" for i in range(7)))
    call = ["import", "auto", "--classes", str(tmp_path / "names"), str(path)]
    assert main([*call, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in (
        f"{path}: lxmert, about 5 images, the first is '1000'",
        f"features: {len(make()[0].boxes)} regions of 16 in the first image, bytes of float32",
        "boxes: pixels, xyxy; its size from img_w and img_h",
        f"objects_id; 7 names from {tmp_path / 'names'}",
        "objects_conf",
        "from 5 images; `layout` NAME=VALUE decides otherwise",
    ):
        assert part in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["names", "obj36.tsv"]
    assert main([*call, str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().out == said
    assert not (tmp_path / "out").exists()
    assert main([*call, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(said)
    store = RegionStore(tmp_path / "out")
    assert store.extractor["layout"]["unit"] == "pixels"
    assert store.has_classes
    assert main([*call, "--dry-run", "--layout", "unit"]) == 2
    assert "--layout unit: give NAME=VALUE" in capsys.readouterr().err
    assert main([*call, "--dry-run", "--layout", "unit=shares"]) == 2
    assert "none of 5 sampled images can be used; " in capsys.readouterr().err


def test_names_of_classes_as_projects_list_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One a line, VinVL's labelmap.tsv, and the JSON beside its models."""
    _, path = write_lxmert(tmp_path, make())
    names = [f"thing {i}" for i in range(7)]
    numbers = {name: number for number, name in reversed(list(enumerate(names, start=1)))}
    for listed in (
        "\n".join(names),
        "".join(f"{name}\t{number}\n" for number, name in enumerate(names)),
        json.dumps({"label_to_idx": numbers, "attribute_to_idx": {"red": 1}}, indent=1),
    ):
        (tmp_path / "names").write_text(listed)
        call = ["import", "auto", str(path), str(tmp_path / "out"), "--classes", str(tmp_path / "names"), "--overwrite"]
        assert main(call) == 0
        assert RegionStore(tmp_path / "out").classes == names
    for wrong in ({"idx": 1}, {"label_to_idx": {"a": 0, "b": 1}}, {"label_to_idx": {"a": 1, "b": 3}}):
        (tmp_path / "names").write_text(json.dumps(wrong))
        assert main(call) == 2
        assert "has no label_to_idx that numbers names from 1 on" in capsys.readouterr().err


def test_a_store_without_classes_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = write_bottom_up(tmp_path, make())
    assert main(["import", "auto", str(path), str(tmp_path / "out")]) == 0
    assert "none, all are of class 0" in capsys.readouterr().out
    store = RegionStore(tmp_path / "out")
    assert not store.has_classes
    assert main(["store", "inspect", str(tmp_path / "out")]) == 0
    assert "none, all are of class 0" in capsys.readouterr().out
    assert main(["store", "quantize", str(tmp_path / "out"), str(tmp_path / "half"), "--features", "float16"]) == 0
    assert not RegionStore(tmp_path / "half").has_classes
    with write_regions(Target(tmp_path / "named", store.classes, {"name": "x"})) as writer:
        writer.add("x", store.read(0))
    assert main(["store", "merge", str(tmp_path / "out"), str(tmp_path / "named"), str(tmp_path / "both")]) == 2
    assert "differ in their has classes" in capsys.readouterr().err


@pytest.mark.parametrize("ranks", [1, *(pytest.param(n, marks=[NEEDS_MPI, pytest.mark.ranks]) for n in (2, 3))])
def test_one_odd_image_costs_one_image_wherever_it_lies(ranks: int, tmp_path: Path) -> None:
    """With other features than its source: the first of a rank, or of all."""
    for place in (0, 3, 5):
        images = [image._replace(key=f"{k}-{image.key}") for k in range(2) for image in make()]
        images[place] = images[place]._replace(features=images[place].features[:, :4])
        folder = tmp_path / str(place)
        folder.mkdir()
        _, path = write_bottom_up(folder, images)
        call = IMAGEBERT if ranks == 1 else mpirun(ranks)
        done = subprocess.run(
            [*call, "import", "auto", path, folder / "out"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"10 images: 9 stored in {folder / 'out'}, 1 refused" in done.stdout
        assert "its features have 4 numbers, those of the source 16" in done.stderr


def test_rows_of_padding_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the call that goes on behind a kill, too, and by one that finds all done."""
    filled = []
    for image in make():
        tables = {n: getattr(image, n) for n in ("boxes", "features", "classes", "confidences")}
        more = {n: np.concatenate([v, np.zeros((3, *v.shape[1:]), v.dtype)]) for n, v in tables.items()}
        filled.append(image._replace(**more))
    _, path = write_lxmert(tmp_path, filled)
    call = ["import", "auto", str(path), str(tmp_path / "out")]
    import imagebert.data.region_writer as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMMIT_RECORDS", 1)
        patch.setattr(module.RegionWriter, "finish", interrupt)
        assert main(call) == 1
    for _ in range(2):
        assert main(call) == 0
        told = capsys.readouterr().out.splitlines()[-1]
        assert told == f"5 images: 5 stored in {tmp_path / 'out'}, 0 refused, 15 rows of padding left out"
    assert RegionStore(tmp_path / "out").region_counts.sum() == sum(len(image.boxes) for image in make())


def test_a_number_beside_which_int8_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make(32)
    images[2].features[1, 5] = 9000
    _, path = write_bottom_up(tmp_path, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.Logger.warning", lambda _, text, *values: print(text % values))
        assert main(["import", "auto", str(path), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "beside the 9000 of region 1, 31 of its 32 features are 0 as int8: store them with features" in said
    assert "5 images: 4 stored" in said
    assert main(["import", "auto", str(path), str(tmp_path / "half"), "--features", "float16"]) == 0
    assert len(RegionStore(tmp_path / "half")) == 5


def test_what_came_is_what_was_stored_and_what_was_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = bottom_up(tmp_path)
    assert main(["import", "bottom-up-attention", str(path), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"5 images: 3 stored in {tmp_path / 'out'}, 2 refused"
    assert len(RegionStore(tmp_path / "out")) == 3
    first, second = (record.message for record in caplog.records if "refused" in record.message)
    assert re.search(r"features.tsv, byte \d+, image '1001' is refused: features", first)
    assert "image '1000' comes twice" in second
    strict = main(["import", "bottom-up-attention", str(path), str(tmp_path / "strict"), "--strict"])
    assert strict == 2
    assert "image '1001': features" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


@pytest.mark.ranks
@NEEDS_MPI
@pytest.mark.parametrize("ranks", [2, 3])
def test_mpi_ranks_write_the_same_store_as_one(ranks: int, tmp_path: Path) -> None:
    path = bottom_up(tmp_path)
    out = tmp_path / "out"
    done = subprocess.run(
        [*mpirun(ranks), "import", "bottom-up-attention", path, out, "--features", "float32"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The image that comes twice comes to two ranks: either is kept.
    assert done.stdout.strip().splitlines()[-1].endswith(f"5 images: 3 stored in {out}, 2 refused")
    assert main(["import", "bottom-up-attention", str(path), str(tmp_path / "one"), "--features", "float32"]) == 0
    several, one = RegionStore(out), RegionStore(tmp_path / "one")
    assert len({shard["name"][:9] for shard in several.shards}) > 1
    assert [several.key(i) for i in range(3)] == [one.key(i) for i in range(3)]
    for image in (1, 2):
        np.testing.assert_array_equal(several.read(image).features, one.read(image).features)


@pytest.mark.ranks
@NEEDS_MPI
def test_when_one_rank_fails_all_end(tmp_path: Path) -> None:
    path = bottom_up(tmp_path)
    done = subprocess.run(
        [*mpirun(3), "import", "bottom-up-attention", path, tmp_path / "out", "--strict"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "image '1001': features" in done.stderr


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    images = [image._replace(key=f"{k}-{image.key}") for k in range(400) for image in make(512, 4)]
    name, path = write_lxmert(tmp_path, images)
    out = tmp_path / "out"
    process = subprocess.Popen([*IMAGEBERT, "import", name, path, out], stdout=subprocess.PIPE, text=True)
    journal = tmp_path / ".out.incomplete/journal-000.jsonl"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    done = subprocess.run([*IMAGEBERT, "import", name, path, out], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"2000 images: 2000 stored in {out}, 0 refused"
    store = RegionStore(out)
    by_key = {image.key: image for image in images}
    for number in range(0, 2000, 37):
        image = by_key[store.key(number)]
        largest = np.abs(image.features).max(axis=1, keepdims=True)
        assert (np.abs(store.read(number).dequantized() - image.features) <= largest / 250).all()


def test_split_and_merge_give_back_the_store(source: SourceConfig, tmp_path: Path) -> None:
    assert main(["store", "split", source.regions, str(tmp_path / "part"), "--parts", "3"]) == 0
    parts = [tmp_path / f"part-{k}" for k in range(3)]
    whole, split = RegionStore(source.regions), [RegionStore(part) for part in parts]
    assert [len(store) for store in split] == [8, 8, 8]
    assert main(["store", "merge", *map(str, parts), str(tmp_path / "merged")]) == 0
    merged = RegionStore(tmp_path / "merged")
    np.testing.assert_array_equal(merged.index["key"], whole.index["key"])
    # int8 stays as it is, bit for bit.
    assert [bytes(a) for a in merged.raw(np.arange(24))] == [bytes(a) for a in whole.raw(np.arange(24))]
    (tmp_path / "keys").write_text("image003.jpg\nimage001.jpg\n")
    assert main(["store", "split", source.regions, str(tmp_path / "two"), "--keys", str(tmp_path / "keys")]) == 0
    assert RegionStore(tmp_path / "two").index["key"].tolist() == [b"image001.jpg", b"image003.jpg"]


def test_a_source_that_was_replaced_is_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same path, names and size; the import of the first was killed after its first commit."""
    path = bottom_up(tmp_path)
    call = ["import", "bottom-up-attention", str(path), str(tmp_path / "out")]
    import imagebert.data.region_writer as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMMIT_RECORDS", 1)
        patch.setattr(module.RegionWriter, "finish", interrupt)
        assert main(call) == 1
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[data.index(b"=") - 40] ^= 1  # within base64
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert main(call) == 2
    assert "holds the beginning of another out (other sources)" in capsys.readouterr().err


@pytest.mark.parametrize("write", [write_uniter, write_hdf5_adaptive, write_vinvl, write_vinvl_yaml])
def test_a_file_beside_the_source_that_was_replaced_is_not_mixed_in(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers of boxes, image ids, labels: whatever else than the named source is read."""
    import imagebert.data.region_writer as module

    name, path = write(tmp_path, make(2048))
    (tmp_path / "names").write_text("\n".join(f"thing {i}" for i in range(7)))
    named = path / "features.tsv" if path == tmp_path else path
    call = ["import", name, str(named), str(tmp_path / "out"), "--classes", str(tmp_path / "names")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_COMMIT_RECORDS", 1)
        patch.setattr(module.RegionWriter, "finish", interrupt)
        assert main(call) == 1
    (beside,) = [*tmp_path.glob("nbb_*"), *tmp_path.glob("*.pkl"), *tmp_path.rglob("*predictions.tsv")]
    os.utime(beside, (1, 1))
    assert main(call) == 2
    assert "holds the beginning of another out (other sources)" in capsys.readouterr().err


def interrupt(writer: object) -> None:
    raise KeyboardInterrupt


def test_a_call_that_ended_well_is_made_again(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between the store's last rename and the end of the process."""
    path = bottom_up(tmp_path)
    calls = [
        ["import", "bottom-up-attention", str(path), str(tmp_path / "out")],
        ["store", "split", source.regions, str(tmp_path / "part"), "--parts", "3"],
        ["store", "merge", str(tmp_path / "part-0"), str(tmp_path / "part-1"), str(tmp_path / "two")],
    ]
    for call in calls:
        told = []
        for _ in range(2):
            assert main(call) == 0
            told.append(capsys.readouterr().out.splitlines()[-1])
        assert told[0] == told[1]
    assert main([*calls[0], "--strict"]) == 0  # of the same sources, so it is the same
    path.write_bytes(path.read_bytes()[:-1])
    assert main(calls[0]) == 2
    assert "out exists: remove it" in capsys.readouterr().err
    assert main([*calls[2][:3], str(tmp_path / "part-2"), str(tmp_path / "two")]) == 2


def test_merged_stores_remember_which_images_have_a_whole_image_region(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("with", "without"):
        with write_regions(Target(tmp_path / name, ["a"] * 5, {"name": "x"}, "float32")) as writer:
            record = random_record(rng, 3)
            record.classes[0] = WHOLE_IMAGE if name == "with" else 1
            writer.add(name, record)
    merge = ["store", "merge", str(tmp_path / "with"), str(tmp_path / "without"), str(tmp_path / "both")]
    assert main(merge) == 0
    both = RegionStore(tmp_path / "both")
    assert both.whole_image.tolist() == [True, False]
    assert both.meta["made_from"] == [RegionStore(tmp_path / name).content for name in ("with", "without")]
    limits = Limits(max_regions=9, max_words=9, whole_image=False)
    assert limits.lengths(StoreImages(both, write_vocabulary(tmp_path))).regions.tolist() == [2, 3]


def test_what_does_not_fit_together(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_corpus(tmp_path, feature_size=13)
    assert main(["store", "merge", source.regions, other.regions, str(tmp_path / "out")]) == 2
    assert "differ in their feature size" in capsys.readouterr().err
    (tmp_path / "keys").write_text("nowhere.jpg\n")
    assert main(["store", "split", source.regions, str(tmp_path / "out"), "--keys", str(tmp_path / "keys")]) == 2
    assert "'nowhere.jpg' (one of 1) is not in" in capsys.readouterr().err


def test_quantize_prints_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floats = write_corpus(tmp_path, feature_type="float32")
    assert main(["store", "quantize", floats.regions, str(tmp_path / "int8")]) == 0
    before, after = RegionStore(floats.regions), RegionStore(tmp_path / "int8")
    exact = np.concatenate([before.read(i).features for i in range(len(before))])
    stored = np.concatenate([after.read(i).dequantized() for i in range(len(after))])
    error = np.sqrt(np.square(stored - exact).sum() / np.square(exact).sum())
    assert f"root-mean-square error {error:.3%}" in capsys.readouterr().out
    assert 0 < error < 0.01


class Threads:
    """MPI's world, for ranks that are threads."""

    def __init__(self, size: int) -> None:
        self._barrier, self._sums = threading.Barrier(size), [np.zeros(0)] * size
        self._rank = threading.local()

    def enter(self, rank: int) -> Workers:
        self._rank.value = rank
        return Workers(rank, len(self._sums), self)

    def Barrier(self) -> None:
        self._barrier.wait(30)

    def Allreduce(self, mine: NDArray[np.int64], summed: NDArray[np.int64]) -> None:
        self._sums[self._rank.value] = mine
        self.Barrier()
        summed[:] = sum(self._sums)
        self.Barrier()


class Listed:
    """A reader of a list."""

    def __init__(self, items: list[tuple[str, RegionRecord]], stop_at: int | None = None) -> None:
        self._items, self._stop_at = items, stop_at

    def size(self, share: int, shares: int) -> int:
        return len(share_of(len(self._items), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        for number in share_of(len(self._items), share, shares):
            if number == self._stop_at:
                raise KeyboardInterrupt
            key, record = self._items[number]
            yield Item(f"item {number}", key, partial(Loaded, key, record), number)


def on_threads(ranks: int, reader: Listed, target: Target) -> list[Transferred | BaseException]:
    world, results = Threads(ranks), {}

    def run(rank: int) -> None:
        try:
            results[rank] = transfer(reader, target, {"x": 1}, workers=world.enter(rank))
        except BaseException as error:
            world._barrier.abort()
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(ranks)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_counts_add_up_when_the_number_of_ranks_changes_and_a_key_comes_twice(
    before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagebert.data.region_writer._COMMIT_RECORDS", 1)
    rng = np.random.default_rng(0)
    items = [(f"k{i}", random_record(rng, 2)) for i in range(12)]
    items[7] = items[1]  # in another share than the first, however many there are
    target = Target(tmp_path / "out", [f"class{i}" for i in range(5)], {})
    first = on_threads(before, Listed(items, stop_at=10), target)
    assert all(isinstance(result, BaseException) for result in first)
    assert not target.path.exists()
    assert on_threads(after, Listed(items), target) == [Transferred(12, 11, 1)] * after
    store = RegionStore(target.path)
    assert sorted(store.key(i) for i in range(11)) == sorted({key for key, _ in items})


def test_ranks_with_features_of_different_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = [(f"k{i}", random_record(rng, 1, 8 if i < 4 else 16)) for i in range(8)]
    target = Target(tmp_path / "out", [f"class{i}" for i in range(5)], {})
    assert any("features of sizes [8, 16]" in str(result) for result in on_threads(2, Listed(items), target))
    assert not target.path.exists()


def test_another_format_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("a name\n" * 1000)
    assert main(["import", "lxmert", str(tmp_path / "names.txt"), str(tmp_path / "out")]) == 2
    assert "names.txt, byte 0, image '': it has 1 columns, not 6 (bottom-up-attention)" in capsys.readouterr().err
    assert main(["import", "auto", str(tmp_path / "names.txt"), str(tmp_path / "out")]) == 2
    assert "names.txt is of no known format: `imagebert import formats` lists them" in capsys.readouterr().err
    assert main(["import", "nonsense", "a", "b"]) == 2
    assert "no format 'nonsense': there are auto, bottom-up-attention, lxmert" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["names.txt"]


def test_several_processes_without_mpi_are_refused(tmp_path: Path) -> None:
    path = bottom_up(tmp_path)
    env = {**os.environ, "PMI_RANK": "0", "PMI_SIZE": "4"}
    call = [*IMAGEBERT, "import", "bottom-up-attention", path, tmp_path / "out"]
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "4 processes were started and MPI connects 1" in done.stderr
