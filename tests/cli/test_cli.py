"""The command as its user types it: how it answers to what is wrong, and to whoever reads no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebert.cli import COMMANDS, main
from imagebert.cli.commands import Command
from imagebert.config import SourceConfig
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.region_writer import Target, write_regions
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from tests.cli.calls import RECIPE, train
from tests.corpora import write_corpus, write_vocabulary
from tests.model.test_modeling import SHAPE


def missing_recipe(source: SourceConfig, folder: Path) -> list[str]:
    return ["pretrain", "nowhere.yaml"]


def typo(source: SourceConfig, folder: Path) -> list[str]:
    return train(source, folder, "optimizer.lerning_rate=1")


def missing_store(source: SourceConfig, folder: Path) -> list[str]:
    return train(source, folder, f"data.sources.0.regions={folder}/nowhere")


def empty_store(source: SourceConfig, folder: Path) -> list[str]:
    with write_regions(Target(folder / "empty", [], {})):
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
        ([*pairs, vocabulary, "--split", f"test={pipe}"], "split test="),
        (["pairs", pipe, str(tmp_path / "out"), "--vocab", vocabulary], "pipe"),
        (["import", "npz", pipe, str(tmp_path / "out")], "pipe"),
        (["import", "vinvl", str(tmp_path), str(tmp_path / "out"), "--classes", pipe], "classes: "),
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


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for call in (["evaluate", "model", "extra=1", "--nonsense"], ["pretrain", RECIPE, "--nonsense"], []):
        with pytest.raises(SystemExit) as stop:
            main(call)
        assert stop.value.code == 2


def test_one_process_work_is_rank_0s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["demo"]) == 2
    assert "torchrun started 2 processes of the demo, which is one's work" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert main(["recipes"]) == 0
    printed = capsys.readouterr()
    assert "stage1_lait" in printed.out
    assert printed.err == "imagebert: this is one process' work: rank 0 of 2 does it\n"


def test_which_ranks_run_what() -> None:
    """As before each said so itself: under srun what may take long holds the other ranks until its end."""
    flat = {name: command for group in COMMANDS for name, command in [(group.name, group), *leaves(group)]}
    by_ranks: dict[str, set[str]] = {}
    for name, command in flat.items():
        if command.run is not None:
            by_ranks.setdefault(command.ranks, set()).add(name)
    assert by_ranks["none"] == {"demo"}
    assert by_ranks["first"] == {
        *("plan", "compare", "onnx", "recipes", "report", "store inspect", "store keys", "detector convert"),
        *("lait plan", "lait report", "lait sample", "lait train-scorer"),
    }
    assert by_ranks["first_others_wait"] == {
        *("pairs", "verify", "store verify", "export", "search", "serve", "detector check", "lait pairs")
    }
    assert {"pretrain", "finetune", "evaluate", "mine", "import", "extract", "doctor", "ladder"} < by_ranks["all"]
    shares = {f"store {action}" for action in ("merge", "split", "quantize", "localise", "stage")}
    assert shares < by_ranks["all"]
    assert {f"lait {action}" for action in ("pages", "fetch", "filter", "score", "build")} < by_ranks["all"]
    headed = {name for name, command in flat.items() if command.header}
    assert headed == by_ranks["all"] - {"doctor"} | {"pairs", "export"}


def leaves(group: Command) -> list[tuple[str, Command]]:
    return [(f"{group.name} {action.name}", action) for action in group.actions]
