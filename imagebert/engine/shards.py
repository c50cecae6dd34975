"""The files of a checkpoint: each rank's fragments of weights and moments, in the safetensors format.

A shard holds one float32 tensor of [n] for each of weight, exp_avg and exp_avg_sq; which elements of which parameters
they are, piece behind piece, stands in the manifest (checkpoints.py). Reading takes from any number of shards what one
rank needs, and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from imagebert.config import UsageError
from imagebert.engine.states import MOMENTS
from imagebert.files import file_digest

_BLOCK = 8 << 20


class Piece(NamedTuple):
    """Elements start to start + n - 1 of a parameter, flattened."""

    name: str
    start: int
    n: int


class Snapshot(NamedTuple):
    """What one rank has to save, as it was at one step."""

    pieces: list[Piece]
    values: dict[str, Tensor]  # weight, exp_avg, exp_avg_sq: [sum of n] float32 on the host


def write_shard(path: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Writes and fsyncs a shard; returns its size, digest and pieces for the manifest. Other threads run meanwhile.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    header, end = {}, 0
    for key, value in snapshot.values.items():
        begin, end = end, end + 4 * len(value)
        header[key] = {"dtype": "F32", "shape": [len(value)], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:

        def write(data: memoryview) -> None:
            while data:
                written = file.write(data[:_BLOCK])
                digest.update(data[:written])
                data = data[written:]

        write(memoryview(len(text).to_bytes(8, "little") + text))
        for value in snapshot.values.values():
            write(value.numpy().data.cast("B"))
        os.fsync(file.fileno())
    return {
        "file": path.name,
        "bytes": 8 + len(text) + end,
        "sha256": digest.hexdigest(),
        "pieces": [list(piece) for piece in snapshot.pieces],
    }


def describes_a_shard(entry: Any) -> bool:
    """Whether an entry of a manifest has the form that `write_shard` gives it."""
    if not isinstance(entry, dict):
        return False
    file, pieces = entry.get("file"), entry.get("pieces")
    return (
        isinstance(file, str)
        and re.fullmatch(r"shard-[0-9]+\.safetensors", file) is not None
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
        and isinstance(pieces, list)
        and all(isinstance(p, list) and [type(x) for x in p] == [str, int, int] and min(p[1:]) >= 0 for p in pieces)
    )


def shard_problem(folder: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with a shard's file, by its entry in the manifest; None: nothing.

    Raises:
        OSError: the disk fails.
    """
    path = folder / entry["file"]
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        if path.stat().st_size != entry["bytes"] or file_digest(path) != entry["sha256"]:
            return f"{path.name} has changed since it was written"
        with safe_open(path, framework="pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            found = {key: (part.get_dtype(), part.get_shape()) for key, part in parts.items()}
    except (UsageError, SafetensorError) as error:
        return f"{path.name} cannot be read ({error})"
    elements = sum(n for _, _, n in entry["pieces"])
    if found != dict.fromkeys(("weight", *MOMENTS), ("F32", [elements])):
        return f"{path.name} does not hold what manifest.json says"
    return None


class Shards:
    """The shards of one checkpoint, opened for reading; what is not asked for is not read.

    Args:
        shards: as `write_shard` returned them
    """

    def __init__(self, folder: Path, shards: Sequence[dict[str, Any]]) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        # Of each parameter: start, end, file, and where in it.
        self._places: dict[str, list[tuple[int, int, str, int]]] = defaultdict(list)
        for shard in shards:
            offset = 0
            for name, start, n in shard["pieces"]:
                self._places[name].append((start, start + n, shard["file"], offset))
                offset += n

    def read(self, name: str, key: str, start: int, into: Tensor) -> None:
        """Fills `into` [n] with elements `start` to `start` + n - 1 of a parameter's weight or moment.

        Raises:
            UsageError: the checkpoint does not have them.
        """
        missing = len(into)
        for first, last, file, offset in self._places[name]:
            low, high = max(first, start), min(last, start + len(into))
            if low < high:
                at = offset + low - first
                into[low - start : high - start].copy_(self._open(file).get_slice(key)[at : at + high - low])
                missing -= high - low
        if missing:
            raise UsageError(
                f"{self.folder} lacks {missing} of {len(into)} elements of {name}: it is of another model; give "
                "another output folder"
            )

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UsageError(f"cannot read {self.folder / file}: {error}") from None
        return self._files[file]
