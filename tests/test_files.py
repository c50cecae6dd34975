from __future__ import annotations

import gzip
import json
import os
import re
import socket
from pathlib import Path

import pytest

from imagebert.errors import UsageError
from imagebert.files import (
    check_digests,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_packed_json,
    read_sealed,
    read_text,
    replacing,
    text_lines,
    write_bytes,
    write_digests,
    write_json,
    write_sealed,
)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path, Path("/dev/zero")):
            with pytest.raises(UsageError, match=re.escape(f"{path} is no regular file")):
                open_regular(path)
    with pytest.raises(UsageError, match=r"cannot read .*nothing: No such file"):
        open_regular(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is no name of a file"):
        open_regular(Path("a\0b"))


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UsageError, match="more than 4 bytes"):
        read_bytes(path, 4)
    path.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match=r"no UTF-8 .* at byte 2"):
        read_text(path)


def test_lines_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfone\rand\xe2\x80\xa8more \r\r\n\r\na\xff\xfeb\nlast\r")
    wrong = "it is no UTF-8 (invalid start byte at its byte 1): save it as UTF-8"
    expected = [(1, "one\rand\u2028more \r", ""), (2, "", ""), (3, "a\ufffd\ufffdb", wrong), (4, "last", "")]
    assert [tuple(line) for line in text_lines(path)] == expected
    for encoding in ("utf-16-le", "utf-16-be"):
        path.write_bytes("\ufeffone\n".encode(encoding))
        with pytest.raises(UsageError, match=r"x is UTF-16: save it as UTF-8"):
            list(text_lines(path))
    monkeypatch.setattr("imagebert.files.LINE_BYTES", 10)
    path.write_bytes(b"one\n" + b"x" * 9 + b"\n")
    with pytest.raises(UsageError, match="x, line 2: it has more than 10 bytes"):
        list(text_lines(path))
    path.write_bytes(b"")
    assert list(text_lines(path)) == []


def test_lines_and_json_of_a_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x"
    text = b"\xef\xbb\xbfone\r\ntwo\n"
    for content in (gzip.compress(text), gzip.compress(text[:7]) + gzip.compress(text[7:])):  # members are one text
        path.write_bytes(content)
        assert [line.text for line in text_lines(path)] == ["one", "two"]
    whole = gzip.compress(b"one\n" * 100 + b"two")
    for damaged in (whole[:-9], whole[:20], whole[:-8] + b"\0" * 8, whole + b"rest", whole[:12] + b"\xff" + whole[13:]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="x is a damaged gzip"):
            list(text_lines(path))
    path.write_bytes(gzip.compress(b" " * 100_000 + b"[1]"))
    assert read_packed_json(path) == [1]
    with pytest.raises(UsageError, match=r"more than 50,000 bytes"):
        read_packed_json(path, 50_000)
    path.write_bytes(b"[2]")
    assert read_packed_json(path, 3) == [2]
    path.write_bytes(gzip.compress(b"x" * 99 + b"\n") + gzip.compress((b"x" * 99 + b"\n") * 20_000))
    lines = text_lines(path)
    assert next(lines).text == "x" * 99
    with pytest.raises(UsageError, match="x unpacks to more than 100 times its size"):
        list(lines)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 70 + "1" + "}" * 70, "9" * 5000, "{", b"\xff", "nul"])
def test_json_of_no_use(text: str | bytes) -> None:
    with pytest.raises(UsageError, match=r"a.json is .*damaged"):
        parse_json(text, "a.json")


def test_json_of_some_use() -> None:
    deep = "[" * 60 + "]" * 60
    assert parse_json(deep, "a.json") == json.loads(deep)


def test_every_changed_byte_of_sealed_json_is_named_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    content = {"name": "Grünes Feld", "numbers": [1, 2.5, -3e-9, None, True], "inner": {"a": "b"}}
    digest = write_sealed(path, content)
    assert read_sealed(path) == {**content, "digest": digest}
    data = path.read_bytes()
    named = 0
    for at in range(len(data)):
        for bit in (1, 8, 32):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                found = read_sealed(path)
            except UsageError:
                named += 1
                continue
            assert found == {**content, "digest": digest}
    assert named > 2 * len(data)


def test_digests_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    digest = write_digests(tmp_path, kind="test")
    found = check_digests(tmp_path)
    assert (found["digest"], found["kind"], sorted(found["files"])) == (digest, "test", ["a", "b"])
    (tmp_path / "b").write_text("3")
    check_digests(tmp_path, names=["a"])
    with pytest.raises(UsageError, match=r"b has changed since it was written: copy it again"):
        check_digests(tmp_path, "copy it again")
    (tmp_path / "b").unlink()
    with pytest.raises(UsageError, match=r"b is missing"):
        check_digests(tmp_path)
    with pytest.raises(UsageError, match=r"digests.json does not list c"):
        check_digests(tmp_path, names=["c"])


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"writing .*x.json failed, it is as it was: No space left"):
        write_bytes(path, b"2")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_what_takes_the_place_of_a_file(tmp_path: Path) -> None:
    """Whole or not at all: what an error interrupts leaves the old file, and nothing beside it."""
    path = tmp_path / "file.npy"
    path.write_bytes(b"old")
    (tmp_path / ".file.npy.part").write_bytes(b"longer, of a killed call")
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_bytes(b"half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["file.npy"]
    assert path.read_bytes() == b"old"
    with replacing(path, ".npy") as part:
        assert part.suffix == ".npy"
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]
