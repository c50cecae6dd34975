from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagebert.config import UsageError
from imagebert.pictures import UnreadableImage
from imagebert.regions import dali_jpegs, decoding
from imagebert.regions.decoding import Decoded, decode, jpeg_decoder
from imagebert.regions.tar_pictures import TarReader, list_tar
from tests.test_decoder import exif_of, with_notes, xmp_of
from tests.test_pictures import many_scans, picture, saved


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
    Image.fromarray(small).resize((50, 40)).save(tmp_path / "rgb.jpg", keep_rgb=True)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "07.jpg").read_bytes()[:-300])
    (tmp_path / "text.jpg").write_text("no picture")
    # Where DALI sees another orientation than Pillow, or ended the process: two EXIFs, a LONG, XMP alone.
    for name, notes in {
        "twice": [exif_of(6), exif_of(3)],
        "long": [exif_of(6, kind=4)],
        "byte": [exif_of(6, kind=1)],
        "xmp": [b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(6)],
    }.items():
        (tmp_path / f"turned_{name}.jpg").write_bytes(with_notes((tmp_path / "grey.jpg").read_bytes(), *notes))
    return sorted(tmp_path.iterdir())


def decoded(paths: Sequence[Path], decoder: str) -> dict[Path, Decoded]:
    with jpeg_decoder(decoder) as jpegs:
        return dict(decode(paths, jpegs))


def check_equal(got: dict[Path, Decoded], expected: dict[Path, Decoded]) -> None:
    """The same pictures, refused for the same reasons, in one order."""
    assert list(got) == list(expected)
    for path, image in expected.items():
        if isinstance(image, UnreadableImage):
            assert str(got[path]) == str(image)
        else:
            np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(image), path.name)


def test_dali_gives_pillows_pixels_and_refuses_what_pillow_refuses(
    pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """On the CPU; nvJPEG may round otherwise."""
    by_pillow = decoded(pictures, "pillow")
    refused = [path.name for path, image in by_pillow.items() if isinstance(image, UnreadableImage)]
    assert refused == ["cut.jpg", "text.jpg"]
    check_equal(decoded(pictures, "dali"), by_pillow)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("decoder", ["pillow", "dali"])
def test_pictures_in_a_tar_are_decoded_as_files_are(pictures: list[Path], tmp_path: Path, decoder: str) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in pictures:
            archive.add(path, path.name)
    listed = list_tar(tmp_path / "all.tar").pictures
    assert [f"{picture.key}.{picture.suffix}" for picture in listed] == [path.name for path in pictures]
    with jpeg_decoder(decoder) as jpegs:
        in_tar = [image for _, image in decode(listed, jpegs)]
    check_equal(dict(zip(pictures, in_tar, strict=True)), decoded(pictures, "pillow"))


# ---------------------------------------------------------------------------------------- a DALI that does what is said

# Pillow in DALI's clothes. A JPEG's comment may say what it is to do.
STAND_IN = """
import io, os, time
import numpy as np
from PIL import Image, ImageOps

class types:
    UINT8 = RGB = None

class Images:
    def cpu(self): return self

class fn:
    external_source = staticmethod(lambda **_: None)
    class decoders:
        image = staticmethod(lambda *_, **__: Images())

class Pipeline:
    def __init__(self, **_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def set_outputs(self, _): pass
    def build(self): pass
    def run(self, files):
        return ([self._decode(file.tobytes()) for file in files],)
    def _decode(self, data):
        if b"end now" in data: os.abort()
        if b"sleep" in data: time.sleep(60)
        if b"first" in data and not os.path.exists(FLAG):
            open(FLAG, "w").close()
            os.abort()
        if b"raise" in data: raise RuntimeError("bad")
        pixels = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        return pixels[::-1] if b"turn" in data else pixels
"""


def stand_in(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a module nvidia.dali where a new process looks first."""
    package = folder / "nvidia/dali"
    package.mkdir(parents=True)
    (folder / "nvidia/__init__.py").touch()
    (package / "__init__.py").write_text(f"import os\nFLAG = {str(folder / 'flag')!r}\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def jpegs_that_say(folder: Path, *comments: str) -> list[Path]:
    paths = []
    for number, comment in enumerate(comments):
        paths.append(folder / f"{number}.jpg")
        Image.new("RGB", (30 + number, 20), (number, 99, 7)).save(paths[-1], comment=comment)
    return paths


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('no such thing')", r"ImportError: no such thing"),
        ("raise OSError('half of it')", "OSError: half of it"),
        ("os.abort()", "SIGABRT"),
        ("", "cannot import name 'Pipeline'"),
    ],
)
def test_without_dali_pillow_decodes(
    code: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not installed, half installed, and one that ends its process."""
    stand_in(code, tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=rf"decoder dali: .*{why}.*: pip install imagebert\[dali\], or take pillow"):
        decoded([], "dali")
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    paths = jpegs_that_say(tmp_path, "", "")
    assert list(decoded(paths, "auto")) == paths
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("pictures are decoded by Pillow: DALI does not start (")
    assert why in said


def test_it_is_said_which_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(STAND_IN, tmp_path, monkeypatch)
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for decoder in ("auto", "pillow", "dali"):
        decoded(jpegs_that_say(tmp_path, ""), decoder)
    assert [record.message for record in caplog.records] == [
        "pictures are decoded by Pillow: there is no GPU",
        "pictures are decoded by Pillow",
        "pictures are decoded by DALI on the CPU and Pillow",
    ]


def test_a_picture_that_ends_dali_is_named_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(STAND_IN, tmp_path, monkeypatch)
    monkeypatch.setattr(decoding, "_BATCH", 4)
    monkeypatch.setattr(dali_jpegs, "_SECONDS_BATCH", 2)
    paths = jpegs_that_say(tmp_path, "", "end now", "", "", "sleep", "raise", "", "", "first", "")
    check_equal(decoded(paths, "dali"), decoded(paths, "pillow"))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"DALI ended (SIGABRT) at one of 4 pictures, {tmp_path}/0.jpg to {tmp_path}/3.jpg; "
        "Pillow decodes what ends it again",
        f"DALI ended (SIGABRT) at {tmp_path}/1.jpg; Pillow decodes it",
        f"DALI ended (SIGKILL) at one of 4 pictures, {tmp_path}/4.jpg to {tmp_path}/7.jpg; "
        "Pillow decodes what ends it again",
        f"DALI ended (SIGKILL) at {tmp_path}/4.jpg; Pillow decodes it",
        f"DALI ended (SIGABRT) at one of 2 pictures, {tmp_path}/8.jpg to {tmp_path}/9.jpg; "
        "Pillow decodes what ends it again",
    ]


def test_dali_is_started_again_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(STAND_IN, tmp_path, monkeypatch)
    monkeypatch.setattr(dali_jpegs, "_RESTARTS", 2)
    paths = jpegs_that_say(tmp_path, "end now", "end now", "end now", "")
    check_equal(decoded(paths, "dali"), decoded(paths, "pillow"))
    ended = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(ended) == 3
    assert ended[-1].endswith("1.jpg; Pillow decodes all that is left, since it was started again 2 times")


def test_dali_that_does_not_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in("if os.path.exists(FLAG): raise ImportError('gone')" + STAND_IN, tmp_path, monkeypatch)
    paths = jpegs_that_say(tmp_path, "first", "")
    check_equal(decoded(paths, "dali"), decoded(paths, "pillow"))
    assert "Pillow decodes all that is left, since DALI does not start (ImportError: gone)" in caplog.text


def test_a_kind_that_comes_out_otherwise_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Other pixels, another size: of the first ones of a kind. Other kinds are not concerned."""
    stand_in(STAND_IN, tmp_path, monkeypatch)
    paths = []
    for number, kind in enumerate(["420", "444", "444", "420", "444"]):
        paths.append(tmp_path / f"{number}.jpg")
        ramp = np.linspace(0, 255, 40 * 30 * 3).astype(np.uint8).reshape(40, 30, 3)
        said = "turn" if kind == "444" else ""
        Image.fromarray(ramp).save(paths[-1], comment=said, subsampling={"420": 2, "444": 0}[kind])
    expected = decoded(paths, "pillow")
    caplog.clear()
    check_equal(decoded(paths, "dali"), expected)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == f"DALI gives other pixels than Pillow of {paths[1]}: Pillow decodes JPEGs that are coded so"


def test_what_is_ordinary(tmp_path: Path) -> None:
    """Only such JPEGs are DALI's."""

    def adobe(transform: int) -> bytes:
        return b"\xff\xee\0\x0eAdobe\0d\0\0\0\0%c" % transform

    plain = saved(picture(), "JPEG")
    for data, expected in (
        (plain, True),
        (saved(picture(), "JPEG", progressive=True), True),
        (saved(picture().convert("L"), "JPEG"), True),
        (with_notes(plain, exif_of(6)), True),
        (plain + b"a film", True),
        (plain[:2] + adobe(1) + plain[2:], True),
        (plain[:2] + adobe(0) + plain[2:], False),
        (saved(picture().convert("CMYK"), "JPEG"), False),
        (saved(picture(), "JPEG", keep_rgb=True), False),
        (with_notes(plain, exif_of(6), exif_of(3)), False),
        (with_notes(plain, exif_of(6, kind=4)), False),
        (with_notes(plain, b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(6)), False),
        (plain[:-2], False),
        (plain[:2] + b"\xff\xe1\0\6\xff\xd8\xff\xd9" + plain[2:-2], False),  # a preview's end is not its own
        (plain.replace(b"\xff\xc0", b"\xff\xc9"), False),  # arithmetic coding
        (many_scans(saved(picture(), "JPEG", progressive=True), 150), False),
        (saved(picture(), "PNG"), False),
        (plain[:100], False),
    ):
        (tmp_path / "file").write_bytes(data)
        assert (decoding._look(tmp_path / "file", TarReader()).kind is not None) == expected, data


def test_large_pictures_are_decoded_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{number}.jpg")
    Image.new("RGB", (100, 100)).save(tmp_path / "5.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "6.webp")
    monkeypatch.setattr(decoding, "_BATCH_PIXELS", 25_000)
    files = sorted(tmp_path.iterdir())
    batches = ["".join(file.path.stem for file in batch) for batch in decoding._batches(files)]
    assert batches == ["01", "23", "45", "6"]
    assert [image.size for _, image in decode(files) if isinstance(image, Image.Image)] == 7 * [(100, 100)]


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("JPEG", "RGB", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (700, 300), "red")]}),
    ],
)
def test_pixels_are_known_before_decoding(tmp_path: Path, kind: str, mode: str, options: dict[str, Any]) -> None:
    (tmp_path / "file").write_bytes(saved(Image.new(mode, (700, 300)), kind, **options))
    assert decoding._look(tmp_path / "file", TarReader()).pixels == 700 * 300


def test_pixels_that_are_not_known_fill_a_batch(tmp_path: Path) -> None:
    """One whose file may say fewer than it has, too: a batch of such would have no bound."""
    twice = saved(Image.new("RGB", (7, 3)), "PNG")
    for data in (twice[:33] + twice[8:], saved(Image.new("RGB", (7, 3)), "GIF"), b"RIFF????WEBPVP9 " + bytes(30)):
        (tmp_path / "file").write_bytes(data)
        assert decoding._look(tmp_path / "file", TarReader()).pixels >= decoding._BATCH_PIXELS


def test_nothing_to_decode() -> None:
    assert list(decode([])) == []


def test_dali_is_not_imported_before_it_is_used() -> None:
    code = "import sys, imagebert.regions.extract, imagebert.training.run; print('nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
