"""Region stores from Python: look at them, make others of them, bring them to a node's own disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebert.data.localise import localise as copy_shards
from imagebert.data.localise import room_to_localise, shards_to_localise
from imagebert.data.readers import share_of
from imagebert.data.records import FeatureType
from imagebert.data.region_writer import Target
from imagebert.data.regions import RegionStore
from imagebert.data.transfer import StoreReader, Transferred, transfer
from imagebert.errors import UsageError
from imagebert.files import text_lines
from imagebert.log import Progress
from imagebert.workers import workers

PathLike = str | os.PathLike[str]
# One, or several.
Paths = PathLike | Sequence[PathLike]
# A file of names, one a line, or the names themselves.
Names = PathLike | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Says how a region store is written.

    Args:
        features: The type in which features are stored. None keeps the type that they have.
        shard_gib: The size of a shard in GiB.
        overwrite: Whether a store that is already there is replaced, once the new one is whole.
    """

    features: FeatureType | None = None
    shard_gib: int = 4
    overwrite: bool = False


@dataclass(frozen=True)
class Localised:
    """Describes the copy of a region store that `imagebert.api.localise` left on a local disk.

    Attributes:
        folder: The folder of the copy.
        there: The number of shards that are in it.
        shards: The number of shards that the whole store has.
    """

    folder: Path
    there: int
    shards: int


@dataclass(frozen=True)
class Quantized:
    """Describes what `imagebert.api.quantize` wrote.

    Attributes:
        done: How many images came and were stored.
        relative_error: The root-mean-square error that the new type causes, as a share of the features' own
            root-mean-square.
    """

    done: Transferred
    relative_error: float


def inspect(store: PathLike) -> dict[str, Any]:
    """Says what a region store holds: counts of images and regions, sizes, and the features' type and statistics.

    Args:
        store: The region store.

    Returns:
        Each of these by its name.

    Raises:
        UsageError: There is no store, or it is damaged.
    """
    opened = RegionStore(Path(store))
    return {
        "images": len(opened),
        "regions": int(opened.region_counts.sum()),
        "regions_per_image": float(opened.region_counts.mean()),
        "feature_size": opened.feature_size,
        "feature_type": opened.feature_type,
        "classes": len(opened.classes) if opened.has_classes else "none, all are of class 0",
        "extractor": opened.extractor.get("name"),
        "shards": len(opened.shards),
        "bytes": sum(shard["bytes"] for shard in opened.shards),
        **{f"feature_{name}": value for name, value in opened.statistics.items()},
    }


def keys(store: PathLike) -> Iterator[str]:
    """Lists the keys of a region store's images, sorted.

    Args:
        store: The region store.

    Raises:
        UsageError: There is no store, or it is damaged.
    """
    opened = RegionStore(Path(store))
    return (opened.key(image) for image in range(len(opened)))


def merge(
    stores: Paths,
    out: PathLike,
    *,
    options: StoreOptions = StoreOptions(),
) -> Transferred:
    """Writes one region store of several.

    A call that was killed goes on where it stopped when it is made again. Ranks share the work.

    Args:
        stores: The region stores, which have features of one size and equal classes.
        out: The store to write.
        options: How the store is written.

    Returns:
        How many images came and were stored.

    Raises:
        UsageError: The stores do not fit together, an image is in two of them, or `out` exists already.
        OSError: The disk is full or fails, or another rank is gone.
    """
    return _write(paths_of(stores), Path(out), None, options)


def split(
    store: PathLike,
    out: PathLike,
    *,
    keys: Names | None = None,
    parts: int | None = None,
    options: StoreOptions = StoreOptions(),
) -> dict[Path, Transferred]:
    """Writes chosen images of a region store as another store, or all of them as several stores of equal size.

    Ranks share the work.

    Args:
        store: The region store that is split.
        out: The store to write. With `parts` each store has its number behind this name: out-0, out-1, ...
        keys: The keys of the chosen images, as a list or as a file with one key a line.
        parts: The number of equal parts. Either this or `keys` is given.
        options: How the stores are written.

    Returns:
        For each store how many images came and were stored.

    Raises:
        UsageError: Both or neither of `keys` and `parts` are given, an image is not in the store, or a store to write
            exists already.
        OSError: The disk is full or fails, or another rank is gone.
    """
    if (keys is None) == (parts is None):
        raise UsageError("give either the `keys` of chosen images, or a number of `parts`")
    source, target = Path(store), Path(out)
    if parts is None:
        return {target: _write([source], target, names_of(keys or (), "keys"), options)}
    opened, done = RegionStore(source), {}
    for number in range(parts):
        chosen = [opened.key(image) for image in share_of(len(opened), number, parts)]
        part = target.with_name(f"{target.name}-{number}")
        done[part] = _write([source], part, chosen, options)
    return done


def quantize(
    store: PathLike,
    out: PathLike,
    *,
    options: StoreOptions = StoreOptions(features="int8"),
) -> Quantized:
    """Writes a region store again with smaller features.

    Ranks share the work.

    Args:
        store: The region store whose features are made smaller.
        out: The store to write.
        options: How the store is written, with the type of its features.

    Returns:
        How many images came and were stored, and the error that the new type causes.

    Raises:
        UsageError: There is no such store, or `out` exists already.
        OSError: The disk is full or fails, or another rank is gone.
    """
    done = _write([Path(store)], Path(out), None, options)
    return Quantized(done, RegionStore(Path(out)).statistics["relative_storage_error"])


def _write(sources: list[Path], out: Path, keys: list[str] | None, options: StoreOptions) -> Transferred:
    with workers() as team:
        reader = StoreReader(sources, keys)
        target = Target(
            *(out, reader.classes, reader.extractor, options.features or reader.feature_type),
            shard_bytes=options.shard_gib << 30,
            overwrite=options.overwrite,
            made_from=reader.contents,
            has_classes=reader.has_classes,
            attributes=reader.attributes,
        )
        chosen = keys and hashlib.sha256("\n".join(keys).encode()).hexdigest()
        return transfer(reader, target, {"stores": reader.contents, "keys": chosen}, strict=True, workers=team)


def localise(
    store: PathLike,
    folder: PathLike,
    *,
    part: tuple[int, int] = (0, 1),
    room_gib: int | None = None,
    as_fits: bool = False,
) -> Localised:
    """Copies shards of a region store to a local disk.

    The folder of the copies is a region store itself, which reads all other shards from where they are.

    Args:
        store: The region store that is copied.
        folder: The folder to copy into.
        part: A pair (k, n): only every nth shard is copied, beginning with shard k, where k is 0 to n - 1.
        room_gib: The most GiB that are copied. None sets no limit.
        as_fits: Whether, in place of `room_gib`, as much is copied as leaves a tenth of the disk free.

    Returns:
        How many shards are in the folder now, and how many there are.

    Raises:
        UsageError: The folder holds something else, or a copy differs from what was written.
        OSError: The disk is full or fails; what was copied stays for the next call.
    """
    opened, target = RegionStore(Path(store)), Path(folder)
    room = room_to_localise(target) if as_fits else room_gib << 30 if room_gib else None
    shards = shards_to_localise(opened, *part, room)
    total = sum(shard["file_bytes"] for shard in shards)
    with Progress(f"Localising {Path(store).name}", total, "GB", scale=1e9) as progress:
        for done in copy_shards(opened, target, shards):
            progress.update(done)
    there = sum((target / shard["name"]).exists() for shard in opened.shards)
    return Localised(target, there, len(opened.shards))


def paths_of(given: Paths) -> list[Path]:
    """One path, or several."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(path) for path in given]


def names_of(given: Names, what: str) -> list[str]:
    """Names that are given as a list, or as a file: its lines without spaces around them, and without empty ones.

    Args:
        what: they are, for people

    Raises:
        UsageError: the file cannot be read, or a line of it is no text.
    """
    if not isinstance(given, str | os.PathLike):
        return list(given)
    path = Path(given)
    try:
        lines = list(text_lines(path))
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    # One name less in a list is another list.
    if wrong := next((line for line in lines if line.error), None):
        raise UsageError(f"{what}: {path}, line {wrong.number}: {wrong.error}")
    names = (name.strip() for line in lines for name in line.text.split("\r"))  # a CR alone ends a line, too
    return [name for name in names if name]
