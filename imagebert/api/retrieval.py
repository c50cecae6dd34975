"""Retrieval from Python: exact R@K, comparisons, search by words and pictures, hard negatives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from imagebert import distributed
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.files import check_writable, read_bytes
from imagebert.model_folder import ModelFolder, open_model
from imagebert.pictures import FILE_BYTES, LOCAL, SENT
from imagebert.processing import find_extractor
from imagebert.retrieval.evaluation import (
    Evaluation,
    check_candidates,
    count_candidates,
    kept_scores,
    make_scorer,
    report,
    score,
)
from imagebert.retrieval.metrics import check_folds
from imagebert.retrieval.metrics import evaluate as count_matrix
from imagebert.retrieval.mining import mine as mine_negatives
from imagebert.retrieval.mining import mine_by_vectors
from imagebert.retrieval.pictures import Pictures, open_picture
from imagebert.retrieval.queries import compare as compare_queries
from imagebert.retrieval.search import Finder, Hit, contact_sheet
from imagebert.retrieval.vectors import encode_both

PathLike = str | os.PathLike[str]

# The demo's own extractor looks at every pixel: a second and 90 MB for a million.
_DEMO_PIXELS = 4_000_000
_DEMO = Path("runs/demo")

# Of each named data set its folder, and in how many folds it is counted.
DATASETS = {"flickr30k": ("flickr30k", 1), "flickr8k": ("flickr8k", 1), "coco": ("coco", 1), "coco1k": ("coco", 5)}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Names images with their captions, and what of them a model is fed.

    Args:
        regions: The region store.
        pairs: The pair store.
        split: The split of the pair store. None takes every pair.
        folds: The number of equal parts of the images over which figures are averaged.
        pictures: The folder of the photographs. None takes images/ beside the region store, if there is one.
        max_regions: The most regions fed of an image. None takes what the model was trained with.
        max_words: The most word pieces fed of a caption. None takes what the model was trained with.
        whole_image: Whether the region of the whole image is fed. None does what the model was trained with.
        min_relevance: Captions with a lower score, or without one, are left out. None leaves none out.
    """

    regions: PathLike
    pairs: PathLike
    split: str | None = "test"
    folds: int = 1
    pictures: PathLike | None = None
    max_regions: int | None = None
    max_words: int | None = None
    whole_image: bool | None = None
    min_relevance: float | None = None


def dataset(name: str, folder: PathLike = "data", *, split: str | None = "test") -> Data:
    """Finds the stores of a named data set, and in how many folds its figures are counted.

    Args:
        name: One of flickr30k, flickr8k, coco, and coco1k, which is coco in five folds.
        folder: The folder of the data sets, each in NAME/regions and NAME/pairs.
        split: The split of the pair store. None takes every pair.

    Returns:
        The stores and the number of folds, as `imagebert.api.evaluate` takes them.

    Raises:
        UsageError: There is no data set of that name.
    """
    if name not in DATASETS:
        raise UsageError(f"dataset {name}: there are {', '.join(DATASETS)}; or name a region store and a pair store")
    home, folds = DATASETS[name]
    return Data(regions=Path(folder) / home / "regions", pairs=Path(folder) / home / "pairs", split=split, folds=folds)


def _opened(model: ModelFolder, data: Data) -> tuple[Corpus, Limits]:
    """The corpus, and what of it is fed: what the model was trained with, unless that is said."""
    regions, pairs = os.fspath(data.regions), os.fspath(data.pairs)
    source = SourceConfig(regions=regions, pairs=pairs, split=data.split, min_relevance=data.min_relevance)
    corpus, limits = Corpus([source]), model.limits
    limits = replace(
        limits,
        max_regions=data.max_regions or limits.max_regions,
        max_words=data.max_words or limits.max_words,
        whole_image=limits.whole_image if data.whole_image is None else data.whole_image,
    )
    model.note_differences(corpus.stores[0], limits)
    return corpus, limits


@dataclass(frozen=True)
class Evaluated:
    """Holds the results of an exact evaluation.

    Attributes:
        folder: The folder of the score matrix and of all that is counted in it.
        figures: R@K, ranks, intervals and more, as recall.json has them. It is empty on every rank but the first.
    """

    folder: Path
    figures: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    model: PathLike,
    data: Data,
    *,
    images: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    candidates: int | None = None,
    exact: bool = True,
    embeddings: PathLike | None = None,
    out: PathLike | None = None,
) -> Evaluated:
    """Scores every image with every caption and counts exact R@K.

    A call that was stopped goes on when it is made again, and a finished one only counts again. Ranks share the work.
    Without `exact` only the candidates of each query are scored, by the first rank, and nothing is kept.

    Args:
        model: A model folder, or the folder of a finished run.
        data: The images and captions that the model is evaluated on.
        images: How many of the first images, with their captions, are evaluated. None evaluates all.
        precision: The type of numbers that scores are computed in. "auto" takes bf16 on a GPU, else fp32.
        candidates: The number of candidates of each query in a search in two steps, which is counted beside the exact
            one. None counts the exact one alone.
        exact: Whether every image is scored with every caption. Where it is false, `candidates` has to be given.
        embeddings: An .npz file with the vectors that find candidates. None takes those of the model's dual head.
        out: The folder of the results. None takes one in the model's folder evaluation/, named after what is evaluated.

    Returns:
        The folder of the results, which is the model's where nothing is kept, and on the first rank the figures.

    Raises:
        UsageError: Model and data do not fit together, or `out` holds another evaluation.
        OSError: The disk is full or fails, or another rank is gone; what is scored is kept.
    """
    if embeddings is not None and not candidates:
        raise UsageError("embeddings are for finding candidates: give a number of `candidates`")
    if not exact and (not candidates or out is not None):
        raise UsageError("where the count is not exact, give a number of `candidates`, and no `out`: nothing is kept")
    opened = open_model(Path(model))
    corpus, limits = _opened(opened, data)
    photographs = Pictures.beside(Path(data.regions), None if data.pictures is None else Path(data.pictures))
    distributed.start(timeout_minutes=60)
    chosen = corpus.images if images is None else min(images, corpus.images)
    check_folds(chosen, data.folds)
    evaluation = Evaluation(opened, Path(model) / "evaluation", corpus, limits, data.split, chosen, precision)
    vectors = None if embeddings is None else Path(embeddings)
    if candidates:
        check_candidates(evaluation, data.folds, vectors)
    if not exact and candidates:
        with distributed.together():
            found = count_candidates(evaluation, candidates, vectors) if distributed.rank() == 0 else None
            return Evaluated(Path(model), found or {})
    folder, result = score(evaluation, None if out is None else Path(out))
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if result is None:
            return Evaluated(folder)
        return Evaluated(folder, report(evaluation, folder, result, data.folds, photographs, candidates, vectors))


def recount(scores: PathLike, folds: int = 1) -> dict[str, Any]:
    """Counts the score matrix of a finished evaluation again.

    Args:
        scores: The folder that `imagebert.api.evaluate` wrote.
        folds: The number of equal parts of the images over which figures are averaged.

    Returns:
        R@K, ranks, intervals and more, as recall.json has them.

    Raises:
        UsageError: There is no evaluation, it has changed since it was written, or its images make no such folds.
    """
    matrix, _ = kept_scores(Path(scores))
    return count_matrix(*matrix, folds)


def compare(a: PathLike, b: PathLike) -> list[dict[str, Any]]:
    """Says whether two evaluations of the same queries differ by more than the choice of images explains.

    Args:
        a: The folder of one evaluation, which `imagebert.api.evaluate` wrote.
        b: The folder of the other.

    Returns:
        A row each for R@1, R@5 and R@10 both ways and for R-sum: "a", "b", their "difference", its 95 % "interval", and
        whether that is "larger than noise".

    Raises:
        UsageError: An evaluation is missing, or they asked different queries.
    """
    return compare_queries(Path(a), Path(b))


@dataclass(frozen=True)
class Searched:
    """Holds what a search found.

    Attributes:
        query: The words as they were read, or the name of the picture.
        unknown: The words that the model does not know.
        hits: The best images for words, or the best captions for a picture, the best first.
    """

    query: str
    unknown: tuple[str, ...]
    hits: tuple[Hit, ...]
    _pictures: Pictures = field(repr=False)

    def draw(self, path: PathLike) -> int:
        """Draws the images that were found, in their order, into one JPEG.

        Args:
            path: The file to write.

        Returns:
            How many of the images have a photograph.

        Raises:
            UsageError: The file cannot be written.
        """
        return contact_sheet(self.hits, self._pictures, Path(path))


def search(
    model: PathLike,
    store: PathLike,
    words: str | None = None,
    *,
    image: PathLike | None = None,
    top: int = 10,
    pairs: PathLike | None = None,
    pictures: PathLike | None = None,
    extractor: PathLike | None = None,
) -> Searched:
    """Finds the best images of a store for some words, or the best captions for a picture.

    Args:
        model: A model folder, or the folder of a finished run.
        store: The region store of the images.
        words: What is searched for, such as "two dogs playing on grass".
        image: A picture, or the key of one in the store, given in place of words.
        top: The number of hits.
        pairs: The pair store whose captions answer a picture.
        pictures: The folder of the photographs. None takes images/ beside the store, if there is one.
        extractor: The YAML file that describes what finds the regions of a picture that is not in the store. None takes
            the demo's own extractor for pictures of the demo.

    Returns:
        The hits, the best first, each with its number, name, score and probability.

    Raises:
        UsageError: Model and store do not fit together, the words or the picture cannot be used, or what they are
            answered with is missing.
    """
    if (words is None) == (image is None):
        raise UsageError("give words to search for, such as 'two dogs playing on grass', or a picture as `image`")
    photographs = Pictures.beside(Path(store), None if pictures is None else Path(pictures))
    finder, extract = _finder(model, store, pairs, extractor)
    if words is not None:
        query = finder.query(words)
        return Searched(query.text, tuple(query.unknown), tuple(finder.images(query, top)), photographs)
    assert image is not None
    name = os.fspath(image)
    if (number := finder.number(name)) is not None:
        record = finder.store.read(number)
    elif not os.path.isfile(name):  # Path's raises for a name that is too long
        raise UsageError(f"image {name}: neither a file nor the key of an image in {store}")
    elif extract is None:
        raise UsageError(f"{name} is not in {store}: name what finds its regions as `extractor`")
    else:
        limits = LOCAL if extractor is not None else LOCAL._replace(pixels=_DEMO_PIXELS)
        record = extract(open_picture(read_bytes(Path(name), FILE_BYTES), limits))
    return Searched(name, (), tuple(finder.texts(record, top)), photographs)


@dataclass(frozen=True)
class Indexed:
    """Describes what `imagebert.api.index` left for searches to use.

    Attributes:
        file: The index, or the vectors themselves where all of them are searched.
        images: The number of images whose vectors are searched.
        bytes: The size of the file.
    """

    file: Path
    images: int
    bytes: int


def index(model: PathLike, store: PathLike, *, kind: Literal["flat", "hnsw", "ivf"] = "hnsw") -> Indexed:
    """Computes the vectors of a store's images and builds an index over them, so that a search among millions is quick.

    Both are kept in the model's folder index/, where `imagebert.api.search` and `imagebert.api.serve` find them. Ranks
    share the computing of vectors, which are taken from there when they are there.

    Args:
        model: A model folder with a dual head, or the folder of a finished run.
        store: The region store of the images.
        kind: What is built. "hnsw" is a graph of neighbours, "ivf" lists of what lies together, which is built sooner
            and finds less. "flat" removes what was built, so that all vectors are searched exactly.

    Returns:
        The file that is searched from now on.

    Raises:
        UsageError: The model has no dual head, or model and store do not fit together.
        OSError: The model's folder cannot be written, or another rank is gone.
    """
    if kind not in ("flat", "hnsw", "ivf"):
        raise UsageError(f"kind {kind}: there are flat, hnsw and ivf")
    distributed.start(timeout_minutes=60)
    with distributed.together():
        finder, _ = _finder(model, store, None, None)
    file = finder.build_index(kind)
    return Indexed(file, len(finder.store), file.stat().st_size)


def serve(
    model: PathLike | None = None,
    store: PathLike | None = None,
    *,
    pairs: PathLike | None = None,
    pictures: PathLike | None = None,
    extractor: PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Serves a web page to search with words and pictures, until it is interrupted.

    Args:
        model: A model folder, or the folder of a finished run. None takes the model that the demo made in runs/demo.
        store: The region store of the images. It has to be given where a model is.
        pairs: The pair store whose captions answer a picture.
        pictures: The folder of the photographs. None takes images/ beside the store, if there is one.
        extractor: The YAML file that describes what finds the regions of a picture. None takes the demo's own extractor
            for the demo's store.
        host: The address to listen at.
        port: The port to listen at. 0 takes any free one.

    Raises:
        UsageError: Model and store do not fit together, or the address cannot be used.
    """
    from imagebert.retrieval.serve import serve as serve_page

    if model is None:
        if not (_DEMO / "finetune/model").is_dir():
            raise UsageError("there is no finished demo in runs/demo: call `make demo`, or name a model and a store")
        model, store, pairs = _DEMO / "finetune", _DEMO / "data/test/regions", pairs or _DEMO / "data/test/pairs"
    elif store is None:
        raise UsageError("name the region store to search behind the model")
    photographs = Pictures.beside(Path(store), None if pictures is None else Path(pictures))
    finder, extract = _finder(model, store, pairs, extractor)
    limits = SENT if extractor is not None else SENT._replace(pixels=_DEMO_PIXELS)
    serve_page(finder, photographs, extract, host, port, limits)


def _finder(model: PathLike, store: PathLike, pairs: PathLike | None, extractor: PathLike | None) -> tuple[Finder, Any]:
    """What searches, and what finds the regions of a picture, if anything can."""
    opened, regions = open_model(Path(model)), RegionStore(Path(store))
    captions = None if pairs is None else PairStore(Path(pairs))
    opened.note_differences(regions, opened.limits)
    finder = Finder(opened, regions, opened.limits, captions)
    return finder, find_extractor(extractor, regions.extractor)


@dataclass(frozen=True)
class Mined:
    """Describes the hard negatives that `imagebert.api.mine` wrote.

    Attributes:
        file: The safetensors file.
        images: The number of images that have negatives in it.
        captions: The number of captions that have negatives in it.
    """

    file: Path
    images: int
    captions: int


def mine(
    model: PathLike,
    out: PathLike,
    data: Data,
    *,
    by: Literal["scores", "vectors"] = "scores",
    pool: int = 64,
    keep: int = 8,
    seed: int = 0,
) -> Mined:
    """Writes hard negatives for fine-tuning: mismatched pairs that a model takes for matched.

    Ranks share the work.

    Args:
        model: A model folder, or the folder of a finished run.
        out: The safetensors file to write, which a recipe names as retrieval.hard_negatives.
        data: The images and captions that will be fine-tuned on. Its split is mostly "train".
        by: What finds them. "scores" takes the best-scoring of random pairs, "vectors" the nearest of all by the
            vectors of the model's dual head, which is much quicker.
        pool: How many random pairs of each image and of each caption are scored. It is of no use by vectors.
        keep: How many negatives of each image and each caption are kept.
        seed: The seed by which pairs are drawn. It is of no use by vectors.

    Returns:
        The file, and of how many images and captions it has negatives.

    Raises:
        UsageError: Model and data do not fit together, there are too few other images or captions to keep so many, or
            the model has no dual head where its vectors are asked for.
        OSError: The file cannot be written, or another rank is gone.
    """
    from imagebert.training.hard_negatives import write_hard_negatives

    if by not in ("scores", "vectors"):
        raise UsageError(f"by {by}: mine by scores or by vectors")
    file = Path(out)
    distributed.start(timeout_minutes=60)
    main = distributed.rank() == 0
    with distributed.together():
        if main:
            check_writable(file)
        opened = open_model(Path(model))
        corpus, limits = _opened(opened, data)
        scorer = make_scorer(opened, corpus, corpus, limits, distributed.device())
    if by == "scores":
        mined = mine_negatives(scorer.score_anew, corpus, pool, keep, seed)
    else:
        mined = mine_by_vectors(encode_both(scorer, corpus.images, len(corpus)), corpus, keep)
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if main:
            write_hard_negatives(file, mined, corpus)
    return Mined(file, corpus.images, len(corpus))
