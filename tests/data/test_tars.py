"""Tars of samples: what Python's tarfile writes, walked without it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from imagebert.data.tars import members


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_files_lie_where_tarfile_finds_them(form: int, tmp_path: Path) -> None:
    """Long names, folders, links and webdataset's own among them."""
    names = ["a.jpg", "a.json", "./b/c.d.npz", "x" * 90 + "/" + "y" * 90 + ".txt", "__index__.json", ".txt", "e"]
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            other = tarfile.TarInfo("f.txt")
            other.type, other.linkname = kind, "a.jpg" * (kind == tarfile.SYMTYPE)
            archive.addfile(other)
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 300 * number, 1764100000.25
            archive.addfile(member, io.BytesIO(bytes([number]) * member.size))
    with tarfile.open(tmp_path / "x.tar") as archive:
        places = {file.name: (file.offset, file.offset_data, file.size) for file in archive if file.isreg()}
    keys = {"a.jpg": ("a", "jpg"), "a.json": ("a", "json"), "./b/c.d.npz": ("b/c", "d.npz"), "e": ("e", "")}
    keys[names[3]] = ("x" * 90 + "/" + "y" * 90, "txt")
    with (tmp_path / "x.tar").open("rb") as opened:
        size = (tmp_path / "x.tar").stat().st_size
        found = [(member, opened.read(member.size)) for member in members(opened, size)]
    assert [tuple(member) for member, _ in found] == [(*keys[name], *places[name]) for name in names if name in keys]
    assert [data for _, data in found] == [bytes([n]) * (300 * n) for n, name in enumerate(names) if name in keys]


def test_sparse_files_are_passed_over(tmp_path: Path) -> None:
    """Of GNU's kinds within pax: their bytes are a map and parts of the file."""
    member = tarfile.TarInfo("GNUSparseFile.0/a.txt")
    member.size, member.pax_headers = 3, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.txt"}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(member, io.BytesIO(b"1\n0"))
        member = tarfile.TarInfo("b.txt")
        archive.addfile(member)
    with (tmp_path / "x.tar").open("rb") as opened:
        assert [member.key for member in members(opened, 1 << 20)] == ["b"]
