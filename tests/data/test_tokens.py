from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebert.config import UsageError
from imagebert.data.tokens import SPECIALS, Tokenizer


def test_pieces_are_numbered_as_they_are_found(tmp_path: Path) -> None:
    """Where Python sees more ends of lines than the tokenizer does, too."""
    pieces = [*SPECIALS, "one", "a\u2028b", "c\x0bd", "two"]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_text(end.join(pieces) + end, newline="")
        tokenizer = Tokenizer(tmp_path)
        assert tokenizer.pieces == pieces
        assert tokenizer.encode(["one two"]) == [[5, 8]]
    (tmp_path / "vocab.txt").write_text("[PAD]\x0b[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UsageError, match=r"lacks \[PAD\], \[UNK\]"):
        Tokenizer(tmp_path)


def test_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # which takes no space
    for name, message in (
        ("pipe", "is no regular file"),
        ("bytes", "is no UTF-8"),
        ("large", "more than 16,777,216 bytes"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "is no name of a file"),
    ):
        with pytest.raises(UsageError, match=rf"cannot read the vocabulary .*{message}"):
            Tokenizer(tmp_path / name)
