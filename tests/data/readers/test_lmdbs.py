"""LMDBs: each layout as its project writes it, folders of several, and values that tell wrongly how all are written."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.checks import (
    Case,
    Image,
    OfLayouts,
    Write,
    b64,
    each,
    make,
    open_laid_out,
    read,
    refused,
    volta_arrays,
)
from tests.data.readers.test_tsv import volta_row, write_bottom_up


def uniter_dump(image: Image) -> dict[str, NDArray[Any]]:
    sides = image.shares[:, 2:] - image.shares[:, :2]
    norm_bb = np.concatenate([image.shares, sides, sides.prod(axis=1, keepdims=True)], axis=1)
    dump = {
        "norm_bb": norm_bb,
        "features": image.features,
        "conf": image.confidences,
        "soft_labels": image.probabilities,
    }
    return {name: array.astype(np.float16) for name, array in dump.items()}


def write_uniter(folder: Path, images: list[Image], compress: bool = False) -> tuple[str, Path]:
    """scripts/convert_imgdir.py: one region more in each than its json says."""
    name = "feat_th0.2_max100_min10" + ("_compressed" if compress else "")
    numbers = {}
    with lmdb.open(str(folder / name), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for image in images:
            dump = {k: np.concatenate([array, array[-1:]]) for k, array in uniter_dump(image).items()}
            numbers[image.key] = len(image.boxes)
            if compress:
                with io.BytesIO() as writer:
                    np.savez_compressed(writer, **dump, allow_pickle=True)
                    value = writer.getvalue()
            else:
                value = msgpack.dumps(dump, use_bin_type=True, default=msgpack_numpy.encode)
            transaction.put(image.key.encode(), value)
        transaction.put(b"__keys__", json.dumps(list(numbers)).encode())
    (folder / "nbb_th0.2_max100_min10.json").write_text(json.dumps(numbers))
    return "uniter", folder / name


def write_uniter_compressed(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_uniter(folder, images, compress=True)


def write_vilbert(folder: Path, images: list[Image], raw: bool = False) -> tuple[str, Path]:
    """script/convert_to_lmdb.py: the fields of the TSV, still base64, pickled."""
    with (
        lmdb.open(str(folder / "x.lmdb"), map_size=1 << 26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for i in images:
            item: dict[str, Any] = {
                "image_id": i.key,
                "image_h": i.height if raw else str(i.height),
                "image_w": i.width if raw else str(i.width),
                "num_boxes": len(i.boxes) if raw else str(len(i.boxes)),
                "boxes": i.boxes if raw else b64(i.boxes),
                "features": i.features if raw else b64(i.features),
                "cls_prob": i.probabilities if raw else b64(i.probabilities),
            }
            transaction.put(i.key.encode(), pickle.dumps(item))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "x.lmdb"


def write_mmf_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_vilbert(folder, images, raw=True)


@contextlib.contextmanager
def written(path: Path, subdir: bool = True) -> Iterator[Any]:
    with (
        lmdb.open(str(path), map_size=1 << 26, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        yield transaction


def write_volta_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """data/mscoco/convert_*_lmdb.py, under Python 3.7: rows of the TSV in order, under the number of their image."""
    with written(folder / "trainval_feat.lmdb") as transaction:
        for i in images:
            row = OrderedDict(volta_row(i))
            transaction.put(str(int(row["img_id"].split("_")[-1])).encode(), pickle.dumps(row, protocol=3))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "trainval_feat.lmdb"


def write_volta_h5_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """features_extraction/h5_to_lmdb.py"""
    with written(folder / "nlvr2_feat.lmdb") as transaction:
        for i in images:
            transaction.put(i.key.encode(), pickle.dumps({**volta_arrays(i), "img_id": i.key}))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "nlvr2_feat.lmdb"


def write_volta_npy_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """features_extraction/npy_to_lmdb.py: some arrays as base64, some as they are."""
    with written(folder / "resnext.lmdb") as transaction:
        for i in images:
            item = {
                "feature_path": i.key,
                "features": base64.b64encode(i.features),
                "boxes": base64.b64encode(i.boxes),
                "img_h": i.height,
                "img_w": i.width,
                "num_boxes": len(i.boxes),
                "objects": i.classes,
                "cls_prob": i.probabilities,
            }
            transaction.put(i.key.encode(), pickle.dumps(item))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "resnext.lmdb"


def pack(thing: Any) -> bytes:
    """tensorpack 0.9.4's dumps."""
    packed: bytes = msgpack.dumps(thing, use_bin_type=True, default=msgpack_numpy.encode)
    return packed


def write_tensorpack(
    path: Path, images: list[Image], dumps: Callable[[Any], bytes], record: Callable[[Image], Any]
) -> None:
    """LMDBSerializer.save"""
    with written(path, subdir=False) as transaction:
        keys = [f"{number:08}".encode() for number in range(len(images))]
        for key, image in zip(keys, reversed(images), strict=True):
            transaction.put(key, dumps(record(image)))
        transaction.put(b"__keys__", dumps(keys))


def write_vilbert_captions(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """script/conceptual_caption_preprocess_sequential_train.py"""

    def record(i: Image) -> list[Any]:
        told = [str(len(i.boxes)), str(i.height), str(i.width), i.key, "a caption"]
        return [i.features, i.probabilities, i.boxes, *told]

    write_tensorpack(folder / "training_feat_all.lmdb", images, pack, record)
    return "uniter", folder / "training_feat_all.lmdb"


def write_volta_captions(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """data/conceptual_captions/preprocess_cc_train.py"""

    def record(i: Image) -> list[Any]:
        found = [i.features, i.probabilities, i.classes, i.confidences, i.classes, i.confidences, i.probabilities]
        return [*found, i.boxes, str(len(i.boxes)), str(i.height), str(i.width), i.key, "a caption"]

    write_tensorpack(folder / "training_feat_all.lmdb", images, pack, record)
    return "uniter", folder / "training_feat_all.lmdb"


def write_volta_h5_tensorpack(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """features_extraction/h5_to_td-lmdb.py, by tensorpack 0.9.9 and later"""
    write_tensorpack(folder / "td.lmdb", images, pickle.dumps, lambda i: {**volta_arrays(i), "img_id": i.key})
    return "vilbert", folder / "td.lmdb"


LAYOUTS = [
    Case(write_uniter, {"size", "half"}),
    Case(write_uniter_compressed, {"size", "half"}),
    Case(write_vilbert),
    Case(write_vilbert_captions),
    Case(write_volta_lmdb),
    Case(write_volta_h5_lmdb),
    Case(write_volta_npy_lmdb),
    Case(write_volta_captions),
    Case(write_volta_h5_tensorpack),
    Case(write_mmf_lmdb),
]


@each(LAYOUTS)
class TestLayouts(OfLayouts): ...


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/imagebert-was-here",)


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    with (
        lmdb.open(str(tmp_path / "evil"), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"1", pickle.dumps({"features": Evil()}))
        transaction.put(b"2", pickle.dumps({"features": np.array([Evil()], dtype=object)}))
        transaction.put(b"3", pickle.dumps({"features": np.ones((2, 4))})[:-20])
        transaction.put(b"4", b"\x80\x04cbuiltins\neval\n(S'1'\ntR.")
    np.save(tmp_path / "evil.npy", np.array({"image_feat": Evil()}, dtype=object), allow_pickle=True)
    errors = refused("vilbert", tmp_path / "evil") + refused("mmf", tmp_path / "evil.npy")
    assert len(errors) == 5
    assert sum("only NumPy arrays and builtins are admitted" in error for error in errors) == 4
    assert "key '3'" in errors[2]
    assert not Path("/tmp/imagebert-was-here").exists()


def test_lists_of_msgpack_are_not_made_before_they_are_read(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "l"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"1", (b"\xdd" + (1 << 20).to_bytes(4, "big")) * 400 + bytes(1 << 20))
        transaction.put(b"2", b"\xc9\x00\x00\x10\x00\x05" + bytes(4096))
    errors = refused("uniter", tmp_path / "l")
    assert len(errors) == 2
    assert "exceeds max_array_len" in errors[0]
    assert "exceeds max_ext_len" in errors[1]


def test_a_truncated_lmdb(tmp_path: Path) -> None:
    name, path = write_vilbert(tmp_path, make(2048))
    data = path / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"data.mdb is truncated: it has \d+ bytes and needs \d+"):
        read(name, path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "1.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "2.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99, 9)}"
    )
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.ones((9, 99)), bbox=np.zeros((9, 4)))
    (tmp_path / "3.npz").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with lmdb.open(str(tmp_path / "l"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", pack({"features": np.ones((2, 4))}))
        transaction.put(b"1", b"\xc1nothing")
        lying = {"nd": True, "type": "<f4", "kind": b"", "shape": [10**9, 10**9], "data": b"1234"}
        transaction.put(b"2", msgpack.dumps({"features": lying}, use_bin_type=True))
        transaction.put(b"3", msgpack.dumps([1, 2], use_bin_type=True))
    errors = refused("npz", tmp_path) + refused("uniter", tmp_path / "l")
    assert len(errors) == 6


@pytest.mark.parametrize("write", [write_vilbert_captions, write_volta_h5_tensorpack])
def test_a_damaged_first_record_changes_no_names(write: Write, tmp_path: Path) -> None:
    name, path = write(tmp_path, make())
    whole = sorted(read(name, path))
    with lmdb.open(str(path), subdir=False, map_size=1 << 26) as environment:
        for damage in (b"\xc1nothing", b"\x80\x04nothing", b""):
            with environment.begin(write=True) as transaction:
                transaction.put(b"00000000", damage)
            found = []
            for item in open_laid_out(name, path).items(0, 1):
                with contextlib.suppress(BadRecord):
                    found.append(item.load().key)
            assert sorted(found) == whole[:-1]  # they lie there in reverse


def test_a_key_that_is_no_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of them would else have one name, that of neither."""
    images = make()
    name, path = write_bottom_up(tmp_path, images)
    lines = path.read_bytes()
    for key, wrong in ((images[0].key, b"caf\xe9"), (images[1].key, b"caf\xe8")):
        lines = lines.replace(key.encode(), wrong)
    path.write_bytes(lines)
    assert main(["import", name, str(path), str(tmp_path / "out")]) == 0
    assert "5 images: 3 stored" in capsys.readouterr().out
    with written(tmp_path / "x.lmdb") as transaction:
        for key, image in zip([b"caf\xe9", b"caf\xe8", b"3"], images, strict=False):
            transaction.put(key, pickle.dumps(volta_arrays(image)))
    assert main(["import", "vilbert", str(tmp_path / "x.lmdb"), str(tmp_path / "lmdb")]) == 0
    assert "3 images: 1 stored" in capsys.readouterr().out


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
    (error,) = refused(name, path)
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
