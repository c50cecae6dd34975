"""Region stores from Python: parts put together again are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagebert import api
from imagebert.config import SourceConfig, UsageError
from imagebert.data.regions import RegionStore
from tests.corpora import write_corpus


def test_parts_make_the_whole(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = list(api.keys(source.regions))
    assert keys == [f"image{number:03d}.jpg" for number in range(24)]
    parts = api.split(source.regions, tmp_path / "part", parts=3)
    assert {path.name: done.stored for path, done in parts.items()} == {"part-0": 8, "part-1": 8, "part-2": 8}
    assert api.merge(list(parts), tmp_path / "whole").stored == 24
    assert list(api.keys(tmp_path / "whole")) == keys
    listed = tmp_path / "listed"
    listed.write_text("image003.jpg\nimage001.jpg\n")
    for number, chosen in enumerate((["image001.jpg", "image003.jpg"], listed)):
        api.split(source.regions, tmp_path / f"chosen{number}", keys=chosen)
        assert list(api.keys(tmp_path / f"chosen{number}")) == ["image001.jpg", "image003.jpg"]
    for wrong in ({}, {"keys": ["image001.jpg"], "parts": 2}):
        with pytest.raises(UsageError, match="give either the `keys`"):
            api.split(source.regions, tmp_path / "neither", **wrong)
    assert capsys.readouterr().out == ""


def test_what_smaller_features_cost(tmp_path: Path) -> None:
    wide = write_corpus(tmp_path, feature_type="float32").regions
    quantized = api.quantize(wide, tmp_path / "small")
    assert quantized.done.stored == 24
    assert api.inspect(tmp_path / "small")["feature_type"] == "int8"
    before, after = (
        np.concatenate([store.read(image).dequantized().ravel() for image in range(24)])
        for store in (RegionStore(wide), RegionStore(tmp_path / "small"))
    )
    error = np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))
    assert quantized.relative_error == pytest.approx(error, rel=1e-3)
    assert error > 1e-3


def test_a_local_copy(source: SourceConfig, tmp_path: Path) -> None:
    copied = api.localise(source.regions, tmp_path / "local", part=(0, 2))
    assert copied == api.Localised(tmp_path / "local", copied.there, api.inspect(source.regions)["shards"])
    assert list(api.keys(tmp_path / "local")) == list(api.keys(source.regions))
