from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagebert.data.records import RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.regions.extract import Extracted, extract
from tests.corpora import random_record
from tests.test_pictures import MALFORMED_EXIF, many_scans, picture, saved


class Fake:
    """An extractor that counts, and fails at a picture."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.classes = [f"class{i}" for i in range(5)]
        self.description: dict[str, Any] = {"name": "fake", "digest": "0"}
        self.calls, self._fail_at = 0, fail_at

    def __call__(self, image: Image.Image) -> RegionRecord:
        if self.calls == self._fail_at:
            raise KeyboardInterrupt
        self.calls += 1
        return random_record(np.random.default_rng(0), 2)


def test_a_second_call_extracts_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.region_writer._COMMIT_RECORDS", 1)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(9):
        Image.new("RGB", (20, 10)).save(pictures / f"{number}.jpg")
    (pictures / "broken.jpg").write_text("no picture")
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, tmp_path / "out", Fake(fail_at=5))
    assert not (tmp_path / "out").exists()
    second = Fake()
    assert extract(pictures, tmp_path / "out", second) == Extracted(10, 9, 1)
    assert second.calls == 4
    assert len(RegionStore(tmp_path / "out")) == 9


def test_a_picture_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("good.jpg", "bad\udcff.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / "pictures" / name)
    assert extract(tmp_path / "pictures", tmp_path / "out", Fake()) == Extracted(2, 1, 1)


def test_damaged_exif_does_not_stop_the_others(tmp_path: Path) -> None:
    """What Pillow raises on damaged tags is no closed list."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    Image.new("RGB", (20, 10)).save(pictures / "whole.jpg", exif=exif)
    whole = (pictures / "whole.jpg").read_bytes()
    at = whole.index(b"Exif")
    for number in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(at, at + 90, 4):
            damaged[place] = rng.integers(256)
        (pictures / f"{number:02d}.jpg").write_bytes(damaged)
    done = extract(pictures, tmp_path / "out", Fake())
    assert done.pictures == 61 == done.stored + done.refused
    assert done.stored >= 1


def test_a_picture_that_breaks_its_decoder_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        picture().save(pictures / f"{number}.jpg")
    (pictures / "scans.jpg").write_bytes(many_scans(saved(picture(), "JPEG", progressive=True), 1500))
    (pictures / "exif.jpg").write_bytes(saved(picture(), "JPEG", exif=MALFORMED_EXIF))
    assert extract(pictures, tmp_path / "out", Fake()) == Extracted(6, 5, 1)
    assert "scans.jpg is skipped: it has more than 100 scans" in caplog.text
