"""Files of lines: those packed otherwise, and those without any."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from tests.data.readers.test_formats import make, write_lxmert


@pytest.mark.parametrize(("pack", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_what_is_packed_otherwise_is_told(pack: object, name: str, tmp_path: Path) -> None:
    _, path = write_lxmert(tmp_path, make())
    path.write_bytes(pack(path.read_bytes()))  # type: ignore[operator]
    for ask in (lambda: detect([path]), lambda: list(open_reader("lxmert", [path]).items(0, 1))):
        with pytest.raises(UsageError, match=f"is packed by {name}: unpack it, or pack it by gzip"):
            ask()


def test_empty_lines_end(tmp_path: Path) -> None:
    """A gzip of them unpacks to a thousand times its size."""
    path = tmp_path / "obj36.tsv.gz"
    path.write_bytes(gzip.compress(b"\n" * 70_000))
    with pytest.raises(UsageError, match="more than 65536 empty lines"):
        list(open_reader("lxmert", [path]).items(0, 1))
