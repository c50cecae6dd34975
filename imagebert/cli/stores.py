"""`imagebert store`: look at region stores, check them, make others of them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from itertools import islice
from pathlib import Path

from imagebert.cli.commands import Command, command, former
from imagebert.cli.data import verify
from imagebert.cli.options import add_json, add_target, part, positive, store_options
from imagebert.cli.printing import is_first, print_report, print_transferred, write_json
from imagebert.errors import UsageError


def _inspect_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")
    add_json(parser)


@command("inspect", "What a store holds", _inspect_options)
def inspect(parsed: Namespace) -> int:
    from imagebert import api

    figures = api.inspect(parsed.path)
    print_report(str(parsed.path), figures)
    write_json(parsed.json, figures)
    return 0


def _keys_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")


@command("keys", "The keys of a store's images, one a line, sorted", _keys_options)
def keys(parsed: Namespace) -> int:
    from imagebert import api

    listed = api.keys(parsed.path)
    while block := list(islice(listed, 1 << 16)):
        print("\n".join(block))
    return 0


def _merge_options(parser: ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="STORE ... OUT")
    add_target(parser, None)


@command("merge", "One store of several", _merge_options, ranks="all", header=True)
def merge(parsed: Namespace) -> int:
    from imagebert import api

    if len(parsed.paths) < 2:
        raise UsageError("name the stores and the one to write: imagebert store merge STORE STORE ... OUT")
    *sources, out = parsed.paths
    print_transferred(api.merge(sources, out, options=store_options(parsed)), out)
    return 0


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
    from imagebert import api

    done = api.split(parsed.path, parsed.out, keys=parsed.keys, parts=parsed.parts, options=store_options(parsed))
    for out, counts in done.items():
        print_transferred(counts, out)
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
    from imagebert import api

    quantized = api.quantize(parsed.path, parsed.out, options=store_options(parsed))
    print_transferred(quantized.done, parsed.out)
    if is_first():
        error = quantized.relative_error
        print(f"root-mean-square error {error:.3%} of the features' own root-mean-square")
    return 0


def _localise_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STORE")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="K/N", help="every Nth shard from the Kth on")
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--room", type=positive, metavar="GIB", help="stop before more than this")
    room.add_argument("--as-fits", action="store_true", help="leave a tenth of the disk free")


@command(
    "localise",
    "Copy shards to a local disk; the folder is a store that reads the others from afar",
    _localise_options,
    ranks="all",  # each node copies for itself
    header=True,
)
def localise(parsed: Namespace) -> int:
    from imagebert import api
    from imagebert.log import place, prefix

    done = api.localise(parsed.path, parsed.folder, part=parsed.part, room_gib=parsed.room, as_fits=parsed.as_fits)
    left = f"the others are read from {parsed.path}"
    whose = prefix() if place().ranks > 1 else ""  # one is on each node
    print(f"{whose}{done.there} of {done.shards} shards are in {done.folder}; {left}")
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
        localise,
        former("stage", localise, "store"),
    ),
)
