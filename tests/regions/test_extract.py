from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.pairs import PairStore
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.pictures import LOCAL, SENT
from imagebert.regions.extract import Extracted, extract, other_files
from imagebert.retrieval.pictures import open_picture
from tests.corpora import random_record, write_vocabulary
from tests.forked import finish, start_ranks
from tests.regions.test_decoding import STAND_IN, jpegs_that_say, stand_in
from tests.regions.test_tar_pictures import write_tar
from tests.test_decoder import KINDS, RGB, exif_of
from tests.test_meeting import DETECTOR
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


def test_what_an_extractor_had_found_when_it_ended_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pictures that were; and a kill costs what was found in the last half minute."""
    pictures = solid(tmp_path / "pictures", "0123456789")
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, tmp_path / "out", Fake(fail_at=4))
    second = Fake(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, tmp_path / "out", second)
    monkeypatch.setattr("imagebert.data.region_writer._COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("imagebert.data.region_writer.RegionWriter.close", lambda self: None)  # as a kill
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, tmp_path / "out", Fake(fail_at=2))
    monkeypatch.undo()
    last = Fake()
    assert extract(pictures, tmp_path / "out", last) == Extracted(10, 10, 0)
    assert last.calls == 10 - 4 - 2 - 2


def solid(folder: Path, names: str, color: str = "red") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (20, 10), color).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("place", ["linked", ".hidden"])
def test_pictures_that_have_changed_are_no_finished_job(place: str, tmp_path: Path) -> None:
    pictures = solid(tmp_path / "pictures", "a")
    if place == "linked":
        solid(tmp_path / "elsewhere", "b")
        (pictures / place).symlink_to(tmp_path / "elsewhere")
    else:
        solid(pictures / place, "b")
    assert extract(pictures, tmp_path / "out", Fake()).stored == 2
    assert extract(pictures, tmp_path / "out", Fake()).stored == 2
    Image.new("RGB", (20, 10), "blue").save(pictures / place / "b.png")
    with pytest.raises(UsageError, match=r"out exists"):
        extract(pictures, tmp_path / "out", Fake())


def test_a_store_may_lie_among_its_pictures(tmp_path: Path) -> None:
    for out in (tmp_path / "a/out", tmp_path / "b/deep/out"):
        pictures = solid(tmp_path / out.relative_to(tmp_path).parts[0], "012")
        with pytest.raises(KeyboardInterrupt):
            extract(pictures, out, Fake(fail_at=1))
        assert extract(pictures, out, Fake()).stored == 3
        (pictures / "captions.csv").write_text("image,caption\n")
        again = Fake()
        assert extract(pictures, out, again).stored == 3
        assert again.calls == 0


@pytest.mark.parametrize("what", ["classes", "attributes"])
def test_other_names_are_another_job(what: str, tmp_path: Path) -> None:
    """Else a store would keep names that have been corrected."""
    pictures, extractor = solid(tmp_path / "pictures", "01"), Fake()
    extract(pictures, tmp_path / "out", extractor)
    extractor.description["weights"] = "of another name"  # which changes nothing
    assert extract(pictures, tmp_path / "out", extractor).stored == 2
    setattr(extractor, what, [f"other{number}" for number in range(5)])
    with pytest.raises(UsageError, match=r"out exists"):
        extract(pictures, tmp_path / "out", extractor)


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


class Fragile(Fake):
    """Takes three pictures at once, and none that is narrow."""

    batch_size = 3

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def many(self, images: Sequence[Image.Image]) -> list[RegionRecord]:
        if any(image.width < 5 for image in images):
            raise self._error
        return [self(image) for image in images]


def test_a_picture_that_the_networks_fail_at_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of its batch are kept; what is no picture's fault still ends it."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(7):
        Image.new("RGB", (2 if number == 4 else 20, 10)).save(pictures / f"{number}.png")
    odd = Fragile(RuntimeError("Kernel size\ncan't be greater than actual input size"))
    assert extract(pictures, tmp_path / "out", odd) == Extracted(7, 6, 1)
    said = "4.png is skipped: the extractor fails on it (RuntimeError: Kernel size can't be greater than actual"
    assert said in caplog.text
    store = RegionStore(tmp_path / "out")
    assert [store.key(number) for number in range(len(store))] == [f"{number}.png" for number in (0, 1, 2, 3, 5, 6)]
    for error in (
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        UsageError("layout yolox wants"),
        ImportError("no timm"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ValueError("Failed to allocate memory for requested buffer of size 9"),  # onnxruntime's
    ):
        with pytest.raises(type(error)):
            extract(pictures, tmp_path / "none", Fragile(error))


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


# --------------------------------------------------------------------------------------------------------------- tars


class Colour:
    """An extractor whose one region is the colour of the picture, which says its number."""

    classes: ClassVar[list[str]] = ["thing"]
    description: ClassVar[dict[str, Any]] = {"name": "colour", "digest": "1"}

    def __init__(self, fail_at: int | None = None) -> None:
        self.numbers: list[int] = []
        self._fail_at = fail_at

    def __call__(self, image: Image.Image) -> RegionRecord:
        if len(self.numbers) == self._fail_at:
            raise KeyboardInterrupt
        red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
        self.numbers.append(red + 256 * green)
        return RegionRecord(
            width=image.width,
            height=image.height,
            boxes=np.array([[0, 0, *image.size]], np.float32),
            confidences=np.ones(1, np.float32),
            classes=np.array([WHOLE_IMAGE], np.uint16),
            features=np.array([[red, green, blue]], np.float32),
            scales=np.ones(1, np.float32),
        )


def coloured(number: int, kind: str = "PNG") -> bytes:
    return saved(Image.new("RGB", (20, 10), (number % 256, number // 256, 7)), kind)


def sample_of(number: int) -> dict[str, bytes]:
    """A picture and its caption, named as img2dataset names them."""
    key = f"{number:09d}"
    caption = f'{{"caption": "word{number % 40:02d}", "key": "{key}", "status": "success"}}'.encode()
    return {f"{key}.png": coloured(number), f"{key}.txt": b"word%02d" % (number % 40), f"{key}.json": caption}


def write_tars(folder: Path, tars: int, each: int) -> None:
    folder.mkdir(exist_ok=True)
    for tar in range(tars):
        numbers = range(tar * each, (tar + 1) * each)
        write_tar(folder / f"{tar:05d}.tar", {k: v for n in numbers for k, v in sample_of(n).items()})


def numbers_of(path: Path) -> dict[str, int]:
    """Which picture's regions a store has under each key."""
    store = RegionStore(path)
    colours = {
        store.key(number): store.read(number).dequantized()[0].round().astype(int) for number in range(len(store))
    }
    assert all(blue == 7 for _, _, blue in colours.values())
    return {key: int(red + 256 * green) for key, (red, green, _) in colours.items()}


def test_pictures_in_tars_and_in_files(tmp_path: Path) -> None:
    """A folder with both, tars below it too, or one tar; each picture under the key of its caption."""
    write_tars(tmp_path / "in", 2, 5)
    (tmp_path / "in/below").mkdir()
    (tmp_path / "in/00001.tar").rename(tmp_path / "in/below/00001.tar")
    (tmp_path / "in/below/20.png").write_bytes(coloured(20))
    (tmp_path / "in/00000_stats.json").write_text("{}")
    write_tar(tmp_path / "in/more.TAR", {"a/b.jpg": coloured(30, "PNG"), "c.json": b"{}"})
    (tmp_path / "in/packed.tar.gz").touch()
    expected = {f"{number:09d}": number for number in range(10)} | {"below/20.png": 20, "a/b": 30}
    done = extract(tmp_path / "in", tmp_path / "out", Colour(), "float32")
    assert done == Extracted(12, 12, 0, {".json": 2, ".tar.gz": 1}, without_regions=12)
    assert numbers_of(tmp_path / "out") == expected
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.npy", "meta.json", "shard-000-0000"]
    again = Colour()
    assert extract(tmp_path / "in", tmp_path / "out", again, "float32")[:3] == done[:3]
    assert again.numbers == []
    assert extract(tmp_path / "in/00000.tar", tmp_path / "one", Colour(), "float32") == Extracted(
        5, 5, 0, without_regions=5
    )
    assert numbers_of(tmp_path / "one") == {f"{number:09d}": number for number in range(5)}
    parts: dict[str, int] = {}
    for k in range(3):
        assert extract(tmp_path / "in", tmp_path / str(k), Colour(), "float32", part=(k, 3)).stored == 4
        parts |= numbers_of(tmp_path / str(k))
    assert parts == expected


def test_a_call_on_tars_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.region_writer._COMMIT_RECORDS", 1)
    write_tars(tmp_path / "in", 3, 4)
    first, second = Colour(fail_at=7), Colour()
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "in", tmp_path / "out", first, "float32")
    assert extract(tmp_path / "in", tmp_path / "out", second, "float32") == Extracted(12, 12, 0, without_regions=12)
    assert [*first.numbers, *second.numbers] == list(range(12))
    assert numbers_of(tmp_path / "out") == {f"{number:09d}": number for number in range(12)}


def test_damage_in_a_tar_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A member that is no picture, one that is cut, and a tar that is cut in its third sample."""
    files = {name: data for number in range(4) for name, data in sample_of(number).items()}
    files |= {"000000001.png": b"no picture", "000000002.png": coloured(2)[:45]}
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/0.tar", files)
    cut = write_tar(tmp_path / "in/1.tar", {k: v for n in range(10, 14) for k, v in sample_of(n).items()})
    cut.write_bytes(cut.read_bytes()[: 2 * 6 * 512 + 530])
    write_tar(tmp_path / "in/2.tar", sample_of(20))
    assert extract(tmp_path / "in", tmp_path / "out", Colour(), "float32")[:3] == (8, 5, 3)
    kept = {f"{number:09d}": number for number in (0, 3, 10, 11, 20)}
    assert numbers_of(tmp_path / "out") == kept
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 3
    places = ("0.tar, 000000001.png", "0.tar, 000000002.png", "1.tar, from byte 6144 on,")
    assert all(f"{place} is skipped: it" in said for place, said in zip(places, warnings, strict=True))
    for k in range(2):
        assert extract(tmp_path / "in", tmp_path / str(k), Colour(), part=(k, 2)).pictures == 4
    shutil.rmtree(tmp_path / "out")
    for name in ("0.tar", "2.tar"):
        (tmp_path / "in" / name).unlink()
    cut.write_bytes(b"no tar" * 100)
    with pytest.raises(UsageError, match=r"none of the 1 pictures in .* can be read"):
        extract(tmp_path / "in", tmp_path / "out", Colour())
    assert not (tmp_path / ".out.incomplete").exists()


def test_two_pictures_of_one_key_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for names in (("0.tar/a.jpg", "1.tar/a.png"), ("0.tar/a.jpg", "0.tar/a.png"), ("a", "1.tar/a.jpg")):
        for file in (tmp_path / "in").iterdir():
            file.unlink()
        tars: dict[str, dict[str, bytes]] = {}
        for name in names:
            tar, _, member = name.rpartition("/")
            tars.setdefault(tar or member, {})[member] = coloured(1)
        for name, files in tars.items():
            (tmp_path / "in/a").write_bytes(coloured(1)) if name == "a" else write_tar(tmp_path / "in" / name, files)
        one, other = (str(tmp_path / "in" / name).replace(".tar/", ".tar, ") for name in names)
        with pytest.raises(UsageError) as raised:
            extract(tmp_path / "in", tmp_path / "out", Colour())
        assert f"two pictures have the key 'a', {one} and {other}, and captions could mean either" in str(raised.value)
        assert not (tmp_path / "out").exists()


def test_what_is_no_input_ends_in_one_sentence(tmp_path: Path) -> None:
    for name, data, message in (
        ("x.tar.gz", b"", "x.tar.gz is packed, and pictures are read at their places: unpack it with gunzip first"),
        ("x.jpg", coloured(1), "is a file and no .tar: give a folder of pictures or of tars, or one tar"),
        ("gone", None, "there is no folder of pictures"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=message):
            extract(tmp_path / name, tmp_path / "out", Colour())
    write_tar(tmp_path / "text.tar", {"a.txt": b"", "b.cls": b""})
    with pytest.raises(
        UsageError, match=r"holds no picture: .*; 2 other files are not read \(by suffix: 1 of .txt, 1 of"
    ):
        extract(tmp_path / "text.tar", tmp_path / "out", Colour())


def test_captions_of_the_same_tars_meet_their_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the tars' own texts and by img2dataset's Parquet, in which a download has failed; without an option."""
    write_tars(tmp_path / "in", 2, 3)
    for tar in range(2):
        keys = [f"{3 * tar + number:09d}" for number in range(3)] + [f"{100 + tar:09d}"]
        columns: dict[str, list[str | None]] = {
            "url": [f"http://x/{key}" for key in keys],
            "key": list(keys),
            "caption": [f"word{int(key) % 40:02d}" for key in keys],
            "status": ["success"] * 3 + ["failed_to_download"],
            "error_message": [None] * 3 + ["HTTP Error 404"],
        }
        parquet.write_table(pa.table(columns), tmp_path / f"in/{tar:05d}.parquet")
    (tmp_path / "tiny_detector.py").write_text(DETECTOR)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    network = "{module: 'tiny_detector:Network', arguments: {outputs: %d}, input: {height: 32, width: 32}}"
    detector = f"{{network: {network % 2}, classes: {tmp_path}/classes.txt, layout: boxes_scores}}"
    (tmp_path / "extractor.yaml").write_text(f"name: tiny\ndetector: {detector}\nbackbone: {network % 1}\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = str(tmp_path / "out")
    assert main(["extract", str(tmp_path / "in"), out, "--extractor", str(tmp_path / "extractor.yaml")]) == 0
    assert f"6 pictures: 6 stored in {out}, 0 refused; 2 other files are not read" in capsys.readouterr().out
    write_vocabulary(tmp_path)
    for kind, counted in (("webdataset", "6 captions: 6 stored"), ("img2dataset", "8 captions: 6 stored")):
        pairs = tmp_path / kind
        call = ["pairs", str(tmp_path / "in"), str(pairs), "--vocab", str(tmp_path / "vocab.txt"), "--format", kind]
        assert main([*call, "--regions", out]) == 0
        assert counted in (said := capsys.readouterr().out)
        assert "without regions" not in said
        store, regions = PairStore(pairs), RegionStore(out)
        assert [image.decode() for image in sorted(store.images)] == [
            regions.key(image) for image in range(len(regions))
        ]
        texts = {store.images[image].decode(): store.text(pair) for pair, image in enumerate(store.pair_image)}
        assert texts == {f"{number:09d}": f"word{number:02d}" for number in range(6)}


# -------------------------------------------------------------------------------------------------------------- ranks

# Each rank notes the pictures that it looks at. One is slow, one may be killed at its fourth picture.
RANK = """
import os, sys, time
from pathlib import Path
from imagebert import meeting
from imagebert.data import region_writer
from imagebert.regions import decoding
from imagebert.regions.extract import extract
from imagebert.workers import workers
from tests.regions.test_extract import Colour

meeting._SILENT, meeting._BEAT, meeting._LAST_WORDS = 2.0, 0.2, 1.0
region_writer._COMMIT_RECORDS = 2
decoding._BATCH = 2
images, out, notes, killed = *map(Path, sys.argv[1:4]), sys.argv[4]

class Noted(Colour):
    def __call__(self, image):
        record = super().__call__(image)
        if killed == str(team.rank) and len(self.numbers) == 4:
            os.kill(os.getpid(), 9)
        with (notes / str(team.rank)).open("a") as file:
            file.write(f"{self.numbers[-1]}\\n")
        time.sleep(0.5 if team.rank == 1 else 0.005)
        return record

with workers() as team:
    print(*extract(images, out, Noted(), "float32", workers=team)[:3])
"""


def noted(folder: Path) -> dict[str, list[int]]:
    return {file.name: list(map(int, file.read_text().split())) for file in folder.iterdir()}


def mixed(folder: Path) -> dict[str, int]:
    """Three tars of 30 pictures, one of them cut, and 30 files."""
    write_tars(folder, 3, 30)
    for number in range(90, 120):
        (folder / f"{number}.png").write_bytes(coloured(number))
    cut = folder / "00002.tar"
    cut.write_bytes(cut.read_bytes()[: 29 * 6 * 512 + 530])
    return {f"{number:09d}": number for number in range(89)} | {f"{number}.png": number for number in range(90, 120)}


@pytest.mark.ranks
def test_a_slow_rank_holds_up_no_more_than_its_pieces(tmp_path: Path) -> None:
    expected = mixed(tmp_path / "in")
    (tmp_path / "notes").mkdir()
    ranks = start_ranks(3, RANK, tmp_path / "in", tmp_path / "out", tmp_path / "notes", "")
    finish(ranks)
    assert [rank.communicate()[0] for rank in ranks] == ["120 119 1\n"] * 3
    assert numbers_of(tmp_path / "out") == expected
    found = noted(tmp_path / "notes")
    assert sorted(number for numbers in found.values() for number in numbers) == sorted(expected.values())
    assert len(found.get("1", [])) <= 20, "a third of them each, slow or not"
    extract(tmp_path / "in", tmp_path / "alone", Colour(), "float32")
    assert RegionStore(tmp_path / "out").content == RegionStore(tmp_path / "alone").content
    assert RegionStore(tmp_path / "out").meta["refused"] == 1


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_a_killed_rank_had_claimed_comes_again(ranks: int, tmp_path: Path) -> None:
    """In a call of as many ranks or of others, each picture once: what was committed stays, the rest is done anew."""
    expected = mixed(tmp_path / "in")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    killed = start_ranks(3, RANK, tmp_path / "in", tmp_path / "out", tmp_path / "first", "2")
    assert [rank.wait() != 0 for rank in killed] == [True] * 3
    assert killed[2].returncode == -9
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.incomplete").glob("claims-*/piece-*"))) > 0
    left = start_ranks(ranks, RANK, tmp_path / "in", tmp_path / "out", tmp_path / "second", "")
    finish(left)
    assert [rank.communicate()[0] for rank in left] == ["120 119 1\n"] * ranks
    assert numbers_of(tmp_path / "out") == expected
    assert RegionStore(tmp_path / "out").meta["refused"] == 1  # and none that came twice
    assert {path.name[:5] for path in (tmp_path / "out").iterdir()} == {"index", "meta.", "shard"}
    first, second = noted(tmp_path / "first"), [n for numbers in noted(tmp_path / "second").values() for n in numbers]
    assert len(second) == len(set(second)) < len(expected)
    assert set(second) | {number for numbers in first.values() for number in numbers} == set(expected.values())
