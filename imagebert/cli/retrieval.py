"""Commands that ask a model: exact R@K, comparisons, search by words and pictures, hard negatives."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from imagebert.cli.commands import command
from imagebert.cli.options import add_data, add_json, port, positive, seed
from imagebert.cli.printing import check_json, is_first, print_recall, print_table, write_json
from imagebert.errors import UsageError

if TYPE_CHECKING:
    from imagebert.api import Data


def _evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="model folder, or a finished run")
    add_data(parser, "test")
    parser.add_argument(
        "--dataset", metavar="NAME", help="flickr30k, coco, coco1k or flickr8k: stands for DATA/NAME/regions and pairs"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="where --dataset looks (%(default)s)")
    parser.add_argument("--images", type=positive, metavar="N", help="only the first N images and their captions")
    parser.add_argument("--folds", type=positive, help="average over equal folds of the images (COCO 1K: 5)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="(bf16 on a GPU)")
    parser.add_argument(
        "--candidates", type=positive, metavar="K", help="also search with the K nearest vectors of each query only"
    )
    parser.add_argument("--candidates-only", action="store_true", help="score no other pairs; keeps nothing")
    parser.add_argument("--embeddings", type=Path, metavar="NPZ", help="those vectors (the model's dual head's)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="photographs, for failures.html (beside STORE)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (one in MODEL/evaluation)")
    parser.add_argument("--scores", type=Path, metavar="DIR", help="count a kept evaluation again, instead of scoring")
    add_json(parser)


@command(
    "evaluate",
    "Exact R@K: every image against every caption; ranks share the work",
    _evaluate_options,
    ranks="all",
    header=True,
)
def evaluate(parsed: Namespace) -> int:
    from imagebert import api

    check_json(parsed.json)
    if parsed.scores is not None:
        if any(x is not None for x in (parsed.model, parsed.regions, parsed.pairs, parsed.images, parsed.out)):
            raise UsageError("--scores counts a kept matrix: give neither a model, nor data, nor --images or --out")
        if is_first():
            counted = api.recount(parsed.scores, parsed.folds or 1)
            print_recall(counted)
            write_json(parsed.json, counted)
        return 0
    if parsed.model is None:
        raise UsageError("name a model folder, or kept scores with --scores")
    if parsed.embeddings and not parsed.candidates:
        raise UsageError("--embeddings are for finding candidates: say how many with --candidates K")
    if parsed.candidates_only and (not parsed.candidates or parsed.out):
        raise UsageError("--candidates-only needs --candidates K and takes no --out: nothing is kept")
    done = api.evaluate(
        parsed.model,
        _named_data(parsed),
        images=parsed.images,
        precision=parsed.precision,
        candidates=parsed.candidates,
        exact=not parsed.candidates_only,
        embeddings=parsed.embeddings,
        out=parsed.out,
    )
    if is_first():
        print_recall(done.figures)
        rate = done.figures["pairs"] / done.figures["seconds_scoring"]
        rest = "nothing is kept" if parsed.candidates_only else f"the rest is in {done.folder}"
        print(f"{done.figures['pairs']:,} pairs, {rate:,.0f} a second and process; {rest}")
        write_json(parsed.json, done.figures)
    return 0


def _named_data(parsed: Namespace) -> Data:
    """What --dataset stands for, or --regions and --pairs."""
    from dataclasses import replace

    from imagebert import api

    if parsed.dataset is not None and (parsed.regions or parsed.pairs):
        raise UsageError("--dataset stands for --regions and --pairs: give it, or those two")
    data = _data(parsed) if parsed.dataset is None else _fed(parsed, api.dataset(parsed.dataset, parsed.data))
    return replace(data, folds=parsed.folds or data.folds, pictures=parsed.pictures)


def _data(parsed: Namespace) -> Data:
    """What the options of `add_data` say."""
    from imagebert import api

    if parsed.regions is None or parsed.pairs is None:
        raise UsageError("name the data with --regions STORE and --pairs STORE")
    return _fed(parsed, api.Data(regions=parsed.regions, pairs=parsed.pairs))


def _fed(parsed: Namespace, data: Data) -> Data:
    from dataclasses import replace

    return replace(
        data,
        split=parsed.split,
        max_regions=parsed.max_regions,
        max_words=parsed.max_words,
        whole_image=False if parsed.no_whole_image else None,
    )


def _compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder that `imagebert evaluate` made")
    parser.add_argument("b", type=Path, metavar="B")
    add_json(parser)


@command("compare", "Do two evaluations of the same queries differ by more than noise?", _compare_options)
def compare(parsed: Namespace) -> int:
    from imagebert import api

    rows = api.compare(parsed.a, parsed.b)
    shown = [
        {
            "": row["figure"],
            "A": f"{row['a']:.1f}",
            "B": f"{row['b']:.1f}",
            "B - A": f"{row['difference']:+.1f}",
            "95 % interval": "{:+.1f} to {:+.1f}".format(*row["interval"]),
            "larger than noise": "yes" if row["larger than noise"] else "no",
        }
        for row in rows
    ]
    print_table(f"A {parsed.a}, B {parsed.b}", shown)
    print("over other images of the same kind; training again with another seed may move more")
    write_json(parsed.json, {"figures": rows})
    return 0


def _add_answers(parser: ArgumentParser) -> None:
    """What a picture is answered with, and how its regions are found."""
    parser.add_argument("--pairs", type=Path, metavar="STORE", help="pair store: the captions that answer a picture")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="the photographs (images/ beside STORE)")
    parser.add_argument("--extractor", type=Path, metavar="YAML", help="for pictures that are not in STORE")


def _search_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder, or a finished run")
    parser.add_argument("store", type=Path, metavar="STORE", help="region store")
    parser.add_argument("query", nargs="?", metavar="WORDS", help='such as "two dogs playing on grass"')
    parser.add_argument("--image", metavar="FILE", help="a picture, or the key of one in STORE, in place of words")
    parser.add_argument("--top", type=positive, default=10, help="how many are shown (%(default)s)")
    parser.add_argument("--sheet", type=Path, default=Path("search.jpg"), help="contact sheet (%(default)s)")
    _add_answers(parser)


@command(
    "search",
    "The best images of a store for some words, or the best captions for a picture",
    _search_options,
    ranks="first_others_wait",
)
def search(parsed: Namespace) -> int:
    from imagebert import api

    if (parsed.query is None) == (parsed.image is None):
        raise UsageError('give words to search for, such as "two dogs playing on grass", or a picture with --image')
    found = api.search(
        parsed.model,
        parsed.store,
        parsed.query,
        image=parsed.image,
        top=parsed.top,
        pairs=parsed.pairs,
        pictures=parsed.pictures,
        extractor=parsed.extractor,
    )
    if found.unknown:
        print(f"the model does not know: {', '.join(found.unknown)}", file=sys.stderr)
    title = f"images for {found.query!r}" if parsed.image is None else f"captions for {parsed.image}"
    print_table(title, [{"": i, "match": f"{h.probability:.1%}", "found": h.name} for i, h in enumerate(found.hits, 1)])
    if parsed.image is None:
        drawn = found.draw(parsed.sheet)
        print(f"{drawn} pictures in {parsed.sheet}" if drawn else "no photographs to draw: name them with --pictures")
    return 0


def _index_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder with a dual head, or a finished run")
    parser.add_argument("store", type=Path, metavar="STORE", help="region store")
    parser.add_argument(
        "--kind",
        choices=["flat", "hnsw", "ivf"],
        default="hnsw",
        help="%(default)s; ivf is built sooner and finds less; flat: none, all vectors are searched",
    )


@command(
    "index",
    "Vectors of a store's images and an index over them, for search among millions; ranks share it",
    _index_options,
    ranks="all",
    header=True,
)
def index(parsed: Namespace) -> int:
    from imagebert import api

    indexed = api.index(parsed.model, parsed.store, kind=parsed.kind)
    if is_first():
        print(f"{parsed.kind} over {indexed.images:,} images: {indexed.bytes / 2**20:,.1f} MiB in {indexed.file}")
    return 0


def _serve_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="model folder, or a finished run")
    parser.add_argument("store", nargs="?", type=Path, metavar="STORE", help="region store")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s, this machine only)")
    parser.add_argument("--port", type=port, default=8000, help="(%(default)s; 0: any free one)")
    _add_answers(parser)


@command(
    "serve",
    "A page to search with words and pictures; without arguments on what `make demo` made",
    _serve_options,
    ranks="first_others_wait",
)
def serve(parsed: Namespace) -> int:
    from imagebert import api

    api.serve(
        parsed.model,
        parsed.store,
        pairs=parsed.pairs,
        pictures=parsed.pictures,
        extractor=parsed.extractor,
        host=parsed.host,
        port=parsed.port,
    )
    return 0


def _mine_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("out", type=Path, metavar="OUT", help="safetensors file to write")
    add_data(parser, "train")
    parser.add_argument(
        "--min-relevance", type=float, metavar="X", help="the fine-tuning source's min_relevance, if any"
    )
    parser.add_argument(
        "--by",
        choices=["scores", "vectors"],
        default="scores",
        help="the best-scoring of a random pool, or the nearest of all by the dual head (%(default)s)",
    )
    parser.add_argument(
        "--pool", type=positive, default=64, help="random pairs scored per image and caption (%(default)s)"
    )
    parser.add_argument("--keep", type=positive, default=8, help="how many are kept (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0)


@command(
    "mine",
    "Hard negatives for fine-tuning: what a model takes for matches; ranks share it",
    _mine_options,
    ranks="all",
    header=True,
)
def mine(parsed: Namespace) -> int:
    from dataclasses import replace

    from imagebert import api

    data = replace(_data(parsed), min_relevance=parsed.min_relevance)
    mined = api.mine(parsed.model, parsed.out, data, by=parsed.by, pool=parsed.pool, keep=parsed.keep, seed=parsed.seed)
    if is_first():
        print(f"hard negatives of {mined.images} images and {mined.captions} captions in {mined.file}")
    return 0
