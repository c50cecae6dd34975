"""Commands that train, or look at what training takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig
from tests.cli.calls import train


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


def test_a_page_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text('{"step": 1, "loss/total": 2.5}\n')
    a, b, c = (str(tmp_path / name) for name in ("a", "b", "c"))
    page = tmp_path / "page.html"
    assert main(["report", a, "--out", str(page), b]) == 0
    assert capsys.readouterr().out == f"open {page} in a browser\n"
    assert page.read_text().count("<polyline") == 2
    assert main(["report", a]) == 0
    assert (tmp_path / "a/report.html").read_text().count("<polyline") == 1
    assert main(["report", a, b, c]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run's folder" in capsys.readouterr().err


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "stage1_lait" in capsys.readouterr().out.split()
    assert main(["recipes", "stage2_cc_sbu"]) == 0
    assert "task: pretrain" in capsys.readouterr().out


def test_onnx_of_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["onnx", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no model: give a folder with config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
