"""`imagebert store`: what it prints."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.regions import RegionStore
from imagebert.renamed import warn_renamed
from tests.corpora import change_last_feature


def test_store_inspect_and_verify(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "inspect", source.regions, "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["images"] == 24
    assert main(["store", "verify", source.regions]) == 0
    shutil.copytree(source.regions, tmp_path / "bad")
    change_last_feature(tmp_path / "bad", "image003.jpg", b"\x55", checksum=False)
    assert main(["store", "verify", str(tmp_path / "bad")]) == 1
    assert "record 'image003.jpg'" in capsys.readouterr().err


def test_stage_is_the_former_name_of_localise(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    warn_renamed.cache_clear()
    assert main(["store", "stage", source.regions, str(tmp_path / "local"), "--part", "0/1"]) == 0
    assert RegionStore(tmp_path / "local").content == RegionStore(Path(source.regions)).content
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "imagebert store stage is called imagebert store localise now: the next version knows no other name"
    ]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["store", "--help"])
    listed = capsys.readouterr().out
    assert "localise" in listed
    assert "stage" not in listed


def test_markup_is_printed_as_text(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("o[", "a:smile:[bold]"):
        shutil.copytree(source.regions, tmp_path / f"{name}/b]ut")
        assert main(["store", "verify", str(tmp_path / f"{name}/b]ut")]) == 0
        out = capsys.readouterr().out
        assert f"{name}/b]ut" in "".join(out.split())
        assert main(["store", "localise", str(tmp_path / f"{name}/b]ut"), str(tmp_path / "local" / name)]) == 0
        again = str(tmp_path / f"{name}[/i]")
        assert main(["store", "merge", source.regions, str(tmp_path / f"{name}/b]ut"), again]) in (0, 2)
