"""VinVL's labels and features: whether they are of the same regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from tests.data.readers.test_formats import Write, load_all, make, read, tsv, write_vinvl, write_vinvl_captioning


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
    (error,) = load_all(name, folder)
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
