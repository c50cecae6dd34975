"""Commands that make data: photographs, captions and published features to stores; and what checks it."""

from __future__ import annotations

import itertools
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagebert.cli.commands import command
from imagebert.cli.options import (
    FEATURES,
    add_json,
    add_overwrite,
    add_target,
    lines_of,
    name_and_value,
    part,
    positive,
)
from imagebert.cli.printing import check_writable, print_table, write_json
from imagebert.errors import UsageError


def _extract_options(parser: ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of pictures")
    parser.add_argument("out", type=Path, metavar="OUT", help="region store to write")
    parser.add_argument("--extractor", type=Path, required=True, help="YAML description of detector and backbone")
    parser.add_argument("--features", choices=FEATURES, default="int8")
    parser.add_argument(
        "--decoder",
        choices=["auto", "pillow", "dali"],
        default="auto",
        help="of JPEGs (%(default)s: DALI where it is installed and there is a GPU, else Pillow)",
    )
    parser.add_argument("--part", type=part, default=(0, 1), metavar="K/N", help="every Nth picture from the Kth on")
    add_overwrite(parser)


@command("extract", "Photographs to a region store; ranks share the work", _extract_options, ranks="all", header=True)
def extract(parsed: Namespace) -> int:
    from imagebert.launch import see_own_gpu
    from imagebert.regions.extract import extract, other_files
    from imagebert.regions.extractor import DetectorExtractor
    from imagebert.workers import workers

    see_own_gpu()
    with workers() as team:
        extractor = DetectorExtractor(parsed.extractor)
        settings = parsed.features, parsed.overwrite, *parsed.part, parsed.decoder, team
        done = extract(parsed.images, parsed.out, extractor, *settings)
        others = f"; {other_files(done.others)}" if done.others else ""
        if team.rank == 0:
            print(f"{done.pictures} pictures: {done.stored} stored in {parsed.out}, {done.refused} refused{others}")
    return 0


def _pairs_options(parser: ArgumentParser) -> None:
    parser.add_argument("captions", type=Path, metavar="CAPTIONS", help="a table, or a file as a project publishes it")
    parser.add_argument("out", type=Path, metavar="OUT", help="pair store to write")
    parser.add_argument("--vocab", type=Path, required=True, help="a BERT's folder, or its vocab.txt")
    parser.add_argument(
        "--format",
        choices=["auto", "table", "list", "coco", "karpathy", "flickr", "cc", "sbu", "img2dataset", "webdataset"],
        default="auto",
        help="of CAPTIONS; auto goes by its content (%(default)s)",
    )
    parser.add_argument("--columns", help="names of the columns of a file without a header line, comma-separated")
    for column in ("image", "caption", "split", "relevance"):
        parser.add_argument(f"--{column}-column", default=column, metavar="NAME", help="of a table (%(default)s)")
    parser.add_argument(
        "--image-key",
        metavar="PATTERN",
        help="key in the region store, made of {image} {stem} {id} {row} {url} {crc32}, such as COCO_val2014_{id:012d}",
    )
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME=FILE", help="images of a split, one a line; repeatable"
    )
    parser.add_argument(
        "--regions",
        action="append",
        default=[],
        metavar="STORE",
        help="leave out, and list, captions of images that are in none of these stores; repeatable",
    )
    parser.add_argument(
        "--match",
        choices=["exact", "nfc", "casefold", "stem", "number"],
        help="how an image's name and its key in STORE may differ: é written in another way, also in capitals, also in "
        "folders and suffix, also in all but a number (exact)",
    )
    parser.add_argument("--strict", action="store_true", help="a caption that cannot be used is an error")
    add_overwrite(parser)


@command("pairs", "Captions to a pair store", _pairs_options, ranks="first_others_wait", header=True)
def pairs(parsed: Namespace) -> int:
    from imagebert.data.captions import Captions, Columns
    from imagebert.data.folder import clear_lock
    from imagebert.data.keys import InStores, Keys, keys_of
    from imagebert.data.pairs import Caption, PairStore, write_pairs
    from imagebert.data.regions import RegionStore
    from imagebert.data.splits import SplitList, Splits
    from imagebert.data.tokens import Tokenizer
    from imagebert.data.transfer import describe_sources
    from imagebert.files import digest_of
    from imagebert.log import track

    given = [(*name_and_value(item, "--split", "NAME=FILE"), f"--split {item}") for item in parsed.split]
    splits = Splits([SplitList(name, lines_of(Path(file), where), where) for name, file, where in given])
    if parsed.match and not parsed.regions:
        raise UsageError(f"--match {parsed.match} finds images in region stores: name them with --regions STORE")
    stores = [RegionStore(path) for path in parsed.regions]
    columns = Columns(
        image=parsed.image_column,
        caption=parsed.caption_column,
        split=parsed.split_column,
        relevance=parsed.relevance_column,
        names=tuple(parsed.columns.split(",")) if parsed.columns else None,
    )
    captions = Captions(parsed.captions, parsed.format, columns, parsed.image_key, splits, parsed.strict)
    tokenizer = Tokenizer(parsed.vocab)
    options = [parsed.format, vars(columns), parsed.image_key, splits.plain, tokenizer.digest]
    if stores:
        options += [parsed.match, [store.content for store in stores]]
    job = digest_of([describe_sources([parsed.captions]), options])
    keys = Keys(keys_of(stores), parsed.match or "exact") if stores else None
    found = InStores(captions, keys, " and ".join(map(str, parsed.regions)))

    def chosen() -> Iterator[Caption]:
        yield from found
        splits.check()

    def origin() -> dict[str, Any]:
        notes = [*splits.notes(), *found.notes()]
        return {"job": job, **vars(captions.counts), "without_regions": sum(found.missing.values()), "notes": notes}

    def lists() -> dict[str, list[str]]:
        return {"without_regions.txt": list(found.missing)} if found.missing else {}

    there = (parsed.out / "meta.json").is_file() and not parsed.overwrite
    if there and PairStore(parsed.out).meta["origin"].get("job") == job:  # this very call has ended well
        clear_lock(parsed.out)  # where it was killed just behind its last rename
    else:
        dataset, refuse = (lambda: captions.dataset), captions.refuse
        write_pairs(
            parsed.out,
            track(chosen(), f"Writing {parsed.out.name}", "captions"),
            tokenizer,
            parsed.overwrite,
            dataset,
            origin,
            lists,
            refuse,
        )
    store = PairStore(parsed.out)
    counts = {"not_downloaded": 0, "without_regions": 0, "notes": [], **store.meta["origin"]}
    apart = sum(counts[name] for name in ("refused", "left_out", "not_downloaded", "without_regions"))
    if counts["came"] != len(store) + apart:
        raise OSError(f"{counts} do not add up to the {len(store)} captions in {parsed.out}: do not use it")
    print(f"{len(store.images)} images; splits: {', '.join(store.splits)}")
    left_out = f", {counts['left_out']} of other images left out" if counts["left_out"] else ""
    left_out += f", {counts['not_downloaded']} of images not downloaded" if counts["not_downloaded"] else ""
    left_out += f", {counts['without_regions']} of images without regions" if counts["without_regions"] else ""
    print(f"{counts['came']} captions: {len(store)} stored in {parsed.out}, {counts['refused']} refused{left_out}")
    shared = store.in_two_splits()
    first = [f"{len(shared):,} images have captions in several splits, such as {shared[0]!r}"] if shared else []
    for line in [*counts["notes"], *first]:
        print(f"note: {line}")
    return 0


def _import_options(parser: ArgumentParser) -> None:
    parser.add_argument("format", metavar="FORMAT", help="auto, or one that `imagebert import formats` lists")
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="SRC ... OUT", help="what to read, and the store to write"
    )
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the region classes, one a line")
    parser.add_argument("--extractor", default="", metavar="NAME", help="what made the features, for meta.json")
    parser.add_argument("--strict", action="store_true", help="an image that cannot be used is an error")
    parser.add_argument("--dry-run", action="store_true", help="say what SRC holds and how it would be read, no more")
    parser.add_argument(
        "--layout",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="how it is to be read, where that is not what was found; any number",
    )
    add_target(parser, "int8")


@command(
    "import",
    "Published region features to a region store; ranks share the work",
    _import_options,
    ranks="all",
    header=True,
)
def import_(parsed: Namespace) -> int:
    from imagebert.data.readers.detect import detect
    from imagebert.data.readers.source import FORMATS, LaidOutReader, class_names, open_reader, survey
    from imagebert.data.transfer import Target, describe_sources
    from imagebert.workers import workers

    if parsed.format == "formats":
        for listed, format_ in {"auto": ("whichever of these it is",), **FORMATS}.items():
            print(f"{listed:20} {format_[0]}")
        return 0
    if len(parsed.paths) < 2 - parsed.dry_run:
        raise UsageError("name what to read and the store to write: imagebert import FORMAT SRC OUT")
    sources, out = parsed.paths[:-1] or parsed.paths, parsed.paths[-1]
    classes = class_names(parsed.classes, lines_of(parsed.classes, "--classes")) if parsed.classes else []
    given = dict(name_and_value(text, "--layout") for text in parsed.layout)
    with workers() as team:
        name = team.agreed(lambda: detect(sources)) if parsed.format == "auto" else parsed.format
        reader = open_reader(name, sources, classes)
        # Visual Genome's classes, when their names are not told: most published features have them.
        names = classes or [f"object {number}" for number in range(1600)]
        found = team.agreed(lambda: survey(reader, f"{sources[0]}: {name}", len(names), given))
        if team.rank == 0:
            whose = str(parsed.classes) if classes else "Visual Genome, not told"
            print("\n".join(found.lines(whose)), flush=True)
        if parsed.dry_run:
            return 0
        layout = found.layout.described()
        extractor = {"name": parsed.extractor or name, "digest": None, "imported_from": name}
        target = Target(
            *(out, names, {**extractor, "layout": layout}, parsed.features, parsed.shard_gib << 30, parsed.overwrite),
            feature_size=found.layout.size,
            has_classes=found.layout.has_classes,
        )
        known = (
            describe_sources([*sources, *reader.beside]) if team.rank == 0 else []
        )  # which alone asks whether it is the same
        job = {"import": name, "layout": layout, "sources": known, "classes": names}
        return _transfer(LaidOutReader(reader, found.layout), target, job, parsed.strict, team)


def _transfer(reader: Any, target: Any, job: dict[str, Any], strict: bool, team: Any) -> int:
    from imagebert.data.transfer import transfer

    done = transfer(reader, target, job, strict=strict, workers=team)
    if team.rank == 0:
        padding = f", {done.padding} rows of padding left out" if done.padding else ""
        print(f"{done.came} images: {done.stored} stored in {target.path}, {done.refused} refused{padding}")
    return 0


def _verify_options(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="one of them, or a folder of many")
    parser.add_argument("--threads", type=positive, default=None, help="(one a core)")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="first add digests to what is older, and take a changed model as it is",
    )
    add_json(parser)


@command(
    "verify",
    "Compare stores, models, runs and evaluations with their checksums, byte for byte",
    _verify_options,
    ranks="first_others_wait",
)
def verify(parsed: Namespace) -> int:
    from imagebert.verify import accept
    from imagebert.verify import verify as verify_path

    check_writable(parsed.json)
    if parsed.accept:
        print("\n".join(accept(parsed.path)) or "there is nothing to accept")
    from imagebert.log import Progress

    with Progress("Verifying", None, "looks") as progress:
        looks = itertools.count(1)
        found = verify_path(
            parsed.path, parsed.threads or os.cpu_count() or 1, lambda w: progress.update(next(looks), w)
        )
    print_table(
        str(parsed.path),
        [
            {
                "": f.kind,
                "where": os.path.relpath(f.path, parsed.path),
                "holds": f.holds,
                "damaged": len(f.problems) or "",
            }
            for f in found
        ],
    )
    write_json(parsed.json, {"damaged": sum(len(f.problems) for f in found), "found": [f._asdict() for f in found]})
    problems = [problem for f in found for problem in f.problems]
    for line in problems:
        print(f"imagebert: {line}", file=sys.stderr)
    return 1 if problems else 0
