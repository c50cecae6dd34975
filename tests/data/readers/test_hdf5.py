"""HDF5 that is damaged, packed, in itself, or of fields that no project has: what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from imagebert.data.readers import BadRecord, hdf5
from imagebert.data.readers.detect import detect
from tests.data.readers.test_formats import (
    load_all,
    make,
    open_laid_out,
    write_hdf5,
    write_hdf5_adaptive,
    write_vl_t5,
)


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
    assert load_all("hdf5", tmp_path) == []
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
