from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import calibrate


def test_one_model_both_trained_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, where base is both; and what is measured names the engine that it is measured with."""
    out = tmp_path / "calibrate.json"
    monkeypatch.setattr(
        sys, "argv", f"calibrate --model tiny --checkpoint tiny --pairs 4 --saves 1 --json {out}".split()
    )
    calibrate.main()
    figures = json.loads(out.read_text())["figures"]
    assert figures["engine"] == {"deepspeed": "zero0", "precision": "fp32"}
    assert figures["constants"].keys() == {"matmul", "share", "host_copy", "disk"}
    assert all(value > 0 for value in figures["constants"].values())
    assert "zero0, fp32; tiny trains" in capsys.readouterr().out
