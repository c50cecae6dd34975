"""`imagebert evaluate`: a model and a corpus to a folder with the score matrix and all that is counted in it.

evaluation.json     what is evaluated, by digests; another model, data or limits get a folder of their own
tiles/              while it is scored: the ledger (matrix.py)
scores.npy, caption_image.npy, images.json     the matrix, the image of each caption, the images' keys
digests.json        size and SHA-256 of these files and those below, and the seconds that scoring took
recall.json         the figures
queries.parquet     one row a query (queries.py)
failures.html       the queries that went worst, as pictures (failures.py)
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from imagebert import distributed
from imagebert.data.corpus import Corpus, Items
from imagebert.data.folder import make_folder
from imagebert.data.tokens import Tokenizer
from imagebert.data.vocabulary import has_vocabulary
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.files import (
    DIGESTS,
    add_digests,
    check_digests,
    digest_of,
    read_json,
    read_sealed,
    replacing,
    sealed,
    write_digests,
    write_json,
    write_sealed,
)
from imagebert.lock import Held, lock
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, initialize_from
from imagebert.model.initialization import read_architecture
from imagebert.model_folder import ModelFolder
from imagebert.retrieval.candidates import TwoStep, read_embeddings, two_step
from imagebert.retrieval.failures import write_failures
from imagebert.retrieval.matrix import ScoreMatrix, load_scores, score_to_disk
from imagebert.retrieval.metrics import Fold, rank_folds, summarize
from imagebert.retrieval.paper import paper_row
from imagebert.retrieval.pictures import Pictures
from imagebert.retrieval.queries import in_folds, write_queries
from imagebert.retrieval.scoring import NO_DUAL, PairScorer, find_precision
from imagebert_kernels import backend


def load_model(model_folder: ModelFolder, items: Items) -> ImageBertForImageTextRetrieval:
    """The scoring model of a folder: a fine-tuned one, or a pre-trained one (zero-shot: its ITM head).

    Raises:
        UsageError: no ImageBERT there, or one made for other features or another vocabulary.
    """
    folder = model_folder.path
    shape = read_architecture(folder)
    if "feature_size" not in shape:
        raise UsageError(f"{folder} is a text-only BERT: it scores no images, train it first")
    needed = {"feature_size": items.feature_size, "vocab_size": len(items.tokenizer)}
    for name, size in needed.items():
        if shape[name] != size:
            raise UsageError(f"{folder} has {name} {shape[name]}, the data has {size}: use data of its kind")
    if has_vocabulary(folder) and (differs := Tokenizer(folder).difference(items.tokenizer)):
        raise UsageError(
            f"the vocabulary of {folder} is not the one that the pairs were tokenised with ({differs}): use pairs of "
            "its kind"
        )
    model = ImageBertForImageTextRetrieval(ImageBertConfig.from_pretrained(folder))
    report = initialize_from(model, folder, allow_partial=True)
    if report.new:
        raise UsageError(f"{folder} lacks weights: {', '.join(report.new[:4])}")
    return model


def kind_of(folder: Path) -> str:
    """zero-shot or fine-tuned: whether the model was trained for retrieval alone."""
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    return "fine-tuned" if architectures[0] == ImageBertForImageTextRetrieval.__name__ else "zero-shot"


def make_scorer(
    folder: ModelFolder, images: Items, texts: Items, limits: Limits, device: torch.device, precision: str = "auto"
) -> PairScorer:
    """A model folder as a scoring function.

    Raises:
        UsageError: as `load_model` does, or IMAGEBERT_KERNELS is wrong here.
    """
    try:
        backend.choose("auto", device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    model = load_model(folder, texts).to(find_precision(precision, device))
    return PairScorer(model, images, texts, limits, device)


class Evaluation(NamedTuple):
    """What is to be scored."""

    model: ModelFolder
    home: Path  # where evaluations of this model lie, each in a folder named after what is evaluated
    corpus: Corpus
    limits: Limits
    split: str | None
    images: int  # the first of the corpus, with every caption of those
    precision: str = "auto"

    @property
    def captions(self) -> Any:
        return np.flatnonzero(self.corpus.caption_image < self.images)

    def names(self) -> tuple[list[str], list[str]]:
        """The images' keys and the captions' texts."""
        keys = [self.corpus.image_key(i) for i in range(self.images)]
        return keys, [self.corpus.text(c) for c in self.captions]

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.model.digest,
            "data": self.corpus.digest(),
            "limits": dataclasses.asdict(self.limits),
            "split": self.split,
            "images": self.images,
            "precision": str(find_precision(self.precision, distributed.device())).removeprefix("torch."),
        }


class Result(NamedTuple):
    matrix: ScoreMatrix
    seconds: float  # of scoring, summed over ranks and calls; not a number where a kill lost it


def score(evaluation: Evaluation, out: Path | None) -> tuple[Path, Result | None]:
    """Scores every image with every caption into a folder, or goes on there; all ranks share the work.

    Args:
        out: the folder; None: one in the evaluation's home

    Returns:
        The folder, and on rank 0 what is in it.

    Raises:
        UsageError: the folder holds another evaluation, another process is scoring into it, or it cannot be written.
        OSError: the disk is full, or another rank failed; what is scored is kept.
    """
    identity = evaluation.identity()
    folder = out or evaluation.home / f"{evaluation.split or 'all'}-{digest_of(identity)[:8]}"
    held = None
    with ExitStack() as stack:
        with distributed.together():
            if distributed.rank() == 0:
                make_folder(folder)
                held = stack.enter_context(lock(folder / ".lock", folder, "give another `out`"))
                _claim(folder, identity)
        return folder, _score(evaluation, identity, folder, held)


def _score(evaluation: Evaluation, identity: dict[str, Any], folder: Path, held: Held | None) -> Result | None:
    corpus, captions = evaluation.corpus, evaluation.captions
    main = distributed.rank() == 0
    with distributed.together():
        if main:
            with replacing(folder / "caption_image.npy") as part, part.open("wb") as file:
                np.save(file, corpus.caption_image[captions], allow_pickle=False)
            write_json(folder / "images.json", [corpus.image_key(i) for i in range(evaluation.images)])
    (there,) = distributed.total([main and (folder / DIGESTS).is_file()])
    if not there:
        scorer = make_scorer(
            evaluation.model, corpus, corpus, evaluation.limits, distributed.device(), evaluation.precision
        )
        begun = time.perf_counter()
        spent = score_to_disk(scorer, np.arange(evaluation.images), captions, folder, digest_of(identity))
        took = {"seconds_scoring": spent, "seconds_this_call": time.perf_counter() - begun}
        if held is not None:
            held.check()
            write_digests(folder, [*_SCORED, "evaluation.json"], **took, ranks=distributed.world_size())
    if not main:
        return None
    shutil.rmtree(folder / "tiles", ignore_errors=True)  # of this call, or of one that was killed when it was done
    return Result(*kept_scores(folder))


# What scoring leaves; the other files are counted from these.
_SCORED = ("scores.npy", "caption_image.npy", "images.json")


def kept_scores(folder: Path) -> tuple[ScoreMatrix, float]:
    """The matrix of a finished evaluation, checked and mapped, and the seconds that scoring took.

    Raises:
        UsageError: there is none, or it has changed since it was written.
    """
    if not (folder / DIGESTS).is_file() and (folder / "scores.npy").is_file():
        raise UsageError(
            f"{folder} is an evaluation of an older version, without digests: `imagebert verify --accept {folder}`"
        )
    found = check_digests(folder, f"remove {folder}, evaluate again", list(_SCORED))
    return load_scores(folder), float(found.get("seconds_scoring", float("nan")))


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    record = folder / "evaluation.json"
    if record.is_file():
        before, now = read_sealed(record, f"remove {folder}, or give another `out`"), sealed(identity)
        changed = [key for key in identity if before.get(key) != now[key]]
        if changed:
            raise UsageError(f"{folder} is an evaluation with another {', '.join(changed)}: give another `out`")
        return
    if folder.exists() and any(entry.name[0] != "." for entry in folder.iterdir()):
        raise UsageError(f"{folder} exists and is no evaluation: give another `out`")
    make_folder(folder)
    try:
        write_sealed(record, identity)
    except PermissionError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; name another folder as `out`") from None


def check_candidates(evaluation: Evaluation, folds: int, embeddings: Path | None) -> None:
    """Before hours of scoring: can candidates be found afterwards?

    Raises:
        UsageError: there are no vectors, or they do not fit; or it is counted in folds.
    """
    if folds > 1:
        raise UsageError("candidates are of all images: leave the folds out (coco in place of coco1k)")
    if embeddings is not None:
        read_embeddings(embeddings, *evaluation.names())
    elif not ImageBertConfig.from_pretrained(evaluation.model.path).dual_size:
        raise UsageError(NO_DUAL)


def count_candidates(evaluation: Evaluation, candidates: int, embeddings: Path | None) -> dict[str, Any]:
    """R@K of a search in two steps alone, in this process: a fraction of all pairs is scored, and nothing is kept.

    Args:
        candidates: of each query
        embeddings: a file of vectors that find them; None: the dual head's
    """
    found = _search_in_two_steps(evaluation, candidates, embeddings)
    caption_image = evaluation.corpus.caption_image[evaluation.captions]
    kind = kind_of(evaluation.model.path)
    return {
        **summarize([Fold(0, caption_image, np.arange(len(caption_image)), found.ranks)]),
        "kind": kind,
        "paper": paper_row(evaluation.corpus.dataset, evaluation.split, evaluation.images, 1, kind),
        "pairs": found.pairs,
        "seconds_scoring": found.seconds,
        "two_step": found.figures(),
    }


def _search_in_two_steps(evaluation: Evaluation, candidates: int, embeddings: Path | None) -> TwoStep:
    corpus, captions = evaluation.corpus, evaluation.captions
    device = distributed.device()
    scorer = make_scorer(evaluation.model, corpus, corpus, evaluation.limits, device, evaluation.precision)
    given = read_embeddings(embeddings, *evaluation.names()) if embeddings is not None else None
    images = np.arange(evaluation.images)
    return two_step(scorer, images, captions, corpus.caption_image[captions], candidates, given)


def report(
    evaluation: Evaluation,
    folder: Path,
    result: Result,
    folds: int,
    pictures: Pictures,
    candidates: int | None = None,
    embeddings: Path | None = None,
) -> dict[str, Any]:
    """Counts a whole matrix and writes all that a person may ask about it into its folder; returns the figures.

    Args:
        candidates: also search with so many of each query, in this process
        embeddings: a file of vectors that find them; None: the dual head's
    """
    with lock(folder / ".lock", folder, wait=True):  # the same matrix may be counted in folds beside
        return _report(evaluation, folder, result, folds, pictures, candidates, embeddings)


def _report(
    evaluation: Evaluation,
    folder: Path,
    result: Result,
    folds: int,
    pictures: Pictures,
    candidates: int | None,
    embeddings: Path | None,
) -> dict[str, Any]:
    matrix = result.matrix
    corpus = evaluation.corpus
    ranked = rank_folds(matrix.scores, matrix.caption_image, folds)
    kind = kind_of(evaluation.model.path)
    figures = {
        **summarize(ranked),
        "kind": kind,
        "paper": paper_row(corpus.dataset, evaluation.split, evaluation.images, folds, kind),
        "pairs": matrix.scores.size,
        "seconds_scoring": result.seconds,
    }
    keys, texts = evaluation.names()
    if candidates is not None:
        found = _search_in_two_steps(evaluation, candidates, embeddings)
        figures["two_step"] = {**found.figures(np.asarray(matrix.scores)), "speed_up": result.seconds / found.seconds}
    recall = in_folds(folder / "recall.json", folds)
    write_json(recall, figures)
    written = [
        recall,
        write_queries(folder, matrix, ranked, keys, texts),
        write_failures(folder, figures, matrix, ranked, keys, texts, pictures),
    ]
    add_digests(folder, [path.name for path in written])
    return figures
