"""Tars as webdataset reads them and img2dataset writes them: KEY.jpg with KEY.txt, KEY.json or both.

Of both the json is read, which has the URL too. Pictures are passed over. The first sample with a caption decides for
the source.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.data.captions.line import PATIENCE, Found, Line, text_of
from imagebert.errors import UsageError
from imagebert.files import open_regular, parse_json

_BYTES = 1 << 20  # of a caption's file, and of a header that is no block
_BLOCK = tarfile.BLOCKSIZE


class _Sample(NamedTuple):
    tar: Path
    key: str
    parts: dict[str, bytes | str]  # txt and json: what they hold, or why not


class _Header(tarfile.TarInfo):
    """A header that says when it is damaged, where tarfile takes the tar for ended; and none that is a gigabyte."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        if len(buf) != _BLOCK:
            raise ValueError("it has no end, it is cut")
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf.strip(b"\0"):  # its end
                raise
            raise ValueError(f"a header of it is damaged ({error})") from None
        if found.type not in tarfile.REGULAR_TYPES and found.size > _BYTES:
            raise ValueError(f"a header of it says {found.size} bytes")
        return found


def tars(path: Path) -> Found:
    """A tar, or a folder of some.

    Raises:
        UsageError: one is damaged, here or later, or none of the first samples has a caption.
    """
    paths = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    samples = chain.from_iterable(map(_samples, paths))
    ahead = list(islice(samples, PATIENCE))
    suffix = next((suffix for sample in ahead for suffix in ("json", "txt") if _has_caption(sample, suffix)), "")
    if not suffix:
        raise UsageError(f"{paths[0]} holds no .txt and no .json with a caption: give the captions' own file")
    what = f"webdataset, {len(paths):,} tars, captions in .{suffix}"
    return Found(what, _lines(chain(ahead, samples), suffix))


def _has_caption(sample: _Sample, suffix: str) -> bool:
    if suffix == "txt":
        return isinstance(sample.parts.get("txt"), bytes)
    found = _object(sample)
    return not isinstance(found, str) and "caption" in found


def _object(sample: _Sample) -> dict[str, Any] | str:
    """Its json, or why there is none."""
    data = sample.parts.get("json", "it has no .json")
    if isinstance(data, str):
        return data
    try:
        found = parse_json(data, "its .json")
    except UsageError as error:
        return str(error)
    return found if isinstance(found, dict) else f"its .json holds {type(found).__name__}, not an object"


def _lines(samples: Iterator[_Sample], suffix: str) -> Iterator[Line]:
    for row, sample in enumerate(samples):
        line = Line(f"{sample.tar}, sample {sample.key[:200]!r}", sample.key, "", row)
        if suffix == "txt":
            data = sample.parts.get("txt", "it has no .txt")
            if isinstance(data, str):
                yield line._replace(error=data)
                continue
            try:
                yield line._replace(text=data.decode("utf-8-sig").rstrip("\r\n"))
            except UnicodeDecodeError:
                yield line._replace(error="its .txt is no UTF-8")
            continue
        found = _object(sample)
        if isinstance(found, str):
            yield line._replace(error=found)
            continue
        status = found.get("status", "success")
        line = line._replace(text=text_of(found.get("caption")), url=text_of(found.get("url")))
        yield line._replace(status="" if status == "success" else str(status))


def _samples(path: Path) -> Iterator[_Sample]:
    """Samples in their order; files of one follow each other."""
    sample: _Sample | None = None
    with open_regular(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header, errorlevel=2) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
                    if not member.isreg():
                        continue
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if not stem or (stem.startswith("__") and stem.endswith("__")):  # webdataset's own
                        continue
                    key = folder + slash + stem
                    if sample is None or sample.key != key:
                        if sample is not None:
                            yield sample
                        sample = _Sample(path, key, {})
                    if suffix in ("txt", "json"):
                        sample.parts[suffix] = _content(archive, member)
                file.seek(archive.offset)
            while block := file.read(_BLOCK * 2048):
                if block.strip(b"\0"):
                    raise ValueError("another tar stands behind its end: unpack them apart")
        except UsageError:
            raise
        except Exception as error:  # what damage makes of a header is no closed list
            raise UsageError(f"cannot read captions from {path}: a tar that is damaged, or packed: {error}") from None
    if sample is not None:
        yield sample


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    if member.size > _BYTES or member.issparse():
        return f"its file of {member.size:,} bytes is no caption's"
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise ValueError(f"{member.name[:200]!r} is cut off")
    return data
