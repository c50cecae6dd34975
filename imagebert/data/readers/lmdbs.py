"""LMDBs of other projects. UNITER: msgpack of arrays, or compressed npz, with the numbers of boxes in a json beside.
ViLBERT, MMF and VOLTA: pickles of dictionaries, arrays in them raw or as base64. tensorpack (Conceptual Captions of
ViLBERT and VOLTA): lists or dictionaries by msgpack or pickle, under running numbers. The gate of msgpack.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from imagebert.config import UsageError
from imagebert.data.environments import Entry
from imagebert.data.environments import Reader as Environment
from imagebert.data.readers import BadRecord, Item, share_of
from imagebert.data.readers.folders import read_npz
from imagebert.data.readers.layout import NAMES
from imagebert.data.readers.unpickle import unpickle
from imagebert.files import read_json


class LmdbReader:
    """LMDBs, or folders of some. Shares are runs of keys. How the values of one are written is told by most."""

    def __init__(self, sources: Sequence[Path]) -> None:
        paths = [path for source in sources for path in _environments_of(source)]
        self._environments = [Environment(path) for path in paths]
        self._numbers = {path: _numbers_of_boxes(path) for path in paths}
        self.beside = [_json_of(source) for source, numbers in self._numbers.items() if numbers is not None]
        self._codecs = [codec_of(environment) for environment in self._environments]
        both = zip(self._environments, self._codecs, strict=True)
        self._numbered = {environment.path for environment, codec in both if _is_numbered(environment, codec)}

    def size(self, share: int, shares: int) -> int:
        return sum(len(share_of(len(environment), share, shares)) for environment in self._environments)

    def items(self, share: int, shares: int) -> Iterator[Item]:
        done = 0
        for environment, codec in zip(self._environments, self._codecs, strict=True):
            mine = share_of(len(environment), share, shares)
            for entry in islice(environment.entries(), mine.start, mine.stop):
                done += 1
                if entry.key not in _LISTS_OF_KEYS:
                    key = entry.key.decode("utf-8", "surrogateescape")
                    load = partial(self._fields, environment, codec, key, entry)
                    name = "" if environment.path in self._numbered else key  # then the record names the image
                    yield Item(f"{environment.path}, key {key!r}", name, load, done)
            if share == shares - 1:  # it has met all pages
                for problem in environment.damaged:
                    yield Item(problem, "", partial(_lost, problem), done)

    def _fields(self, environment: Environment, codec: _Codec, key: str, entry: Entry) -> Mapping[str, Any]:
        fields = _named(codec(environment.read(entry)))
        numbers = self._numbers[environment.path]
        if numbers is None:
            return fields
        if key not in numbers:
            raise BadRecord("the json of numbers of boxes has no such key")
        # At least as many as were asked for, also where the detector found fewer: UNITER cuts its arrays there.
        return {name: value[: numbers[key]] if np.ndim(value) else value for name, value in fields.items()}


def _environments_of(source: Path) -> list[Path]:
    """The LMDBs in a folder, as folders of a data.mdb or as bare files; or what is given, which is one."""
    if not source.is_dir() or (source / "data.mdb").exists():
        return [source]
    bare = [file for file in source.rglob("*.lmdb") if file.is_file()]
    return sorted([*bare, *(file.parent for file in source.rglob("data.mdb"))]) or [source]


_Codec = Callable[[bytes], Any]
_LISTS_OF_KEYS = (b"keys", b"__keys__")
_LOOKED_AT = 9  # records that tell how all are written
_LZ4 = b"\x04\x22\x4d\x18"
# What stands where in the lists that preprocess Conceptual Captions, told by their lengths.
_VILBERT = ("features", "cls_prob", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")
_CLASSES = ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "attr_scores")
_VOLTA = ("features", "cls_prob", *_CLASSES, *_VILBERT[2:])
_LISTS = {len(names): names for names in (_VILBERT, _VOLTA)}


def codec_of(environment: Environment) -> _Codec:
    """How the values are written: most of the first, of which one may be damaged.

    Raises:
        UsageError: they are of no known kind.
    """
    values = [environment.read(entry) for entry in _first(environment)]
    found = Counter(filter(None, map(_codec_of, values))).most_common(1)
    if found:
        return found[0][0]
    if not values:
        raise UsageError(f"{environment.path} has no records, or all its pages are damaged")
    problem = f"{environment.path}: its values are no msgpack, npz or pickle of an image's arrays"
    if values[0].startswith(_LZ4):
        raise UsageError(f"{problem}, but lz4 of something, as UNITER's txt_db: give its img_db")
    raise UsageError(
        f"{problem}, the first begins with {values[0][:8]!r}: tensorpack 0.8 wrote by pyarrow what no pyarrow of today "
        "reads, write it anew with TENSORPACK_SERIALIZE=msgpack"
    )


def _codec_of(value: bytes) -> _Codec | None:
    if value[:2] == b"PK":
        return read_npz
    if value[:1] == b"\x80" and value[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return unpickle
    if 0x81 <= (value[:1] or b"\0")[0] <= 0x9F or value[:1] in (b"\xdc", b"\xdd", b"\xde", b"\xdf"):
        return _unpack
    return None


PICKLED = (unpickle,)


def _first(environment: Environment) -> list[Entry]:
    return list(islice((entry for entry in environment.entries() if entry.key not in _LISTS_OF_KEYS), _LOOKED_AT))


def _is_numbered(environment: Environment, codec: _Codec) -> bool:
    """Whether its keys are running numbers, as tensorpack's, and its records name their images."""
    first = _first(environment)
    keys = [entry.key for entry in first]
    if not all(key.isdigit() for key in keys):
        return False
    # Eight digits with zeros in front, of which a damaged page may have the first; or 0, 1, 10, 100 of old ones.
    steps = [int(later) - int(key) for key, later in pairwise(keys)]
    padded = len(set(map(len, keys))) == 1 and keys[:1] < [b"1"] and 2 * steps.count(1) >= len(steps)
    if not (padded or b"".join(keys[:1]).strip(b"0") == b""):
        return False
    for entry in first:
        with suppress(BadRecord):
            if not _named(codec(environment.read(entry))).keys().isdisjoint(NAMES["key"]):
                return True
    return False


def _named(found: Any) -> dict[str, Any]:
    if isinstance(found, list | tuple):
        if len(found) not in _LISTS:
            raise BadRecord(f"it is a list of {len(found)} things, not of {' or '.join(map(str, _LISTS))}")
        return dict(zip(_LISTS[len(found)], found, strict=True))
    if not isinstance(found, dict):
        raise BadRecord(f"it holds {type(found).__name__}, not a dictionary of arrays")
    return {str(name.decode() if isinstance(name, bytes) else name): thing for name, thing in found.items()}


def _lost(problem: str) -> Mapping[str, Any]:
    raise BadRecord(f"{problem}: its records are lost")


def _json_of(source: Path) -> Path:
    return source.parent / f"nbb_{source.name.removeprefix('feat_').removesuffix('_compressed')}.json"


def _numbers_of_boxes(source: Path) -> dict[str, int] | None:
    path = _json_of(source)
    if not path.exists():
        return None
    try:
        return {str(key): int(number) for key, number in read_json(path).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} is no list of numbers of boxes ({error})") from None


def _unpack(value: bytes) -> Any:
    try:
        # Lists are made in the length that they say before they are read, and may stand in each other.
        lists = {"max_array_len": 4096, "max_map_len": 4096, "max_ext_len": 0}
        return msgpack.unpackb(value, raw=False, object_hook=_array, strict_map_key=False, **lists)
    except BadRecord:
        raise
    except Exception as error:  # msgpack's errors have no common base
        raise BadRecord(f"it is no msgpack ({type(error).__name__}: {error})") from None


def _array(entry: dict[Any, Any]) -> Any:
    """An array as msgpack-numpy writes it: {nd, type, kind, shape, data}."""
    entry = {name.decode() if isinstance(name, bytes) else name: thing for name, thing in entry.items()}
    if "nd" not in entry:
        return entry
    try:
        dtype = np.dtype(entry["type"].decode() if isinstance(entry["type"], bytes) else entry["type"])
        shape = tuple(int(side) for side in entry.get("shape", ()))
        data = entry["data"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord(f"an array of it is damaged ({error})") from None
    if dtype.kind not in "biuf" or not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise BadRecord(f"an array of it says {dtype}{list(shape)} and has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)
