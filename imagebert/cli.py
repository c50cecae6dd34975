"""The one command: parses, calls, prints. Each subcommand imports what it needs, so that --help is instant.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 75 stopped with a checkpoint: the same call goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imagebert import __version__
from imagebert.config import SourceConfig, UsageError

STOPPED = 75  # EX_TEMPFAIL: what schedulers requeue


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    # argparse takes no overrides behind an option; they are told by their form.
    parsed, rest = parser.parse_known_args(arguments)
    if any(a.startswith("-") or "=" not in a for a in rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("imagebert").setLevel(logging.INFO)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return command(parsed)
    except UsageError as error:
        print(f"imagebert: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"imagebert: the work failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("imagebert: interrupted", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("imagebert", description="Pre-train, fine-tune and evaluate ImageBERT.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher puts it in front
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        return sub

    demo = add("demo", _demo, "The whole of ImageBERT, small, on one CPU: corpus, two stages, fine-tuning, R@K, report")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)")
    demo.add_argument("--seed", type=int, default=0)

    extract = add("extract", _extract, "Photographs to a region store")
    extract.add_argument("images", type=Path, metavar="IMAGES", help="folder of pictures")
    extract.add_argument("out", type=Path, metavar="OUT", help="region store to write")
    extract.add_argument("--extractor", type=Path, required=True, help="YAML description of detector and backbone")
    extract.add_argument("--features", choices=["int8", "float16", "float32"], default="int8")
    extract.add_argument("--overwrite", action="store_true", help="replace OUT when the new store is whole")

    pairs = add("pairs", _pairs, "Captions to a pair store")
    pairs.add_argument("captions", type=Path, metavar="CAPTIONS", help="TSV or CSV: image, caption[, split, relevance]")
    pairs.add_argument("out", type=Path, metavar="OUT", help="pair store to write")
    pairs.add_argument("--vocab", type=Path, required=True, help="BERT's vocab.txt, or a folder that holds one")
    pairs.add_argument("--columns", help="names of the columns of a file without a header line, comma-separated")
    pairs.add_argument(
        "--split", action="append", default=[], metavar="NAME=FILE", help="images of a split, one a line; repeatable"
    )
    pairs.add_argument("--overwrite", action="store_true", help="replace OUT when the new store is whole")

    store = add("store", _store, "Look at a region store, or check every record")
    store.add_argument("action", choices=["inspect", "verify"])
    store.add_argument("path", type=Path, metavar="STORE")
    store.add_argument("--json", type=Path, help="also write the figures here")

    for name, summary in (
        ("pretrain", "Pre-train by a recipe: alone, under torchrun, deepspeed, srun or mpirun"),
        ("finetune", "Fine-tune for retrieval by a recipe, started the same ways"),
    ):
        train = add(name, _train, summary)
        train.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a recipe of the package")
        train.add_argument("overrides", nargs="*", metavar="key=value", help="such as schedule.steps=100")
        train.add_argument(
            "--stop-at", type=_positive, metavar="STEP", help="stop with a checkpoint after so many steps"
        )
        train.set_defaults(task=name)

    evaluate = add("evaluate", _evaluate, "Exact R@K: every image against every caption")
    evaluate.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="model folder, or a finished run")
    _add_data(evaluate, "test")
    evaluate.add_argument("--images", type=_positive, metavar="N", help="only the first N images and their captions")
    evaluate.add_argument(
        "--folds", type=_positive, default=1, help="average over equal folds of the images (COCO 1K: 5)"
    )
    evaluate.add_argument("--save", type=Path, metavar="DIR", help="keep the score matrix")
    evaluate.add_argument("--scores", type=Path, metavar="DIR", help="count a kept matrix again instead of scoring")
    evaluate.add_argument("--json", type=Path, help="also write the figures here")

    mine = add("mine", _mine, "Hard negatives for fine-tuning: what a model takes for matches")
    mine.add_argument("model", type=Path, metavar="MODEL")
    mine.add_argument("out", type=Path, metavar="OUT", help="safetensors file to write")
    _add_data(mine, "train")
    mine.add_argument(
        "--pool", type=_positive, default=64, help="random candidates scored per image and caption (%(default)s)"
    )
    mine.add_argument("--keep", type=_positive, default=8, help="of them, how many are kept (%(default)s)")
    mine.add_argument("--seed", type=int, default=0)

    recipes = add("recipes", _recipes, "The recipes that ship with the package; with a name, its text")
    recipes.add_argument("name", nargs="?", metavar="NAME")
    return parser


def _positive(text: str) -> int:
    """An argument that is a whole number from 1 up; argparse names the argument in its own error."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _add_data(parser: argparse.ArgumentParser, split: str) -> None:
    parser.add_argument("--regions", metavar="STORE", help="region store")
    parser.add_argument("--pairs", metavar="STORE", help="pair store")
    parser.add_argument("--split", default=split, help="split of the pair store (%(default)s)")
    parser.add_argument("--max-regions", type=_positive, default=100, help="regions fed per image (%(default)s)")
    parser.add_argument("--max-words", type=_positive, default=41, help="word pieces fed per caption (%(default)s)")
    parser.add_argument("--no-whole-image", action="store_true", help="leave the whole-image region out")


def _data(parsed: argparse.Namespace) -> tuple[SourceConfig, Any]:
    from imagebert.feed.packer import Limits

    if parsed.regions is None or parsed.pairs is None:
        raise UsageError("name the data with --regions STORE and --pairs STORE")
    limits = Limits(
        max_regions=parsed.max_regions,
        max_words=parsed.max_words,
        whole_image=not parsed.no_whole_image,
    )
    return SourceConfig(regions=parsed.regions, pairs=parsed.pairs, split=parsed.split), limits


def _demo(parsed: argparse.Namespace) -> int:
    from imagebert.demo.run import run_demo

    if run_demo(parsed.out, parsed.seed) is None:
        print("stopped; the same command goes on from here")
        return STOPPED
    return 0


def _extract(parsed: argparse.Namespace) -> int:
    from imagebert.regions.extract import extract
    from imagebert.regions.extractor import DetectorExtractor

    done = extract(parsed.images, parsed.out, DetectorExtractor(parsed.extractor), parsed.features, parsed.overwrite)
    print(f"{done.pictures} pictures: {done.stored} stored in {parsed.out}, {done.refused} refused")
    return 0


def _pairs(parsed: argparse.Namespace) -> int:
    from imagebert.data.pairs import PairStore, read_captions, write_pairs
    from imagebert.data.tokens import Tokenizer

    splits: dict[str, str] = {}
    for item in parsed.split:
        name, equals, file = item.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--split {item}: give NAME=FILE, a file with one image a line")
        try:
            images = Path(file).read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise UsageError(f"--split {item}: cannot read {file!r}: {error.strerror}") from None
        splits.update((image.strip(), name) for image in images if image.strip())
    columns = parsed.columns.split(",") if parsed.columns else None
    captions = read_captions(parsed.captions, columns, splits)
    write_pairs(parsed.out, captions, Tokenizer(parsed.vocab), parsed.overwrite)
    store = PairStore(parsed.out)
    print(f"{len(store)} captions of {len(store.images)} images in {parsed.out}; splits: {', '.join(store.splits)}")
    return 0


def _store(parsed: argparse.Namespace) -> int:
    from rich.progress import track

    from imagebert.data.regions import RegionStore

    store = RegionStore(parsed.path)
    figures = {
        "images": len(store),
        "regions": int(store.region_counts.sum()),
        "regions_per_image": float(store.region_counts.mean()),
        "feature_size": store.feature_size,
        "feature_type": store.feature_type,
        "classes": len(store.classes),
        "extractor": store.extractor.get("name"),
        "bytes": sum(shard["bytes"] for shard in store.shards),
        **{f"feature_{name}": value for name, value in store.statistics.items()},
    }
    damaged = []
    if parsed.action == "verify":
        for image in track(range(len(store)), "Verifying"):
            try:
                store.read(image)
            except UsageError as error:
                damaged.append(str(error))
        figures["damaged"] = len(damaged)
    _report(str(parsed.path), figures, parsed.json)
    for line in damaged:
        print(f"imagebert: {line}", file=sys.stderr)
    return 1 if damaged else 0


def _train(parsed: argparse.Namespace) -> int:
    from imagebert.config import load_recipe

    config = load_recipe(parsed.recipe, parsed.overrides)
    if config.task != parsed.task:
        raise UsageError(f"{parsed.recipe} is a recipe to {config.task}: call `imagebert {config.task}`")

    from imagebert import distributed
    from imagebert.training.run import run

    stopped = run(config, parsed.stop_at)
    if distributed.rank() == 0:
        end = f"model in {config.output}/model" if stopped.finished else "the same command goes on from here"
        print(f"{stopped.step} steps done; {end}")
    return 0 if stopped.finished else STOPPED


def _evaluate(parsed: argparse.Namespace) -> int:
    from imagebert.retrieval.metrics import check_folds, evaluate
    from imagebert.retrieval.scoring import load_scores, save_scores

    _check_writable(parsed.json)
    keys = None
    if parsed.scores is not None:
        if any(x is not None for x in (parsed.model, parsed.regions, parsed.pairs, parsed.images, parsed.save)):
            raise UsageError("--scores counts a kept matrix: give neither a model, nor data, nor --images or --save")
        matrix = load_scores(parsed.scores)
    else:
        from imagebert.data.corpus import Corpus
        from imagebert.model.initialization import find_model
        from imagebert.retrieval.evaluation import score_corpus

        if parsed.model is None:
            raise UsageError("name a model folder, or kept scores with --scores")
        if parsed.save and parsed.save.exists():
            raise UsageError(f"{parsed.save} exists: remove it, or name another place to keep the scores")
        model = find_model(parsed.model)
        source, limits = _data(parsed)
        corpus = Corpus([source])
        images = corpus.images if parsed.images is None else min(parsed.images, corpus.images)
        check_folds(images, parsed.folds)
        matrix = score_corpus(model, corpus, limits, images)
        keys = [corpus.image_key(i) for i in range(images)]
    figures = evaluate(matrix.scores, matrix.caption_image, parsed.folds)
    folds = f", mean of {parsed.folds} folds" if parsed.folds > 1 else ""
    _recall_table(f"{figures['images']} images, {figures['captions']} captions{folds}", figures)
    _write_json(parsed.json, figures)
    if parsed.save and keys is not None:
        save_scores(parsed.save, matrix, keys)
    return 0


def _mine(parsed: argparse.Namespace) -> int:
    from imagebert.data.corpus import Corpus
    from imagebert.model.initialization import find_model
    from imagebert.retrieval.evaluation import load_scorer, mine
    from imagebert.training.hard_negatives import write_hard_negatives

    _check_writable(parsed.out)
    model = find_model(parsed.model)
    source, limits = _data(parsed)
    corpus = Corpus([source])
    score, packer = load_scorer(model, corpus, limits)
    write_hard_negatives(parsed.out, mine(score, packer, parsed.pool, parsed.keep, parsed.seed), corpus)
    print(f"hard negatives of {corpus.images} images and {len(corpus)} captions in {parsed.out}")
    return 0


def _recipes(parsed: argparse.Namespace) -> int:
    from imagebert.config import RECIPES

    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if parsed.name is None:
        print("\n".join(names))
        return 0
    if parsed.name not in names:
        raise UsageError(f"no recipe {parsed.name!r}: there are {', '.join(names)}")
    print((RECIPES / f"{parsed.name}.yaml").read_text(encoding="utf-8"), end="")
    return 0


def _recall_table(title: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "R@1", "R@5", "R@10", "median rank", title=title)
    for way, name in (("ir", "image retrieval"), ("tr", "text retrieval")):
        row, luck = figures[way], figures["chance"][way]
        table.add_row(name, *(f"{row[k]:.1f}" for k in ("r1", "r5", "r10")), f"{row['median_rank']:.0f}")
        table.add_row("  by chance", *(f"{luck[k]:.1f}" for k in ("r1", "r5", "r10")), "")
    Console().print(table)


def _report(title: str, figures: dict[str, Any], path: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    _write_json(path, figures)


def _check_writable(path: Path | None) -> None:
    """Before long work: can the file that it ends in be written?"""
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        _check_writable(path)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
