"""What the tests of single readers share: images, comparing with what was written, and damage."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import LaidOutReader, open_reader, survey
from imagebert.data.records import RegionRecord

NAMES = [f"thing {i}" for i in range(7)]


class Image(NamedTuple):
    """What a detector found, confidences falling."""

    key: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    confidences: NDArray[np.float32]

    @property
    def shares(self) -> NDArray[np.float32]:
        """x1 y1 x2 y2 as shares of the image."""
        return self.boxes / np.array([self.width, self.height, self.width, self.height], np.float32)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The background's first."""
        table = np.full((len(self.boxes), 1 + len(NAMES)), 0.01, np.float32)
        table[:, 0] = 0.9  # must not count
        table[np.arange(len(self.boxes)), 1 + self.classes] = self.confidences
        return table


def make(features: int = 16, boxes: int | None = None) -> list[Image]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(5):
        n = boxes or int(rng.integers(2, 6))
        width, height = 640 - 10 * number, 480 + number
        corners = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) * (width, height, width, height)
        corners[0] = 0, 0, width, height
        found.append(
            Image(
                f"{1000 + number}",
                width,
                height,
                corners.astype(np.float32),
                rng.random((n, features), np.float32),
                rng.integers(0, len(NAMES), n),
                np.sort(rng.uniform(0.2, 0.99, n).astype(np.float32))[::-1].copy(),
            )
        )
    return found


def b64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def volta_arrays(i: Image) -> dict[str, Any]:
    """What the HDF5 of VL-T5, VOLTA and IGLUE has of an image."""
    return {
        "attr_conf": i.confidences,
        "attr_id": i.classes,
        "boxes": i.boxes,
        "features": i.features,
        "img_h": np.int64(i.height),
        "img_w": np.int64(i.width),
        "obj_conf": i.confidences,
        "obj_id": i.classes,
    }


Write = Callable[[Path, list[Image]], tuple[str, Path]]


class Case(NamedTuple):
    """A layout.

    Args:
        write: as its project does
        lost: what it does not hold: classes, confidences, the size, bits of the features ("half")
        features: numbers a region
        boxes: an image; None: several numbers
    """

    write: Write
    lost: Set[str] = frozenset()
    features: int = 16
    boxes: int | None = None


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """A test of each layout, called after what writes it."""
    return pytest.mark.parametrize("case", cases, ids=[case.write.__name__[6:] for case in cases])


def open_laid_out(name: str, path: Path, **given: str) -> LaidOutReader:
    reader = open_reader(name, [path], NAMES)
    return LaidOutReader(reader, survey(reader, str(path), len(NAMES), given).layout)


def read(name: str, path: Path, shares: int = 1) -> dict[str, RegionRecord]:
    reader = open_laid_out(name, path)
    found: dict[str, RegionRecord] = {}
    for share in range(shares):
        last = 0
        for item in reader.items(share, shares):
            assert item.key not in found, "an image in two shares"
            assert last <= item.done <= reader.size(share, shares) or shares > 1
            last = item.done
            loaded = item.load()
            found[loaded.key] = loaded.record
    return found


def load_all(name: str, path: Path, laid_out: bool = False) -> list[str]:
    """What cannot be used; as arrays, or as regions."""
    errors = []
    reader = open_laid_out(name, path) if laid_out else open_reader(name, [path], NAMES)
    for item in reader.items(0, 1):
        try:
            item.load()
        except BadRecord as error:
            errors.append(f"{item.where}: {error}")
    return errors


def check_read(case: Case, folder: Path) -> None:
    """What was written comes back, from any number of shares."""
    images = make(case.features, case.boxes)
    name, path = case.write(folder, images)
    found = read(name, path)
    assert sorted(found) == [image.key for image in images]
    for image in images:
        record = found[image.key]
        half = 1e-3 if "half" in case.lost else 0
        np.testing.assert_allclose(record.features, image.features, rtol=half)
        assert (record.width, record.height) == ((1, 1) if "size" in case.lost else (image.width, image.height))
        expected = image.shares if "size" in case.lost else image.boxes
        np.testing.assert_allclose(record.boxes, expected, rtol=half or 1e-5, atol=1e-3 if half else 1e-4)
        np.testing.assert_array_equal(record.classes, 0 if "classes" in case.lost else image.classes)
        np.testing.assert_allclose(
            record.confidences, 1 if "confidences" in case.lost else image.confidences, rtol=half
        )
    assert detect([path]) == name
    for shares in (2, 3, 7):
        again = read(name, path, shares)
        assert sorted(again) == sorted(found)
        for key, record in again.items():
            np.testing.assert_array_equal(record.features, found[key].features)


def check_changed_bytes(case: Case, folder: Path) -> None:
    """Anything else than an image's or a file's clear error would stop an import at the same place for ever.

    These files have no checksums, so a changed number may pass; one that no source of this layout has may not.
    """
    name, path = case.write(folder, make(case.features, case.boxes)[:3])
    files = [file for file in folder.rglob("*") if file.is_file() and "lock" not in file.name]
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        file = files[int(rng.integers(len(files)))]
        whole = file.read_bytes()
        file.unlink()  # HDF5's library knows a file that is still open by its inode
        file.write_bytes(mutated(whole, rng))
        try:
            for item in open_laid_out(name, path).items(0, 1):
                try:
                    check(item.load().record)
                except (UsageError, OSError):
                    refused += 1
        except (UsageError, OSError):
            refused += 1
        file.unlink()
        file.write_bytes(whole)
    assert refused > 0
    assert len(read(name, path)) == 3


def check_no_pipe(case: Case, folder: Path) -> None:
    """In the place of each file that a reader opens, and of all."""
    name, path = case.write(folder, make(case.features, case.boxes)[:2])
    os.mkfifo(folder / "pipe")
    with pytest.raises(UsageError, match="pipe is no regular file"):
        open_reader(name, [folder / "pipe"], NAMES)
    (folder / "pipe").unlink()
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        if "lock" in file.name or file.name == "data.mdb" or file.suffix == ".lineidx":  # which need not be opened
            continue
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UsageError, match="is no regular file"):
            for item in open_laid_out(name, path).items(0, 1):
                item.load()
            pytest.fail(str(file))
        file.unlink()
        file.write_bytes(kept)


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned over, a part cut out, noise put in, or a part written over by another."""
    start, stop = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
    kind = int(rng.integers(4))
    if kind == 0:
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3).tolist():
            damaged[place] ^= 1 << int(rng.integers(8))
        return bytes(damaged)
    if kind == 1:
        return whole[:start] + whole[stop:]
    if kind == 2:
        return whole[:start] + rng.bytes(20) + whole[start:]
    return whole[:start] + whole[: stop - start] + whole[stop:]


def check(record: RegionRecord) -> None:
    """What holds for every record that may be stored."""
    n = len(record.features)
    assert n > 0
    assert all(len(array) == n for array in (record.boxes, record.classes, record.confidences))
    assert np.abs(record.features).max() < 1e4  # nor where one is no number
    assert (record.classes < len(NAMES)).all()
    assert ((record.confidences >= 0) & (record.confidences <= 1)).all()
    limit = [record.width, record.height, record.width, record.height]
    assert ((record.boxes >= 0) & (record.boxes <= limit)).all()
    assert (record.boxes[:, 2:] >= record.boxes[:, :2]).all()


def by_shares(reader: LaidOutReader, shares: int) -> dict[str, RegionRecord]:
    """All images, from so many shares."""
    images: dict[str, RegionRecord] = {}
    for share in range(shares):
        last, size = 0, reader.size(share, shares)
        for item in reader.items(share, shares):
            assert last <= item.done <= size
            last = item.done
            loaded = item.load()
            assert loaded.key not in images, "an image in two shares"
            images[loaded.key] = loaded.record
    return images


def loaded(name: str, path: Path, share: int = 0, shares: int = 1) -> tuple[list[Any], list[str]]:
    """Of a share the arrays of each image, and what cannot be used."""
    found, errors = [], []
    for item in open_reader(name, [path], NAMES).items(share, shares):
        try:
            found.append(item.load())
        except UsageError as error:
            errors.append(f"{item.where}: {error}")
    return found, errors


def refused(name: str, path: Path, share: int = 0, shares: int = 1) -> list[str]:
    return loaded(name, path, share, shares)[1]


def check_same(
    path: Path, name: str, images: Sequence[Image], lost: Sequence[str] = (), counts: Sequence[int] = (1, 2, 3, 7)
) -> None:
    """Bit for bit, whatever the number of shares, by the format that the files themselves tell.

    Args:
        lost: what the files do not hold: size, classes, confidences
        counts: numbers of shares
    """
    assert detect([path]) == name
    reader = open_laid_out(name, path)
    for shares in counts:
        found = by_shares(reader, shares)
        assert sorted(found) == sorted(image.key for image in images)
        for image in images:
            record = found[image.key]
            np.testing.assert_array_equal(record.features, image.features)
            np.testing.assert_array_equal(record.boxes, image.shares if "size" in lost else image.boxes)
            assert (record.width, record.height) == ((1, 1) if "size" in lost else (image.width, image.height))
            np.testing.assert_array_equal(record.classes, 0 if "classes" in lost else image.classes)
            np.testing.assert_array_equal(record.confidences, 1 if "confidences" in lost else image.confidences)


def check_damage(path: Path, name: str, folder: Path, times: int = 100) -> None:
    """Changes a file each time: what comes of it is an error that names it, or records within all bounds."""
    rng = np.random.default_rng(2)
    files = files_of(folder)
    bad = 0
    for _ in range(times):
        file = files[int(rng.integers(len(files)))]
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, rng))
        bad += not all_within_bounds(name, path)
        file.write_bytes(whole)
    assert bad > times // 10
    assert all_within_bounds(name, path)


def all_within_bounds(name: str, path: Path) -> bool:
    """Whether all can be used; what can is checked."""
    good = True
    try:
        for item in open_laid_out(name, path).items(0, 1):
            try:
                check(item.load().record)
            except (UsageError, OSError):
                good = False
    except (UsageError, OSError):
        good = False
    return good


def check_pipes(path: Path, name: str, folder: Path) -> None:
    """One in the place of each file is refused at once, by the reader or when an image is read."""
    for file in files_of(folder):
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UsageError, match="is no regular file"):
            reader = open_reader(name, [path], NAMES)
            with closing(all_of(reader)) as items:
                for item in items:
                    item.load()
        file.unlink()
        file.write_bytes(kept)


def all_of(reader: Any) -> Iterator[Any]:
    yield from reader.items(0, 1)


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
