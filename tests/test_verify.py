from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import made_up
from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.verify import verify
from tests.corpora import write_corpus
from tests.lait.made import scored, scored_row

RECIPE = str(Path(__file__).parent / "recipe.yaml")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all kinds: data/, run/ with checkpoints and model, an evaluation, hard negatives, a detector."""
    folder = tmp_path_factory.mktemp("made")
    source = write_corpus(folder / "data", images=8, captions=2)
    (folder / "data/vocab.txt").unlink()
    data = ["--regions", source.regions, "--pairs", source.pairs]
    sources = [f"data.sources.0.{kind}={getattr(source, kind)}" for kind in ("regions", "pairs")]
    settings = ["schedule.steps=2", "schedule.batch_size=4", "checkpoint.every_steps=1"]
    assert main(["pretrain", RECIPE, f"output={folder / 'run'}", *sources, *settings]) == 0
    assert main(["evaluate", str(folder / "run"), *data, "--split", "train", "--out", str(folder / "evaluation")]) == 0
    mined = [str(folder / "run"), str(folder / "hard.safetensors"), "--pool", "4", "--keep", "2"]
    assert main(["mine", *mined, *data]) == 0
    weights = made_up.weights("caffe", base=2, blocks=(1, 1, 1, 1), classes=6, attributes=4)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, folder.with_suffix(".pth"))
    assert main(["detector", "convert", str(folder.with_suffix(".pth")), str(folder / "vg.safetensors")]) == 0
    scored(folder / "lait/scored", [scored_row("1", "A dog.", 0.9)], [scored_row("2", "A cat.", 0.9)])
    assert main(["lait", "pairs", str(folder / "lait/scored"), str(folder / "lait/pairs.parquet")]) == 0
    return folder


def test_all_kinds_are_found_and_whole(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = verify(made, 1)
    assert sorted({f.kind for f in found}) == sorted(
        [
            *("region store", "pair store", "model", "checkpoint", "evaluation", "run", "hard negatives", "detector"),
            *("LAIT step", "LAIT pairs"),
        ]
    )
    assert not any(f.problems for f in found)
    assert main(["verify", str(made), "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["damaged"] == 0
    with pytest.raises(UsageError, match="holds nothing that imagebert wrote"):
        verify(tmp_path, 1)
    with pytest.raises(UsageError, match="is not there"):
        verify(tmp_path / "nothing", 1)


def files_of(folder: Path) -> list[str]:
    """All but locks, recipes, logs and a run's page, which is made of them: what a figure follows from."""
    left_out = (".lock", "config.yaml", "log.jsonl", "jobs.jsonl", "lock.mdb", "run/report.html")
    files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    return [file for file in files if not file.endswith(left_out)]


def test_one_changed_byte_of_any_file_is_named(made: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = files_of(made)
    assert len(files) > 30
    for file in files:
        path = made / file
        data = path.read_bytes()
        # JSON may be written with other spaces: there, a digit or letter is changed.
        places = [n for n, byte in enumerate(data) if not file.endswith(".json") or bytes([byte]).isalnum()]
        at = int(rng.choice(places))
        changed = bytes([data[at] ^ 1 if bytes([data[at] ^ 1]).isalnum() or not file.endswith(".json") else 33])
        path.write_bytes(data[:at] + changed + data[at + 1 :])
        problems = [problem for f in verify(made, 1) for problem in f.problems]
        path.write_bytes(data)
        assert problems, f"{file}, byte {at}"
        owner = path if path.suffix != ".mdb" else path.parent.parent
        assert any(str(part) in " ".join(problems) for part in (path, owner, path.parent)), problems
    assert not any(f.problems for f in verify(made, 1))


def test_a_missing_file_is_named(made: Path) -> None:
    for file in files_of(made):
        path = made / file
        aside = path.with_name(f".{path.name}.aside")
        path.rename(aside)
        try:
            found = verify(made, 1)
        finally:
            aside.rename(path)
        assert any(f.problems for f in found) or file in ("hard.safetensors", "vg.safetensors"), file


def as_before(store: Path, version: int) -> None:
    """The store as earlier versions wrote it."""
    meta = json.loads((store / "meta.json").read_text())
    for name in ("digest", "content", "index", "arrays", "job", "made_from", "refused", "whole_images"):
        meta.pop(name, None)
    meta["version"] = version
    if version == 2:
        meta["whole_image"] = True
        index = np.load(store / "index.npy")
        fields = [name for name in index.dtype.names if name not in ("whole", "checksum")]
        old = np.empty(len(index), [(name, index.dtype[name]) for name in fields])
        for name in fields:
            old[name] = index[name]
        np.save(store / "index.npy", old)
    else:
        (store / "piece_digests.npy").unlink()
    (store / "meta.json").write_text(json.dumps(meta))


def test_older_stores_are_given_their_digests(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, version in (("regions", 2), ("pairs", 1)):
        shutil.copytree(getattr(source, name), tmp_path / name)
        as_before(tmp_path / name, version)
    older = SourceConfig(regions=str(tmp_path / "regions"), pairs=str(tmp_path / "pairs"))
    with pytest.raises(UsageError, match=r"older version, without digests: `imagebert verify --accept .*pairs` adds"):
        Corpus([older])
    assert main(["verify", str(tmp_path)]) == 1
    assert main(["verify", "--accept", str(tmp_path)]) == 0
    assert f"{tmp_path / 'regions'} has its digests" in capsys.readouterr().out
    assert Corpus([older]).digest() == Corpus([source]).digest()
    assert RegionStore(older.regions).content == RegionStore(source.regions).content
    np.testing.assert_array_equal(RegionStore(older.regions).index, RegionStore(source.regions).index)
    np.testing.assert_array_equal(PairStore(older.pairs).piece_digests, PairStore(source.pairs).piece_digests)


def test_an_older_store_that_is_damaged_is_not_taken(source: SourceConfig, tmp_path: Path) -> None:
    shutil.copytree(source.regions, tmp_path / "regions")
    offset = int(RegionStore(source.regions).index["offset"][3])
    as_before(tmp_path / "regions", 2)
    with (tmp_path / "regions/shard-000-0000/data.mdb").open("r+b") as file:
        os.pwrite(file.fileno(), b"\x55\x56", offset + 40)
    assert main(["verify", "--accept", str(tmp_path)]) == 2
    assert json.loads((tmp_path / "regions/meta.json").read_text())["version"] == 2


def test_a_model_that_was_changed_on_purpose(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "run/model", tmp_path / "model")
    card = tmp_path / "model/README.md"
    card.write_text(card.read_text() + "Mine.\n")
    assert main(["verify", str(tmp_path)]) == 1
    assert "README.md has changed since it was written" in capsys.readouterr().err
    assert main(["verify", "--accept", str(tmp_path)]) == 0
