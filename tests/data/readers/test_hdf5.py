"""HDF5: each layout as its project writes it; damaged, packed, in itself, or of fields that no project has."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, hdf5
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.checks import (
    Case,
    Image,
    OfLayouts,
    each,
    make,
    open_laid_out,
    refused,
    volta_arrays,
)


def write_hdf5(folder: Path, images: list[Image], adaptive: bool = False) -> tuple[str, Path]:
    """tools/detection_features_converter.py, and the adaptive one of ban-vqa"""
    sides = [i.shares[:, 2:] - i.shares[:, :2] for i in images]
    spatial = [np.concatenate([i.shares, side], axis=1) for i, side in zip(images, sides, strict=True)]
    join = np.concatenate if adaptive else np.stack
    with h5py.File(folder / "trainval36.hdf5", "w") as file:
        file["image_features"] = join([i.features for i in images])
        file["image_bb"] = join([i.boxes for i in images])
        file["spatial_features"] = join(spatial)
        if adaptive:
            ends = np.cumsum([len(i.boxes) for i in images])
            file["pos_boxes"] = np.stack([ends - [len(i.boxes) for i in images], ends], axis=1)
    ids = {int(i.key): row for row, i in enumerate(images)}
    (folder / "trainval36_imgid2idx.pkl").write_bytes(pickle.dumps(ids, protocol=2))
    return "hdf5", folder / "trainval36.hdf5"


def write_hdf5_adaptive(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_hdf5(folder, images, adaptive=True)


def write_vl_t5(folder: Path, images: list[Image], name: str = "{}", **packed: Any) -> tuple[str, Path]:
    """feature_extraction/detectron2_proposal_maxnms.py"""
    with h5py.File(folder / "train2014_obj36.h5", "w") as file:
        for i in images:
            group = file.create_group(name.format(i.key))
            for field, value in volta_arrays(i).items():
                group.create_dataset(field, data=value, **(packed if np.ndim(value) else {}))
    return "hdf5", folder / "train2014_obj36.h5"


def write_vl_t5_compressed(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_vl_t5(folder, images, compression="gzip", shuffle=True)


def write_hdf5_compressed(folder: Path, images: list[Image]) -> tuple[str, Path]:
    name, path = write_hdf5(folder, images)
    with h5py.File(path) as file:
        arrays = {field: file[field][()] for field in file}
    with h5py.File(path, "w") as file:
        for number, (field, value) in enumerate(arrays.items()):
            file.create_dataset(field, data=value, chunks=(2, 2, 3 + number), compression="gzip", shuffle=number > 0)
    return name, path


LAYOUTS = [
    Case(write_hdf5, {"classes", "confidences"}, boxes=3),
    Case(write_hdf5_adaptive, {"classes", "confidences"}),
    Case(write_hdf5_compressed, {"classes", "confidences"}, boxes=3),
    Case(write_vl_t5),
    Case(write_vl_t5_compressed),
]


@each(LAYOUTS)
class TestLayouts(OfLayouts): ...


def test_hdf5_that_leads_elsewhere(tmp_path: Path) -> None:
    name, path = write_hdf5(tmp_path, make(16, 3))
    os.mkfifo(tmp_path / "pipe")
    whole = path.read_bytes()

    def packed(file: Any) -> None:
        file.create_dataset("image_bb", data=np.zeros((5, 3, 4), np.float32), compression="lzf")

    def linked(file: Any) -> None:
        file["image_bb"] = h5py.ExternalLink(str(tmp_path / "pipe"), "x")

    def external(file: Any) -> None:
        file.create_dataset("image_bb", (5, 3, 4), "f4", external=[("/etc/passwd", 0, 240)])

    def grouped(file: Any) -> None:
        file.create_group("image_bb")

    def wide(file: Any) -> None:
        file.create_dataset("image_bb", (5, 3, 4), "f4", chunks=(1 << 14, 1 << 14, 2), maxshape=(None, None, None))

    for change, message in (
        (packed, "image_bb is packed by lzf"),
        (linked, "image_bb is a link"),
        (external, "image_bb lies in other files"),
        (grouped, "image_bb is no table of numbers"),
        (wide, "image_bb has chunks of"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            del file["image_bb"]
            change(file)
        with pytest.raises(UsageError, match=message):
            open_reader(name, [path], [])


def read_whole(path: Path, **given: str) -> tuple[dict[str, Any], list[str]]:
    """The records that can be used, and what is said of the others."""
    found, errors = {}, []
    for item in open_laid_out("hdf5", path, **given).items(0, 1):
        try:
            loaded = item.load()
            found[loaded.key] = loaded.record
        except BadRecord as error:
            errors.append(f"{item.where}: {error}")
    return found, errors


STRAYS: dict[str, Callable[[Any, str], Any]] = {
    "table": lambda file, key: file.create_dataset(key, data=np.zeros(3)),
    "text": lambda file, key: file.create_dataset(key, data="extracted by hand"),
    "empty group": lambda file, key: file.create_group(key),
    "group of a table": lambda file, key: file.create_dataset(f"{key}/features", data=np.zeros(3)),
    "link": lambda file, key: file.__setitem__(key, h5py.SoftLink("/nowhere")),
}


@pytest.mark.parametrize("name", ["{}", "val2014/{}"])
@pytest.mark.parametrize("stray", STRAYS)
def test_what_is_no_image_costs_itself(name: str, stray: str, tmp_path: Path) -> None:
    """In front of the images, or of the group of them."""
    images = make()
    _, path = write_vl_t5(tmp_path, images, name)
    with h5py.File(path, "a") as file:
        for key in ("0", "1"):
            STRAYS[stray](file, key)
    found, errors = read_whole(path)
    assert sorted(found) == [name.format(image.key) for image in images]
    assert [error.split("image ")[1][:2] for error in errors] == ["'0", "'1"]


def test_groups_that_hold_themselves(tmp_path: Path) -> None:
    """Walked once, though each holds itself, its parent and all others under two names."""
    images = make()
    _, path = write_vl_t5(tmp_path, images, "train/{}")
    with h5py.File(path, "a") as file:
        rings = [file.create_group(f"ring{number}") for number in range(12)]
        for number, ring in enumerate(rings):
            for name, held in (("itself", ring), ("root", file["/"]), ("next", rings[number - 1])):
                ring[name] = held
            ring["again"] = ring["next"]
    found, errors = read_whole(path)
    assert sorted(found) == [f"train/{image.key}" for image in images]
    assert 12 <= len(errors) <= 50


@pytest.mark.parametrize("write", [write_hdf5, write_hdf5_adaptive])
def test_a_chunk_is_unpacked_once(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images it has numbers of; the same bits where there is no room to keep one."""
    images = make(16, 3)
    _, path = write(tmp_path, images)
    with h5py.File(path, "a") as file:
        for field in list(file):
            values = file[field][()]
            del file[field]
            file.create_dataset(field, data=values, chunks=(4, *values.shape[1:]), compression="gzip")
    unpacked: list[tuple[int, tuple[int, ...]]] = []
    chunk = hdf5._chunk

    def counted(table: Any, corner: tuple[int, ...]) -> Any:
        unpacked.append((table.dataset.id, corner))
        return chunk(table, corner)

    monkeypatch.setattr(hdf5, "_chunk", counted)
    for kept in (1 << 20, 100):
        monkeypatch.setattr(hdf5, "_KEPT", kept)
        unpacked.clear()
        reader = hdf5.Hdf5Reader([path])
        fields = [item.load() for item in reader.items(0, 1)]
        assert (len(unpacked) == len(set(unpacked))) == (kept == 1 << 20)
        for one, image in zip(fields, images, strict=True):
            np.testing.assert_array_equal(one["features"], image.features)


def test_a_folder_of_files(tmp_path: Path) -> None:
    images = make(16, 3)
    for number, write in enumerate((write_hdf5, write_vl_t5)):
        (tmp_path / "deep" / str(number)).mkdir(parents=True)
        write(tmp_path / "deep" / str(number), images[2 * number : 2 * number + 2])
    assert detect([tmp_path]) == "hdf5"
    assert refused("hdf5", tmp_path) == []
    reader = hdf5.Hdf5Reader([tmp_path])
    assert [item.key for item in reader.items(0, 1)] == [image.key for image in images[:4]]
    assert [path.name for path in reader.beside] == ["trainval36_imgid2idx.pkl"]


def test_a_field_of_any_name_can_be_given(tmp_path: Path) -> None:
    """What is not needed may be packed in any way."""
    images = make()
    _, path = write_vl_t5(tmp_path, images)
    with h5py.File(path, "a") as file:
        for group in file.values():
            group["pool5"] = group["features"][()]
            del group["features"]
            group.create_dataset("mask", data=np.zeros((9, 9)), compression="lzf")
    found, errors = read_whole(path, features="pool5")
    assert errors == []
    for image in images:
        np.testing.assert_array_equal(found[image.key].features, image.features)
