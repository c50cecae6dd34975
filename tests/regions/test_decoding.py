from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebert.config import UsageError
from imagebert.pictures import UnreadableImage
from imagebert.regions import dali_jpegs, decoding
from imagebert.regions.decoding import decode


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """More than a batch of smooth JPEGs of odd sizes and samplings, and what is not an ordinary JPEG."""
    rng = np.random.default_rng(0)
    for number in range(40):
        small = rng.integers(0, 256, (5, 7, 3), np.uint8)
        size = int(rng.integers(17, 120)), int(rng.integers(17, 120))
        picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8  # all orientations
        picture.save(tmp_path / f"{number:02d}.jpg", quality=60 + number, subsampling=number % 3, exif=exif)
    Image.fromarray(small).convert("L").resize((50, 40)).save(tmp_path / "grey.jpg")
    Image.fromarray(small).convert("CMYK").resize((50, 40)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(small).convert("P").resize((50, 40)).save(tmp_path / "palette.png")
    Image.fromarray(small).resize((50, 40)).save(tmp_path / "progressive.jpg", progressive=True)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "07.jpg").read_bytes()[:-300])
    (tmp_path / "text.jpg").write_text("no picture")
    # Where DALI sees another orientation than Pillow, or ended the process: two EXIFs, a LONG, XMP alone.
    plain = (tmp_path / "grey.jpg").read_bytes()
    for name, notes in {
        "twice": [exif_of(6, 3), exif_of(3, 3)],
        "long": [exif_of(6, 4)],
        "byte": [exif_of(6, 1)],
        "xmp": [b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'],
    }.items():
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note for note in notes)
        (tmp_path / f"turned_{name}.jpg").write_bytes(plain[:2] + segments + plain[2:])
    return sorted(tmp_path.iterdir())


def exif_of(orientation: int, kind: int) -> bytes:
    """EXIF of one entry; kind 1 is a BYTE, 3 a SHORT, 4 a LONG."""
    value = {1: b"%c\0\0\0" % orientation, 3: struct.pack("<HH", orientation, 0), 4: struct.pack("<I", orientation)}
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0112, kind, 1) + value[kind] + bytes(4)


def test_dali_gives_pillows_pixels_and_refuses_what_pillow_refuses(pictures: list[Path]) -> None:
    by_pillow, by_dali = dict(decode(pictures, "pillow")), dict(decode(pictures, "dali"))
    assert list(by_dali) == list(by_pillow) == pictures
    refused = [path.name for path, image in by_pillow.items() if isinstance(image, UnreadableImage)]
    assert refused == ["cut.jpg", "text.jpg"]
    for path, expected in by_pillow.items():
        got = by_dali[path]
        if isinstance(expected, UnreadableImage):
            assert str(got) == str(expected)
            continue
        assert isinstance(got, Image.Image)
        assert got.mode == "RGB"
        assert got.size == expected.size
        difference = np.abs(np.asarray(got, int) - np.asarray(expected, int))
        assert difference.max() <= 1, path.name  # CPU's; nvJPEG may round otherwise


@pytest.mark.parametrize("module", ["raise ImportError('no such thing')", "raise OSError('half of it')", "os.abort()"])
def test_without_dali_pillow_decodes(
    module: str, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not installed, half installed, and one that ends its process: in the folder that is looked into first."""
    (tmp_path / "path/nvidia/dali").mkdir(parents=True)
    (tmp_path / "path/nvidia/__init__.py").touch()
    (tmp_path / "path/nvidia/dali/__init__.py").write_text(f"import os\n{module}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path"), *sys.path])  # which a spawned process is given
    caplog.set_level("INFO")
    assert [path for path, _ in decode(pictures)] == pictures
    assert "pictures are decoded by Pillow" in caplog.text
    with pytest.raises(UsageError, match=r"--decoder dali: .*: pip install imagebert\[dali\], or take pillow"):
        next(decode(pictures, "dali"))


def test_a_picture_that_ends_dali_costs_nothing(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is started again; and where it ends again and again, Pillow decodes the rest."""
    monkeypatch.setattr(dali_jpegs, "_decode", end)
    monkeypatch.setattr(decoding, "_BATCH", 10)
    found = dict(decode(pictures, "dali"))
    expected = dict(decode(pictures, "pillow"))
    for path, image in expected.items():
        if isinstance(image, Image.Image):
            got = found[path]
            assert isinstance(got, Image.Image)
            np.testing.assert_array_equal(np.asarray(got), np.asarray(image))
    ended = [record.message for record in caplog.records if "DALI ended at a picture of" in record.message]
    assert ["started again" in message for message in ended] == [True, True, False]
    assert str(pictures[0].parent) in ended[0]


def end(jpegs: list[bytes]) -> None:
    os.abort()


def test_a_decoder_of_other_pixels_is_left_out(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoding, "TOLERANCE", -1)
    found = dict(decode(pictures, "dali"))
    assert "DALI gives other pixels than Pillow" in caplog.text
    assert list(found) == pictures


def test_large_pictures_are_decoded_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{number}.jpg")
    Image.new("RGB", (100, 100)).save(tmp_path / "5.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "6.webp")
    monkeypatch.setattr(decoding, "_BATCH_PIXELS", 25_000)
    files = sorted(tmp_path.iterdir())
    batches = ["".join(file.path.stem for file in batch) for batch in decoding._batches(files)]
    assert batches == ["01", "23", "45", "6"]
    assert [image.size for _, image in decode(files, "pillow") if isinstance(image, Image.Image)] == 7 * [(100, 100)]


def test_nothing_to_decode() -> None:
    assert list(decode([])) == []


def test_dali_is_not_imported_before_it_is_used() -> None:
    code = "import sys, imagebert.regions.extract, imagebert.training.run; print('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
