from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.environments import Reader, Writer


def records(count: int, size: int) -> list[tuple[bytes, bytes]]:
    rng = np.random.default_rng(0)
    return [(f"{i:04d}".encode(), rng.bytes(size + i)) for i in rng.permutation(count)]


@pytest.mark.parametrize("size", [10, 5000])  # within LMDB's tree pages, and on pages of their own
def test_offsets_are_where_the_values_are(tmp_path: Path, size: int) -> None:
    found = records(300, size)
    writer = Writer(tmp_path / "x")
    writer.put(found[:100])
    writer.put(found[100:])
    writer.close()
    reader = Reader(tmp_path / "x")
    data = (tmp_path / "x/data.mdb").read_bytes()
    for (_, value), offset in zip(found, reader.offsets(key for key, _ in found), strict=True):
        assert data[offset : offset + len(value)] == value
        reader.will_read(offset, len(value))
    assert len(reader) == 300
    assert list(reader.keys()) == sorted(key for key, _ in found)


def test_threads_share_an_environment_and_let_go_of_it(tmp_path: Path) -> None:
    found = records(20, 100)
    writer = Writer(tmp_path / "x")
    writer.put(found)
    writer.close()
    errors = []

    def read() -> None:
        try:
            for _ in range(50):
                reader = Reader(tmp_path / "x")
                assert all(bytes(reader.get(key, None) or b"") == value for key, value in found)
                del reader
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_reopened_environment_grows(tmp_path: Path) -> None:
    """Its map is just as large as its data."""
    for first in range(0, 80, 40):
        writer = Writer(tmp_path / "x")
        for i in range(first, first + 40, 4):
            writer.put([(f"{k:04d}".encode(), bytes(1_000_000)) for k in range(i, i + 4)])
        writer.close()
    assert len(Reader(tmp_path / "x")) == 80


def test_what_is_no_lmdb(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing is no LMDB: it has no data.mdb"):
        Reader(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"x" * 9000)
    with pytest.raises(UsageError, match=r"cannot open .*file as LMDB"):
        Reader(tmp_path / "file")
