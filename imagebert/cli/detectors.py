"""Commands about the detector that finds regions."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagebert.cli.commands import Command, command
from imagebert.cli.options import add_json, positive
from imagebert.cli.printing import check_json, print_table, write_json


def _convert_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "weights", type=Path, metavar="WEIGHTS", help="as MILVLG, airsplay or transformers publish them"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, .safetensors")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="their names, one a line: objects_vocab.txt")
    parser.add_argument("--attributes", type=Path, metavar="FILE", help="their names: attributes_vocab.txt")


@command("convert", "Published weights as one file with rules, names and digests", _convert_options)
def convert(parsed: Namespace) -> int:
    from imagebert import api

    done = api.convert_detector(parsed.weights, parsed.out, classes=parsed.classes, attributes=parsed.attributes)
    print(
        f"{done.path}: {done.variant}, {done.classes} classes, {done.attributes} attributes, weights {done.sha256[:12]}"
    )
    return 0


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="published, or converted")
    parser.add_argument("published", type=Path, metavar="STORE", help="published regions, imported")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of their pictures")
    parser.add_argument("--boxes", default="", metavar="N[-M]", help="regions a picture has (as many as STORE's have)")
    parser.add_argument("--most", type=positive, default=10, metavar="N", help="pictures to compare (%(default)s)")
    add_json(parser)


@command(
    "check",
    "Whether weights fit regions that somebody published; exit 1: they do not",
    _check_options,
    ranks="first_others_wait",
)
def check(parsed: Namespace) -> int:
    from imagebert import api

    check_json(parsed.json)
    detector = api.VisualGenome(weights=str(parsed.weights), boxes=parsed.boxes)
    done = api.check_detector(detector, parsed.published, parsed.images, most=parsed.most)
    rows = [picture._asdict() for picture in done.pictures]
    shown = [{name: "-" if value is None else value for name, value in row.items()} for row in rows]
    print_table(f"{len(rows)} pictures of {parsed.published}", shown)
    if done.missing:
        print(f"{done.missing} pictures are not in {parsed.images}, or cannot be read")
    print(done.verdict)
    write_json(parsed.json, {"fits": done.fits, "verdict": done.verdict, "missing": done.missing, "pictures": rows})
    return 0 if done.fits else 1


detector = Command(
    "detector",
    "Convert and check the weights of the Visual Genome detector",
    options=lambda parser: None,
    run=None,
    actions=(convert, check),
)
