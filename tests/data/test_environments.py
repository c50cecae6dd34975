from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.environments import Reader, Writer


def records(count: int, size: int) -> list[tuple[bytes, bytes]]:
    rng = np.random.default_rng(0)
    return [(f"{i:04d}".encode(), rng.bytes(size + i)) for i in rng.permutation(count)]


@pytest.mark.parametrize("size", [10, 500, 5000])  # within the tree's pages, few on one, and on pages of their own
def test_entries_are_what_lmdb_says(tmp_path: Path, size: int) -> None:
    found = records(3000, size)
    writer = Writer(tmp_path / "x")
    for start in range(0, 3000, 700):
        writer.put(found[start : start + 700])
    writer.put(found[:50])  # again
    writer.close()
    reader = Reader(tmp_path / "x")
    with lmdb.open(str(tmp_path / "x"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        expected = list(transaction.cursor())
    entries = list(reader.entries())
    assert [(entry.key, reader.read(entry)) for entry in entries] == expected
    assert (len(reader), reader.damaged) == (3000, [])
    data = (tmp_path / "x/data.mdb").read_bytes()
    assert all(data[e.offset : e.offset + e.size] == value for e, (_, value) in zip(entries, expected, strict=True))


def test_threads_share_a_reader(tmp_path: Path) -> None:
    found = records(200, 100)
    writer = Writer(tmp_path / "x")
    writer.put(found)
    writer.close()
    reader = Reader(tmp_path / "x")
    entries = list(reader.entries())
    with ThreadPoolExecutor(4) as pool:
        assert dict(zip((e.key for e in entries), pool.map(reader.read, entries), strict=True)) == dict(found)


@pytest.mark.parametrize("size", [10, 5000])
def test_no_damage_of_its_pages_kills_a_reader(tmp_path: Path, size: int) -> None:
    """What is still found is what was written, but for values' own bytes; what is lost is told."""
    found = dict(records(400, size))
    writer = Writer(tmp_path / "x")
    writer.put(list(found.items()))
    writer.close()
    file = tmp_path / "x/data.mdb"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        data = bytearray(whole)
        page, at = (
            int(rng.integers(0, len(data) // 4096)),
            int(rng.choice([rng.integers(0, 200), rng.integers(0, 4096)])),
        )
        data[page * 4096 + at] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(data)
        try:
            reader = Reader(tmp_path / "x")
            entries = list(reader.entries())
        except UsageError as error:
            outcomes.add(str(error)[:11])
            continue
        assert all(len(reader.read(entry)) == entry.size for entry in entries)
        lost = len(found) - len(entries)
        assert lost <= 0 or reader.damaged or len(reader) != 400 or entries[0].key not in found
        outcomes.add("damaged" if reader.damaged else "whole")
    assert {"damaged", "whole"} <= outcomes


def test_a_damaged_page_costs_its_records(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "x")
    writer.put(sorted(records(3000, 50)))
    writer.close()
    file = tmp_path / "x/data.mdb"
    reader = Reader(tmp_path / "x")
    entries = list(reader.entries())
    page = entries[1500].offset // 4096
    on_it = [entry for entry in entries if entry.offset // 4096 == page]
    data = bytearray(file.read_bytes())
    data[page * 4096 + 10] ^= 255  # its flags
    file.write_bytes(data)
    reader = Reader(tmp_path / "x")
    assert list(reader.entries()) == [entry for entry in entries if entry not in on_it]
    assert reader.damaged == [f"page {page} of {file} is not the page that it should be"]


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
    writer = Writer(tmp_path / "x")
    writer.put(records(100, 5000))
    writer.close()
    file = tmp_path / "x/data.mdb"
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(UsageError, match=r"data.mdb is truncated: it has"):
        Reader(tmp_path / "x")
