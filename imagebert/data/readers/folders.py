"""Folders of one file an image: .npy with _info.npy (MMF), or .npz (MMF, bottom-up-attention.pytorch, UNITER).

An object array, which NumPy keeps as a pickle, may hold a dictionary of more fields, tensors among them; it goes
through `unpickle_tensors`.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, ListedReader
from imagebert.data.readers.tensors import unpickle_tensors
from imagebert.data.records import crc32
from imagebert.files import open_regular, read_bytes

try:
    from isal.isal_zlib import decompressobj
except ImportError:
    from zlib import decompressobj  # type: ignore[assignment]

_LOCAL = struct.Struct("<4s22xHH")  # a member's own header: magic, lengths of its name and of what stands behind
_SELF_CRITICAL = {"feat", "z"}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that NumPy writes, and unpacked bit by bit


class FolderReader(ListedReader):
    """A key is the file's path below its folder, without the suffix."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self._images: list[tuple[str, Path]] = []
        for source in sources:
            files = sorted(source.rglob("*.np[yz]")) if source.is_dir() else [source]
            base = source if source.is_dir() else source.parent
            self._images += [
                (file.relative_to(base).with_suffix("").as_posix(), file)
                for file in files
                if not file.stem.endswith("_info")
            ]
        if not self._images:
            raise UsageError(f"{sources[0]} holds no .npy and no .npz")

    def _item(self, image: tuple[str, Path]) -> tuple[str, str, Callable[[], Any]]:
        key, file = image
        return str(file), key, partial(_fields, file)


def _read(file: Path) -> Any:
    with open_regular(file) as opened:
        return read_npy(opened, os.fstat(opened.fileno()).st_size)


def _fields(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".npz":
            fields = read_npz(read_bytes(file, LARGEST))
            if fields.keys() <= _SELF_CRITICAL:
                raise BadRecord(
                    "it has features alone: self-critical keeps boxes elsewhere, and no image's size: import the TSV "
                    "that its make_bu_data.py read"
                )
            return fields
        fields = flat({"features": _read(file)})
        info = file.with_name(f"{file.stem}_info.npy")
        return {**flat({"info": _read(info)}), **fields} if info.exists() else fields
    except OSError as error:
        raise BadRecord(f"it cannot be read ({error.strerror or error})") from None


def read_npz(data: bytes | memoryview) -> dict[str, Any]:
    """The arrays of an .npz; a dictionary among them gives its own entries.

    Raises:
        BadRecord: it is no .npz, damaged, or holds what no image's regions could.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays, left = {}, LARGEST
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    if member.compress_type not in _COMPRESSIONS:
                        raise BadRecord("it is packed as NumPy packs none: save it with numpy.savez_compressed")
                    left -= member.file_size  # as it says; no more is read of it
                    if left < 0:
                        raise BadRecord(f"it unpacks to more than {LARGEST} bytes")
                    content = _content(data, member)
                    arrays[member.filename[:-4]] = read_npy(io.BytesIO(content), len(content))
            return flat(arrays)
    except BadRecord:
        raise
    except Exception as error:  # of zipfile, zlib, lzma, ...
        raise BadRecord(f"it is no whole .npz ({type(error).__name__}: {error})") from None


def _content(data: bytes | memoryview, member: zipfile.ZipInfo) -> bytes:
    """What is packed in a member, by isal, which takes half of zlib's time and lets other threads go on.

    Raises:
        BadRecord: it is damaged, or has another size than it says.
    """
    begin = member.header_offset + _LOCAL.size
    magic, name, extra = _LOCAL.unpack_from(data, member.header_offset)
    packed = data[begin + name + extra : begin + name + extra + member.compress_size]
    if magic != b"PK\3\4" or member.flag_bits & 1:
        raise BadRecord(f"its {member.filename} is damaged, or encrypted")
    content = bytes(packed)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        content = decompressobj(-15).decompress(packed, member.file_size)
    if len(content) != member.file_size or crc32(content) != member.CRC:
        raise BadRecord(f"its {member.filename} is damaged: it is not what its checksum says")
    return content


def read_npy(file: IO[bytes], size: int) -> Any:
    """The array in a .npy of `size` bytes; an object array of one thing gives the thing.

    Raises:
        BadRecord: it is no .npy, shorter than it says, or larger than any image's.
    """
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # the header is Python source, with all that may be wrong with such
        raise BadRecord(f"it is no .npy ({type(error).__name__}: {error})") from None
    expected, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if there > LARGEST:
        raise BadRecord(f"it has {there} bytes, more than {LARGEST}")
    if dtype.hasobject:
        return unpickle_tensors(file.read(there))
    if expected != there or min(shape, default=0) < 0:
        raise BadRecord(f"it says {dtype}{list(shape)}, {expected} bytes, and has {there}")
    array = np.frombuffer(file.read(expected), dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def flat(arrays: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries among the values give their own entries; what stands beside them counts more."""
    inner = {
        k: v for value in arrays.values() if isinstance(value, dict) for k, v in value.items() if isinstance(k, str)
    }
    return {**inner, **{name: value for name, value in arrays.items() if not isinstance(value, dict)}}
