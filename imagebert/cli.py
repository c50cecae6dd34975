"""The one command: parses, calls, prints. Each subcommand imports what it needs, so that --help is instant.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 75 stopped with a checkpoint: the same call goes on.
"""

from __future__ import annotations

import argparse
import errno
import io
import itertools
import json
import math
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imagebert import __version__
from imagebert.config import SourceConfig, UsageError
from imagebert.endings import ending_of, tell
from imagebert.files import text_lines
from imagebert.header import announce, announce_recipe
from imagebert.host import STOPPED, give_way
from imagebert.launch import placed, see_own_gpu
from imagebert.log import Progress, place, prefix, set_up, track

# What is wrong with a name, not with a disk.
_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
_READER_GONE = 128 + signal.SIGPIPE  # as a shell says of those whom that signal ends


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8, or the terminal none
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _answer(arguments)
    except SystemExit:  # of argparse: help, or what is wrong
        if _unwritten() is None:
            raise
        return _READER_GONE
    error = _unwritten()
    if error is None:
        return code
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        return _READER_GONE
    print(f"imagebert: the work failed: cannot write what it says: {error.strerror}", file=sys.stderr)
    return code or 1


def _unwritten() -> OSError | None:
    """Why what was printed cannot be written, where that is so; Python does not try again at its end then."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _reader_gone() -> bool:
    """Whether a broken pipe is that of what is printed."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _answer(arguments: Sequence[str] | None) -> int:
    if any("\0" in argument for argument in arguments or ()):  # which a shell cannot give
        print("imagebert: an argument has a zero byte: leave it out", file=sys.stderr)
        return 2
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes no optional words behind an option; overrides are told by their form.
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(parsed, "query", "") is None:
        parsed.query = rest.pop()
    if hasattr(parsed, "paths"):
        parsed.paths = [*(parsed.paths or ()), *(Path(word) for word in rest if not word.startswith("-"))]
        rest = [word for word in rest if word.startswith("-")]
    if any(a.startswith("-") or "=" not in a for a in rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    set_up()
    command: Callable[[argparse.Namespace], int] = parsed.command
    give_way()
    if command in _LONG:
        announce(sys.argv[1:] if arguments is None else arguments)
    try:
        return _on_ranks(command, parsed)
    except SystemExit as error:
        if error.code == STOPPED and place().rank == 0:
            print("stopped before the first step, as asked; the same command goes on from here", flush=True)
        raise
    except UnicodeEncodeError as error:
        print(f"imagebert: {error.object[:200]!r} is no text ({error.reason}): give it in UTF-8", file=sys.stderr)
        return 2
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return _READER_GONE
        if isinstance(error, OSError) and error.errno in _NAMES and error.filename:
            name = str(error.filename)
            shown = name if len(name) <= 200 else f"{name[:200]}..."
            print(f"imagebert: {error.strerror}: {shown}: correct the name", file=sys.stderr)
            return 2
        if ending_of(error).unexpected and not place().shared:
            raise  # alone, Python says it
        return tell(error)


def _on_ranks(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    """The command, on those of the ranks that a launcher started that are to do it."""
    shared = (_train, _evaluate, _mine, _ladder, _doctor, _import, _merge, _split, _quantize, _extract)
    if command in (*shared, _stage):  # each node stages for itself
        return command(parsed)
    rank, size, launcher = placed(os.environ)
    if size == 1:
        return command(parsed)
    if command is _demo:  # its own processes would take themselves for these
        raise UsageError(f"{launcher} started {size} processes of the demo, which is one's work: call it without that")
    if rank == 0:
        print(f"imagebert: this is one process' work: rank 0 of {size} does it", file=sys.stderr)
    if launcher != "slurm" or command not in (_pairs, _verify, _export, _search, _serve):
        return command(parsed) if rank == 0 else 0

    from imagebert.workers import workers

    with workers():  # srun may end what is left some seconds after the first process is done: all end together
        return command(parsed) if rank == 0 else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("imagebert", description="Pre-train, fine-tune and evaluate ImageBERT.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher puts it in front
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], summary: str, to: Any = commands
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = to.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        return sub

    demo = add("demo", _demo, "The whole of ImageBERT, small, on one CPU: corpus, two stages, fine-tuning, R@K, report")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)")
    demo.add_argument("--seed", type=_seed, default=0)
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")

    extract = add("extract", _extract, "Photographs to a region store; ranks share the work")
    extract.add_argument("images", type=Path, metavar="IMAGES", help="folder of pictures")
    extract.add_argument("out", type=Path, metavar="OUT", help="region store to write")
    extract.add_argument("--extractor", type=Path, required=True, help="YAML description of detector and backbone")
    extract.add_argument("--features", choices=["int8", "float16", "float32"], default="int8")
    extract.add_argument(
        "--decoder",
        choices=["auto", "pillow", "dali"],
        default="auto",
        help="of JPEGs (%(default)s: DALI where it is installed and there is a GPU, else Pillow)",
    )
    extract.add_argument("--part", type=_part, default=(0, 1), metavar="K/N", help="every Nth picture from the Kth on")
    extract.add_argument("--overwrite", action="store_true", help="replace OUT when the new store is whole")

    pairs = add("pairs", _pairs, "Captions to a pair store")
    pairs.add_argument("captions", type=Path, metavar="CAPTIONS", help="a table, or a file as a project publishes it")
    pairs.add_argument("out", type=Path, metavar="OUT", help="pair store to write")
    pairs.add_argument("--vocab", type=Path, required=True, help="a BERT's folder, or its vocab.txt")
    pairs.add_argument(
        "--format",
        choices=["auto", "table", "list", "coco", "karpathy", "flickr", "cc", "sbu", "img2dataset", "webdataset"],
        default="auto",
        help="of CAPTIONS; auto goes by its content (%(default)s)",
    )
    pairs.add_argument("--columns", help="names of the columns of a file without a header line, comma-separated")
    for column in ("image", "caption", "split", "relevance"):
        pairs.add_argument(f"--{column}-column", default=column, metavar="NAME", help="of a table (%(default)s)")
    pairs.add_argument(
        "--image-key",
        metavar="PATTERN",
        help="key in the region store, made of {image} {stem} {id} {row} {url} {crc32}, such as COCO_val2014_{id:012d}",
    )
    pairs.add_argument(
        "--split", action="append", default=[], metavar="NAME=FILE", help="images of a split, one a line; repeatable"
    )
    pairs.add_argument(
        "--regions",
        action="append",
        default=[],
        metavar="STORE",
        help="leave out, and list, captions of images that are in none of these stores; repeatable",
    )
    pairs.add_argument(
        "--match",
        choices=["exact", "nfc", "casefold", "stem", "number"],
        help="how an image's name and its key in STORE may differ: é written in another way, also in capitals, also in "
        "folders and suffix, also in all but a number (exact)",
    )
    pairs.add_argument("--strict", action="store_true", help="a caption that cannot be used is an error")
    pairs.add_argument("--overwrite", action="store_true", help="replace OUT when the new store is whole")

    imported = add("import", _import, "Published region features to a region store; ranks share the work")
    imported.add_argument("format", metavar="FORMAT", help="auto, or one that `imagebert import formats` lists")
    imported.add_argument(
        "paths", nargs="*", type=Path, metavar="SRC ... OUT", help="what to read, and the store to write"
    )
    imported.add_argument("--classes", type=Path, metavar="FILE", help="names of the region classes, one a line")
    imported.add_argument("--extractor", default="", metavar="NAME", help="what made the features, for meta.json")
    imported.add_argument("--strict", action="store_true", help="an image that cannot be used is an error")
    imported.add_argument("--dry-run", action="store_true", help="say what SRC holds and how it would be read, no more")
    imported.add_argument(
        "--layout",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="how it is to be read, where that is not what was found; any number",
    )
    _add_target(imported, "int8")

    store = commands.add_parser("store", help="Look at region stores, check them, make others of them")
    actions = store.add_subparsers(title="actions", required=True, metavar="ACTION")

    inspect = add("inspect", _inspect, "What a store holds", actions)
    inspect.add_argument("path", type=Path, metavar="STORE")
    verify = add("verify", _verify, "Compare a store with its checksums, byte for byte", actions)
    whole = add("verify", _verify, "Compare stores, models, runs and evaluations with their checksums, byte for byte")
    for sub in (verify, whole):
        sub.add_argument("path", type=Path, metavar="PATH", help="one of them, or a folder of many")
        sub.add_argument("--threads", type=_positive, default=None, help="(one a core)")
        sub.add_argument(
            "--accept",
            action="store_true",
            help="first add digests to what is older, and take a changed model as it is",
        )
    for sub in (inspect, verify, whole):
        sub.add_argument("--json", type=Path, help="also write the figures here")
    keys = add("keys", _keys, "The keys of a store's images, one a line, sorted", actions)
    keys.add_argument("path", type=Path, metavar="STORE")
    merge = add("merge", _merge, "One store of several", actions)
    merge.add_argument("paths", nargs="+", type=Path, metavar="STORE ... OUT")
    split = add("split", _split, "The chosen images of a store, or the store in equal parts OUT-0, OUT-1, ...", actions)
    chosen = split.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--keys", type=Path, metavar="FILE", help="keys of the images, one a line")
    chosen.add_argument("--parts", type=_positive, metavar="N")
    quantize = add(
        "quantize", _quantize, "The same regions with smaller features; prints the error that it causes", actions
    )
    for sub in (split, quantize):
        sub.add_argument("path", type=Path, metavar="STORE")
        sub.add_argument("out", type=Path, metavar="OUT")
    _add_target(merge, None)
    _add_target(split, None)
    _add_target(quantize, "int8")
    stage = add(
        "stage", _stage, "Copy shards to a local disk; the folder is a store that reads the others from afar", actions
    )
    stage.add_argument("path", type=Path, metavar="STORE")
    stage.add_argument("folder", type=Path, metavar="FOLDER")
    stage.add_argument("--part", type=_part, default=(0, 1), metavar="K/N", help="every Nth shard from the Kth on")
    room = stage.add_mutually_exclusive_group()
    room.add_argument("--room", type=_positive, metavar="GIB", help="stop before more than this")
    room.add_argument("--as-fits", action="store_true", help="leave a tenth of the disk free")

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
        train.add_argument(
            "--profile", type=_positive, metavar="N", help="record N steps: where their time goes, and a Chrome trace"
        )
        train.set_defaults(task=name)

    export = add("export", _export, "The newest complete checkpoint of a run, finished or not, as a model folder")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder to write (RUN/model)")

    plan = add(
        "plan", _plan, "What a recipe, or an exact evaluation, takes on a cluster: hours, memory, storage, network"
    )
    plan.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="as training takes it, or `evaluate`; without: pre-training as told"
    )
    plan.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the recipe, such as schedule.batch_size=2048"
    )
    plan.add_argument(
        "--pairs",
        type=_amount,
        metavar="N",
        help="of an epoch (counted where the stores are there; without RECIPE 10M)",
    )
    plan.add_argument(
        "--regions", type=_positive, metavar="N", help="of a pair (counted, or the recipe's most, or 100)"
    )
    plan.add_argument("--words", type=_positive, metavar="N", help="of a pair (counted, or the recipe's most, or 41)")
    plan.add_argument(
        "--model",
        choices=["tiny", "small", "base", "large", "xl"],
        help="where what the recipe starts from is not there (base)",
    )
    plan.add_argument(
        "--features", choices=["int8", "float16", "float32"], help="where the stores are not there (int8)"
    )
    plan.add_argument("--nodes", type=_positive, default=1)
    plan.add_argument("--gpus-per-node", type=_positive, default=8)
    plan.add_argument("--gpu", choices=["a100", "h100", "h200", "b200", "cpu"], default="h200")
    own = plan.add_argument_group("without RECIPE, which says them otherwise")
    own.add_argument("--epochs", type=_finite, help="(17, the paper's)")
    own.add_argument("--batch-size", type=_positive, metavar="PAIRS", help="over all GPUs (256 a GPU)")
    own.add_argument("--accumulation", type=_positive, help="(1)")
    own.add_argument("--zero", type=int, choices=[0, 1, 2, 3], help="(1)")
    own.add_argument("--recompute", action="store_true", help="with model.gradient_checkpointing")
    exact = plan.add_argument_group("with `evaluate`")
    exact.add_argument("--images", type=_amount, metavar="N")
    exact.add_argument("--captions", type=_amount, metavar="N")
    exact.add_argument("--candidates", type=_positive, metavar="K", help="also searched with, in the first process")
    plan.add_argument("--calibrate", type=Path, metavar="JSON", help="measured constants, from benchmarks.calibrate")
    plan.add_argument("--simulate", type=_positive, metavar="STEPS", help="also play so many steps event by event")
    plan.add_argument("--json", type=Path, help="also write the figures here")

    doctor = add(
        "doctor", _doctor, "Is this machine, or under srun this job, fit to train? Names what is not, and cures"
    )
    doctor.add_argument("recipe", nargs="?", metavar="RECIPE", help="check this recipe's data, disk and batch too")
    doctor.add_argument("overrides", nargs="*", metavar="key=value")
    doctor.add_argument("--task", choices=["pretrain", "finetune"], help="what the recipe has to be for")
    doctor.add_argument(
        "--local", type=Path, metavar="DIR", help="a folder on each host's own disk: can it be written?"
    )
    doctor.add_argument("--quick", action="store_true", help="with shorter measurements")
    doctor.add_argument("--json", type=Path, help="also write the figures here")
    doctor.add_argument(
        "--on-paper",
        type=_numbers,
        metavar="RANKS",
        help="only what can be said of RECIPE without the machines, for so many processes: 16, or 16,32",
    )
    doctor.add_argument("--later", action="store_true", help="with --on-paper: what it starts from is not made yet")

    evaluate = add("evaluate", _evaluate, "Exact R@K: every image against every caption; ranks share the work")
    evaluate.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="model folder, or a finished run")
    _add_data(evaluate, "test")
    evaluate.add_argument(
        "--dataset", metavar="NAME", help="flickr30k, coco, coco1k or flickr8k: stands for DATA/NAME/regions and pairs"
    )
    evaluate.add_argument("--data", type=Path, default=Path("data"), help="where --dataset looks (%(default)s)")
    evaluate.add_argument("--images", type=_positive, metavar="N", help="only the first N images and their captions")
    evaluate.add_argument("--folds", type=_positive, help="average over equal folds of the images (COCO 1K: 5)")
    evaluate.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="(bf16 on a GPU)")
    evaluate.add_argument(
        "--candidates", type=_positive, metavar="K", help="also search with the K nearest vectors of each query only"
    )
    evaluate.add_argument("--embeddings", type=Path, metavar="NPZ", help="those vectors (the model's dual head's)")
    evaluate.add_argument("--pictures", type=Path, metavar="DIR", help="photographs, for failures.html (beside STORE)")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (one in MODEL/evaluation)")
    evaluate.add_argument(
        "--scores", type=Path, metavar="DIR", help="count a kept evaluation again, instead of scoring"
    )
    evaluate.add_argument("--json", type=Path, help="also write the figures here")

    compare = add("compare", _compare, "Do two evaluations of the same queries differ by more than noise?")
    compare.add_argument("a", type=Path, metavar="A", help="folder that `imagebert evaluate` made")
    compare.add_argument("b", type=Path, metavar="B")
    compare.add_argument("--json", type=Path, help="also write the figures here")

    search = add("search", _search, "The best images of a store for some words, or the best captions for a picture")
    search.add_argument("model", type=Path, metavar="MODEL", help="model folder, or a finished run")
    search.add_argument("store", type=Path, metavar="STORE", help="region store")
    search.add_argument("query", nargs="?", metavar="WORDS", help='such as "two dogs playing on grass"')
    search.add_argument("--image", metavar="FILE", help="a picture, or the key of one in STORE, in place of words")
    search.add_argument("--top", type=_positive, default=10, help="how many are shown (%(default)s)")
    search.add_argument("--sheet", type=Path, default=Path("search.jpg"), help="contact sheet (%(default)s)")
    serve = add("serve", _serve, "A page to search with words and pictures; without arguments on what `make demo` made")
    serve.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="model folder, or a finished run")
    serve.add_argument("store", nargs="?", type=Path, metavar="STORE", help="region store")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s, this machine only)")
    serve.add_argument("--port", type=_port, default=8000, help="(%(default)s; 0: any free one)")
    for sub in (search, serve):
        sub.add_argument("--pairs", type=Path, metavar="STORE", help="pair store: the captions that answer a picture")
        sub.add_argument("--pictures", type=Path, metavar="DIR", help="the photographs (images/ beside STORE)")
        sub.add_argument("--extractor", type=Path, metavar="YAML", help="for pictures that are not in STORE")

    mine = add("mine", _mine, "Hard negatives for fine-tuning: what a model takes for matches; ranks share it")
    mine.add_argument("model", type=Path, metavar="MODEL")
    mine.add_argument("out", type=Path, metavar="OUT", help="safetensors file to write")
    _add_data(mine, "train")
    mine.add_argument("--min-relevance", type=float, metavar="X", help="the fine-tuning source's min_relevance, if any")
    mine.add_argument(
        "--pool", type=_positive, default=64, help="random candidates scored per image and caption (%(default)s)"
    )
    mine.add_argument("--keep", type=_positive, default=8, help="of them, how many are kept (%(default)s)")
    mine.add_argument("--seed", type=_seed, default=0)

    ladder = add("ladder", _ladder, "An ablation of the paper: trains and evaluates its rungs, prints them as a table")
    ladder.add_argument("name", nargs="?", metavar="LADDER", help="YAML file, or one of the package; without: a list")
    ladder.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    ladder.add_argument("--data", type=Path, default=Path("data"), help="{data} in the ladder (%(default)s)")
    ladder.add_argument("--out", type=Path, help="folder of the runs (runs/LADDER)")
    ladder.add_argument("--seeds", type=_positive, default=1, metavar="N", help="seeds 0 to N - 1 (%(default)s)")
    ladder.add_argument(
        "--seed", type=_seed, metavar="K", help="only this one of them; the whole call prints the table"
    )
    ladder.add_argument(
        "--only", action="append", default=[], metavar="RUNG", help="this rung, and what it starts from; any number"
    )
    ladder.add_argument("--json", type=Path, help="also write the figures here")

    recipes = add("recipes", _recipes, "The recipes that ship with the package; with a name, its text")
    recipes.add_argument("name", nargs="?", metavar="NAME")
    return parser


def _add_target(parser: argparse.ArgumentParser, features: str | None) -> None:
    """What all commands ask for that write a region store."""
    parser.add_argument(
        "--features",
        choices=["int8", "float16", "float32"],
        default=features,
        help="how features are stored (%(default)s)" if features else "how features are stored (as they are)",
    )
    parser.add_argument("--shard-gib", type=_positive, default=4, metavar="N", help="size of a shard (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT when the new store is whole")


def _positive(text: str) -> int:
    """An argument that is a whole number from 1 up; argparse names the argument in its own error."""
    value = int(text)
    if not 0 < value < 1 << 48:
        raise argparse.ArgumentTypeError(f"{value} is not positive" if value < 1 else f"{text[:40]} is too large")
    return value


def _numbers(text: str) -> list[int]:
    """Comma-separated."""
    return [_positive(word) for word in text.split(",")]


def _finite(text: str) -> float:
    """A positive number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]} is no positive number")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not between 0 and 2^63")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not between 0 and 65535")
    return value


def _amount(text: str) -> int:
    """A whole number, or one with k, M or G behind it."""
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 0)
    return _positive(str(round(_finite(text[:-1]) * scale))) if scale else _positive(text)


def _part(text: str) -> tuple[int, int]:
    """K/N with K from 0 to N-1."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not K/N with K from 0 to N-1, such as 0/4")
    return int(part), int(parts)


def _add_data(parser: argparse.ArgumentParser, split: str) -> None:
    parser.add_argument("--regions", metavar="STORE", help="region store")
    parser.add_argument("--pairs", metavar="STORE", help="pair store")
    parser.add_argument("--split", default=split, help="split of the pair store (%(default)s)")
    parser.add_argument("--max-regions", type=_positive, metavar="N", help="regions fed per image (the run's, or 100)")
    parser.add_argument("--max-words", type=_positive, metavar="N", help="word pieces per caption (the run's, or 41)")
    parser.add_argument("--no-whole-image", action="store_true", help="leave the whole-image region out")


def _data(parsed: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """The corpus that is named, and what of it is fed: what the model was trained with, unless that is said."""
    from dataclasses import replace

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


def _demo(parsed: argparse.Namespace) -> int:
    from imagebert.demo.run import run_demo

    if run_demo(parsed.out, parsed.seed, parsed.overrides) is None:
        print("stopped; the same command goes on from here")
        return STOPPED
    return 0


def _extract(parsed: argparse.Namespace) -> int:
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


def _pairs(parsed: argparse.Namespace) -> int:
    from imagebert.data.captions import Captions, Columns
    from imagebert.data.folder import clear_lock
    from imagebert.data.keys import InStores, Keys, keys_of
    from imagebert.data.pairs import Caption, PairStore, write_pairs
    from imagebert.data.regions import RegionStore
    from imagebert.data.splits import SplitList, Splits
    from imagebert.data.tokens import Tokenizer
    from imagebert.data.transfer import describe_sources
    from imagebert.files import digest_of

    given = [(*_name_and_value(item, "--split", "NAME=FILE"), f"--split {item}") for item in parsed.split]
    splits = Splits([SplitList(name, _lines(Path(file), where), where) for name, file, where in given])
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


def _import(parsed: argparse.Namespace) -> int:
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
    classes = class_names(parsed.classes, _lines(parsed.classes, "--classes")) if parsed.classes else []
    given = dict(_name_and_value(text, "--layout") for text in parsed.layout)
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


def _name_and_value(text: str, option: str, form: str = "NAME=VALUE") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text}: give {form}")
    return name, value


def _transfer(reader: Any, target: Any, job: dict[str, Any], strict: bool, team: Any) -> int:
    from imagebert.data.transfer import transfer

    done = transfer(reader, target, job, strict=strict, workers=team)
    if team.rank == 0:
        padding = f", {done.padding} rows of padding left out" if done.padding else ""
        print(f"{done.came} images: {done.stored} stored in {target.path}, {done.refused} refused{padding}")
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    from imagebert.data.regions import RegionStore

    store = RegionStore(parsed.path)
    _report(str(parsed.path), _figures(store), parsed.json)
    return 0


def _keys(parsed: argparse.Namespace) -> int:
    from imagebert.data.regions import RegionStore

    store = RegionStore(parsed.path)
    for start in range(0, len(store), 1 << 16):
        print("\n".join(store.key(image) for image in range(start, min(start + (1 << 16), len(store)))))
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    import os

    from imagebert.verify import accept, verify

    _check_writable(parsed.json)
    if parsed.accept:
        print("\n".join(accept(parsed.path)) or "there is nothing to accept")
    with Progress("Verifying", None, "looks") as progress:
        looks = itertools.count(1)
        found = verify(parsed.path, parsed.threads or os.cpu_count() or 1, lambda w: progress.update(next(looks), w))
    _table(
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
    _write_json(parsed.json, {"damaged": sum(len(f.problems) for f in found), "found": [f._asdict() for f in found]})
    problems = [problem for f in found for problem in f.problems]
    for line in problems:
        print(f"imagebert: {line}", file=sys.stderr)
    return 1 if problems else 0


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


def _merge(parsed: argparse.Namespace) -> int:
    if len(parsed.paths) < 2:
        raise UsageError("name the stores and the one to write: imagebert store merge STORE STORE ... OUT")
    *sources, out = parsed.paths
    return _write_store(parsed, sources, out, None)


def _split(parsed: argparse.Namespace) -> int:
    from imagebert.data.readers import share_of
    from imagebert.data.regions import RegionStore

    if parsed.keys:
        return _write_store(parsed, [parsed.path], parsed.out, _lines(parsed.keys, "--keys"))
    store = RegionStore(parsed.path)
    for part in range(parsed.parts):
        keys = [store.key(image) for image in share_of(len(store), part, parsed.parts)]
        _write_store(parsed, [parsed.path], parsed.out.with_name(f"{parsed.out.name}-{part}"), keys)
    return 0


def _quantize(parsed: argparse.Namespace) -> int:
    from imagebert.data.regions import RegionStore

    _write_store(parsed, [parsed.path], parsed.out, None)
    if placed(os.environ)[0] > 0:
        return 0
    error = RegionStore(parsed.out).statistics["relative_storage_error"]
    print(f"root-mean-square error {error:.3%} of the features' own root-mean-square")
    return 0


def _write_store(parsed: argparse.Namespace, sources: list[Path], out: Path, keys: list[str] | None) -> int:
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


def _stage(parsed: argparse.Namespace) -> int:
    from imagebert.data.regions import RegionStore
    from imagebert.data.staging import room_for_stage, shards_to_stage, stage

    store = RegionStore(parsed.path)
    room = parsed.room << 30 if parsed.room else None
    if parsed.as_fits:
        room = room_for_stage(parsed.folder)
    part, parts = parsed.part
    shards = shards_to_stage(store, part, parts, room)
    total = sum(shard["file_bytes"] for shard in shards)
    with Progress(f"Staging {parsed.path.name}", total, "GB", scale=1e9) as progress:
        for done in stage(store, parsed.folder, shards):
            progress.update(done)
    there = sum((parsed.folder / shard["name"]).exists() for shard in store.shards)
    whose = prefix() if place().ranks > 1 else ""  # one is on each node
    print(
        f"{whose}{there} of {len(store.shards)} shards are in {parsed.folder}; the others are read from {parsed.path}"
    )
    return 0


def _lines(path: Path, what: str) -> list[str]:
    """The lines of a file, without spaces around them and without empty ones; a CR alone ends one, too."""
    try:
        lines = list(text_lines(path))
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None
    # One name less in a list is another list.
    if wrong := next((line for line in lines if line.error), None):
        raise UsageError(f"{what}: {path}, line {wrong.number}: {wrong.error}")
    names = (name.strip() for line in lines for name in line.text.split("\r"))
    return [name for name in names if name]


def _train(parsed: argparse.Namespace) -> int:
    from imagebert.config import load_recipe
    from imagebert.endings import asked_to_stop

    config = load_recipe(parsed.recipe, parsed.overrides)
    if config.task != parsed.task:
        raise UsageError(f"{parsed.recipe} is a recipe to {config.task}: call `imagebert {config.task}`")
    announce_recipe(parsed.recipe, config)
    with asked_to_stop():  # also while all this is imported
        from imagebert import distributed
        from imagebert.retrieval.validation import Validation
        from imagebert.training.run import run

        stopped = run(config, parsed.stop_at, parsed.profile or 0, Validation)
    if distributed.rank() == 0:
        profile = Path(config.output) / "profile/profile.json"
        if parsed.profile and profile.is_file():
            seconds = json.loads(profile.read_text(encoding="utf-8"))
            shares = {name: f"{1e3 * s:.2f} ms, {s / seconds['step']:.0%}" for name, s in seconds.items()}
            _report("A step of rank 0", shares, None)
            print(f"trace in {profile.parent}/trace.json: open it in chrome://tracing or ui.perfetto.dev")
        end = f"model in {config.output}/model" if stopped.finished else "the same command goes on from here"
        print(f"{stopped.step} steps done; {end}")
    return 0 if stopped.finished else STOPPED


def _export(parsed: argparse.Namespace) -> int:
    from imagebert.training.run import export_run

    out = parsed.out or parsed.run / "model"
    steps = export_run(parsed.run, out)
    print(f"the model after {steps} steps is in {out}")
    return 0


def _plan(parsed: argparse.Namespace) -> int:
    from imagebert.training.capacity import GPUS, calibrated, plan, step_time
    from imagebert.training.planning import Planned, Told, knee, sizes_of_training
    from imagebert.training.simulation import simulate

    constants = GPUS[parsed.gpu]
    if parsed.calibrate:
        constants = calibrated(constants, parsed.calibrate)
    if parsed.recipe == "evaluate":
        return _plan_evaluation(parsed, constants)
    for name in ("images", "captions", "candidates"):
        if getattr(parsed, name) is not None:
            raise UsageError(f"--{name} is of an evaluation: imagebert plan evaluate --images N --captions N")
    notes, sizes = [], []
    if parsed.recipe is None:
        job = _told_job(parsed, constants)
    else:
        from imagebert.config import load_recipe

        for name, key in _OF_RECIPE.items():
            if getattr(parsed, name):
                raise UsageError(f"--{name.replace('_', '-')} is the recipe's: give it as {key}=...")
        config = load_recipe(parsed.recipe, parsed.overrides)
        told = Told(**{name: getattr(parsed, name) for name in ("pairs", "regions", "words", "features", "model")})
        planned = Planned(config, constants, told)
        job, notes = planned.job(parsed.nodes, parsed.gpus_per_node), planned.notes
        sizes = sizes_of_training(planned, parsed.gpus_per_node)
        most = planned.most_gpus(sizes[-1].gpus)
        notes = [*notes, f"the batch can be cut for {most:,} GPUs at most"] if most else notes
    figures: dict[str, Any] = plan(job)
    if parsed.recipe is not None and job.task == "finetune":
        figures["negatives"] = planned.hard_negatives(job)
    if parsed.simulate:
        whole, calm = (simulate(job, parsed.simulate, with_failures=f) / parsed.simulate for f in (True, False))
        figures["simulated, ms a step"] = {"without failures": 1e3 * calm, "with": 1e3 * whole}
        figures["simulated, ms a step"]["by formula, without"] = 1e3 * step_time(job).total
    what = f"batch {job.batch_size:,.0f}, {job.accumulation} microbatches a GPU, ZeRO {job.stage}"
    title = f"{parsed.recipe or parsed.model or 'base'}, {what}, {job.ranks} x {parsed.gpu}"
    if sizes:
        figures["more do not pay from, GPUs"] = knee(sizes)
    _plan_tables(title, figures, sizes, parsed, notes)
    return 0


# Options of `plan` that a recipe has keys for.
_OF_RECIPE = {
    "epochs": "schedule.epochs",
    "batch_size": "schedule.batch_size",
    "accumulation": "schedule.accumulation",
    "zero": "engine.deepspeed",
    "recompute": "model.gradient_checkpointing",
}


def _told_job(parsed: argparse.Namespace, constants: Any) -> Any:
    """Pre-training without a recipe, by the options."""
    import numpy as np

    from imagebert.model import ImageBertConfig
    from imagebert.training.capacity import Job

    accumulation, gpus = parsed.accumulation or 1, parsed.nodes * parsed.gpus_per_node
    return Job(
        pairs=parsed.pairs or 10_000_000,
        nodes=parsed.nodes,
        gpus_per_node=parsed.gpus_per_node,
        shape=ImageBertConfig.preset(parsed.model or "base"),
        constants=constants,
        regions=parsed.regions or 100,
        words=parsed.words or 41,
        epochs=parsed.epochs or 17,
        batch_size=parsed.batch_size or 256 * gpus * accumulation,
        accumulation=accumulation,
        stage=1 if parsed.zero is None else parsed.zero,
        feature_bytes=np.dtype(parsed.features or "int8").itemsize,
        recompute=parsed.recompute,
    )


def _plan_evaluation(parsed: argparse.Namespace, constants: Any) -> int:
    import numpy as np

    from imagebert.model import ImageBertConfig
    from imagebert.training.planning import Exact, knee, sizes_of_evaluation

    if parsed.images is None or parsed.captions is None:
        raise UsageError("say how many: imagebert plan evaluate --images 5k --captions 25k")
    exact = Exact(
        images=parsed.images,
        captions=parsed.captions,
        shape=ImageBertConfig.preset(parsed.model or "base"),
        constants=constants,
        regions=parsed.regions or 100,
        words=parsed.words or 41,
        feature_bytes=np.dtype(parsed.features or "int8").itemsize,
        candidates=parsed.candidates,
    )
    figures: dict[str, Any] = exact.plan(parsed.nodes, parsed.gpus_per_node)
    sizes = sizes_of_evaluation(exact, parsed.gpus_per_node)
    gpus = parsed.nodes * parsed.gpus_per_node
    title = f"{parsed.images:,} x {parsed.captions:,}, {parsed.model or 'base'}, {gpus} x {parsed.gpu}"
    figures["more do not pay from, GPUs"] = knee(sizes)
    _plan_tables(title, figures, sizes, parsed, [])
    return 0


def _plan_tables(
    title: str, figures: dict[str, Any], sizes: list[Any], parsed: argparse.Namespace, notes: list[str]
) -> None:
    """Prints a plan, what more GPUs bring, and what was taken on trust."""
    from rich.table import Table

    console = _console(None if sys.stdout.isatty() else 130)  # a file has no width
    table = Table("", "", "", title=title)
    for group, rows in figures.items():
        for number, (name, value) in enumerate(rows.items() if isinstance(rows, dict) else ()):
            table.add_row(group * (number == 0), name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
        table.add_section()
    console.print(table)
    if sizes:
        console.print(_table_of_sizes(sizes))
        figures["sizes"] = [size._asdict() for size in sizes]
        knee, most = figures["more do not pay from, GPUs"], sizes[-1].gpus
        if knee is None:
            print(f"up to {most:,} GPUs twice as many are at least 1.2 times as fast")
        else:
            print(f"from {knee:,} GPUs on more do not pay: twice as many gain less than 20 %")
    for note in notes:
        print(f"note: {note}")
    if not parsed.calibrate:
        print("from data sheets and the project's aim of half the matmul rate; --calibrate brings measured constants")
    _write_json(parsed.json, figures)


def _table_of_sizes(sizes: list[Any]) -> Any:
    from rich.table import Table

    training = sizes[0].milliseconds > 0
    table = Table("GPUs", "hours", "efficiency", title="the same on more GPUs")
    for name in ("a step, ms", "microbatches a GPU", "memory") if training else ():
        table.add_column(name)
    for size in sizes:
        efficiency = sizes[0].hours * sizes[0].gpus / (size.hours * size.gpus)
        step = f"{size.milliseconds:,.4g}", f"{size.microbatches}", "fits" if size.fits else "is too small"
        table.add_row(f"{size.gpus:,}", f"{size.hours:,.4g}", f"{efficiency:.0%}", *(step if training else ()))
    return table


def _doctor(parsed: argparse.Namespace) -> int:
    if parsed.on_paper:
        from imagebert.doctor.on_paper import problems

        if parsed.recipe is None:
            raise UsageError("--on-paper needs a RECIPE")
        said = problems(parsed.recipe, parsed.overrides, parsed.task, parsed.on_paper, parsed.later)
        for line in said:
            print(f"imagebert: {line}", file=sys.stderr)
        return 2 if said else 0

    from imagebert import distributed
    from imagebert.config import load_recipe
    from imagebert.doctor.examine import examine
    from imagebert.doctor.on_paper import check_task
    from imagebert.host import say_fault

    config = load_recipe(parsed.recipe, parsed.overrides) if parsed.recipe else None
    if config:
        check_task(config, parsed.recipe, parsed.task)
    found = examine(config, parsed.quick, parsed.local)
    if distributed.rank() == 0:
        _table(f"{found.ranks} processes on {len(found.hosts)} hosts", found.hosts)
        for line in found.notes:
            print(f"note: {line}")
        for line in found.problems:
            print(f"problem: {line}")
        print("fit to train" if found.fit else "not fit to train", flush=True)
        for fault in found.faults:
            say_fault(*fault)
        _write_json(parsed.json, found._asdict())
    return 2 if found.problems else 1 if found.faults else 0


def _evaluate(parsed: argparse.Namespace) -> int:
    from imagebert.retrieval.metrics import check_folds, evaluate

    _check_writable(parsed.json)
    if parsed.scores is not None:
        if any(x is not None for x in (parsed.model, parsed.regions, parsed.pairs, parsed.images, parsed.out)):
            raise UsageError("--scores counts a kept matrix: give neither a model, nor data, nor --images or --out")
        if placed(os.environ)[0] > 0:
            return 0
        from imagebert.retrieval.evaluation import kept_scores

        matrix, _ = kept_scores(parsed.scores)
        figures = evaluate(*matrix, parsed.folds or 1)
        _recall_table(figures, None)
        _write_json(parsed.json, figures)
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
        _recall_table(figures, figures["paper"])
        rate = figures["pairs"] / figures["seconds_scoring"]
        if "two_step" in figures:
            two = figures["two_step"]
            recall = " and ".join(f"{two[way]['recall_of_exact_top_10']:.1f} %" for way in ("ir", "tr"))
            print(
                f"with {two['candidates']} candidates a query: {two['pairs']:,} pairs, {two['seconds']:.1f} s, "
                f"{two['speed_up']:.1f} times as fast; {recall} of the exact top 10 are among them"
            )
        print(f"{figures['pairs']:,} pairs, {rate:,.0f} a second and process; the rest is in {folder}")
        _write_json(parsed.json, figures)
    return 0


# Where `evaluate --dataset` looks, and in how many folds it counts.
_DATASETS = {"flickr30k": ("flickr30k", 1), "flickr8k": ("flickr8k", 1), "coco": ("coco", 1), "coco1k": ("coco", 5)}


def _named_dataset(parsed: argparse.Namespace) -> int | None:
    """Fills in what --dataset stands for; returns its folds."""
    if parsed.dataset is None:
        return None
    if parsed.dataset not in _DATASETS:
        raise UsageError(f"--dataset {parsed.dataset}: there are {', '.join(_DATASETS)}; or give --regions and --pairs")
    if parsed.regions or parsed.pairs:
        raise UsageError("--dataset stands for --regions and --pairs: give it, or those two")
    name, folds = _DATASETS[parsed.dataset]
    parsed.regions, parsed.pairs = (str(parsed.data / name / kind) for kind in ("regions", "pairs"))
    return folds


def _compare(parsed: argparse.Namespace) -> int:
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
    _table(f"A {parsed.a}, B {parsed.b}", shown)
    print("over other images of the same kind; training again with another seed may move more")
    _write_json(parsed.json, {"figures": rows})
    return 0


def _search(parsed: argparse.Namespace) -> int:
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
    _table(title, [{"": i, "match": f"{h.probability:.1%}", "found": h.name} for i, h in enumerate(hits, 1)])
    if parsed.image is None:
        shown = contact_sheet(hits, pictures, parsed.sheet)
        print(f"{shown} pictures in {parsed.sheet}" if shown else "no photographs to draw: name them with --pictures")
    return 0


# The demo's own extractor looks at every pixel: a second and 90 MB for a million.
_DEMO_PIXELS = 4_000_000


def _serve(parsed: argparse.Namespace) -> int:
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


def _finder(parsed: argparse.Namespace) -> tuple[Any, Any]:
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


def _mine(parsed: argparse.Namespace) -> int:
    from imagebert import distributed
    from imagebert.model_folder import open_model
    from imagebert.retrieval.evaluation import make_scorer
    from imagebert.retrieval.mining import mine
    from imagebert.training.hard_negatives import write_hard_negatives

    distributed.start(timeout_minutes=60)
    main = distributed.rank() == 0
    with distributed.together():
        if main:
            _check_writable(parsed.out)
        model = open_model(parsed.model)
        corpus, limits = _data(parsed, model)
        scorer = make_scorer(model, corpus, corpus, limits, distributed.device())
    mined = mine(scorer.score_anew, corpus, parsed.pool, parsed.keep, parsed.seed)
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if main:
            write_hard_negatives(parsed.out, mined, corpus)
            print(f"hard negatives of {corpus.images} images and {len(corpus)} captions in {parsed.out}")
    return 0


def _ladder(parsed: argparse.Namespace) -> int:
    from imagebert.ladder import LADDERS, climb, load_ladder, tables

    if parsed.name is None:
        print("\n".join(sorted(path.stem for path in LADDERS.glob("*.yaml"))))
        return 0

    from imagebert import distributed

    ladder = load_ladder(parsed.name)
    _check_writable(parsed.json)
    out = parsed.out or Path("runs") / Path(parsed.name).stem
    distributed.start(timeout_minutes=60)
    figures = climb(ladder, out, parsed.data, range(parsed.seeds), parsed.overrides, parsed.only, parsed.seed)
    if figures is None:
        print("stopped; the same command goes on from here")
        return STOPPED
    if distributed.rank() == 0:
        console = _console(None if sys.stdout.isatty() else 130)  # a file has no width
        for table in tables(figures):
            console.print(table)
        _write_json(parsed.json, figures)
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


# What a header is worth.
_LONG = (_train, _evaluate, _extract, _import, _pairs, _mine, _ladder, _merge, _split, _quantize, _stage, _export)


def _console(width: int | None = None) -> Any:
    """Where tables are printed: names and words from outside stand there as they are."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # it is called where that is caught; rich would end the process

    return Plain(width=width, markup=False, emoji=False, highlight=False)


def _recall_table(figures: dict[str, Any], paper: dict[str, dict[str, float]] | None) -> None:
    from rich.table import Table

    cutoffs = ("r1", "r5", "r10")
    folds = f", mean of {figures['folds']} folds" if figures["folds"] > 1 else ""
    title = f"{figures['images']} images, {figures['captions']} captions{folds}; R-sum {figures['rsum']:.1f}"
    table = Table("", "R@1", "R@5", "R@10", "median", "mean rank", title=title)
    for way, name in (("ir", "text finds image"), ("tr", "image finds text")):
        row, luck = figures[way], figures["chance"][way]
        table.add_row(name, *(f"{row[k]:.1f}" for k in cutoffs), f"{row['median_rank']:.0f}", f"{row['mean_rank']:.1f}")
        table.add_row("  95 % interval", *("{:.1f}-{:.1f}".format(*row["interval"][k]) for k in cutoffs), "", "")
        table.add_row("  by chance", *(f"{luck[k]:.1f}" for k in cutoffs), "", "")
        if "two_step" in figures:
            two = figures["two_step"][way]
            ranks = f"{two['median_rank']:.0f}", f"{two['mean_rank']:.1f}"
            table.add_row("  two steps", *(f"{two[k]:.1f}" for k in cutoffs), *ranks)
        if paper:
            table.add_row("  the paper", *(f"{paper[way][k]:.1f}" for k in cutoffs), "", "")
    _console().print(table)


def _report(title: str, figures: dict[str, Any], path: Path | None) -> None:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    _console().print(table)
    _write_json(path, figures)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    _console(None if sys.stdout.isatty() else 10_000).print(table)  # a file has no width


def _check_writable(path: Path | None) -> None:
    """Before long work: can the file that it ends in be written?"""
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without waiting for whoever would read from a pipe.
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        _check_writable(path)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
