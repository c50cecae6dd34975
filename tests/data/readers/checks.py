"""What the tests of single readers share: comparing with what was written, and damage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import LaidOutReader, open_reader
from imagebert.data.records import RegionRecord
from tests.data.readers.test_formats import NAMES, Image, check, mutated, open_laid_out


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
