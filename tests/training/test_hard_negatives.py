from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagebert.config import UsageError
from imagebert.feed.plan import HardNegatives
from imagebert.training.hard_negatives import _digest, read_hard_negatives, write_hard_negatives

IMAGES, CAPTIONS = 4, 12


class Corpus:
    images = IMAGES

    def __init__(self, name: str = "a") -> None:
        self.name = name

    def __len__(self) -> int:
        return CAPTIONS

    def digest(self) -> dict[str, object]:
        return {"data": self.name}


CORPUS: Any = Corpus()
RNG = np.random.default_rng(0)
MINED = HardNegatives(RNG.integers(0, CAPTIONS, (IMAGES, 2)), RNG.integers(0, IMAGES, (CAPTIONS, 2)))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_hard_negatives(tmp_path / "hard", MINED, CORPUS)
    read = read_hard_negatives(tmp_path / "hard", CORPUS)
    assert all((a == b).all() and a.dtype == np.int64 for a, b in zip(read, MINED, strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["hard"]
    written = (tmp_path / "hard").read_bytes()
    for _ in range(20):
        write_hard_negatives(tmp_path / "hard", MINED, CORPUS)
        assert (tmp_path / "hard").read_bytes() == written
    other: Any = Corpus("b")
    with pytest.raises(UsageError, match="was mined from other data than this run's: mine again"):
        read_hard_negatives(tmp_path / "hard", other)


def test_a_changed_byte_is_named_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "hard"
    write_hard_negatives(path, MINED, CORPUS)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(UsageError, match=r"hard.*(mine again|imagebert mine)"):
            read_hard_negatives(path, CORPUS)
    for length in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(UsageError, match="imagebert mine"):
            read_hard_negatives(path, CORPUS)


def write_raw(path: Path, captions: np.ndarray, images: np.ndarray, corpus: str | None = '{"data": "a"}') -> None:
    """With the right digest."""
    mined = HardNegatives(captions, images)
    described = {} if corpus is None else {"corpus": corpus, "digest": _digest(mined, corpus)}
    metadata = None if corpus is None else {"mined": json.dumps(described)}
    save_file({"captions": captions, "images": images}, path, metadata)


@pytest.mark.parametrize(
    ("captions", "images"),
    [
        (MINED.captions.astype(np.int32), MINED.images),
        (MINED.captions.astype(np.float64), MINED.images.astype(np.float64)),
        (MINED.captions[:, 0], MINED.images[:, 0]),
        (MINED.captions[:, :0], MINED.images[:, :0]),
        (MINED.captions[:, :1], MINED.images),
        (MINED.captions[:-1], MINED.images),
        (MINED.captions, MINED.images[:-1]),
        (MINED.captions - CAPTIONS, MINED.images),
        (MINED.captions + CAPTIONS, MINED.images),
        (MINED.captions, MINED.images + IMAGES),
        (MINED.captions, MINED.images - IMAGES),
    ],
)
def test_what_does_not_fit_the_corpus_is_refused(tmp_path: Path, captions: np.ndarray, images: np.ndarray) -> None:
    write_raw(tmp_path / "hard", np.ascontiguousarray(captions), np.ascontiguousarray(images))
    with pytest.raises(UsageError, match=r"hard (holds no hard negatives|numbers other images and captions)"):
        read_hard_negatives(tmp_path / "hard", CORPUS)


@pytest.mark.parametrize("corpus", [None, "{", "[" * 100_000, "3", "null", json.dumps({"data": "b"})])
def test_metadata_that_is_none(tmp_path: Path, corpus: str | None) -> None:
    write_raw(tmp_path / "hard", MINED.captions, MINED.images, corpus)
    with pytest.raises(UsageError, match="hard"):
        read_hard_negatives(tmp_path / "hard", CORPUS)


@pytest.mark.parametrize("mined", ["", "{", "[]", "null", '{"corpus": 3}', '{"corpus": "{}"}'])
def test_metadata_that_describes_nothing(tmp_path: Path, mined: str) -> None:
    save_file({"captions": MINED.captions, "images": MINED.images}, tmp_path / "hard", {"mined": mined})
    with pytest.raises(UsageError, match=r"hard.*(mine again|imagebert mine)"):
        read_hard_negatives(tmp_path / "hard", CORPUS)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("pipe", "no regular file"), (".", "no regular file"), ("none", "cannot read")):
        with pytest.raises(UsageError, match=problem):
            read_hard_negatives(tmp_path / name, CORPUS)


def test_a_disk_that_cannot_take_it_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "hard"
    (path / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"cannot write .*hard"):
        write_hard_negatives(path, MINED, CORPUS)
    assert [p.name for p in tmp_path.iterdir()] == ["hard"]
