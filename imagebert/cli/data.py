"""Commands that make data: photographs, captions and published features to stores; and what checks it."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from imagebert.cli.commands import command
from imagebert.cli.options import (
    FEATURES,
    add_json,
    add_overwrite,
    add_target,
    name_and_value,
    part,
    positive,
    preview,
    store_options,
)
from imagebert.cli.printing import check_json, is_first, print_table, print_transferred, write_json
from imagebert.errors import UsageError

if TYPE_CHECKING:
    from imagebert.api import VisualGenome


def _extract_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="folder of pictures, or of tars of them; or one tar"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="region store to write")
    parser.add_argument(
        "--extractor",
        type=Path,
        required=True,
        metavar="YAML|vg|WEIGHTS",
        help="description of detector and backbone; or vg, the Visual Genome detector, with --weights; or its weights",
    )
    detector = parser.add_argument_group("the Visual Genome detector")
    detector.add_argument("--weights", type=Path, metavar="FILE", help="published, or converted")
    detector.add_argument("--boxes", default="", metavar="N[-M]", help="regions a picture has, such as 36 or 10-100")
    detector.add_argument("--proposals", type=positive, metavar="N", help="boxes that its second half looks at (300)")
    detector.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="(%(default)s)")
    parser.add_argument("--features", choices=FEATURES, default="int8")
    parser.add_argument(
        "--decoder",
        choices=["auto", "pillow", "dali"],
        default="auto",
        help="of JPEGs (%(default)s: DALI where it is installed and there is a GPU, else Pillow)",
    )
    parser.add_argument("--part", type=part, default=(0, 1), metavar="K/N", help="every Nth picture from the Kth on")
    parser.add_argument(
        "--preview", type=preview, metavar="N", help="also write OUT.preview.html: N pictures, at most 200, with boxes"
    )
    add_overwrite(parser)


@command("extract", "Photographs to a region store; ranks share the work", _extract_options, ranks="all", header=True)
def extract(parsed: Namespace) -> int:
    from imagebert import api

    done = api.extract(
        parsed.images,
        parsed.out,
        _extractor(parsed),
        features=parsed.features,
        decoder=parsed.decoder,
        part=parsed.part,
        overwrite=parsed.overwrite,
    )
    if is_first():
        bare = f"; in {done.without_regions} of those stored no region was found" if done.without_regions else ""
        others = f"; {done.other_files}" if done.others else ""
        print(f"{done.pictures} pictures: {done.stored} stored in {parsed.out}, {done.refused} refused{bare}{others}")
        if parsed.preview:
            page = api.preview_regions(parsed.images, parsed.out, parsed.preview)
            missing = f"; of {page.missing} the picture is gone or cannot be read" if page.missing else ""
            print(f"{page.page} shows the regions of {page.pictures} pictures{missing}")
    return 0


def _extractor(parsed: Namespace) -> Path | VisualGenome:
    from imagebert import api

    named: Path = parsed.extractor
    weights = parsed.weights if str(named) == "vg" else named
    asked = parsed.boxes or parsed.proposals or parsed.precision != "fp32"
    if weights is None:
        raise UsageError("--extractor vg wants --weights FILE")
    if weights is not parsed.weights and (parsed.weights is not None or (asked and named.suffix in (".yaml", ".yml"))):
        raise UsageError(
            "--weights, --boxes, --proposals and --precision are for --extractor vg: write them in its YAML"
        )
    if weights is named and not asked:
        return named
    return api.VisualGenome(
        weights=str(weights), boxes=parsed.boxes, proposals=parsed.proposals, precision=parsed.precision
    )


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
    from imagebert import api

    splits = [name_and_value(text, "--split", "NAME=FILE") for text in parsed.split]
    columns = api.Columns(
        image=parsed.image_column,
        caption=parsed.caption_column,
        split=parsed.split_column,
        relevance=parsed.relevance_column,
        names=tuple(parsed.columns.split(",")) if parsed.columns else None,
    )
    options = api.CaptionOptions(columns=columns, image_key=parsed.image_key, match=parsed.match, strict=parsed.strict)
    done = api.pairs(
        parsed.captions,
        parsed.out,
        parsed.vocab,
        format=parsed.format,
        splits=splits,
        regions=parsed.regions,
        overwrite=parsed.overwrite,
        options=options,
    )
    print(f"{done.images} images; splits: {', '.join(done.splits)}")
    left_out = f", {done.left_out} of other images left out" if done.left_out else ""
    left_out += f", {done.not_downloaded} of images not downloaded" if done.not_downloaded else ""
    left_out += f", {done.without_regions} of images without regions" if done.without_regions else ""
    print(f"{done.came} captions: {done.stored} stored in {parsed.out}, {done.refused} refused{left_out}")
    for note in done.notes:
        print(f"note: {note}")
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
    from imagebert import api

    if parsed.format == "formats":
        for name, what in api.formats().items():
            print(f"{name:20} {what}")
        return 0
    if len(parsed.paths) < 2 - parsed.dry_run:
        raise UsageError("name what to read and the store to write: imagebert import FORMAT SRC OUT")
    sources, out = parsed.paths[:-1] or parsed.paths, parsed.paths[-1]
    layout = dict(name_and_value(text, "--layout") for text in parsed.layout)
    features = api.survey_features(sources, format=parsed.format, classes=parsed.classes, layout=layout)
    if is_first():
        print("\n".join(features.lines), flush=True)
    if not parsed.dry_run:
        options = store_options(parsed)
        done = api.import_features(
            features, out, extractor=parsed.extractor or None, strict=parsed.strict, options=options
        )
        print_transferred(done, out)
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
    from imagebert import api

    check_json(parsed.json)
    if parsed.accept:
        print("\n".join(api.accept(parsed.path)) or "there is nothing to accept")
    found = api.verify(parsed.path, threads=parsed.threads)
    rows = [
        {"": f.kind, "where": os.path.relpath(f.path, parsed.path), "holds": f.holds, "damaged": len(f.problems) or ""}
        for f in found
    ]
    print_table(str(parsed.path), rows)
    problems = [problem for f in found for problem in f.problems]
    write_json(parsed.json, {"damaged": len(problems), "found": [f._asdict() for f in found]})
    for line in problems:
        print(f"imagebert: {line}", file=sys.stderr)
    return 1 if problems else 0
