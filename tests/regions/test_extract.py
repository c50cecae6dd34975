from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from imagebert.config import UsageError
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.pictures import LOCAL, SENT
from imagebert.regions.extract import Extracted, extract, other_files
from imagebert.retrieval.pictures import open_picture
from tests.corpora import random_record
from tests.regions.test_decoding import STAND_IN, jpegs_that_say, stand_in
from tests.test_decoder import KINDS, RGB, exif_of
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


def test_parts_have_every_picture_once(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        Image.new("RGB", (20, 10)).save(pictures / f"{number}.jpg")
    for k, names in ((0, "03"), (1, "14"), (2, "2")):
        assert extract(pictures, tmp_path / str(k), Fake(), part=(k, 3)).stored == len(names)
        store = RegionStore(tmp_path / str(k))
        assert [store.key(image) for image in range(len(store))] == [f"{name}.jpg" for name in names]
    with pytest.raises(UsageError, match=r"part 5 of 6 has no picture of .*: take fewer parts"):
        extract(pictures, tmp_path / "none", Fake(), part=(5, 6))


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


# ---------------------------------------------------------------------------------------------- the regions of search


class Pixels:
    """An extractor whose one region is the picture's very pixels, of 24 x 16 or turned."""

    classes: ClassVar[list[str]] = ["thing"]
    description: ClassVar[dict[str, Any]] = {"name": "pixels", "digest": "1"}

    def __call__(self, image: Image.Image) -> RegionRecord:
        return RegionRecord(
            width=image.width,
            height=image.height,
            boxes=np.array([[0, 0, *image.size]], np.float32),
            confidences=np.ones(1, np.float32),
            classes=np.array([WHOLE_IMAGE], np.uint16),
            features=np.asarray(image, np.float32).reshape(1, -1),
            scales=np.ones(1, np.float32),
        )


@pytest.mark.parametrize("decoder", ["pillow", "dali"])
def test_search_and_serve_see_what_extract_sees(tmp_path: Path, decoder: str) -> None:
    (tmp_path / "pictures").mkdir()
    files = {f"{number:02d}": make() for number, (make, _, _) in enumerate(KINDS.values())}  # without a suffix
    files |= {f"turned_{n}.jpg": saved(Image.fromarray(RGB), "JPEG", exif=exif_of(n)) for n in range(1, 9)}
    for name, data in files.items():
        (tmp_path / "pictures" / name).write_bytes(data)
    assert extract(tmp_path / "pictures", tmp_path / "out", Pixels(), "float32", decoder=decoder).refused == 0
    store = RegionStore(tmp_path / "out")
    keys = [store.key(number) for number in range(len(store))]
    assert sorted(keys) == sorted(files)
    for number, key in enumerate(keys):
        stored = store.read(number)
        for limits in (LOCAL, SENT._replace(web=False)):
            seen = Pixels()(open_picture(files[key], limits))
            assert (seen.width, seen.height) == (stored.width, stored.height)
            np.testing.assert_array_equal(seen.features, stored.features)


def test_what_is_not_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture().save(pictures / "1.jpg")
    for name in ("a.txt", "b.TXT", "film.mp4", ".hidden", "a.1", "a.2", "a.3", "a.4"):
        (pictures / name).write_text("no picture")
    done = extract(pictures, tmp_path / "out", Fake())
    assert done == Extracted(1, 1, 0, {".txt": 2, ".mp4": 1, "none": 1, ".1": 1, ".2": 1, ".3": 1, ".4": 1})
    assert other_files(done.others).startswith("8 other files are not read (by suffix: 2 of .txt, 1 of ")
    assert other_files(done.others).endswith(", others)")
    assert extract(pictures, tmp_path / "out", Fake()) == done  # once more
    (pictures / "1.jpg").unlink()
    with pytest.raises(
        UsageError, match=r"holds no picture: .* are read; 8 other files are not read \(by suffix: 2 of"
    ):
        extract(pictures, tmp_path / "none", Fake())


def test_a_store_says_that_nvjpeg_made_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was begun with it is not gone on with by Pillow."""
    stand_in(STAND_IN, tmp_path, monkeypatch)
    (tmp_path / "pictures").mkdir()
    paths = jpegs_that_say(tmp_path / "pictures", *12 * [""])
    monkeypatch.setattr("imagebert.data.region_writer._COMMIT_RECORDS", 1)
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        gpu.setattr(torch.cuda, "current_device", lambda: 0)
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "pictures", tmp_path / "out", Fake(fail_at=5))
        with pytest.raises(UsageError, match=r"holds the beginning of another out \(other extractor\)"):
            extract(tmp_path / "pictures", tmp_path / "out", Fake(), decoder="pillow")
        extract(tmp_path / "pictures", tmp_path / "out", Fake())
    store = RegionStore(tmp_path / "out")
    assert len(store) == len(paths)
    assert store.extractor == {**Fake().description, "decoder": "nvjpeg"}
    extract(tmp_path / "pictures", tmp_path / "on_cpu", Fake(), decoder="dali")
    assert RegionStore(tmp_path / "on_cpu").extractor == Fake().description
