"""LMDBs: folders of several, and values that tell wrongly how all are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.test_formats import (
    Write,
    load_all,
    make,
    read,
    write_uniter,
    write_vilbert,
    write_volta_h5_tensorpack,
    written,
)


@pytest.mark.parametrize("write", [write_uniter, write_vilbert, write_volta_h5_tensorpack])
def test_a_folder_of_lmdbs(write: Write, tmp_path: Path) -> None:
    """As folders of a data.mdb, or as bare files; UNITER's numbers of boxes lie beside each."""
    images = make()
    for number in range(2):
        (tmp_path / f"part{number}").mkdir()
        name, _ = write(tmp_path / f"part{number}", images[number::2])
    assert detect([tmp_path]) == name
    found = read(name, tmp_path, 3)
    assert sorted(found) == [image.key for image in images]
    for image in images:
        np.testing.assert_allclose(found[image.key].features, image.features, rtol=1e-3)


@pytest.mark.parametrize("damage", [b"", b"\xc1nothing", b"PK\3\4", b"\x80\4nothing", b"\x04\x22\x4d\x18"])
def test_a_damaged_first_value_does_not_decide_how_the_others_are_read(damage: bytes, tmp_path: Path) -> None:
    """Also where it begins as one of another kind does."""
    images = make()
    name, path = write_vilbert(tmp_path, images)
    with written(path) as transaction:
        transaction.put(images[0].key.encode(), damage)
    assert detect([path]) == name
    (error,) = load_all(name, path)
    assert f"key {images[0].key!r}" in error


@pytest.mark.parametrize(
    ("value", "message"),
    [(b"\x04\x22\x4d\x18\x40", "as UNITER's txt_db: give its img_db"), (None, "has no records")],
)
def test_an_lmdb_without_an_images_arrays(value: bytes | None, message: str, tmp_path: Path) -> None:
    with written(tmp_path / "x") as transaction:
        if value is not None:
            transaction.put(b"1", value)
    with pytest.raises(UsageError, match=message):
        open_reader("uniter", [tmp_path / "x"], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"it has no data\.mdb"):
        open_reader("uniter", [tmp_path / "empty"], [])
