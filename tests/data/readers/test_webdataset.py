"""Tars as webdataset writes them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.checks import (
    Case,
    Image,
    OfLayouts,
    check_read,
    each,
    make,
    open_laid_out,
    read,
    refused,
    volta_arrays,
)

Parts = list[tuple[str, bytes]]  # what stands behind a key, and the bytes of that file


def npz(fields: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **fields)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pth(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def as_npz(image: Image) -> Parts:
    return [("jpg", b"a picture"), ("npz", npz(volta_arrays(image))), ("txt", b"a caption")]


def as_npy(image: Image) -> Parts:
    told = {"img_w": image.width, "img_h": image.height, "boxes": "the array counts more"}
    arrays = {"npy": image.features, "boxes.npy": image.boxes, "obj_id.npy": image.classes}
    parts = [(name, npy(array)) for name, array in arrays.items()]
    return [*parts, ("obj_conf.npy", npy(image.confidences)), ("json", json.dumps(told).encode())]


def as_npy_and_json(image: Image) -> Parts:
    """Features as an array, all else as lists; floats are as many digits as they need."""
    fields = {name: value for name, value in volta_arrays(image).items() if name != "features"}
    told = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in fields.items()}
    return [("json", json.dumps(told).encode()), ("npy", npy(image.features))]


def as_pth(image: Image) -> Parts:
    fields = volta_arrays(image)
    return [("pth", pth({name: torch.from_numpy(v) if np.ndim(v) else int(v) for name, v in fields.items()}))]


def as_pickle(image: Image) -> Parts:
    return [("pyd", pickle.dumps(volta_arrays(image)))]


def write(path: Path, images: list[Image], parts: Callable[[Image], Parts], folder: str = "", **options: Any) -> Path:
    """TarWriter: pax headers, each with its time."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", **options) as archive:
        for image in images:
            for name, data in parts(image):
                member = tarfile.TarInfo(f"{folder}{image.key}.{name}")
                member.size, member.mtime = len(data), 1764100000.25
                archive.addfile(member, io.BytesIO(data))
    return path


def halves(images: list[Image]) -> tuple[list[Image], list[Image]]:
    middle = (len(images) + 1) // 2
    return images[:middle], images[middle:]


def write_shards(folder: Path, images: list[Image]) -> Path:
    (folder / "shards").mkdir()
    for number, some in enumerate(halves(images)):
        write(folder / "shards" / f"{number:05}.tar", some, as_npz)
    return folder / "shards"


def write_packed_shards(folder: Path, images: list[Image]) -> Path:
    (folder / "shards").mkdir()
    for number, some in enumerate(halves(images)):
        write(folder / "shards" / f"{number:05}.tar.gz", some, as_npy)
    return folder / "shards"


WRITE: dict[str, Callable[[Path, list[Image]], Path]] = {
    "npz": lambda folder, images: write(folder / "0.tar", images, as_npz),
    "npy": lambda folder, images: write(folder / "0.tar", images, as_npy),
    "npy and json": lambda folder, images: write(folder / "0.tar", images, as_npy_and_json),
    "pth": lambda folder, images: write(folder / "0.tar", images, as_pth),
    "pyd": lambda folder, images: write(folder / "0.tar", images, as_pickle),
    "gz": lambda folder, images: write(folder / "0.tar.gz", images, as_npz),
    "shards": write_shards,
    "packed shards": write_packed_shards,
    "gnu": lambda folder, images: write(folder / "0.tar", images, as_npz, format=tarfile.GNU_FORMAT),
    "ustar": lambda folder, images: write(folder / "0.tar", images, as_npz, format=tarfile.USTAR_FORMAT),
}


def case_of(name: str) -> Case:
    return Case(lambda folder, images: ("webdataset", WRITE[name](folder, images)), name=name)


@each([case_of(name) for name in WRITE])
class TestLayouts(OfLayouts): ...


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_key_is_a_name_up_to_its_first_dot(format_: int, tmp_path: Path) -> None:
    """With the folders before it, in long names and in others' letters; files of one key follow each other."""
    images = make(16)
    folder = f"./{'deep' * 20}/{'ö' if format_ != tarfile.USTAR_FORMAT else 'o'}.v1/{'x' * 50}/"
    path = write(tmp_path / "0.tar", images, as_npy, folder, format=format_)
    assert sorted(read("webdataset", path)) == [f"{folder[2:]}{image.key}" for image in images]
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("__index__.json"))
        link = tarfile.TarInfo("link.npz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder_ = tarfile.TarInfo("folder.npz")
        folder_.type = tarfile.DIRTYPE
        archive.addfile(folder_)
    assert len(read("webdataset", path)) == 5


def test_one_tar_behind_another(tmp_path: Path) -> None:
    """cat a.tar b.tar: nothing of the second is lost."""
    images = make(16)
    first, second = (write(tmp_path / f"{n}.tar", images[n::2], as_npz).read_bytes() for n in range(2))
    (tmp_path / "both.tar").write_bytes(first + second)
    check_read("webdataset", tmp_path / "both.tar", images)


# -------------------------------------------------------------------------------------------------- what must not pass


def test_tars_of_pictures(tmp_path: Path) -> None:
    """As img2dataset writes them."""
    told = json.dumps({"caption": "a cat", "width": 256, "height": 256}).encode()
    path = write(tmp_path / "00000.tar", make(16), lambda _: [("jpg", b"a picture"), ("json", told), ("txt", b"a cat")])
    with pytest.raises(UsageError, match=r"holds jpg, json, txt: no npz and no npy.*`imagebert extract` makes some"):
        open_laid_out(detect([path]), path)


def test_an_image_without_features_is_named(tmp_path: Path) -> None:
    images = make(16)
    path = write(tmp_path / "0.tar", images, lambda i: [("jpg", b"")] if i is images[2] else as_npz(i))
    (error,) = refused("webdataset", path)
    assert error == f"{path}, image '1002': it has jpg: no npz and no npy"


def header_of(data: bytes, name: str) -> int:
    """Where the header of a file begins, in a tar without pax's headers."""
    return data.index(name.encode() + b"\0")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("how", ["changed", "cut", "no end", "negative"])
def test_what_follows_a_broken_header_is_lost_and_counted_once(how: str, packed: bool, tmp_path: Path) -> None:
    images = make(16)
    tar = write(tmp_path / "0.tar", images, as_npz, format=tarfile.USTAR_FORMAT)
    data = bytearray(tar.read_bytes())
    at = header_of(data, "1003.jpg")
    if how == "changed":
        data[at + 100] ^= 1
    elif how == "cut":
        del data[at + 200 :]
    elif how == "no end":
        del data[at:]
    else:  # a size of the binary kind, with a checksum that fits
        data[at + 124 : at + 136] = b"\xff" * 12
        header = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
        data[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    tar.write_bytes(data)
    if packed:
        (tmp_path / "0.tar.gz").write_bytes(gzip.compress(bytes(data)))
        tar.unlink()
        tar = tmp_path / "0.tar.gz"
    whole = write(tmp_path / "1.tar", images[4:], as_npz)
    for shares in (1, 2, 3, 50):
        reader = open_reader("webdataset", [tar, whole])
        keys, errors = [], []
        for share in range(shares):
            for item in reader.items(share, shares):
                try:
                    assert item.load()
                    keys.append(item.key)
                except UsageError as error:
                    errors.append(f"{item.where}: {error}")
        assert keys == ["1000", "1001", "1002", "1004"]
        (error,) = errors
        assert f"{tar}, from byte {at} on: it is lost: " in error


def test_an_empty_tar_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, make(16))
    (tmp_path / "shards" / "00001.tar").write_bytes(b"")
    (error,) = refused("webdataset", tmp_path / "shards")
    assert error == f"{tmp_path}/shards/00001.tar, from byte 0 on: it is lost: it has no end"


def test_headers_that_say_too_much(tmp_path: Path) -> None:
    """A name of a gigabyte, and records of pax that do not fit."""
    images = make(16)
    for header in (b"7 a=b\n9999 path=x\n", b"path=x", b"12 size=-99\n", b"99999999999999999999 a=b\n"):
        member = tarfile.TarInfo("pax")
        member.type, member.size = tarfile.XHDTYPE, len(header)
        first = write(tmp_path / "0.tar", images[:1], as_npz, format=tarfile.USTAR_FORMAT).read_bytes()
        end = header_of(first, "1000.txt") + 1024
        broken = first[:end] + member.tobuf(tarfile.USTAR_FORMAT) + header.ljust(512, b"\0") + first
        (tmp_path / "1.tar").write_bytes(broken)
        (error,) = refused("webdataset", tmp_path / "1.tar")
        assert f"1.tar, from byte {end} on: it is lost: " in error
    member = tarfile.TarInfo("long")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    unpacked = first[:end] + member.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 21)
    (tmp_path / "2.tar.gz").write_bytes(gzip.compress(unpacked))
    (error,) = refused("webdataset", tmp_path / "2.tar.gz")
    assert "a name has 1073741824 bytes" in error


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_files_larger_than_any_images(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone, together, and as very many."""
    images = make(16)
    monkeypatch.setattr("imagebert.data.readers.webdataset.LARGEST", 10_000)
    monkeypatch.setattr("imagebert.data.readers.webdataset._MOST", 10)
    odd = {
        images[1].key: [("npy", bytes(10_001))],
        images[2].key: [("npy", bytes(6000)), ("boxes.npy", bytes(6000))],
        images[3].key: [*as_npz(images[3]), *((f"{n}.txt", b"") for n in range(9))],
    }
    path = write(tmp_path / f"0{suffix}", images, lambda image: odd.get(image.key, as_npz(image)))
    errors = refused("webdataset", path)
    assert [re.search(r"image '(\d+)'", error)[1] for error in errors] == list(odd)  # type: ignore[index]
    assert "it has 1 files of 10001 bytes: more than 10, or than 10000" in errors[0]
    assert "it has 2 files of 12000 bytes" in errors[1]
    assert "it has 11 files of" in errors[2]


def test_jsons_that_are_no_objects(tmp_path: Path) -> None:
    images = make(16)
    odd = {
        images[1].key: b"[1]",
        images[2].key: b"[" * 9999,
        images[3].key: b"\xff",
        images[4].key: b'{"img_w": 1e999}',
    }

    def parts(image: Image) -> Parts:
        found = {name: value for name, value in volta_arrays(image).items() if name != "img_w"}
        return [("json", odd.get(image.key, json.dumps({"img_w": image.width}).encode())), ("npz", npz(found))]

    path = write(tmp_path / "0.tar", images, parts)
    errors = refused("webdataset", path)
    assert len(errors) == 3
    assert "its json holds list, not an object" in errors[0]


def test_lists_of_a_json_that_are_no_tables(tmp_path: Path) -> None:
    """What nobody needs may be anything; probabilities may not."""
    images = make(16)
    for told, error in (({"words": [[1], [2, 3], "a"]}, ""), ({"cls_prob": [[1.0], [0.5, 0.5]]}, "the cls_prob of no")):
        data = json.dumps(told).encode()
        path = write(tmp_path / "0.tar", images, lambda image, data=data: [("json", data), *as_npz(image)])  # type: ignore[misc]
        if error:
            with pytest.raises(UsageError, match=error):
                open_laid_out(detect([path]), path)
        else:
            check_read("webdataset", path, images)


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    """Behind the first images, and from its beginning."""
    path = write(tmp_path / "0.tar.gz", make(16), as_npz)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    *_, last = refused("webdataset", path)
    assert "it is lost: " in last
    path.write_bytes(data[:30])
    with pytest.raises(UsageError, match=re.escape(str(path))):
        open_laid_out(detect([path]), path)
