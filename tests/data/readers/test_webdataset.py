"""Tars of arrays."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from tests.data.readers.checks import (
    Case,
    Image,
    check_changed_bytes,
    check_no_pipe,
    check_read,
    each,
    volta_arrays,
)


def add(archive: tarfile.TarFile, name: str, write: Callable[[IO[bytes]], Any]) -> None:
    data = io.BytesIO()
    write(data)
    member = tarfile.TarInfo(name)
    member.size = len(data.getvalue())
    archive.addfile(member, io.BytesIO(data.getvalue()))


def write_webdataset(folder: Path, images: list[Image]) -> tuple[str, Path]:
    (folder / "tars").mkdir()
    for number in range(2):
        with tarfile.open(folder / "tars" / f"{number:05}.tar", "w") as archive:
            for i in images[number::2]:
                found = volta_arrays(i)
                add(archive, f"{i.key}.jpg", lambda file: file.write(b"a picture"))
                add(archive, f"{i.key}.npz", lambda file, found=found: np.savez(file, **found))  # type: ignore[misc]
    return "webdataset", folder / "tars"


def write_webdataset_npy(folder: Path, images: list[Image]) -> tuple[str, Path]:
    with tarfile.open(folder / "one.tar", "w") as archive:
        for i in images:
            told = json.dumps({"image_w": i.width, "image_h": i.height}).encode()
            arrays = {"": i.features, "boxes.": i.boxes, "obj_id.": i.classes, "obj_conf.": i.confidences}
            for name, array in arrays.items():
                add(archive, f"./{i.key}.{name}npy", lambda file, array=array: np.save(file, array))  # type: ignore[misc]
            add(archive, f"./{i.key}.json", lambda file, told=told: file.write(told))  # type: ignore[misc]
    return "webdataset", folder / "one.tar"


LAYOUTS = [
    Case(write_webdataset),
    Case(write_webdataset_npy),
]


@each(LAYOUTS)
def test_what_a_project_writes_is_read(case: Case, tmp_path: Path) -> None:
    check_read(case, tmp_path)


@each(LAYOUTS)
def test_damaged_bytes_never_do_more_than_damage(case: Case, tmp_path: Path) -> None:
    check_changed_bytes(case, tmp_path)


@each(LAYOUTS)
def test_a_pipe_is_refused_at_once(case: Case, tmp_path: Path) -> None:
    check_no_pipe(case, tmp_path)
