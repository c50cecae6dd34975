"""VinVL: each layout as its project writes it; whether labels and features are of the same regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.checks import (
    NAMES,
    Case,
    Image,
    OfLayouts,
    Write,
    b64,
    each,
    make,
    read,
    refused,
)
from tests.data.readers.test_lmdbs import write_uniter


def tsv(path: Path, rows: list[list[str]]) -> None:
    """Oscar's tsv_writer: the rows, and where each begins."""
    at = 0
    with path.open("w") as file, path.with_suffix(".lineidx").open("w") as index:
        for row in rows:
            line = "\t".join(row) + "\n"
            index.write(f"{at}\n")
            file.write(line)
            at += len(line)


def write_vinvl(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """As its pre-training and retrieval features: number and base64; labels with the size, in another order."""
    rows = []
    for i in images:
        sides = (i.boxes[:, 2:] - i.boxes[:, :2]) / (i.width, i.height)
        wide = np.concatenate([i.features, i.shares, sides.astype(np.float32)], axis=1)
        rows.append([i.key, str(len(wide)), b64(wide)])
    tsv(folder / "features.tsv", rows)
    labels = []
    for i in reversed(images):
        objects = [
            {"rect": [float(v) for v in box], "class": NAMES[c], "conf": float(p)}
            for box, c, p in zip(i.boxes, i.classes, i.confidences, strict=True)
        ]
        labels.append([i.key, json.dumps({"image_h": i.height, "image_w": i.width, "objects": objects})])
    tsv(folder / "predictions.tsv", labels)
    return "vinvl", folder


def write_vinvl_captioning(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """As its captioning features: json of number and base64; labels are lists, and tell no size."""
    rows, labels = [], []
    for i in images:
        wide = np.concatenate([i.features, i.shares, i.shares[:, :2]], axis=1)
        rows.append([i.key, json.dumps({"num_boxes": len(wide), "features": b64(wide)})])
        objects = [
            {"class": NAMES[c], "conf": float(p), "rect": [float(v) for v in box]}
            for box, c, p in zip(i.boxes, i.classes, i.confidences, strict=True)
        ]
        labels.append([i.key, json.dumps(objects)])
    tsv(folder / "features.tsv", rows)
    tsv(folder / "label.tsv", labels)
    return "vinvl", folder


def write_vinvl_predictions(folder: Path, images: list[Image], size: str = "list") -> tuple[str, Path]:
    """maskrcnn_benchmark/engine/inference.py: a feature an object; sizes lie in hw.tsv."""
    rows, sizes = [], []
    for i in images:
        objects = [
            {"rect": box.tolist(), "bbox_id": n, "class": NAMES[c], "conf": float(p), "feature": b64(feature)}
            for n, (box, c, p, feature) in enumerate(zip(i.boxes, i.classes, i.confidences, i.features, strict=True))
        ]
        rows.append([i.key, json.dumps({"objects": objects, "relations": None})])
        both = {"height": i.height, "width": i.width}
        told = {"list": json.dumps([both]), "object": json.dumps(both), "text": f"{i.height} {i.width}"}
        sizes.append([i.key, told[size]])
    tsv(folder / "predictions.tsv", rows)
    tsv(folder / "hw.tsv", sizes)
    return "vinvl", folder


def write_vinvl_yaml(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """A data set's yaml, which names its files."""
    write_vinvl(folder, images)
    (folder / "deep").mkdir()
    for name in ("features", "predictions"):
        for suffix in (".tsv", ".lineidx"):
            (folder / f"{name}{suffix}").rename(folder / "deep" / f"train_{name}{suffix}")
    text = "img: train.tsv\nfeature: deep/train_features.tsv\nlabel: deep/train_predictions.tsv\n"
    (folder / "train.yaml").write_text(text)
    return "vinvl", folder / "train.yaml"


LAYOUTS = [
    Case(write_vinvl, features=2048),
    Case(write_vinvl_captioning, {"size"}, features=2048),
    Case(write_vinvl_predictions),
    Case(write_vinvl_yaml, features=2048),
]


@each(LAYOUTS)
class TestLayouts(OfLayouts): ...


def test_vinvls_files_of_other_names(tmp_path: Path) -> None:
    _, folder = write_vinvl_captioning(tmp_path, make(2048))
    for old, new in (("features", "train.feature"), ("label", "train.label")):
        for suffix in (".tsv", ".lineidx"):
            (folder / f"{old}{suffix}").rename(folder / f"{new}{suffix}")
    for path in (folder, folder / "train.feature.tsv"):
        found = read("vinvl", path)
        assert len(found) == 5
        assert any(record.classes.any() for record in found.values())


def test_jsons_beside_the_features(tmp_path: Path) -> None:
    """Deep ones and long numbers: the file and the line are named."""
    name, path = write_uniter(tmp_path, make())
    for text in ("[" * 9999, '{"1": ' + "9" * 5000 + "}", '{"1": 1e999}', "[" * 70 + "]" * 70):
        (tmp_path / "nbb_th0.2_max100_min10.json").write_text(text)
        with pytest.raises(UsageError, match=r"nbb_th0\.2_max100_min10\.json"):
            open_reader(name, [path], [])
    _, folder = write_vinvl(tmp_path, make(2048))
    (folder / "predictions.lineidx").unlink()
    for text in ("[" * 9999, "[" * 70 + "]" * 70, "9" * 5000):
        (folder / "predictions.tsv").write_text("".join(f"{image.key}\t{text}\n" for image in make()))
        errors = refused("vinvl", folder)
        assert len(errors) == 5
        assert all("features.tsv, byte" in error and "its label is n" in error for error in errors)
    for offset in ("9" * 400, "9" * 5000):
        (folder / "predictions.lineidx").write_text(offset)
        with pytest.raises(UsageError, match=r"predictions\.lineidx"):
            open_reader("vinvl", [folder], NAMES)


def test_an_index_of_lines_that_does_not_fit(tmp_path: Path) -> None:
    _, path = write_vinvl(tmp_path, make(2048))
    (path / "predictions.lineidx").write_text("0\n17\n")
    with pytest.raises(Exception, match=r"predictions.lineidx: no line of predictions.tsv begins at 17: remove it"):
        read("vinvl", path)
    (path / "predictions.lineidx").unlink()
    assert len(read("vinvl", path)) == 5


def relabelled(folder: Path, change: Any) -> None:
    """Changes the objects of the first image's label; the index of its lines is written anew."""
    (path,) = [path for path in folder.glob("*.tsv") if path.name != "features.tsv"]
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    (row,) = [row for row in rows if row[0] == "1000"]
    label = json.loads(row[1])
    change(label if isinstance(label, list) else label["objects"])
    row[1] = json.dumps(label)
    tsv(path, rows)


def widened(objects: list[dict[str, Any]]) -> None:
    objects[1]["rect"][0] *= 0.5


@pytest.mark.parametrize("write", [write_vinvl, write_vinvl_captioning])
@pytest.mark.parametrize("change", [widened, list.reverse, list.pop])
def test_labels_of_other_regions_are_refused(write: Write, change: Any, tmp_path: Path) -> None:
    """Also where the image's size is not told."""
    name, folder = write(tmp_path, make(2048))
    relabelled(folder, change)
    (error,) = refused(name, folder)
    assert "image '1000'" in error
    assert "of other regions" in error


@pytest.mark.parametrize("write", [write_vinvl, write_vinvl_captioning])
def test_boxes_that_were_rounded_are_the_same(write: Write, tmp_path: Path) -> None:
    def rounded(objects: list[dict[str, Any]]) -> None:
        for one in objects:
            one["rect"] = [float(round(side)) for side in one["rect"]]

    name, folder = write(tmp_path, make(2048))
    relabelled(folder, rounded)
    assert len(read(name, folder)) == 5


def test_all_labels_of_another_source(tmp_path: Path) -> None:
    """The sentence tells what to do, and it helps."""
    images = make(2048)
    name, folder = write_vinvl(tmp_path, [i._replace(boxes=i.boxes[::-1].copy()) for i in images])
    labels = (folder / "predictions.tsv").read_bytes()
    write_vinvl(tmp_path, images)
    (folder / "predictions.tsv").write_bytes(labels)
    (folder / "predictions.lineidx").unlink()
    with pytest.raises(UsageError, match=r"import the features from a folder without predictions\.tsv"):
        read(name, folder)
    (folder / "predictions.tsv").unlink()
    found = read(name, folder)
    for image in images:
        np.testing.assert_array_equal(found[image.key].features, image.features)


def test_oscars_features_of_vqa(tmp_path: Path) -> None:
    """train_img_frcnn_feats.tsv, alone in its folder."""
    images = make(2048)
    name, folder = write_vinvl(tmp_path, images)
    for path in folder.glob("predictions.*"):
        path.unlink()
    for suffix in (".tsv", ".lineidx"):
        (folder / f"features{suffix}").rename(folder / f"train_img_frcnn_feats{suffix}")
    assert detect([folder]) == name
    found = read(name, folder)
    assert sorted(found) == [image.key for image in images]
