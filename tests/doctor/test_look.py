"""What a rank finds on its host; above all, that it refuses what training would refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.doctor.examine import examine
from imagebert.doctor.look import look
from imagebert.feed.plan import HardNegatives
from imagebert.model import ImageBertConfig, ImageBertForPreTraining
from imagebert.training.hard_negatives import write_hard_negatives
from tests.corpora import write_corpus, write_vocabulary

RECIPE = "tests/recipe.yaml"
PYTHON = Path(sys.executable)


def test_too_little_room_is_named(recipe: list[str]) -> None:
    found = examine(load_recipe("tests/recipe.yaml", [*recipe, "checkpoint.keep=1000000000"]), quick=True)
    assert any("GiB are needed for checkpoints" in line for line in found.problems), found.problems


def test_a_recipe_of_another_task_is_refused(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--quick", "--task", "finetune", RECIPE, *recipe]) == 2
    assert capsys.readouterr().err == (
        f"imagebert: {RECIPE} is a recipe to pretrain, and this job is to finetune: give one of that task\n"
    )
    assert main(["doctor", "--quick", "--task", "pretrain", RECIPE, *recipe]) == 0


def test_a_local_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "--quick", "--local", str(tmp_path / "file/local")]) == 2
    out = capsys.readouterr().out
    assert f"problem: cannot write to local {tmp_path}/file/local: Not a directory: give a folder of the" in out
    assert main(["doctor", "--quick", "--local", str(tmp_path / "new/local"), "--json", str(tmp_path / "figures")]) == 0
    assert not (tmp_path / "new").exists()
    (row,) = json.loads((tmp_path / "figures").read_text())["hosts"]
    assert row["free local GiB"] == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, rel=0.05)


def test_a_disk_that_fails_is_found_and_ends_nothing(recipe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> None:
        raise OSError("reading x failed: Stale file handle")

    monkeypatch.setattr("imagebert.doctor.look.prepare", stale)
    found = look(load_recipe(RECIPE, recipe))
    assert found["failures"] == ["reading x failed: Stale file handle"]
    assert found["problems"] == {}


def test_what_names_the_data(recipe: list[str], source: SourceConfig, tmp_path: Path) -> None:
    start = write_model(tmp_path)
    (tmp_path / "hard").write_bytes(b"1234567")
    found = look(load_recipe(RECIPE, [*recipe, *start, "task=finetune", f"retrieval.hard_negatives={tmp_path}/hard"]))
    meta = (hashlib.sha256(Path(path, "meta.json").read_bytes()) for path in (source.regions, source.pairs))
    config = hashlib.sha256((tmp_path / "model/config.json").read_bytes())
    assert found["data"] == {
        **dict(zip((source.regions, source.pairs), (digest.hexdigest() for digest in meta), strict=True)),
        f"{tmp_path}/model": config.hexdigest(),
        f"{tmp_path}/hard": "7 bytes",
    }
    assert look(load_recipe(RECIPE, [*recipe, "data.sources.0.regions=nowhere"]))["data"]["nowhere"] == ""


Break = Callable[[SourceConfig, Path], list[str]]


def an_image_without_regions(source: SourceConfig, folder: Path) -> list[str]:
    write_pairs(folder / "pairs", [Caption("lost.jpg", "word01")], write_vocabulary(folder))
    return [f"data.sources.0.pairs={folder}/pairs"]


def two_kinds_of_features(source: SourceConfig, folder: Path) -> list[str]:
    wide = write_corpus(folder / "wide", images=3, feature_size=20)
    both = [{"regions": s.regions, "pairs": s.pairs} for s in (source, wide)]
    return [f"data.sources={json.dumps(both)}"]


def regions_without_classes(source: SourceConfig, folder: Path) -> list[str]:
    store = RegionStore(source.regions)
    with write_regions(Target(folder / "unnamed", store.classes, {"name": "x"}, has_classes=False)) as writer:
        for image in range(len(store)):
            writer.add(store.key(image), store.read(image))
    return [f"data.sources.0.regions={folder}/unnamed"]


def evaluation(source: SourceConfig, split: str) -> str:
    return f"evaluation.sources=[{{regions: {source.regions}, pairs: {source.pairs}, split: {split}}}]"


def evaluation_of_other_features(source: SourceConfig, folder: Path) -> list[str]:
    return [evaluation(write_corpus(folder / "wide", images=3, feature_size=20), "train")]


def write_model(folder: Path, **shape: int) -> list[str]:
    sizes = {"vocab_size": 45, "feature_size": 12, "num_region_classes": 5, **shape}
    ImageBertForPreTraining(ImageBertConfig.preset("tiny", **sizes)).save_pretrained(folder / "model")
    return ["model.preset=null", f"model.initialize_from={folder}/model"]


def weights_of_another_vocabulary(source: SourceConfig, folder: Path) -> list[str]:
    found = write_model(folder)
    words = (Path(source.pairs) / "vocab.txt").read_text().replace("word07", "word70")
    (folder / "model/vocab.txt").write_text(words)
    return found


def damaged_weights(source: SourceConfig, folder: Path) -> list[str]:
    found = write_model(folder)
    os.truncate(folder / "model/model.safetensors", 1000)
    return found


def hard_negatives_of_other_data(source: SourceConfig, folder: Path) -> list[str]:
    corpus = Corpus([write_corpus(folder / "other", images=3)])
    mined = HardNegatives(np.zeros((3, 1), np.int64), np.zeros((9, 1), np.int64))
    write_hard_negatives(folder / "hard", mined, corpus)
    return ["task=finetune", f"retrieval.hard_negatives={folder}/hard"]


def another_recipe_in_the_folder(source: SourceConfig, folder: Path) -> list[str]:
    settings = [f"output={folder}/run", f"data.sources.0.regions={source.regions}"]
    settings += [f"data.sources.0.pairs={source.pairs}"]
    assert main(["pretrain", RECIPE, *settings, "--stop-at", "1"]) == 75
    return ["seed=7"]


def a_file_in_the_way(source: SourceConfig, folder: Path) -> list[str]:
    (folder / "file").touch()
    return [f"output={folder}/file/run"]


def says(*overrides: str) -> Break:
    return lambda source, folder: [text.format(source=source, folder=folder) for text in overrides]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (says("data.sources.0.regions=nowhere"), "nowhere is not there"),
        (says("data.sources.0.pairs=nowhere"), "nowhere is not there"),
        (says("data.sources.0.pairs={source.regions}"), "holds imagebert-regions"),
        (says("data.sources.0.split=test"), "has no split 'test': it has train"),
        (an_image_without_regions, "image 'lost.jpg' (one of 1) has captions but no regions"),
        (regions_without_classes, "has no region classes, no detector named its regions: set pretraining.moc=0"),
        (two_kinds_of_features, "one run needs one kind of feature"),
        (says("engine.deepspeed=zero9"), "engine.deepspeed is 'zero9'"),
        (says("engine.deepspeed=zero1", "optimizer.name=lamb"), "lamb with ZeRO stage 1"),
        (says("engine.deepspeed=zero3", "engine.step=compiled"), "cannot follow ZeRO-3's gathering"),
        (says("engine.step=graphed"), "engine.step graphed needs a GPU"),
        (says("optimizer.implementation=deepspeed"), "optimizer.implementation deepspeed is not there"),
        (says("schedule.accumulation=17"), "schedule.batch_size 16 cannot be cut into 17 microbatches"),
        (says("data.max_words=10000"), "data.max_words 10000 needs 10004 positions"),
        (says("model.preset=null", "model.initialize_from=nowhere"), "nowhere holds no model"),
        (lambda source, folder: write_model(folder, feature_size=20), "has feature_size 20, the data has 12"),
        (weights_of_another_vocabulary, "is not the vocabulary that the pairs were tokenised with"),
        (damaged_weights, "model.safetensors is damaged"),
        (says("task=finetune", "retrieval.hard_negatives=nowhere"), "cannot read nowhere"),
        (hard_negatives_of_other_data, "hard was mined from other data than this run's"),
        (lambda source, folder: [evaluation(source, "test")], "has no split 'test'"),
        (evaluation_of_other_features, "one run needs one kind of feature"),
        (another_recipe_in_the_folder, "was made by another recipe or other data (seed: 0 -> 7)"),
        (a_file_in_the_way, "cannot write to the run's folder"),
    ],
)
def test_what_training_would_refuse(
    source: SourceConfig,
    recipe: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Break,
    named: str,
) -> None:
    """With the same sentence, and nothing else; and nothing is written where the run would be."""
    settings = [*recipe, *spoil(source, tmp_path)]
    task = "finetune" if "task=finetune" in settings else "pretrain"
    before = sorted(map(str, tmp_path.rglob("*")))
    capsys.readouterr()
    assert main(["doctor", "--quick", RECIPE, *settings]) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert main([task, RECIPE, *settings]) == 2
    (refused,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imagebert: ")]
    assert named in refused
    assert problems == [refused.replace("imagebert: ", "problem: ", 1)]


def test_regions_without_classes_are_trained_on_without_moc(
    source: SourceConfig, recipe: list[str], tmp_path: Path
) -> None:
    settings = [*recipe, *regions_without_classes(source, tmp_path)]
    for more in (["pretraining.moc=0"], ["task=finetune"]):
        assert main(["doctor", "--quick", RECIPE, *settings, *more]) == 0
