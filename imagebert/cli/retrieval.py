"""Commands that ask a model: exact R@K, comparisons, search by words and pictures, hard negatives."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from imagebert.cli.commands import command
from imagebert.cli.options import add_data, add_json, port, positive, seed
from imagebert.cli.printing import check_writable, print_recall, print_table, write_json
from imagebert.errors import UsageError


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
    from imagebert.retrieval.metrics import check_folds, evaluate

    check_writable(parsed.json)
    if parsed.scores is not None:
        if any(x is not None for x in (parsed.model, parsed.regions, parsed.pairs, parsed.images, parsed.out)):
            raise UsageError("--scores counts a kept matrix: give neither a model, nor data, nor --images or --out")
        from imagebert.launch import placed

        if placed(os.environ)[0] > 0:
            return 0
        from imagebert.retrieval.evaluation import kept_scores

        matrix, _ = kept_scores(parsed.scores)
        figures = evaluate(*matrix, parsed.folds or 1)
        print_recall(figures, None)
        write_json(parsed.json, figures)
        return 0
    if parsed.model is None:
        raise UsageError("name a model folder, or kept scores with --scores")
    if parsed.embeddings and not parsed.candidates:
        raise UsageError("--embeddings are for finding candidates: say how many with --candidates K")

    from imagebert import distributed
    from imagebert.model_folder import open_model
    from imagebert.retrieval.evaluation import Evaluation, check_candidates, report, score
    from imagebert.retrieval.pictures import Pictures

    dataset = _named_dataset(parsed)
    model = open_model(parsed.model)
    corpus, limits = _data(parsed, model)
    pictures = Pictures.beside(Path(parsed.regions), parsed.pictures)
    distributed.start(timeout_minutes=60)
    images = corpus.images if parsed.images is None else min(parsed.images, corpus.images)
    folds = parsed.folds or dataset or 1
    check_folds(images, folds)
    evaluation = Evaluation(model, parsed.model / "evaluation", corpus, limits, parsed.split, images, parsed.precision)
    if parsed.candidates:
        check_candidates(evaluation, folds, parsed.embeddings)
    folder, result = score(evaluation, parsed.out)
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if result is None:
            return 0
        figures = report(evaluation, folder, result, folds, pictures, parsed.candidates, parsed.embeddings)
        print_recall(figures, figures["paper"])
        rate = figures["pairs"] / figures["seconds_scoring"]
        if "two_step" in figures:
            two = figures["two_step"]
            recall = " and ".join(f"{two[way]['recall_of_exact_top_10']:.1f} %" for way in ("ir", "tr"))
            print(
                f"with {two['candidates']} candidates a query: {two['pairs']:,} pairs, {two['seconds']:.1f} s, "
                f"{two['speed_up']:.1f} times as fast; {recall} of the exact top 10 are among them"
            )
        print(f"{figures['pairs']:,} pairs, {rate:,.0f} a second and process; the rest is in {folder}")
        write_json(parsed.json, figures)
    return 0


# Where --dataset looks, and in how many folds it counts.
DATASETS = {"flickr30k": ("flickr30k", 1), "flickr8k": ("flickr8k", 1), "coco": ("coco", 1), "coco1k": ("coco", 5)}


def _named_dataset(parsed: Namespace) -> int | None:
    """Fills in what --dataset stands for; returns its folds."""
    if parsed.dataset is None:
        return None
    if parsed.dataset not in DATASETS:
        raise UsageError(f"--dataset {parsed.dataset}: there are {', '.join(DATASETS)}; or give --regions and --pairs")
    if parsed.regions or parsed.pairs:
        raise UsageError("--dataset stands for --regions and --pairs: give it, or those two")
    name, folds = DATASETS[parsed.dataset]
    parsed.regions, parsed.pairs = (str(parsed.data / name / kind) for kind in ("regions", "pairs"))
    return folds


def _compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder that `imagebert evaluate` made")
    parser.add_argument("b", type=Path, metavar="B")
    add_json(parser)


@command("compare", "Do two evaluations of the same queries differ by more than noise?", _compare_options)
def compare(parsed: Namespace) -> int:
    from imagebert.retrieval.queries import compare

    rows = compare(parsed.a, parsed.b)
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
    from imagebert.files import read_bytes
    from imagebert.pictures import FILE_BYTES, LOCAL
    from imagebert.retrieval.pictures import Pictures, open_picture
    from imagebert.retrieval.search import contact_sheet

    if (parsed.query is None) == (parsed.image is None):
        raise UsageError('give words to search for, such as "two dogs playing on grass", or a picture with --image')
    pictures = Pictures.beside(parsed.store, parsed.pictures)
    finder, extract = _finder(parsed)
    if parsed.image is None:
        query = finder.query(parsed.query)
        if query.unknown:
            print(f"the model does not know: {', '.join(query.unknown)}", file=sys.stderr)
        hits = finder.images(query, parsed.top)
        title = f"images for {query.text!r}"
    else:
        number = finder.number(parsed.image)
        if number is not None:
            record = finder.store.read(number)
        elif not os.path.isfile(parsed.image):  # Path's raises for a name that is too long
            raise UsageError(f"--image {parsed.image}: neither a file nor the key of an image in {parsed.store}")
        elif extract is None:
            raise UsageError(f"{parsed.image} is not in {parsed.store}: name what finds its regions with --extractor")
        else:
            limits = LOCAL if parsed.extractor is not None else LOCAL._replace(pixels=_DEMO_PIXELS)
            record = extract(open_picture(read_bytes(Path(parsed.image), FILE_BYTES), limits))
        hits = finder.texts(record, parsed.top)
        title = f"captions for {parsed.image}"
    print_table(title, [{"": i, "match": f"{h.probability:.1%}", "found": h.name} for i, h in enumerate(hits, 1)])
    if parsed.image is None:
        shown = contact_sheet(hits, pictures, parsed.sheet)
        print(f"{shown} pictures in {parsed.sheet}" if shown else "no photographs to draw: name them with --pictures")
    return 0


# The demo's own extractor looks at every pixel: a second and 90 MB for a million.
_DEMO_PIXELS = 4_000_000


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
    from imagebert.pictures import SENT
    from imagebert.retrieval.pictures import Pictures
    from imagebert.retrieval.serve import serve

    if parsed.model is None:
        demo = Path("runs/demo")
        if not (demo / "finetune/model").is_dir():
            raise UsageError("there is no finished demo in runs/demo: call `make demo`, or name MODEL and STORE")
        parsed.model, parsed.store = demo / "finetune", demo / "data/test/regions"
        parsed.pairs = parsed.pairs or demo / "data/test/pairs"
    elif parsed.store is None:
        raise UsageError("name the region store to search behind the model")
    pictures = Pictures.beside(parsed.store, parsed.pictures)
    finder, extract = _finder(parsed)
    limits = SENT if parsed.extractor is not None else SENT._replace(pixels=_DEMO_PIXELS)
    serve(finder, pictures, extract, parsed.host, parsed.port, limits)
    return 0


def _finder(parsed: Namespace) -> tuple[Any, Any]:
    """What searches, and what finds the regions of a picture, if anything can."""
    from imagebert.data.pairs import PairStore
    from imagebert.data.regions import RegionStore
    from imagebert.model_folder import open_model
    from imagebert.retrieval.search import Finder

    model = open_model(parsed.model)
    store = RegionStore(parsed.store)
    captions = PairStore(parsed.pairs) if parsed.pairs is not None else None
    model.note_differences(store, model.limits)
    finder = Finder(model, store, model.limits, captions)
    if parsed.extractor is not None:
        from imagebert.regions.extractor import DetectorExtractor

        return finder, DetectorExtractor(parsed.extractor)
    from imagebert.demo.extractor import SceneExtractor

    scenes = SceneExtractor()
    return finder, scenes if store.extractor.get("name") == scenes.description["name"] else None


def _mine_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("out", type=Path, metavar="OUT", help="safetensors file to write")
    add_data(parser, "train")
    parser.add_argument(
        "--min-relevance", type=float, metavar="X", help="the fine-tuning source's min_relevance, if any"
    )
    parser.add_argument(
        "--pool", type=positive, default=64, help="random candidates scored per image and caption (%(default)s)"
    )
    parser.add_argument("--keep", type=positive, default=8, help="of them, how many are kept (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0)


@command(
    "mine",
    "Hard negatives for fine-tuning: what a model takes for matches; ranks share it",
    _mine_options,
    ranks="all",
    header=True,
)
def mine(parsed: Namespace) -> int:
    from imagebert import distributed
    from imagebert.model_folder import open_model
    from imagebert.retrieval.evaluation import make_scorer
    from imagebert.retrieval.mining import mine
    from imagebert.training.hard_negatives import write_hard_negatives

    distributed.start(timeout_minutes=60)
    main = distributed.rank() == 0
    with distributed.together():
        if main:
            check_writable(parsed.out)
        model = open_model(parsed.model)
        corpus, limits = _data(parsed, model)
        scorer = make_scorer(model, corpus, corpus, limits, distributed.device())
    mined = mine(scorer.score_anew, corpus, parsed.pool, parsed.keep, parsed.seed)
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if main:
            write_hard_negatives(parsed.out, mined, corpus)
            print(f"hard negatives of {corpus.images} images and {len(corpus)} captions in {parsed.out}")
    return 0


def _data(parsed: Namespace, model: Any) -> tuple[Any, Any]:
    """The corpus that is named, and what of it is fed: what the model was trained with, unless that is said."""
    from dataclasses import replace

    from imagebert.config import SourceConfig
    from imagebert.data.corpus import Corpus

    if parsed.regions is None or parsed.pairs is None:
        raise UsageError("name the data with --regions STORE and --pairs STORE")
    least = getattr(parsed, "min_relevance", None)
    source = SourceConfig(regions=parsed.regions, pairs=parsed.pairs, split=parsed.split, min_relevance=least)
    corpus = Corpus([source])
    limits = model.limits
    limits = replace(
        limits,
        max_regions=parsed.max_regions or limits.max_regions,
        max_words=parsed.max_words or limits.max_words,
        whole_image=limits.whole_image and not parsed.no_whole_image,
    )
    model.note_differences(corpus.stores[0], limits)
    return corpus, limits
