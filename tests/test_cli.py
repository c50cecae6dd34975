"""The command as its user types it: what it prints, and how it answers to what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebert import cli
from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.data.region_writer import write_regions
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from tests.corpora import change_last_feature, write_corpus, write_vocabulary
from tests.model.test_modeling import SHAPE

RECIPE = "tests/recipe.yaml"


def train(source: SourceConfig, tmp_path: Path, *overrides: str) -> list[str]:
    return [
        "pretrain",
        RECIPE,
        f"output={tmp_path / 'run'}",
        f"data.sources.0.regions={source.regions}",
        f"data.sources.0.pairs={source.pairs}",
        *overrides,
    ]


def test_from_captions_to_recall(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\n" + "".join(f"image{i:03d}.jpg,word0{i}\n" for i in range(8)))
    (tmp_path / "test.txt").write_text("\n".join(f"image{i:03d}.jpg" for i in range(6)))
    vocabulary = write_vocabulary(tmp_path).path
    pairs = tmp_path / "pairs"
    split = f"test={tmp_path / 'test.txt'}"
    assert main(["pairs", str(captions), str(pairs), "--vocab", str(vocabulary), "--split", split]) == 0
    assert "8 captions: 6 stored" in capsys.readouterr().out
    assert main([*train(source, tmp_path), "--stop-at", "3"]) == 75
    assert main([*train(source, tmp_path), "logging.every_steps=2"]) == 0
    assert f"model in {tmp_path / 'run'}/model" in capsys.readouterr().out
    data = ["--regions", source.regions, "--pairs", str(pairs)]
    out = ["--json", str(tmp_path / "recall.json"), "--out", str(tmp_path / "scores")]
    assert main(["evaluate", str(tmp_path / "run"), *data, *out]) == 0
    figures = json.loads((tmp_path / "recall.json").read_text())
    assert (figures["images"], figures["captions"]) == (6, 6)
    assert main(["evaluate", "--scores", str(tmp_path / "scores"), "--folds", "2"]) == 0
    assert "mean of 2 folds" in capsys.readouterr().out
    mined = ["mine", str(tmp_path / "run"), str(tmp_path / "hard"), "--pool", "4", "--keep", "2"]
    assert main([*mined, "--regions", source.regions, "--pairs", source.pairs]) == 0


def test_store_inspect_and_verify(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "inspect", source.regions, "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["images"] == 24
    assert main(["store", "verify", source.regions]) == 0
    shutil.copytree(source.regions, tmp_path / "bad")
    change_last_feature(tmp_path / "bad", "image003.jpg", b"\x55", checksum=False)
    assert main(["store", "verify", str(tmp_path / "bad")]) == 1
    assert "record 'image003.jpg'" in capsys.readouterr().err


def test_pairs_without_what_was_refused(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dead link's caption is left out, counted and listed; what is left can be trained on."""
    names = [f"image{i:03d}.jpg" for i in range(24)]
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{name},word01\n" for name in ["dead.jpg", *names, "dead.jpg"]))
    call = ["pairs", str(table), str(tmp_path / "pairs"), "--vocab", str(write_vocabulary(tmp_path).path)]
    call += ["--regions", source.regions]
    for _ in range(2):  # the second ended well before
        assert main(call) == 0
        out = capsys.readouterr().out
        assert f"26 captions: 24 stored in {tmp_path}/pairs, 0 refused, 2 of images without regions" in out
        assert "note: 1 images with 2 captions have no regions" in out
    assert (tmp_path / "pairs/without_regions.txt").read_text() == "dead.jpg\n"
    assert main(["verify", str(tmp_path / "pairs")]) == 0
    assert main(train(source, tmp_path, f"data.sources.0.pairs={tmp_path}/pairs", "schedule.steps=1")) == 0
    # Another store is another job.
    other = write_corpus(tmp_path / "other", images=30)
    assert main([*call, "--regions", other.regions]) == 2
    assert "pairs exists" in capsys.readouterr().err
    assert main([*call[:-2], "--match", "stem"]) == 2
    assert "name them with --regions STORE" in capsys.readouterr().err


def test_pairs_under_the_stores_own_keys(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "captions.csv"
    rows = [(f"COCO/Image{i:03d}.png", "word01", "test" if i % 2 else "train") for i in range(24)]
    rows.append(("COCO/Image003.png", "word02", "train"))
    table.write_text("image,caption,split\n" + "".join(",".join(row) + "\n" for row in rows))
    call = ["pairs", str(table), str(tmp_path / "pairs"), "--vocab", str(write_vocabulary(tmp_path).path)]
    call += ["--regions", source.regions]
    assert main(call) == 2
    assert "--match stem finds 24 of the 24, such as 'COCO/Image000.png' as 'image000.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()
    assert main([*call, "--match", "stem"]) == 0
    out = capsys.readouterr().out
    assert "note: 24 images have their regions under another name" in out
    assert "note: 1 images have captions in several splits, such as 'image003.jpg'" in out
    assert not (tmp_path / "pairs/without_regions.txt").exists()
    assert main(["store", "keys", source.regions]) == 0
    images = sorted(set(PairStore(tmp_path / "pairs").images.tolist()))
    assert capsys.readouterr().out.encode().splitlines() == images


def test_lists_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,word01\nb.jpg,word02\n")
    for name, text in (("one", "a.jpg\nlost.jpg\n"), ("two", "b.jpg\na.jpg\n"), ("stems", "a\nb\n")):
        (tmp_path / name).write_text(text)
    call = ["pairs", str(tmp_path / "captions.csv"), str(tmp_path / "pairs")]
    call += ["--vocab", str(write_vocabulary(tmp_path).path), "--split", f"train={tmp_path}/one"]
    for more, message in (("two", "image 'a.jpg' (one of 1) is in"), ("stems", "it lists 'a', the captions are of")):
        assert main([*call, "--split", f"test={tmp_path}/{more}"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "pairs").exists()
    assert main(call) == 0
    assert (
        f"note: --split train={tmp_path}/one: 1 of its 2 images have no caption: 'lost.jpg'" in capsys.readouterr().out
    )


def missing_recipe(source: SourceConfig, folder: Path) -> list[str]:
    return ["pretrain", "nowhere.yaml"]


def typo(source: SourceConfig, folder: Path) -> list[str]:
    return train(source, folder, "optimizer.lerning_rate=1")


def missing_store(source: SourceConfig, folder: Path) -> list[str]:
    return train(source, folder, f"data.sources.0.regions={folder}/nowhere")


def empty_store(source: SourceConfig, folder: Path) -> list[str]:
    with write_regions(folder / "empty", [], {}):
        pass
    return train(source, folder, f"data.sources.0.regions={folder}/empty")


def truncated_record(source: SourceConfig, folder: Path) -> list[str]:
    shutil.copytree(source.regions, folder / "cut")
    os.truncate(folder / "cut/shard-000-0000/data.mdb", 5000)
    return train(source, folder, f"data.sources.0.regions={folder}/cut")


def caption_without_image(source: SourceConfig, folder: Path) -> list[str]:
    write_pairs(folder / "pairs", [Caption("lost.jpg", "word01")], write_vocabulary(folder))
    return train(source, folder, f"data.sources.0.pairs={folder}/pairs")


def other_features(source: SourceConfig, folder: Path) -> list[str]:
    ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).save_pretrained(folder / "model")
    wide = write_corpus(folder, images=3, feature_size=20)
    return ["evaluate", str(folder / "model"), "--regions", wide.regions, "--pairs", wide.pairs, "--split", "train"]


def weights_of_other_features(source: SourceConfig, folder: Path) -> list[str]:
    ImageBertForImageTextRetrieval(ImageBertConfig(**{**SHAPE, "feature_size": 20})).save_pretrained(folder / "m")
    return train(source, folder, "model.preset=null", f"model.initialize_from={folder}/m")


def no_pictures(source: SourceConfig, folder: Path) -> list[str]:
    return ["extract", str(folder), str(folder / "out"), "--extractor", str(folder / "none.yaml")]


def wrong_task(source: SourceConfig, folder: Path) -> list[str]:
    return train(source, folder, "task=finetune")


def output_in_the_way(source: SourceConfig, folder: Path) -> list[str]:
    (folder / "file").touch()
    return train(source, folder, f"output={folder}/file/run")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (missing_recipe, "no recipe 'nowhere.yaml'"),
        (typo, "unknown key optimizer.lerning_rate; did you mean learning_rate?"),
        (missing_store, "nowhere is not there: a store is a folder made by `imagebert extract`"),
        (empty_store, "is empty: extract or import images"),
        (truncated_record, "data.mdb is truncated, it had"),
        (caption_without_image, "image 'lost.jpg' (one of 1) has captions but no regions"),
        (other_features, "has feature_size 12, the data has 20"),
        (weights_of_other_features, "has feature_size 20, the data has 12"),
        (no_pictures, "none.yaml"),
        (wrong_task, "is a recipe to finetune"),
        (output_in_the_way, "cannot write to the run's folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    source: SourceConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[SourceConfig, Path], list[str]],
    named: str,
) -> None:
    call = make(source, tmp_path)
    capsys.readouterr()
    assert main(call) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("imagebert: ")]
    assert named in line


def test_a_pipe_in_the_place_of_a_file(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused at once: nobody writes to it, or reads from it."""
    vocabulary = str(write_vocabulary(tmp_path).path)
    (tmp_path / "x.token").write_text("a.jpg#0\tword01\n")
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    pairs = ["pairs", str(tmp_path / "x.token"), str(tmp_path / "out"), "--vocab"]
    for call, named in (
        ([*pairs, pipe], "cannot read the vocabulary"),
        ([*pairs, vocabulary, "--split", f"test={pipe}"], "--split test="),
        (["pairs", pipe, str(tmp_path / "out"), "--vocab", vocabulary], "pipe"),
        (["import", "npz", pipe, str(tmp_path / "out")], "pipe"),
        (["import", "vinvl", str(tmp_path), str(tmp_path / "out"), "--classes", pipe], "--classes"),
        (["extract", str(tmp_path), str(tmp_path / "out"), "--extractor", pipe], "pipe"),
        (train(source, tmp_path, f"engine.deepspeed={pipe}"), "pipe"),
        (["pretrain", pipe], "pipe"),
        (["ladder", pipe], "pipe"),
        (["plan", "--json", pipe], "cannot write"),
    ):
        assert main(call) == 2, call
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("imagebert: ")
        assert named in line


def test_names_that_no_file_has(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = str(write_vocabulary(tmp_path).path)
    (tmp_path / "x.token").write_text("a.jpg#0\tword01\n")
    for name in ("x" * 5000, str(tmp_path / "x" / ("y" * 300)), "a\0b"):
        for call in (
            ["store", "inspect", name],
            ["pairs", name, str(tmp_path / "out"), "--vocab", vocabulary],
            ["pairs", str(tmp_path / "x.token"), str(tmp_path / "out"), "--vocab", name],
            ["pairs", str(tmp_path / "x.token"), str(tmp_path / "out"), "--vocab", vocabulary, "--split", f"a={name}"],
            ["import", "npz", name, str(tmp_path / "out")],
            ["extract", name, str(tmp_path / "out"), "--extractor", name],
            ["evaluate", name, "--regions", source.regions, "--pairs", source.pairs],
            ["recipes", name],
            ["ladder", name],
            ["plan", "--json", name],
            train(source, tmp_path, f"data.sources.0.regions={name}"),
            train(source, tmp_path, f"data.sources.0.pairs={name}"),
            train(source, tmp_path, f"engine.deepspeed={name}"),
            train(source, tmp_path, f"output={name}/run"),
            train(source, tmp_path, "model.preset=null", f"model.initialize_from={name}"),
        ):
            if call[:2] == ["plan", "--json"] and name.startswith(str(tmp_path)):
                continue  # its folder is made
            assert main(call) == 2, call
            assert capsys.readouterr().err.splitlines()[-1].startswith("imagebert: ")


def test_markup_is_printed_as_text(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("o[", "a:smile:[bold]"):
        shutil.copytree(source.regions, tmp_path / f"{name}/b]ut")
        assert main(["store", "verify", str(tmp_path / f"{name}/b]ut")]) == 0
        out = capsys.readouterr().out
        assert f"{name}/b]ut" in "".join(out.split())
        assert main(["store", "stage", str(tmp_path / f"{name}/b]ut"), str(tmp_path / "local" / name)]) == 0
        again = str(tmp_path / f"{name}[/i]")
        assert main(["store", "merge", source.regions, str(tmp_path / f"{name}/b]ut"), again]) in (0, 2)


def test_words_from_outside_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """As those that `imagebert search` was asked for, and what it found."""
    cli._table("red [/b] :smile: circle", [{"[/i]": "[/b]o", "found": "[red]x[/red] :smile:"}])
    out = capsys.readouterr().out
    assert all(text in out for text in ("red [/b] :smile: circle", "[/i]", "[/b]o", "[red]x[/red] :smile:"))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("call", [["recipes"], ["recipes", "stage1_lait"], ["--help"], ["plan"]])
def test_a_reader_that_has_seen_enough(call: list[str], unbuffered: str) -> None:
    """As `| head`: nothing is said, then or when Python ends."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    code = "import sys, imagebert.cli; sys.exit(imagebert.cli.main(sys.argv[1:]))"
    out, into = os.pipe()
    os.close(out)
    done = subprocess.run(
        [sys.executable, "-c", code, *call], stdout=into, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(into)
    assert done.stderr == b""
    assert done.returncode in (141, 0)  # argparse does not mind


def test_a_reader_of_keys_that_has_seen_enough(source: SourceConfig) -> None:
    test_a_reader_that_has_seen_enough(["store", "keys", source.regions], "")


def test_a_full_disk_behind_the_output() -> None:
    code = "import sys, imagebert.cli; sys.exit(imagebert.cli.main(sys.argv[1:]))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("imagebert: the work failed: ")
    assert "No space left on device" in line


def test_numbers_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    for call in (
        ["plan", "--pairs", "1e400k"],
        ["plan", "--pairs", "nank"],
        ["plan", "--epochs", "inf"],
        ["plan", "--nodes", "9" * 400],
        ["serve", "--port", "70000"],
        ["demo", "--seed", "-1"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(call)
        assert stop.value.code == 2
        assert f"argument {call[1]}: " in capsys.readouterr().err


def test_a_monitor_that_is_not_installed(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as wandb itself makes it, where it runs
    monkeypatch.syspath_prepend(str(tmp_path))
    call = train(source, tmp_path, "logging.monitors=[wandb]")
    assert main(call) == 2
    message = "logging.monitors has wandb, which is not installed: pip install 'imagebert[monitors]', or take it out"
    assert f"imagebert: {message}" in capsys.readouterr().err.splitlines()
    assert main(["doctor", "--quick", *call[1:]]) == 2
    assert message in capsys.readouterr().out


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for call in (["evaluate", "model", "extra=1", "--nonsense"], ["pretrain", RECIPE, "--nonsense"], []):
        with pytest.raises(SystemExit) as stop:
            main(call)
        assert stop.value.code == 2


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "stage1_lait" in capsys.readouterr().out.split()
    assert main(["recipes", "stage2_cc_sbu"]) == 0
    assert "task: pretrain" in capsys.readouterr().out
