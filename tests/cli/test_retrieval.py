"""From captions to recall, as its user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig
from tests.cli.calls import train
from tests.corpora import write_vocabulary


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
