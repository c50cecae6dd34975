"""What the tests of single readers share: images, comparing with what was written, and damage."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.config import UsageError
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
        name: in place of that of `write`
    """

    write: Write
    lost: Set[str] = frozenset()
    features: int = 16
    boxes: int | None = None
    name: str = ""


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Tests of each layout, called after what writes it."""
    return pytest.mark.parametrize("case", cases, ids=[case.name or case.write.__name__[6:] for case in cases])


class OfLayouts:
    """What holds for every layout; a file that tests some has `@each(LAYOUTS) class TestLayouts(OfLayouts): ...`"""

    def test_what_a_project_writes_is_read(self, case: Case, tmp_path: Path) -> None:
        images = make(case.features, case.boxes)
        name, path = case.write(tmp_path, images)
        check_read(name, path, images, case.lost)

    def test_damaged_bytes_never_do_more_than_damage(self, case: Case, tmp_path: Path) -> None:
        """Anything else than an image's or a file's clear error would stop an import at the same place for ever.

        Not all of these files have checksums, so a changed number may pass; one that no source of this layout has may
        not.
        """
        name, path = case.write(tmp_path, make(case.features, case.boxes)[:3])
        files = [file for file in files_of(tmp_path) if "lock" not in file.name]
        rng = np.random.default_rng(1)
        bad = 0
        for _ in range(100):
            file = files[int(rng.integers(len(files)))]
            whole = file.read_bytes()
            file.unlink()  # HDF5's library knows a file that is still open by its inode
            file.write_bytes(mutated(whole, rng))
            bad += not all_within_bounds(name, path)
            file.unlink()
            file.write_bytes(whole)
        assert bad > 10
        assert all_within_bounds(name, path)

    def test_a_pipe_is_refused_at_once(self, case: Case, tmp_path: Path) -> None:
        name, path = case.write(tmp_path, make(case.features, case.boxes)[:2])
        check_pipes(name, path, tmp_path)


def open_laid_out(name: str, path: Path, **given: str) -> LaidOutReader:
    reader = open_reader(name, [path], NAMES)
    return LaidOutReader(reader, survey(reader, str(path), len(NAMES), given).layout)


def read(name: str, path: Path, shares: int = 1) -> dict[str, RegionRecord]:
    return by_shares(open_laid_out(name, path), shares)


def check_pipes(name: str, path: Path, folder: Path) -> None:
    """One alone, and one in the place of each file, is refused at once, by the reader or when an image is read."""
    os.mkfifo(folder / "pipe")
    with pytest.raises(UsageError, match="pipe is no regular file"):
        open_reader(name, [folder / "pipe"], NAMES)
    (folder / "pipe").unlink()
    for file in files_of(folder):
        if "lock" in file.name or file.name == "data.mdb" or file.suffix == ".lineidx":  # which need not be opened
            continue
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UsageError, match="is no regular file"):
            with closing(open_laid_out(name, path).items(0, 1)) as items:  # type: ignore[type-var]
                for item in items:
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


def loaded(
    name: str, path: Path, share: int = 0, shares: int = 1, laid_out: bool = False
) -> tuple[list[Any], list[str]]:
    """Of a share the arrays of each image, or its regions, and what cannot be used."""
    found, errors = [], []
    reader = open_laid_out(name, path) if laid_out else open_reader(name, [path], NAMES)
    for item in reader.items(share, shares):
        try:
            found.append(item.load())
        except UsageError as error:
            errors.append(f"{item.where}: {error}")
    return found, errors


def refused(name: str, path: Path, share: int = 0, shares: int = 1, laid_out: bool = False) -> list[str]:
    return loaded(name, path, share, shares, laid_out)[1]


def check_read(
    name: str, path: Path, images: Sequence[Image], lost: Set[str] = frozenset(), counts: Sequence[int] = (1, 2, 3, 7)
) -> None:
    """What was written comes back, whatever the number of shares, by the format that the files themselves tell.

    Args:
        lost: what the files do not hold, as Case has it
        counts: numbers of shares
    """
    assert detect([path]) == name
    reader = open_laid_out(name, path)
    half = 1e-3 if "half" in lost else 0
    for shares in counts:
        found = by_shares(reader, shares)
        assert sorted(found) == sorted(image.key for image in images)
        for image in images:
            record = found[image.key]
            np.testing.assert_allclose(record.features, image.features, rtol=half)
            boxes = image.shares if "size" in lost else image.boxes
            np.testing.assert_allclose(record.boxes, boxes, rtol=half, atol=half)
            assert (record.width, record.height) == ((1, 1) if "size" in lost else (image.width, image.height))
            np.testing.assert_array_equal(record.classes, 0 if "classes" in lost else image.classes)
            confidences = 1 if "confidences" in lost else image.confidences
            np.testing.assert_allclose(record.confidences, confidences, rtol=half)


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


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
