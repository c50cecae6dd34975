"""Folders of a file an image: what MMF writes beside vmb's features, with and without the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.test_formats import Image, make, open_laid_out, read, write_mmf, write_npz


def save(folder: Path, image: Image, features: Any, info: dict[str, Any]) -> None:
    """MMF's _save_feature"""
    np.save(folder / image.key, features)
    np.save(folder / f"{image.key}_info.npy", np.array(info, dtype=object), allow_pickle=True)


def write_mmf_vinvl(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """tools/scripts/features/extract_features_vinvl.py: maskrcnn-benchmark's fields as they are, class 0 is none's."""
    for i in images:
        boxes = np.concatenate([i.shares, i.shares[:, 2:] - i.shares[:, :2]], axis=1)
        info = {
            "labels": 1 + i.classes,
            "scores": i.confidences,
            "box_features": i.features,
            "attr_labels": np.zeros((len(i.boxes), 16), np.int64),
            "bbox": boxes,
            "image_width": i.width,
            "image_height": i.height,
        }
        save(folder, i, np.concatenate([i.features, boxes], axis=1), info)
    return "mmf", folder


def test_mmfs_vinvl_features_have_classes(tmp_path: Path) -> None:
    images = make(2048)
    name, path = write_mmf_vinvl(tmp_path, images)
    assert detect([path]) == name
    found = read(name, path)
    assert sorted(found) == [image.key for image in images]
    for image in images:
        record = found[image.key]
        assert (record.width, record.height) == (image.width, image.height)
        np.testing.assert_array_equal(record.features, image.features)
        np.testing.assert_allclose(record.boxes, image.boxes, rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(record.classes, image.classes)
        np.testing.assert_array_equal(record.confidences, image.confidences)


@pytest.mark.parametrize("counted", [False, True])
def test_mmfs_classes_without_probabilities_are_not_guessed(counted: bool, tmp_path: Path) -> None:
    images = make()
    name, path = write_mmf(tmp_path, images)
    for image in images:
        file = path / f"{image.key}_info.npy"
        info = np.load(file, allow_pickle=True).item()
        del info["cls_prob"]
        info["objects"] = info["objects"] + counted
        np.save(file, np.array(info, dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"--layout background=counted .* --layout background=none"):
        open_laid_out(name, path)
    reader = open_laid_out(name, path, background="counted" if counted else "none")
    for item, image in zip(reader.items(0, 1), images, strict=True):
        np.testing.assert_array_equal(item.load().record.classes, image.classes)
    if counted:  # a region that is background has no class then
        info["objects"][0] = 0
        np.save(file, np.array(info, dtype=object), allow_pickle=True)
        *_, last = reader.items(0, 1)
        with pytest.raises(BadRecord, match="1 of its regions are background, and no probabilities tell another"):
            last.load()


def write_d2(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """bottom-up-attention.pytorch's extract_d2features.py: attributes stay tensors; no background among the classes."""
    for i in images:
        attributes = torch.rand(len(i.boxes), 40)
        np.savez_compressed(
            folder / i.key,
            x=i.features,
            bbox=i.boxes,
            num_bbox=len(i.boxes),
            image_h=i.height,
            image_w=i.width,
            image_h_inner=600,
            image_w_inner=800,
            info={  # type: ignore[arg-type]
                "objects": i.classes,
                "cls_prob": i.probabilities[:, 1:],
                "attrs_id": attributes.softmax(dim=-1),
                "attrs_scores": attributes,
            },
        )
    return "npz", folder


def test_detectron2s_features_have_tensors(tmp_path: Path) -> None:
    images = make()
    name, path = write_d2(tmp_path, images)
    assert detect([path]) == name
    found = read(name, path)
    assert sorted(found) == [image.key for image in images]
    for image in images:
        np.testing.assert_array_equal(found[image.key].features, image.features)
        np.testing.assert_array_equal(found[image.key].classes, image.classes)
        np.testing.assert_array_equal(found[image.key].confidences, image.confidences)


def test_a_region_that_is_background_has_no_class(tmp_path: Path) -> None:
    """Of bottom-up-attention.pytorch, which writes class 0 where the background has the largest score."""
    images = make()
    images[1].classes[0] = -1
    name, path = write_npz(tmp_path, images)
    errors = {}
    for item in open_laid_out(name, path).items(0, 1):
        try:
            np.testing.assert_array_equal(item.load().record.classes, images[int(item.key) - 1000].classes)
        except BadRecord as error:
            errors[item.key] = str(error)
    assert list(errors) == ["1001"]
    assert "1 of its regions are background" in errors["1001"]
    assert len(list(open_laid_out(name, path, classes="none").items(0, 1))) == len(images)


def test_features_alone_of_self_critical(tmp_path: Path) -> None:
    """Its make_bu_data.py leaves the boxes to another folder, and the size of the image out."""
    np.savez_compressed(tmp_path / "9", feat=np.ones((3, 2048), np.float32))
    (item,) = open_reader("npz", [tmp_path]).items(0, 1)
    with pytest.raises(BadRecord, match=r"import the TSV that its make_bu_data\.py read"):
        item.load()
