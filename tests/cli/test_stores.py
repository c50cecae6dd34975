"""`imagebert store`: what it prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig
from tests.corpora import change_last_feature


def test_store_inspect_and_verify(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "inspect", source.regions, "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["images"] == 24
    assert main(["store", "verify", source.regions]) == 0
    shutil.copytree(source.regions, tmp_path / "bad")
    change_last_feature(tmp_path / "bad", "image003.jpg", b"\x55", checksum=False)
    assert main(["store", "verify", str(tmp_path / "bad")]) == 1
    assert "record 'image003.jpg'" in capsys.readouterr().err


def test_markup_is_printed_as_text(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("o[", "a:smile:[bold]"):
        shutil.copytree(source.regions, tmp_path / f"{name}/b]ut")
        assert main(["store", "verify", str(tmp_path / f"{name}/b]ut")]) == 0
        out = capsys.readouterr().out
        assert f"{name}/b]ut" in "".join(out.split())
        assert main(["store", "stage", str(tmp_path / f"{name}/b]ut"), str(tmp_path / "local" / name)]) == 0
        again = str(tmp_path / f"{name}[/i]")
        assert main(["store", "merge", source.regions, str(tmp_path / f"{name}/b]ut"), again]) in (0, 2)
