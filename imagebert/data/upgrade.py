"""Stores of older versions, given the digests that they lack; what they hold stays as it is.

Region stores of version 2 and pair stores of version 1 differ from today's in their meta.json and index only. A call
that was killed is made again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from imagebert.data.pairs import VERSION as PAIRS_VERSION
from imagebert.data.pairs import seal_pairs
from imagebert.data.records import WHOLE_IMAGE, Sections, decode_record
from imagebert.data.regions import INDEX_FIELDS, content_of, describe_array, find_shard
from imagebert.data.regions import VERSION as REGIONS_VERSION
from imagebert.errors import UsageError
from imagebert.files import open_regular, read_json, replacing, write_sealed


def is_older(meta: Any) -> bool:
    """Whether a meta.json is of a version that `upgrade` knows."""
    versions = {"imagebert-regions": 2, "imagebert-pairs": 1}
    return (
        isinstance(meta, dict) and "digest" not in meta and meta.get("version") == versions.get(meta.get("format", ""))
    )


def upgrade(path: Path) -> None:
    """Gives a store of an older version its digests, after every record was compared with its own checksum.

    Raises:
        UsageError: it is none, or is damaged.
        OSError: the disk is full or failing.
    """
    meta = read_json(path / "meta.json")
    if not is_older(meta):
        raise UsageError(f"{path} is of no older version")
    try:
        if meta["format"] == "imagebert-pairs":
            _upgrade_pairs(path, meta)
        else:
            _upgrade_regions(path, meta)
    except (KeyError, TypeError, ValueError, IndexError, EOFError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}): restore it, or make it anew") from None


def _upgrade_pairs(path: Path, meta: dict[str, Any]) -> None:
    pieces, ends = (np.load(path / f"{name}.npy", allow_pickle=False) for name in ("pieces", "piece_ends"))
    parts = np.split(pieces, ends[:-1])
    digests = b"".join(hashlib.blake2b(part.astype("<u2").tobytes(), digest_size=8).digest() for part in parts)
    np.save(path / "piece_digests.npy", np.frombuffer(digests, "<u8"), allow_pickle=False)
    seal_pairs(path, {"dataset": "", **meta, "version": PAIRS_VERSION})


def _upgrade_regions(path: Path, meta: dict[str, Any]) -> None:
    old = np.load(path / "index.npy", allow_pickle=False)
    types = old.dtype["key"], "<u2", "u1", "<u2", "<u8", "<u4"
    index = np.empty(len(old), dtype=list(zip(INDEX_FIELDS, types, strict=True)))
    for name in ("key", "regions", "shard", "offset"):
        index[name] = old[name]
    size = meta["feature_size"] * np.dtype(meta["feature_type"]).itemsize
    sizes = Sections.of(old["regions"].astype(np.int64), size).end
    for number, shard in enumerate(meta["shards"]):
        with open_regular(find_shard(path, meta.get("origin"), shard) / "data.mdb") as file:
            for row in np.flatnonzero(old["shard"] == number).tolist():
                file.seek(int(old["offset"][row]))
                data = file.read(int(sizes[row]))
                record = decode_record(data, f"record {old['key'][row].decode('utf-8', 'replace')!r} of {path}")
                index["whole"][row] = record.classes[0] == WHOLE_IMAGE
                index["checksum"][row] = int.from_bytes(data[-4:], "little")
    with replacing(path / "index.npy", ".npy") as part:
        np.save(part, index, allow_pickle=False)
        description = describe_array(part)
    meta = {name: value for name, value in meta.items() if name != "whole_image"}
    meta |= {"version": REGIONS_VERSION, "whole_images": int(index["whole"].sum()), "index": description}
    meta |= {"job": None, "made_from": [], "refused": 0}
    write_sealed(path / "meta.json", {**meta, "content": content_of(meta, index)})
