"""What a killed call leaves on disk: what of it is whole is used, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from imagebert.lait.shards import Row
from imagebert.lait.spool import Spool


def row_of(number: int, data: bytes) -> Row:
    digest = hashlib.sha256(data).hexdigest()
    return Row(f"{number:016x}", f"http://a.test/{number}", "success", 200, 1, 1, len(data), digest, "", "jpg")


PICTURES = [bytes([number]) * (300 + number) for number in range(6)]
MISSING = Row("f" * 16, "http://a.test/f", "http_status", 404, error_message="the server answers 404")


def fill(folder: Path) -> None:
    with Spool(folder, "same") as spool:
        for number, data in enumerate(PICTURES):
            spool.add(row_of(number, data), data, final=True)
        spool.add(MISSING, b"", final=True)
        spool.add(MISSING._replace(key="e" * 16, status="timed_out"), b"", final=False)
        assert not spool.any_before


def test_what_is_final_is_there_again_with_its_bytes(tmp_path: Path) -> None:
    fill(tmp_path)
    with Spool(tmp_path, "same") as spool:
        assert list(spool.rows.values()) == [*map(row_of, range(6), PICTURES), MISSING]
        assert [spool.picture(spool.rows[f"{number:016x}"]) for number in range(6)] == PICTURES
        assert spool.any_before
        # And goes on behind it.
        spool.add(row_of(9, b"more"), b"more", final=True)
    with Spool(tmp_path, "same") as spool:
        assert len(spool.rows) == 8
        assert spool.picture(row_of(9, b"more")) == b"more"
        assert spool.picture(row_of(0, PICTURES[0])) == PICTURES[0]


def test_of_another_work_nothing_is_used(tmp_path: Path) -> None:
    fill(tmp_path)
    for identity in ("another", "same"):
        with Spool(tmp_path, identity) as spool:
            assert not spool.rows
    assert (tmp_path / "bodies").stat().st_size == 0


@pytest.mark.parametrize("cut", [1, 50, 400])
def test_a_line_that_is_not_whole_ends_the_journal(cut: int, tmp_path: Path) -> None:
    fill(tmp_path)
    journal = tmp_path / "journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    whole = journal.read_bytes().count(b"\n")
    with Spool(tmp_path, "same") as spool:
        assert len(spool.rows) == whole < 7
        spool.add(row_of(9, b"more"), b"more", final=True)
    with Spool(tmp_path, "same") as spool:
        assert len(spool.rows) == whole + 1


def test_a_line_that_has_changed_ends_the_journal(tmp_path: Path) -> None:
    fill(tmp_path)
    journal = tmp_path / "journal"
    journal.write_bytes(journal.read_bytes().replace(b"a.test/3", b"a.test/4"))
    with Spool(tmp_path, "same") as spool:
        assert len(spool.rows) == 3
        spool.add(row_of(9, b"more"), b"more", final=True)
    assert journal.read_bytes().count(b"\n") == 4  # what stood behind it is gone


@pytest.mark.parametrize("where", ["cut", "changed"])
def test_a_picture_that_is_not_whole_is_asked_for_again(where: str, tmp_path: Path) -> None:
    fill(tmp_path)
    bodies = tmp_path / "bodies"
    data = bodies.read_bytes()
    bodies.write_bytes(data[:-1] if where == "cut" else data[:-1] + b"?")
    with Spool(tmp_path, "same") as spool:
        assert [row.key[-1] for row in spool.rows.values()] == ["0", "1", "2", "3", "4", "f"]
        assert spool.picture(spool.rows[f"{4:016x}"]) == PICTURES[4]


def test_bytes_that_change_while_it_runs_are_the_disks_fault(tmp_path: Path) -> None:
    with Spool(tmp_path, "same") as spool:
        spool.add(row_of(0, PICTURES[1]), PICTURES[0], final=True)
        with pytest.raises(OSError, match="other bytes than were written"):
            spool.picture(row_of(0, PICTURES[1]))


def test_a_body_of_any_length_is_read_as_it_was_written(tmp_path: Path) -> None:
    with Spool(tmp_path, "same") as spool:
        body = spool.body()
        body.write(b"another answer")
        body.clear()
        parts = [bytes([number]) * 50_000 for number in range(12)]
        for part in parts:
            body.write(part)
            assert body.read(3) == bytes(3)
        assert body.read() == b"".join(parts)
        assert body.size == 600_000
        body.close()
        spool.remove()
    assert not tmp_path.exists()
