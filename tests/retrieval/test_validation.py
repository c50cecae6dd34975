"""R@K during training: what it says is what `imagebert evaluate` says afterwards, and training does not notice it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import track
from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.endings import Stop
from imagebert.engine.metrics import read_log
from imagebert.files import write_sealed
from tests.corpora import change_last_feature, write_corpus
from tests.forked import IMAGEBERT, finish, start_ranks

RECIPE = str(Path(__file__).parents[1] / "recipe.yaml")
STEPS = 6


def settings(source: SourceConfig, run: Path, evaluate: bool = True) -> list[str]:
    data = {"regions": source.regions, "pairs": source.pairs, "split": "train"}
    given = [
        f"output={run}",
        f"data.sources={json.dumps([data])}",
        f"schedule.steps={STEPS}",
        "logging.every_steps=1",
    ]
    if evaluate:
        given += [f"evaluation.sources={json.dumps([data])}", "evaluation.images=12", "evaluation.every_steps=4"]
    return given


def losses(run: Path) -> list[float]:
    return [line["loss/total"] for line in read_log(run / "log.jsonl")]


def test_what_training_says_of_itself(source: SourceConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet, watched = tmp_path / "quiet", tmp_path / "watched"
    assert main(["pretrain", RECIPE, *settings(source, quiet, evaluate=False)]) == 0
    assert main(["pretrain", RECIPE, *settings(source, watched)]) == 0
    assert losses(watched) == losses(quiet)
    lines = {int(line["step"]): line for line in read_log(watched / "log.jsonl")}
    assert [step for step, line in lines.items() if "recall/rsum" in line] == [4, STEPS]
    assert "more than evaluation.max_share" in caplog.text
    figures = tmp_path / "figures.json"
    data = ["--regions", source.regions, "--pairs", source.pairs, "--split", "train", "--images", "12"]
    assert main(["evaluate", str(watched), *data, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    for way in ("ir", "tr"):
        for name in ("r1", "r5", "r10", "median_rank", "mean_rank"):
            assert lines[STEPS][f"recall/{way}_{name}"] == pytest.approx(found[way][name])
    assert lines[STEPS]["recall/rsum"] == pytest.approx(found["rsum"])
    assert 0 < lines[STEPS]["rate/share_of_matmul"] < 1


def test_who_stops_does_not_evaluate_first(
    source: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that was begun before there were these keys goes on."""
    run = tmp_path / "run"

    class StopAtStep4(Stop):
        steps = 0

        @property
        def asked(self) -> bool:
            self.steps += 1
            return self.steps >= 4

        @asked.setter
        def asked(self, value: bool) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr("imagebert.endings.Stop", StopAtStep4)
        assert main(["pretrain", RECIPE, *settings(source, run)]) == 75
    (manifest,) = run.glob("checkpoints/step-*4/manifest.json")
    content = json.loads(manifest.read_text())
    del content["state"]["config"]["evaluation"], content["state"]["config"]["model"]["dual_size"], content["digest"]
    write_sealed(manifest, content)
    assert main(["pretrain", RECIPE, *settings(source, run)]) == 0
    assert [line["step"] for line in read_log(run / "log.jsonl") if "recall/rsum" in line] == [STEPS]


def test_a_damaged_record_is_told_before_training(tmp_path: Path, capsys) -> None:
    other = write_corpus(tmp_path / "other", images=3)
    change_last_feature(Path(other.regions), "image001.jpg", b"\x55", checksum=False)
    train = write_corpus(tmp_path / "train")
    given = settings(train, tmp_path / "run")
    given.append(f"evaluation.sources={json.dumps([{'regions': other.regions, 'pairs': other.pairs}])}")
    assert main(["pretrain", RECIPE, *given]) == 2
    assert "image001.jpg" in capsys.readouterr().err
    assert losses(tmp_path / "run") == []


def test_data_of_another_kind(source: SourceConfig, tmp_path: Path, capsys) -> None:
    other = write_corpus(tmp_path / "other", images=3, feature_size=20)
    given = settings(source, tmp_path / "run")
    given.append(f"evaluation.sources={json.dumps([{'regions': other.regions, 'pairs': other.pairs}])}")
    assert main(["pretrain", RECIPE, *given]) == 2
    assert "one run needs one kind of feature" in capsys.readouterr().err


@pytest.mark.ranks
@pytest.mark.parametrize("stage", ["zero3"])
def test_two_ranks_see_what_one_sees(
    source: SourceConfig, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Weights that no rank has whole, tiles that ranks share."""
    assert main(["pretrain", RECIPE, *settings(source, tmp_path / "one")]) == 0
    given = [*settings(source, tmp_path / "two"), f"engine.deepspeed={stage}"]
    finish(start_ranks(2, IMAGEBERT, "pretrain", RECIPE, *given))
    one, two = (read_log(tmp_path / run / "log.jsonl")[-1] for run in ("one", "two"))
    for name in one:
        if name.startswith("recall/") and name != "recall/seconds":
            assert two[name] == pytest.approx(one[name], abs=1e-6)
    assert two["time/ranks"] == 2
    runs, kept = [str(tmp_path / name) for name in ("one", "two")], str(tmp_path / "kept.json")
    monkeypatch.setattr(sys, "argv", ["track", *runs, "--plot", str(tmp_path / "track.png"), "--keep", kept])
    capsys.readouterr()
    track.main()
    assert "GPU-hours" in capsys.readouterr().out
    assert (tmp_path / "track.png").stat().st_size > 10_000
    curves = json.loads((tmp_path / "kept.json").read_text())["curves"]
    assert [p["step"] for p in curves[1]["points"]] == [4, STEPS]
    ratio = curves[1]["points"][-1]["gpu_hours"] / curves[1]["points"][-1]["hours"]
    assert ratio == pytest.approx(2)
    monkeypatch.setattr(sys, "argv", ["track", kept, "--plot", str(tmp_path / "x.png")])
    track.main()
    assert "not reached" not in capsys.readouterr().out
