"""`imagebert store`: look at region stores, check them, make others of them."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from imagebert.cli.commands import Command, command
from imagebert.cli.data import _transfer, verify
from imagebert.cli.options import add_json, add_target, lines_of, part, positive
from imagebert.cli.printing import print_report
from imagebert.errors import UsageError


def _inspect_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")
    add_json(parser)


@command("inspect", "What a store holds", _inspect_options)
def inspect(parsed: Namespace) -> int:
    from imagebert.data.regions import RegionStore

    store = RegionStore(parsed.path)
    print_report(str(parsed.path), _figures(store), parsed.json)
    return 0


def _figures(store: Any) -> dict[str, Any]:
    return {
        "images": len(store),
        "regions": int(store.region_counts.sum()),
        "regions_per_image": float(store.region_counts.mean()),
        "feature_size": store.feature_size,
        "feature_type": store.feature_type,
        "classes": len(store.classes) if store.has_classes else "none, all are of class 0",
        "extractor": store.extractor.get("name"),
        "shards": len(store.shards),
        "bytes": sum(shard["bytes"] for shard in store.shards),
        **{f"feature_{name}": value for name, value in store.statistics.items()},
    }


def _keys_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")


@command("keys", "The keys of a store's images, one a line, sorted", _keys_options)
def keys(parsed: Namespace) -> int:
    from imagebert.data.regions import RegionStore

    store = RegionStore(parsed.path)
    for start in range(0, len(store), 1 << 16):
        print("\n".join(store.key(image) for image in range(start, min(start + (1 << 16), len(store)))))
    return 0


def _merge_options(parser: ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="STORE ... OUT")
    add_target(parser, None)


@command("merge", "One store of several", _merge_options, ranks="all", header=True)
def merge(parsed: Namespace) -> int:
    if len(parsed.paths) < 2:
        raise UsageError("name the stores and the one to write: imagebert store merge STORE STORE ... OUT")
    *sources, out = parsed.paths
    return _write_store(parsed, sources, out, None)


def _split_options(parser: ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--keys", type=Path, metavar="FILE", help="keys of the images, one a line")
    chosen.add_argument("--parts", type=positive, metavar="N")
    parser.add_argument("path", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT")
    add_target(parser, None)


@command(
    "split",
    "The chosen images of a store, or the store in equal parts OUT-0, OUT-1, ...",
    _split_options,
    ranks="all",
    header=True,
)
def split(parsed: Namespace) -> int:
    from imagebert.data.readers import share_of
    from imagebert.data.regions import RegionStore

    if parsed.keys:
        return _write_store(parsed, [parsed.path], parsed.out, lines_of(parsed.keys, "--keys"))
    store = RegionStore(parsed.path)
    for number in range(parsed.parts):
        keys = [store.key(image) for image in share_of(len(store), number, parsed.parts)]
        _write_store(parsed, [parsed.path], parsed.out.with_name(f"{parsed.out.name}-{number}"), keys)
    return 0


def _quantize_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")
    parser.add_argument("out", type=Path, metavar="OUT")
    add_target(parser, "int8")


@command(
    "quantize",
    "The same regions with smaller features; prints the error that it causes",
    _quantize_options,
    ranks="all",
    header=True,
)
def quantize(parsed: Namespace) -> int:
    from imagebert.data.regions import RegionStore

    _write_store(parsed, [parsed.path], parsed.out, None)
    from imagebert.launch import placed

    if placed(os.environ)[0] > 0:
        return 0
    error = RegionStore(parsed.out).statistics["relative_storage_error"]
    print(f"root-mean-square error {error:.3%} of the features' own root-mean-square")
    return 0


def _write_store(parsed: Namespace, sources: list[Path], out: Path, keys: list[str] | None) -> int:
    import hashlib

    from imagebert.data.transfer import StoreReader, Target
    from imagebert.workers import workers

    with workers() as team:
        reader = StoreReader(sources, keys)
        features = parsed.features or reader.feature_type
        shard_bytes = parsed.shard_gib << 30
        target = Target(
            *(out, reader.classes, reader.extractor, features, shard_bytes, parsed.overwrite, reader.contents),
            has_classes=reader.has_classes,
        )
        chosen = keys and hashlib.sha256("\n".join(keys).encode()).hexdigest()
        return _transfer(reader, target, {"stores": reader.contents, "keys": chosen}, True, team)


def _stage_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="K/N", help="every Nth shard from the Kth on")
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--room", type=positive, metavar="GIB", help="stop before more than this")
    room.add_argument("--as-fits", action="store_true", help="leave a tenth of the disk free")


@command(
    "stage",
    "Copy shards to a local disk; the folder is a store that reads the others from afar",
    _stage_options,
    ranks="all",  # each node stages for itself
    header=True,
)
def stage(parsed: Namespace) -> int:
    from imagebert.data.regions import RegionStore
    from imagebert.data.staging import room_for_stage, shards_to_stage, stage

    store = RegionStore(parsed.path)
    room = parsed.room << 30 if parsed.room else None
    if parsed.as_fits:
        room = room_for_stage(parsed.folder)
    part, parts = parsed.part
    shards = shards_to_stage(store, part, parts, room)
    total = sum(shard["file_bytes"] for shard in shards)
    from imagebert.log import Progress

    with Progress(f"Staging {parsed.path.name}", total, "GB", scale=1e9) as progress:
        for done in stage(store, parsed.folder, shards):
            progress.update(done)
    there = sum((parsed.folder / shard["name"]).exists() for shard in store.shards)
    print(f"{there} of {len(store.shards)} shards are in {parsed.folder}; the others are read from {parsed.path}")
    return 0


store = Command(
    "store",
    "Look at region stores, check them, make others of them",
    options=lambda parser: None,
    run=None,
    actions=(
        inspect,
        verify._replace(summary="Compare a store with its checksums, byte for byte"),
        keys,
        merge,
        split,
        quantize,
        stage,
    ),
)
