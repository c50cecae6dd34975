"""Tars as webdataset writes them: the files of one image follow each other, KEY.npz, or KEY.npy with KEY.json.

A key is a name up to the first dot of its last part. KEY.boxes.npy is the field `boxes`; KEY.npy is the features.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, ListedReader, find_files
from imagebert.data.readers.folders import flat, read_npy, read_npz
from imagebert.files import open_regular, parse_json

_READ = ("npz", "npy", "json")


class _Part(NamedTuple):
    """One file of an image: what stands behind its key, and where in the tar its bytes are."""

    name: str
    offset: int
    size: int


class WebdatasetReader(ListedReader):
    """Of tars, or folders of them."""

    def __init__(self, sources: Sequence[Path]) -> None:
        tars = find_files(sources, [".tar"])
        self._images = [(tar, key, parts) for tar in tars for key, parts in _images(tar)]
        if not any(part.name.endswith(("npz", "npy")) for _, _, parts in self._images for part in parts):
            raise UsageError(
                f"{tars[0]} holds no .npz and no .npy: it is no tar of region features. Of pictures, unpacked, "
                "`imagebert extract` makes some"
            )

    def _item(self, image: tuple[Path, str, list[_Part]]) -> tuple[str, str, Callable[[], Any]]:
        tar, key, parts = image
        return f"{tar}, image {key!r}", key, partial(_fields, tar, parts)


def _images(tar: Path) -> Iterator[tuple[str, list[_Part]]]:
    images: dict[str, list[_Part]] = {}
    try:
        with open_regular(tar) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.isreg() and suffix.rpartition(".")[2] in _READ:
                    images.setdefault(folder + slash + stem, []).append(_Part(suffix, member.offset_data, member.size))
    except Exception as error:  # what damage makes of a header is no closed list
        raise UsageError(f"{tar} is damaged, or no plain tar (a .tar.gz is to be unpacked first): {error}") from None
    yield from images.items()


def _fields(tar: Path, parts: Sequence[_Part]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    with open_regular(tar) as opened:
        for part in parts:
            if part.size > LARGEST:
                raise BadRecord(f"its {part.name} has {part.size} bytes, more than {LARGEST}")
            opened.seek(part.offset)
            data = opened.read(part.size)
            if len(data) != part.size:
                raise BadRecord(f"its {part.name} is cut off")
            name, _, kind = part.name.rpartition(".")
            if kind == "npz":
                fields |= read_npz(data)
            elif kind == "npy":
                fields |= flat({name or "features": read_npy(io.BytesIO(data), len(data))})
            else:
                found = parse_json(data, "its json")
                fields |= found if isinstance(found, dict) else {}
    return fields
