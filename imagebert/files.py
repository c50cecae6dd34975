"""Files from anywhere, read by bounds; JSON that knows its own digest.

A path may lead to a pipe that never ends, a JSON may be nested until Python gives up, a file may be cut or changed.
Whatever is read here ends in its content or in one sentence. What this program writes about its artefacts it seals: a
JSON object whose last entry, `digest`, is the SHA-256 of all others, so that a changed byte is told from a wish.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from imagebert.errors import UsageError

JSON_BYTES = 256 << 20  # of a file that is read whole
LINE_BYTES = 1 << 24  # of a line of text
_NAMES = 1 << 16  # of classes: a store numbers them by 16 bits
_UNPACKED = 100  # bytes at most for one of a gzip: texts are packed to a third of them
_DEEPEST = 64  # of containers in containers

# What the disk or its network has, not the caller.
_FAULTS = {errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE}


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, without ever waiting for it.

    Raises:
        UsageError: it is not there, may not be read, or is no regular file (a pipe, a socket, a device, a folder).
        OSError: the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a zero byte in the name
        raise UsageError(f"{str(path)!r} is no name of a file") from None
    except OSError as error:
        if error.errno in _FAULTS:
            raise
        if error.errno == errno.ENXIO:  # a socket
            raise UsageError(f"{path} is no regular file: give a file, not a pipe or a device") from None
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is no regular file: give a file, not a folder, a pipe or a device")
    return os.fdopen(descriptor, "rb")


def walk(folder: Path, failed: Callable[[OSError], object] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, each with its files; one that is reached by a link is walked as well, each once.

    Args:
        failed: is told of folders that cannot be read
    """
    seen = set()
    for place, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        yield Path(place), sorted(files)


def read_bytes(path: Path, most: int = JSON_BYTES) -> bytes:
    """A whole file of at most `most` bytes.

    Raises:
        UsageError: as `open_regular` does, or it is larger.
        OSError: the disk fails.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UsageError(f"{path} has more than {most:,} bytes: that is no file of its kind")
    return data


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """A whole file of UTF-8.

    Raises:
        UsageError: as `read_bytes` does, or it is no UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 ({error.reason} at byte {error.start}): it is damaged") from None


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A file, or what its gzip holds, opened for reading; and how many bytes may be read of it.

    Raises:
        UsageError: as `open_regular` does, or, while it is read, the gzip is damaged.
        OSError: the disk fails.
    """
    with open_regular(path) as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        most = (1 << 20) + _UNPACKED * os.fstat(file.fileno()).st_size
        if not is_packed:
            yield file, most
            return
        try:
            with gzip.GzipFile(fileobj=file) as inner:
                yield inner, most  # type: ignore[misc]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(f"{path} is a damaged gzip ({error}): restore it") from None


def _too_large(path: Path) -> UsageError:
    return UsageError(f"{path} unpacks to more than {_UNPACKED} times its size: that is no text")


class TextLine(NamedTuple):
    number: int  # from 1
    text: str  # without its end
    error: str = ""  # why it cannot be used; `text` then has U+FFFD for what is wrong


def text_lines(path: Path) -> Iterator[TextLine]:
    """The lines of a text in UTF-8, with a byte order mark or without, or of a gzip of one.

    LF and CRLF end a line. A CR alone and Unicode's own separators are content: captions hold them.

    Raises:
        UsageError: as `unpacked` does, it is UTF-16, a line has more than `LINE_BYTES`, or a gzip unpacks to too much.
        OSError: the disk fails.
    """
    with unpacked(path) as (file, left):
        number = 0
        while line := file.readline(LINE_BYTES):
            if number == 0:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise UsageError(f"{path} is UTF-16: save it as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            number += 1
            left -= len(line)
            if left < 0:
                raise _too_large(path)
            if len(line) >= LINE_BYTES:
                raise UsageError(f"{path}, line {number}: it has more than {LINE_BYTES:,} bytes: is it a text?")
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield TextLine(number, line.decode("utf-8"))
            except UnicodeDecodeError as error:
                wrong = f"it is no UTF-8 ({error.reason} at its byte {error.start}): save it as UTF-8"
                yield TextLine(number, line.decode("utf-8", "replace"), wrong)


def read_names(path: Path) -> list[str]:
    """Names that are numbered by their lines, read as `text_lines` does; blank lines behind the last are none.

    Raises:
        UsageError: as `text_lines` does, or a line before the last name has none, so that all behind it would shift.
        OSError: the disk fails.
    """
    names: list[str] = []
    blank = 0
    for line in text_lines(path):
        if line.error:
            raise UsageError(f"{path}, line {line.number}: {line.error}")
        name = line.text.strip()
        blank = blank or (0 if name else line.number)
        if name and blank:
            raise UsageError(
                f"{path}, line {blank} is blank, and lines number the names: write a name there, or drop it"
            )
        names += [name] if name else []
        if len(names) > _NAMES:
            raise UsageError(f"{path} has more than {_NAMES:,} lines: that is no file of names")
    return names


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text of bounded depth.

    Raises:
        UsageError: it is none; `where` says which.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UsageError(f"{where} is nested too deep: it is damaged") from None
    except ValueError as error:  # UnicodeDecodeError, and numbers of thousands of digits, too
        raise UsageError(f"{where} is no JSON ({error}): it is damaged") from None
    level, depth = [value], 0
    while level := [child for node in level if isinstance(node, dict | list) for child in _children(node)]:
        depth += 1
        if depth > _DEEPEST:
            raise UsageError(f"{where} is nested deeper than {_DEEPEST}: it is damaged")
    return value


def _children(node: dict[str, Any] | list[Any]) -> list[Any]:
    """Those that may have children."""
    values = node.values() if isinstance(node, dict) else node
    return [value for value in values if isinstance(value, dict | list)]


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """The value in a JSON file; see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most), str(path))


def read_packed_json(path: Path, most: int = JSON_BYTES) -> Any:
    """The same of a file that may be a gzip; see `unpacked`."""
    with unpacked(path) as (file, bound):
        data = file.read(min(most, bound) + 1)
    if len(data) > most:
        raise UsageError(f"{path} has more than {most:,} bytes: that is no file of its kind")
    if len(data) > bound:
        raise _too_large(path)
    return parse_json(data, str(path))


@contextmanager
def replacing(path: Path, kind: str = "") -> Iterator[Path]:
    """The name under which to write what takes the place of `path` when the block ends well, and is on disk then.

    Until then, and where the block ends by an error, there is what was there. What a killed call left is written over.

    Args:
        kind: a suffix that whoever writes insists on, such as .npy
    """
    part = path.with_name(f".{path.name}.part{kind}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that exists whole or not at all, and is on disk when this returns.

    Raises:
        OSError: the disk is full or failing; what stood there is as it was.
    """
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, f"writing {path} failed, it is as it was: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """Before long work: can the file that it ends in be written? Makes its folder, and the file where there is none.

    Raises:
        UsageError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without waiting for whoever would read from a pipe.
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_bytes` does."""
    write_bytes(path, json.dumps(content, indent=2).encode() + b"\n")


# ------------------------------------------------------------------------------------------------------------- sealed


def digest_of(content: Any) -> str:
    """SHA-256 of plain data, however it is written: in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The same with its digest behind, in place of one that it has."""
    plain = {name: value for name, value in content.items() if name != "digest"}
    plain = json.loads(json.dumps(plain))  # as it will be read: tuples are lists
    return {**plain, "digest": digest_of(plain)}


def write_sealed(path: Path, content: dict[str, Any]) -> str:
    """Writes plain data with its digest, which is returned; see `write_bytes`."""
    with_digest = sealed(content)
    write_json(path, with_digest)
    digest: str = with_digest["digest"]
    return digest


def read_sealed(path: Path, cure: str = "restore it") -> dict[str, Any]:
    """What `write_sealed` wrote, its digest included.

    Raises:
        UsageError: it is not there, or has changed since; `cure` says what to do.
        OSError: the disk fails.
    """
    try:
        content = read_json(path)
    except UsageError as error:
        raise UsageError(f"{error}; {cure}") from None
    return check_sealed(content, path, cure)


def check_sealed(content: Any, path: Path, cure: str) -> dict[str, Any]:
    """What was read from `path`, after it was compared with its own digest; raises as `read_sealed` does."""
    if not isinstance(content, dict) or "digest" not in content:
        raise UsageError(f"{path} has no digest of its content, it is damaged or of an older version: {cure}")
    if sealed(content) != content:
        raise UsageError(f"{path} has changed since it was written: {cure}")
    return content


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


DIGESTS = "digests.json"


def write_digests(folder: Path, names: list[str] | None = None, **more: Any) -> str:
    """Writes digests.json: size and SHA-256 of files of a folder, and `more`; returns its digest.

    Args:
        names: None: all files in the folder itself
    """
    if names is None:
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != DIGESTS and p.name[0] != ".")
    return write_sealed(folder / DIGESTS, {**more, "files": {name: _described(folder / name) for name in names}})


def add_digests(folder: Path, names: list[str]) -> None:
    """Adds files to digests.json of a folder, or notes that they are others now."""
    content = read_sealed(folder / DIGESTS)
    content["files"] |= {name: _described(folder / name) for name in names}
    write_sealed(folder / DIGESTS, content)


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def check_digests(folder: Path, cure: str = "restore it", names: list[str] | None = None) -> dict[str, Any]:
    """digests.json of a folder, after files were compared with it.

    Args:
        names: those to compare; None: all that it lists

    Raises:
        UsageError: it, or a file, is missing or has changed since; `cure` says what to do.
        OSError: the disk fails.
    """
    content = read_sealed(folder / DIGESTS, cure)
    if not isinstance(content.get("files"), dict):
        raise UsageError(f"{folder / DIGESTS} lists no files, it is another file: {cure}")
    for name in content["files"] if names is None else names:
        entry, file = content["files"].get(name), folder / name
        if entry is None:
            raise UsageError(f"{folder / DIGESTS} does not list {name}: {cure}")
        if not file.is_file():
            raise UsageError(f"{file} is missing: {cure}")
        if file.stat().st_size != entry["bytes"] or file_digest(file) != entry["sha256"]:
            raise UsageError(f"{file} has changed since it was written: {cure}")
    return content
