"""Folders of a file an image: each layout as its project writes it, with and without background; archives that lie."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.checks import (
    Case,
    Image,
    OfLayouts,
    each,
    make,
    open_laid_out,
    read,
    refused,
)


def write_mmf(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """tools/scripts/features/extract_features_vmb.py"""
    (folder / "deep").mkdir()
    for i in images:
        info = {
            "bbox": i.boxes,
            "num_boxes": len(i.boxes),
            "objects": i.classes,
            "image_width": i.width,
            "image_height": i.height,
            "cls_prob": i.probabilities,
        }
        np.save(folder / "deep" / i.key, i.features)
        np.save(folder / "deep" / f"{i.key}_info.npy", np.array(info, dtype=object), allow_pickle=True)
    return "mmf", folder / "deep"


def write_npz(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """bottom-up-attention.pytorch's save_roi_features: class 0 is the background's."""
    (folder / "npz").mkdir()
    for i in images:
        info = {"image_id": i.key, "objects_id": 1 + i.classes, "objects_conf": i.confidences}
        np.savez_compressed(
            folder / "npz" / i.key,
            x=i.features,
            bbox=i.boxes,
            num_bbox=len(i.boxes),
            image_h=i.height,
            image_w=i.width,
            info=info,  # type: ignore[arg-type]
        )
    return "npz", folder / "npz"


def write_vilbert_multi_task(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """script/extract_features.py: all of an image in one object; it loses a row of the classes."""
    (folder / "npy").mkdir()
    for i in images:
        info = {
            "bbox": i.boxes,
            "num_boxes": len(i.boxes),
            "objects": (1 + i.classes)[1:],
            "image_width": i.width,
            "image_height": i.height,
            "cls_prob": i.probabilities,
            "image_id": i.key,
            "features": i.features,
        }
        np.save(folder / "npy" / i.key, np.array(info, dtype=object), allow_pickle=True)
    return "mmf", folder / "npy"


def write_mmf_background(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """extract_features_vmb.py --background: class 0 is the background's."""
    name, path = write_mmf(folder, images)
    for i in images:
        table = i.probabilities
        table[:, 0] = 0.01
        info = {
            "bbox": i.boxes,
            "num_boxes": len(i.boxes),
            "objects": 1 + i.classes,
            "cls_prob": table,
            "image_width": i.width,
            "image_height": i.height,
        }
        np.save(path / f"{i.key}_info.npy", np.array(info, dtype=object), allow_pickle=True)
    return name, path


def write_mcan(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """As its VQA features are: regions are the columns of x."""
    (folder / "train2014").mkdir()
    for i in images:
        arrays = {"x": i.features.T, "bbox": i.boxes, "num_bbox": len(i.boxes), "image_h": i.height, "image_w": i.width}
        np.savez_compressed(folder / "train2014" / i.key, **arrays)  # type: ignore[arg-type]
    return "npz", folder / "train2014"


LAYOUTS = [
    Case(write_vilbert_multi_task),
    Case(write_mmf),
    Case(write_mmf_background),
    Case(write_npz),
    Case(write_mcan, {"classes", "confidences"}),
]


@each(LAYOUTS)
class TestLayouts(OfLayouts): ...


def test_archives_and_arrays_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.folders.LARGEST", 10_000)
    monkeypatch.setattr("imagebert.data.readers.hdf5.LARGEST", 10_000)
    np.savez_compressed(tmp_path / "1.npz", x=np.zeros((9, 100)), bbox=np.zeros((9, 100)))
    with h5py.File(tmp_path / "big.hdf5", "w") as file:
        for dataset, last in (("image_features", 1000), ("image_bb", 4), ("spatial_features", 6)):
            file.create_dataset(dataset, (1, 3000, last), np.float32)  # never written, so it takes no space
    (tmp_path / "big_imgid2idx.pkl").write_bytes(pickle.dumps({1: 0}))
    errors = refused("npz", tmp_path) + refused("hdf5", tmp_path / "big.hdf5")
    assert "unpacks to more than 10000 bytes" in errors[0]
    assert "3000 boxes of 1000 numbers" in errors[1]


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_archive_is_packed_as_numpy_packs(packing: int, tmp_path: Path) -> None:
    """Python's zipfile unpacks these a whole block at a time, whatever was asked for."""
    with zipfile.ZipFile(tmp_path / "1.npz", "w", packing) as archive:
        archive.writestr("x.npy", b"nothing")
    (error,) = refused("npz", tmp_path)
    assert "it is packed as NumPy packs none" in error


def test_an_archive_that_says_less_than_it_holds(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "1.npz", x=np.zeros((900, 1000), np.float32), bbox=np.zeros((900, 4)))
    data = bytearray((tmp_path / "1.npz").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "1.npz").write_bytes(data)
    (error,) = refused("npz", tmp_path)
    assert "it is not what its checksum says" in error


def test_an_array_larger_than_any_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.folders.LARGEST", 10_000)
    np.save(tmp_path / "1.npy", np.zeros((9, 1000)))
    (error,) = refused("mmf", tmp_path)
    assert "bytes, more than 10000" in error


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
    with pytest.raises(UsageError, match=r"layout background=counted .* layout background=none"):
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
