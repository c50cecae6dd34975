"""LMDBs of other projects. UNITER: msgpack of arrays, or compressed npz, with the numbers of boxes in a json beside.
ViLBERT and MMF: pickles of dictionaries, arrays in them raw or as base64. The gate of msgpack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from imagebert.config import UsageError
from imagebert.data.environments import Entry
from imagebert.data.environments import Reader as Environment
from imagebert.data.readers import BadRecord, Item, share_of
from imagebert.data.readers.fields import decode_base64, record_from
from imagebert.data.readers.folders import read_npz
from imagebert.data.readers.unpickle import unpickle
from imagebert.data.records import RegionRecord
from imagebert.files import read_json


class _LmdbReader:
    """Shares are runs of keys."""

    _list_of_keys: bytes  # no image

    def __init__(self, sources: Sequence[Path]) -> None:
        self._environments = [Environment(source) for source in sources]

    def size(self, share: int, shares: int) -> int:
        return sum(len(share_of(len(environment), share, shares)) for environment in self._environments)

    def items(self, share: int, shares: int) -> Iterator[Item]:
        done = 0
        for environment in self._environments:
            mine = share_of(len(environment), share, shares)
            for entry in islice(environment.entries(), mine.start, mine.stop):
                done += 1
                if entry.key != self._list_of_keys:
                    key = entry.key.decode("utf-8", "replace")
                    load = partial(self._load, environment, entry)
                    yield Item(f"{environment.path}, key {key!r}", key, load, done)
            if share == shares - 1:  # it has met all pages
                for problem in environment.damaged:
                    yield Item(problem, "", partial(_lost, problem), done)

    def _load(self, environment: Environment, entry: Entry) -> RegionRecord:
        return self._record(environment, entry.key.decode("utf-8", "replace"), environment.read(entry))

    def _record(self, environment: Environment, key: str, value: bytes) -> RegionRecord:
        raise NotImplementedError


class UniterReader(_LmdbReader):
    """Numbers of boxes come from nbb_X.json beside an LMDB called feat_X or feat_X_compressed, where it exists."""

    _list_of_keys = b"__keys__"

    def __init__(self, sources: Sequence[Path]) -> None:
        super().__init__(sources)
        self._numbers = {source: _numbers_of_boxes(source) for source in sources}

    def _record(self, environment: Environment, key: str, value: bytes) -> RegionRecord:
        numbers = self._numbers[environment.path]
        fields = read_npz(value) if bytes(value[:2]) == b"PK" else _unpack(value)
        if numbers is not None and key not in numbers:
            raise BadRecord("the json of numbers of boxes has no such key")
        return record_from(fields, None if numbers is None else numbers[key])


class VilbertReader(_LmdbReader):
    _list_of_keys = b"keys"

    def _record(self, environment: Environment, key: str, value: bytes) -> RegionRecord:
        found = unpickle(bytes(value))
        if not isinstance(found, dict):
            raise BadRecord(f"its pickle holds {type(found).__name__}, not a dictionary")
        fields = {name.decode() if isinstance(name, bytes) else name: thing for name, thing in found.items()}
        rows = fields.get("num_boxes")
        for name in ("features", "boxes", "cls_prob"):
            if isinstance(fields.get(name), str | bytes):
                if not isinstance(rows, int | str | np.integer) or not str(rows).isdecimal():
                    raise BadRecord(f"{name} is base64, and num_boxes is {rows!r}")
                fields[name] = decode_base64(fields[name], "<f4", name, int(rows))
        return record_from(fields)


def _lost(problem: str) -> RegionRecord:
    raise BadRecord(f"{problem}: its records are lost")


def _numbers_of_boxes(source: Path) -> dict[str, int] | None:
    path = source.parent / f"nbb_{source.name.removeprefix('feat_').removesuffix('_compressed')}.json"
    if not path.exists():
        return None
    try:
        return {str(key): int(number) for key, number in read_json(path).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} is no list of numbers of boxes ({error})") from None


def _unpack(value: bytes) -> dict[str, Any]:
    try:
        # Lists are made in the length that they say before they are read, and may stand in each other.
        lists = {"max_array_len": 4096, "max_map_len": 4096, "max_ext_len": 0}
        fields = msgpack.unpackb(value, raw=False, object_hook=_array, strict_map_key=False, **lists)
    except BadRecord:
        raise
    except Exception as error:  # msgpack's errors have no common base
        raise BadRecord(f"it is no msgpack ({type(error).__name__}: {error})") from None
    if not isinstance(fields, dict):
        raise BadRecord(f"it holds {type(fields).__name__}, not a map of arrays")
    return fields


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
