"""`detector check`: right weights, other ones, exchanged colours, another variant; and extraction by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.made_up import picture, weights
from imagebert import api
from imagebert.cli import main
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.regions.vg.weights import read_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, weights of both variants, and a store of regions that the one made."""
    folder = tmp_path_factory.mktemp("check")
    for variant in ("caffe", "detectron2"):
        made = weights(variant, seed=3)  # type: ignore[arg-type]
        torch.save(
            {"model": {name: torch.from_numpy(array) for name, array in made.items()}}, folder / f"{variant}.pth"
        )
    (folder / "photos" / "deep").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(picture("square", seed=number)).save(folder / "photos" / f"{number}.png")
    Image.fromarray(picture("strip")).save(folder / "photos" / "deep" / "strip.png")
    Image.fromarray(picture("line")).save(folder / "photos" / "line.png")
    call = ["extract", str(folder / "photos"), str(folder / "regions"), "--extractor", "vg", "--boxes", "36"]
    assert main([*call, "--weights", str(folder / "caffe.pth"), "--features", "float32"]) == 0
    return folder


def test_extract_stores_what_the_detector_finds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RegionStore(folder / "regions")
    # In caffe's rules nothing is found in pictures this narrow: they are refused, and named.
    assert [store.key(number) for number in range(len(store))] == ["0.png", "1.png", "2.png"]
    assert store.meta["job"]
    detector = read_detector(folder / "caffe.pth")
    assert store.extractor["weights_sha256"] == detector.digest
    assert store.extractor["name"] == "Visual Genome Faster R-CNN, caffe"
    assert store.classes == [f"object {number}" for number in range(60)]
    record = store.read(0)
    assert record.features.shape == (36, 256)
    assert not store.whole_image.any()
    assert (record.boxes >= 0).all()
    assert (record.boxes <= 224).all()


def test_a_description_and_weights_themselves_are_extractors(folder: Path, tmp_path: Path) -> None:
    description = tmp_path / "vg.yaml"
    description.write_text(f"vg: {{weights: {folder / 'caffe.pth'}, boxes: '36', precision: fp32}}\n")
    assert main(["extract", str(folder / "photos"), str(tmp_path / "a"), "--extractor", str(description)]) == 0
    api.extract(folder / "photos", tmp_path / "b", api.VisualGenome(weights=str(folder / "caffe.pth"), boxes="36"))
    assert RegionStore(tmp_path / "a").content == RegionStore(tmp_path / "b").content
    # Without a word about boxes, 10 to 100: another extractor, and another identity.
    api.extract(folder / "photos", tmp_path / "c", folder / "caffe.pth")
    assert RegionStore(tmp_path / "c").extractor["digest"] != RegionStore(tmp_path / "a").extractor["digest"]


def test_pictures_of_one_pixel_and_of_too_many_are_refused_by_a_sentence(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (1, 1), "red").save(photos / "one.png")
    Image.new("1", (10_001, 10_000)).save(photos / "many.png")
    Image.fromarray(picture("square")).save(photos / "square.png")
    done = api.extract(photos, tmp_path / "out", api.VisualGenome(weights=str(folder / "caffe.pth"), boxes="36"))
    assert (done.stored, done.refused) == (1, 2)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("one.png is refused: image 'one.png' has no region: none was found in it" in line for line in said)
    assert any("many.png is skipped: it has more pixels than 100,000,000" in line for line in said)


def test_right_weights_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "check.json"
    call = ["detector", "check", str(folder / "caffe.pth"), str(folder / "regions"), str(folder / "photos")]
    assert main([*call, "--json", str(out)]) == 0
    assert "these weights made those regions" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["fits"] is True
    assert [picture["published"] for picture in found["pictures"]] == [36, 36, 36]
    assert min(picture["cosine"] for picture in found["pictures"]) > 0.9999
    assert min(picture["iou"] for picture in found["pictures"]) > 0.9999


def test_exchanged_colours_are_told(folder: Path, tmp_path: Path) -> None:
    exchanged = tmp_path / "exchanged"
    exchanged.mkdir()
    for number in range(3):
        pixels = np.asarray(Image.open(folder / "photos" / f"{number}.png"))
        Image.fromarray(pixels[:, :, ::-1].copy()).save(exchanged / f"{number}.png")
    done = api.check_detector(folder / "caffe.pth", folder / "regions", exchanged)
    assert not done.fits
    assert "red and blue exchanged the features fit" in done.verdict


def test_other_weights_do_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = weights("caffe", seed=9)
    torch.save({name: torch.from_numpy(array) for name, array in other.items()}, tmp_path / "other.pth")
    call = ["detector", "check", str(tmp_path / "other.pth"), str(folder / "regions"), str(folder / "photos")]
    assert main(call) == 1
    assert "these weights did not make those regions" in capsys.readouterr().out


def test_classes_in_another_order_do_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes and features know nothing of them."""
    made = weights("caffe", seed=3)
    for part in ("weight", "bias"):
        name = f"roi_heads.box_predictor.cls_score.{part}"
        made[name] = np.concatenate([made[name][:1], np.roll(made[name][1:], 1, axis=0)])
    torch.save({name: torch.from_numpy(array) for name, array in made.items()}, tmp_path / "rolled.pth")
    call = ["detector", "check", str(tmp_path / "rolled.pth")]
    assert main([*call, str(folder / "regions"), str(folder / "photos")]) == 1
    assert "boxes and features fit, and 0% of the classes agree: the rows of these" in capsys.readouterr().out
    # Published without classes, there is nothing to compare.
    store = RegionStore(folder / "regions")
    with write_regions(Target(tmp_path / "none", ["region"], {}, "float32", has_classes=False)) as writer:
        for number in range(len(store)):
            record = store.read(number)
            bare = record._replace(classes=np.zeros_like(record.classes), attributes=None, attribute_confidences=None)
            writer.add(store.key(number), bare)
    assert main([*call, str(tmp_path / "none"), str(folder / "photos")]) == 0
    assert "these weights made those regions" in capsys.readouterr().out


def test_what_cannot_be_compared_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="none of the pictures"):
        api.check_detector(folder / "caffe.pth", folder / "regions", tmp_path / "none")
    for name in ("some.tar", "nowhere"):
        with pytest.raises(UsageError, match=rf"{name} is no folder: give the folder of .*unpack a tar"):
            api.check_detector(folder / "caffe.pth", folder / "regions", tmp_path / name)
    wide = weights("caffe", base=16, blocks=(1, 1, 1, 1))
    torch.save({name: torch.from_numpy(array) for name, array in wide.items()}, tmp_path / "wide.pth")
    with pytest.raises(UsageError, match="has features of 256 numbers, the detector 512"):
        api.check_detector(tmp_path / "wide.pth", folder / "regions", folder / "photos")


def test_convert_by_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "vg.safetensors"
    assert main(["detector", "convert", str(folder / "detectron2.pth"), str(out)]) == 0
    assert "detectron2, 60 classes, 40 attributes" in capsys.readouterr().out
    assert main(["detector", "convert", str(folder / "photos" / "0.png"), str(out)]) == 2
    assert "cannot be read as the weights of a detector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vg"], "wants --weights"),
        (["some.yaml", "--boxes", "36"], "are for --extractor vg"),
        (["vg", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["vg", "--weights", "{caffe}", "--boxes", "0"], "give numbers that rise"),
        (["vg", "--weights", "{caffe}", "--proposals", "5"], "give numbers that rise"),
    ],
)
def test_wrong_calls_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    words = [word.replace("{caffe}", str(folder / "caffe.pth")) for word in words]
    assert main(["extract", str(folder / "photos"), str(tmp_path / "out"), "--extractor", *words]) == 2
    assert message in capsys.readouterr().err
