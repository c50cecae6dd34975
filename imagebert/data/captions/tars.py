"""Tars as webdataset reads them and img2dataset writes them: KEY.jpg with KEY.txt, KEY.json or both.

Of both the json is read, which has the URL too. Pictures are passed over. The first sample with a caption decides for
the source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from imagebert.data.captions.line import PATIENCE, Found, Line, text_of
from imagebert.data.tars import BrokenTar, members
from imagebert.errors import UsageError
from imagebert.files import open_regular, parse_json

_BYTES = 1 << 20  # of a caption's file


class _Sample(NamedTuple):
    tar: Path
    key: str
    parts: dict[str, bytes | str]  # txt and json: what they hold, or why not
    problem: str = ""  # why nothing behind it can be found; then there is no sample
    offset: int = 0  # from which on


def tars(path: Path) -> Found:
    """A tar, or a folder of some.

    Raises:
        UsageError: none of the first samples has a caption.
    """
    paths = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    samples = chain.from_iterable(map(_samples, paths))
    ahead = list(islice(samples, PATIENCE))
    suffix = next((suffix for sample in ahead for suffix in ("json", "txt") if _has_caption(sample, suffix)), "")
    damaged = next((sample for sample in ahead if sample.problem), None)
    if not suffix and damaged is not None:
        raise UsageError(
            f"cannot read captions from {damaged.tar}: a tar that is damaged, or packed: from byte {damaged.offset} on "
            f"{damaged.problem}"
        )
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
        if sample.problem:
            yield Line(f"{sample.tar}, from byte {sample.offset} on", "", "", row, error=sample.problem)
            continue
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
    sample = problem = None
    with open_regular(path) as file:
        try:
            for member in members(file, os.fstat(file.fileno()).st_size):
                if sample is None or sample.key != member.key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(path, member.key, {})
                if member.suffix in ("txt", "json"):
                    sample.parts[member.suffix] = _content(file, member.size)
        except BrokenTar as error:
            problem = _Sample(path, "", {}, f"it is lost: {error}", error.offset)
    if sample is not None:
        yield sample
    if problem is not None:
        yield problem


def _content(file: BinaryIO, size: int) -> bytes | str:
    if size > _BYTES:
        return f"its file of {size:,} bytes is no caption's"
    data = file.read(size)
    return data if len(data) == size else "its file is cut off"
