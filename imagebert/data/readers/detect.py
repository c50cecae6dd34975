"""Which published format a file or a folder is of, told by what it holds, not by what it is called."""

from __future__ import annotations

import gzip
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from imagebert.config import UsageError
from imagebert.data.environments import Reader as Environment
from imagebert.data.readers.lmdbs import PICKLED, codec_of
from imagebert.data.readers.tensors import OLD
from imagebert.data.readers.tsv import LAYOUTS, read_line, text_of
from imagebert.files import open_regular

_HEAD = 512
_LMDB = b"\xde\xc0\xef\xbe"  # behind the 16 bytes of the page's own header
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"\x93NUMPY": "mmf",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream, as Hugging Face's datasets writes it
    OLD: "tensors",
}
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # which no text has
_LOOKED_AT, _OPENED = 1000, 200  # files of a folder


def detect(sources: Sequence[Path]) -> str:
    """The format of all of them, a name of FORMATS.

    Raises:
        UsageError: one is not there, is of no known format, or they are of several.
    """
    found = {source: _of_folder(source) if os.path.isdir(source) else _of_file(source) for source in sources}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{source} is {name}" for source, name in found.items())
        raise UsageError(f"{told}: import each by itself")
    return next(iter(found.values()))


def _of_folder(folder: Path) -> str:
    if (folder / "data.mdb").is_file():
        return _of_lmdb(folder)
    files = [file for file in islice(folder.rglob("*"), _LOOKED_AT) if file.is_file()]
    if any(file.name == "features.tsv" or ".feature." in file.name for file in files):
        return "vinvl"
    formats: Counter[str] = Counter()
    for file in files[:_OPENED]:
        with suppress(UsageError):
            formats[_of_file(file)] += 1
    if not formats:
        raise UsageError(f"{folder} holds no region features of a known format: `imagebert import formats` lists them")
    return formats.most_common(1)[0][0]


def _of_file(file: Path) -> str:
    with open_regular(file) as opened:
        head = opened.read(_HEAD)
    if head[16:20] == _LMDB:
        return _of_lmdb(file)
    if head[:2] == b"PK":
        return _of_zip(file)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    with suppress(EOFError, zlib.error, gzip.BadGzipFile), text_of(file) as unpacked:  # damage is told below
        head = unpacked.read(_HEAD)
    if head[257:262] == b"ustar":
        return "webdataset"
    if re.search(rb"^feature:\s", head, re.MULTILINE):  # VinVL's yaml of a data set
        return "vinvl"
    with text_of(file) as lines:
        line = read_line(lines, file, 0)
    columns = 0 if _CONTROL.search(line) else line.count(b"\t") + 1
    if columns in (2, 3):
        return "vinvl"
    if columns in LAYOUTS:
        return "bottom-up-attention" if "objects_id" not in LAYOUTS[columns] else "lxmert"
    raise UsageError(f"{file} is of no known format: `imagebert import formats` lists them")


def _of_zip(file: Path) -> str:
    """NumPy's arrays, or torch's tensors."""
    try:
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
            names = archive.namelist()
    except Exception as error:  # of zipfile, zlib, struct, ...
        raise UsageError(f"{file} is a damaged zip: {error}") from None
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith("/data.pkl") for name in names):
        return "tensors"
    raise UsageError(f"{file} is a zip of neither NumPy nor PyTorch: `imagebert import formats` lists what is read")


def _of_lmdb(path: Path) -> str:
    return "vilbert" if codec_of(Environment(path)) in PICKLED else "uniter"
