"""PyTorch's files, written by PyTorch as each project does, and read back without it."""

from __future__ import annotations

import io
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from imagebert.data.readers.tensors import read_tensors, unpickle_tensors
from tests.data.readers.checks import (
    Case,
    Image,
    OfLayouts,
    each,
    make,
    open_laid_out,
    read,
    refused,
    volta_arrays,
)

Write = Callable[[Path, list[Image], bool], Path]


def save(thing: Any, path: Path, old: bool) -> Path:
    torch.save(thing, path, _use_new_zipfile_serialization=not old)
    return path


def tensors(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) if np.ndim(value) else value for name, value in fields.items()}


def wide(image: Image) -> torch.Tensor:
    """[n, 2054], as Oscar has them."""
    sides = image.shares[:, 2:] - image.shares[:, :2]
    return torch.from_numpy(np.concatenate([image.features, image.shares, sides], axis=1))


def write_oscar(folder: Path, images: list[Image], old: bool) -> Path:
    """Of VQA, whose images have numbers."""
    return save({int(image.key): wide(image) for image in images}, folder / "train_img_frcnn_feats.pt", old)


def write_oscar_names(folder: Path, images: list[Image], old: bool) -> Path:
    """Of GQA and NLVR2, whose images have names."""
    return save({image.key: wide(image) for image in images}, folder / "val_img_frcnn_feats.pt", old)


def write_visualbert(folder: Path, images: list[Image], old: bool) -> Path:
    """resnet101_genome.th"""
    found: OrderedDict[int, Any] = OrderedDict()
    for i in images:
        told = {
            "image_id": int(i.key),
            "image_h": float(i.height),
            "image_w": float(i.width),
            "num_boxes": len(i.boxes),
        }
        found[int(i.key)] = told | tensors({"boxes": i.boxes, "features": i.features})
    return save(found, folder / "resnet101_genome.th", old)


def write_arrays(folder: Path, images: list[Image], old: bool) -> Path:
    """NumPy's arrays instead of tensors, in dictionaries as ViLBERT's."""
    return save({image.key: volta_arrays(image) for image in images}, folder / "features.pth", old)


def write_list(folder: Path, images: list[Image], old: bool) -> Path:
    """A list, whose images name themselves."""
    return save([tensors(volta_arrays(i)) | {"image_id": i.key} for i in images], folder / "features.pt", old)


def write_folder(folder: Path, images: list[Image], old: bool) -> Path:
    """A file an image."""
    (folder / "deep").mkdir()
    for image in images:
        save(tensors(volta_arrays(image)), folder / "deep" / f"{image.key}.pth", old)
    return folder / "deep"


def write_slices(folder: Path, images: list[Image], old: bool) -> Path:
    """Tensors that are parts of a larger one, which torch.save keeps whole; features as columns of it."""
    features = torch.from_numpy(np.concatenate([image.features for image in images]).T.copy())
    boxes = torch.from_numpy(np.concatenate([image.boxes for image in images]))
    found, at = {}, 0
    for image in images:
        mine = slice(at, at + len(image.boxes))
        fields = tensors(volta_arrays(image))
        found[image.key] = fields | {"features": features[:, mine].T, "boxes": boxes[mine]}
        at += len(image.boxes)
    return save(found, folder / "slices.pt", old)


WRITE: list[tuple[Write, set[str], int]] = [
    (write_oscar, {"size", "classes", "confidences"}, 2048),
    (write_oscar_names, {"size", "classes", "confidences"}, 2048),
    (write_visualbert, {"classes", "confidences"}, 16),
    (write_arrays, set(), 16),
    (write_list, set(), 16),
    (write_folder, set(), 16),
    (write_slices, set(), 16),
]
both = pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])


def case_of(write: Write, lost: set[str], features: int, old: bool) -> Case:
    name = f"{'before 1.6' if old else 'zip'}-{write.__name__[6:]}"
    return Case(lambda folder, images: ("tensors", write(folder, images, old)), lost, features, name=name)


@each([case_of(*layout, old) for layout in WRITE for old in (False, True)])
class TestLayouts(OfLayouts): ...


def test_pytorch_is_not_imported(tmp_path: Path) -> None:
    path = write_visualbert(tmp_path, make(), False)
    code = (
        "import sys, pathlib; from imagebert.data.readers.source import open_reader;"
        f"print(len([item.load() for item in open_reader('tensors', [pathlib.Path({str(path)!r})]).items(0, 1)]));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["5", "False"]


@both
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_every_type_of_number_is_what_torch_says(kind: torch.dtype, old: bool, tmp_path: Path) -> None:
    (image, *_) = make(16)
    fields = {name: value for name, value in tensors(volta_arrays(image)).items() if isinstance(value, torch.Tensor)}
    fields["features"] = fields["features"].to(kind)
    fields["boxes"] = torch.nn.Parameter(fields["boxes"])
    fields |= {
        "obj_id": fields["obj_id"].to(torch.int16),
        "more": torch.tensor([True, False]),
        "scalar": torch.ones(()),
    }
    path = save({"1": fields}, tmp_path / "1.pt", old)
    loaded = torch.load(path, weights_only=True)["1"]
    (item,) = open_reader("tensors", [path]).items(0, 1)
    found = item.load()
    assert found.keys() == loaded.keys()
    for name, value in found.items():
        expected = loaded[name].detach()
        expected = expected.float() if expected.dtype == torch.bfloat16 else expected
        np.testing.assert_array_equal(value, expected.numpy(), strict=True)


def test_boxes_alone_are_pixels_of_an_unknown_image(tmp_path: Path) -> None:
    """VisualBERT's features_train_150.th and its .npz: no file of theirs says how large a picture was."""
    i = make(1024)[0]
    parts = (torch.from_numpy(i.features), torch.from_numpy(i.boxes), torch.from_numpy(i.confidences))
    torch.save({f"{i.key}.jpg.npz": parts}, tmp_path / "features_train_150.th")
    (tmp_path / "npz").mkdir()
    arrays = {"box_features": i.features, "cls_boxes": i.boxes, "max_conf": i.confidences}
    np.savez(tmp_path / "npz" / f"{i.key}.jpg.npz", **arrays)  # type: ignore[arg-type]
    for path in (tmp_path / "features_train_150.th", tmp_path / "npz"):
        with pytest.raises(UsageError, match="boxes are in pixels, and the size of the image is unknown"):
            open_laid_out(detect([path]), path)
    (item,) = open_reader("tensors", [tmp_path / "features_train_150.th"]).items(0, 1)
    found = item.load()
    assert list(found) == list(arrays)
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])


def test_features_without_boxes(tmp_path: Path) -> None:
    """Oscar's X_obj_feats.pt, and the .npy of VisualBERT's VQA."""
    torch.save({i.key: torch.from_numpy(i.features) for i in make(2048)}, tmp_path / "val_obj_feats.pt")
    (tmp_path / "train2014").mkdir()
    np.save(tmp_path / "train2014" / "COCO_train2014_000000000009.npy", make(2048)[0].features)
    for path in (tmp_path / "val_obj_feats.pt", tmp_path / "train2014"):
        with pytest.raises(UsageError, match="has no boxes, as ImageBERT needs them"):
            open_laid_out(detect([path]), path)


class BoxList:
    """Stands for maskrcnn_benchmark's, of predictions.pth."""


@both
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ({"1": BoxList()}, r"its pickle names tests\.data\.readers\.test_tensors\.BoxList"),
        ({"1": torch.eye(3).to_sparse()}, r"its pickle names torch\._utils\._rebuild_sparse_tensor"),
        ({"1": torch.ones(3, dtype=torch.complex64)}, r"its pickle names torch\.ComplexFloatStorage"),
        (torch.nn.Linear(2, 3), r"its pickle names torch\.nn\.modules\.linear\.Linear"),
        ("text", "holds str, no images"),
    ],
)
def test_what_is_no_tensor_is_named(thing: Any, message: str, old: bool, tmp_path: Path) -> None:
    path = save(thing, tmp_path / "1.pt", old)
    with pytest.raises(UsageError, match=message) as error:
        open_laid_out(detect([path]), path)
    assert str(path) in str(error.value)


def test_damaged_files_of_a_folder_are_named(tmp_path: Path) -> None:
    """Of files of one image each, and of dictionaries of images; the first one, too."""
    folder = write_folder(tmp_path, make(), False)
    files = sorted(folder.iterdir())
    files[0].write_bytes(files[1].read_bytes()[:-100])
    torch.save({"1": {"features": torch.ones(2, 2)}}, files[2])
    files[3].write_bytes(b"")
    first, other, empty = refused("tensors", folder)
    assert re.search(r"1000\.pth.* a damaged zip", first)
    assert re.search(r"1002\.pth.* it holds dict, not one image's tensors", other)
    assert re.search(r"1003\.pth.* begins as no file of torch\.save does", empty)
    (tmp_path / "tables").mkdir()
    path = write_visualbert(tmp_path / "tables", make(), False)
    (path.parent / "a.pt").write_bytes(path.read_bytes()[:-100])
    (error,) = refused("tensors", path.parent)
    assert re.search(r"a\.pt.* a damaged zip", error)


def test_a_checksum_that_does_not_fit(tmp_path: Path) -> None:
    """Of one image's numbers, and of numbers that all images share; where torch made none, nobody can know."""
    images = make()
    shared = np.ascontiguousarray(np.concatenate([image.features for image in images]).T)
    for write, array, wrong in ((write_visualbert, images[0].features, 1), (write_slices, shared, 5)):
        path = write(tmp_path, images, False)
        data = bytearray(path.read_bytes())
        data[data.index(array.tobytes()) + 2] ^= 1
        path.write_bytes(data)
        errors = refused("tensors", path)
        assert len(errors) == wrong
        assert all("its features is damaged: it is not what its checksum says" in error for error in errors)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = write_visualbert(tmp_path, images, False)
    finally:
        torch.serialization.set_crc32_options(before)
    assert len(read("tensors", path)) == 5


# ------------------------------------------------------------------------------------------------------ hostile files


def archive(content: bytes, storages: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as torch.save writes it, with a pickle of one's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as opened:
        opened.writestr("archive/data.pkl", content)
        opened.writestr("archive/byteorder", b"little")
        opened.writestr("archive/version", b"3\n")
        for name, data in storages.items():
            opened.writestr(f"archive/data/{name}", data)
    return file.getvalue()


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], numbers: int) -> bytes:
    """The pickle of {"features": a tensor}."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numbers) if isinstance(thing, Storage) else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump({"features": Tensor()})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor(0, (2, 3), (3, 1), 6), ""),
        (tensor(1, (2, 2), (1, 3), 6), ""),
        (tensor(0, (1 << 40, 0), (1, 1), 6), ""),
        (tensor(1, (2, 3), (3, 1), 6), "its features reaches out of its storage"),
        (tensor(0, (2, 3), (4, 1), 6), "its features reaches out of its storage"),
        (tensor(0, (2, 3), (-3, 1), 6), "a tensor of no shape"),
        (tensor(-1, (2, 3), (3, 1), 6), "a tensor of no shape"),
        (tensor(0, (2, 3), (3,), 6), "a tensor of no shape"),
        (tensor(0, (1,) * 9, (1,) * 9, 6), "a tensor of no shape"),
        (tensor(0, (2, 3), (3, 1), 7), "the numbers of its features are not in the file"),
        (tensor(0, (2, 3), (3, 1), 1 << 60), "the numbers of its features are not in the file"),
        (tensor(0, (1 << 40, 3), (0, 1), 6), "its features has 13194139533312 bytes, more than 1073741824"),
    ],
)
def test_a_tensor_is_where_its_numbers_are(content: bytes, message: str) -> None:
    data = archive(content, {"0": np.arange(6, dtype=np.float32).tobytes()})
    if message:
        with pytest.raises(BadRecord, match=message):
            read_tensors(data)
    else:
        expected = torch.load(io.BytesIO(data), weights_only=True)["features"].numpy()
        np.testing.assert_array_equal(read_tensors(data)["features"], expected, strict=True)


def test_pickles_that_would_never_end() -> None:
    """The first: tuples in tuples as a key, whose hash goes through each as often as it is named, 2^60 times."""
    for content, message in (
        (b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "its pickle has tuple for a key"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "its pickle is damaged"),
        (b"\x80\x02" + b"]" + b"]" * 500 + b"a" * 500 + b".", "goes too deep"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "its pickle is damaged"),
        (b"\x80\x02\x8a\x40" + b"\x7f" * 64 + b".", "a number of 511 bits"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "names a place that it cannot have"),
    ):
        with pytest.raises(BadRecord, match=message):
            read_tensors(archive(content, {}))


def moved(data: bytes) -> bytes:
    """The last member's bytes lie behind the file, as its directory says."""
    place = data.rindex(b"PK\1\2") + 42
    return data[:place] + b"\xf0\xff\xff\x7f" + data[place + 4 :]


def test_archives_that_are_not_torchs(tmp_path: Path) -> None:
    content = tensor(0, (2, 3), (3, 1), 6)
    for data, message in (
        (archive(content, {"0": bytes(24)}, zipfile.ZIP_DEFLATED), r"its data\.pkl is packed, or encrypted"),
        (archive(content, {"0": bytes(20)}), "the numbers of its features are not in the file"),
        (archive(content, {}), "the numbers of its features are not in the file"),
        (archive(content, {"0": bytes(24)}).replace(b"little", b"bigger"), "not what its checksum says"),
        (b"PK" + archive(content, {"0": bytes(24)})[50:], r"its data\.pkl does not lie in it"),
        (moved(archive(content, {"0": bytes(24)})), "its data/0 does not lie in it"),
        (b"PK\3\4 nothing", "it is a damaged zip"),
        (b"", r"begins as no file of torch\.save does"),
    ):
        with pytest.raises(BadRecord, match=message):
            read_tensors(data)
    with zipfile.ZipFile(tmp_path / "train_frcnn.zip", "w") as opened:  # VL-BERT's
        opened.writestr("00000000.json", "{}")
    with pytest.raises(UsageError, match="is a zip of neither NumPy nor PyTorch"):
        detect([tmp_path / "train_frcnn.zip"])
    with pytest.raises(UsageError, match=r"without a data\.pkl"):
        open_reader("tensors", [tmp_path / "train_frcnn.zip"])


def test_an_old_file_says_more_than_there_is(tmp_path: Path) -> None:
    """torch.load allocates what such a file says, before it looks."""
    path = save({"1": {"features": torch.ones(2, 3)}}, tmp_path / "1.pt", True)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<q", 6) + np.ones(6, np.float32).tobytes())
    for length in (7, 1 << 50, -1):
        data[at : at + 8] = struct.pack("<q", length)
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"it is cut off|a storage of it is damaged"):
            open_reader("tensors", [path])


# ------------------------------------------------------------------------------------------------- packed in a pickle


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_in_a_pickle(protocol: int) -> None:
    """As bottom-up-attention.pytorch keeps attributes: torch.save's bytes of each storage, within a pickle."""
    one = torch.rand(3, 4)
    things = {
        "rows": one,
        "columns": one.T,
        "a part": one[1:, 1:3],
        "one number many times": one[0, 0].expand(2, 3),
        "half": one.half(),
        "whole numbers": torch.arange(3),
        "flags": one > 0.5,
        "one number": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "trained": torch.rand(2, requires_grad=True),
    }
    found = unpickle_tensors(pickle.dumps({"info": things, "array": np.arange(3)}, protocol))
    for name, tensor in things.items():
        np.testing.assert_array_equal(found["info"][name], tensor.detach().numpy(), strict=True)
    np.testing.assert_array_equal(found["array"], np.arange(3))


def bytes_of(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


SIX = bytes_of(torch.arange(6.0).storage())


def packed(content: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, times: int = 1) -> bytes:
    """The pickle of tensors of one storage."""

    class Storage:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (content,)

    storage = Storage()

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, OrderedDict())

    return pickle.dumps([Tensor() for _ in range(times)], 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(SIX, (2, 3), (3, 1)), ""),
        (packed(SIX, (2, 2), (1, 3), 1), ""),
        (packed(SIX, (2, 3), (3, 1), 1), "its tensor reaches out of its storage"),
        (packed(SIX, (2, 3), (4, 1)), "its tensor reaches out of its storage"),
        (packed(SIX, (2, 3), (-3, 1)), "a tensor of no shape"),
        (packed(SIX, (2, 3), (3, 1), -1), "a tensor of no shape"),
        (packed(SIX, (2, 3), (3,)), "a tensor of no shape"),
        (packed(SIX, (1 << 20, 3), (0, 1)), "makes more of its bytes than there are"),
        (packed(SIX, (100,), (0,), 0, 100), "makes more of its bytes than there are"),
        (packed(SIX[:-1], (2, 3), (3, 1)), "it is cut off"),
        (packed(SIX.replace(struct.pack("<q", 6), struct.pack("<q", 1 << 50)), (2, 3), (3, 1)), "is damaged"),
        (packed(SIX.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), (6,), (1,)), "big-endian"),
        (packed(bytes_of(torch.ones(2)), (2,), (1,)), "a tensor without numbers"),
        (packed(bytes_of({"a": 1}), (2,), (1,)), "a tensor without numbers"),
        (packed(b"", (2,), (1,)), r"begins as no file of torch\.save does"),
        (packed(1 << 40, (2,), (1,)), "a tensor of no bytes"),
        (pickle.dumps(torch.eye(3).to_sparse()), r"names torch\._utils\._rebuild_sparse_tensor"),
    ],
)
def test_a_packed_tensor_is_where_its_numbers_are(data: bytes, message: str) -> None:
    if message:
        with pytest.raises(BadRecord, match=message):
            unpickle_tensors(data)
    else:
        np.testing.assert_array_equal(unpickle_tensors(data)[0], pickle.loads(data)[0].numpy(), strict=True)


def test_no_flipped_bit_of_a_packed_tensor_does_more_than_damage() -> None:
    data, bad = packed(SIX, (2, 3), (3, 1)), 0
    for bit in range(0, 8 * len(data), 3):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            unpickle_tensors(bytes(damaged))
        except BadRecord:
            bad += 1
    assert bad > len(data) // 2
