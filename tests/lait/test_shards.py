"""A shard on disk: written whole or not at all, and read as it was written."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from imagebert.errors import UsageError
from imagebert.lait.shards import Row, read_rows, rows_path, write_shard

ROWS = [
    Row("0" * 16, "http://a.test/1", "success", 200, 400, 310, 3, "ab", "image/jpeg", "jpg"),
    Row("1" * 16, "http://a.test/\u00e9\U0001f600", "http_status", 404, error_message="the server answers 404"),
    Row("2" * 16, "http://a.test/2", "success", 200, 1, 1, 3, "cd", "", "webp"),
]


def test_rows_are_read_as_they_were_written_and_time_is_not_among_the_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", ROWS, lambda row: row.key[:3].encode())
    assert read_rows(tmp_path / "0.tar") == ROWS
    with tarfile.open(tmp_path / "0.tar") as tar:
        told = [(member.name, member.mtime, member.uid, member.uname) for member in tar]
    names = [f"{key * 16}.{suffix}" for key, suffix in (("0", "jpg"), ("0", "json"), ("2", "webp"), ("2", "json"))]
    assert told == [(name, 0, 0, "") for name in names]


def test_a_shard_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def fails(row: Row) -> bytes:
        if row.key[0] == "2":
            raise OSError(28, "No space left on device")
        return b"jpg"

    with pytest.raises(OSError, match=r"writing .*0\.tar failed: No space left"):
        write_shard(tmp_path / "0.tar", ROWS, fails)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"PAR1 and no more", bytes(1000)])
def test_a_parquet_that_is_damaged_or_missing(data: bytes, tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    with pytest.raises(UsageError, match=r"is missing beside its tar: remove .*, and fetch it again"):
        read_rows(shard)
    rows_path(shard).write_bytes(data)
    with pytest.raises(UsageError, match="is no list of fetched pictures"):
        read_rows(shard)
