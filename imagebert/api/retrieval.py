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
from imagebert.retrieval.evaluation import Evaluation, check_candidates, kept_scores, make_scorer, report, score
from imagebert.retrieval.metrics import check_folds
from imagebert.retrieval.metrics import evaluate as count_matrix
from imagebert.retrieval.mining import mine as mine_negatives
from imagebert.retrieval.pictures import Pictures, open_picture
from imagebert.retrieval.queries import compare as compare_queries
from imagebert.retrieval.search import Finder, Hit, contact_sheet

PathLike = str | os.PathLike[str]

# The demo's own extractor looks at every pixel: a second and 90 MB for a million.
_DEMO_PIXELS = 4_000_000
_DEMO = Path("runs/demo")

# Of each named data set its folder, and in how many folds it is counted.
DATASETS = {"flickr30k": ("flickr30k", 1), "flickr8k": ("flickr8k", 1), "coco": ("coco", 1), "coco1k": ("coco", 5)}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images with their captions, and what of them a model is fed.

    Args:
        regions: the region store
        pairs: the pair store
        split: of the pair store; None: every pair
        folds: into how many equal parts of the images figures are averaged
        pictures: the folder of the photographs; None: images/ beside the region store, if there is one
        max_regions: regions fed per image; None: as the model was trained
        max_words: word pieces fed per caption; None: as the model was trained
        whole_image: whether the whole-image region is fed; None: as the model was trained
        min_relevance: captions below it, or without a score, are left out; None: none are
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
    """The stores of a named data set, and in how many folds it is counted.

    Args:
        name: flickr30k, flickr8k, coco, or coco1k, which is coco in five folds
        folder: where the data sets lie, each as NAME/regions and NAME/pairs
        split: of the pair store; None: every pair

    Raises:
        UsageError: there is none of that name.
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
    """An exact evaluation.

    Attributes:
        folder: of the score matrix and all that is counted in it
        figures: R@K, ranks, intervals and more, as recall.json has them; empty on ranks but the first
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
    embeddings: PathLike | None = None,
    out: PathLike | None = None,
) -> Evaluated:
    """Scores every image with every caption and counts exact R@K; ranks share the work.

    Stopped anywhere, the same call goes on. What is scored already is only counted again.

    Args:
        model: a model folder, or a finished run
        data: what it is evaluated on
        images: only so many of the first images, and their captions; None: all
        precision: of scoring; auto: bf16 on a GPU, else fp32
        candidates: also search with so many of the nearest vectors of each query only; None: exact alone
        embeddings: an .npz with those vectors; None: those of the model's dual head
        out: the folder of the results; None: one in the model's folder evaluation/, named after what is evaluated

    Returns:
        The folder of the results, and on the first rank the figures.

    Raises:
        UsageError: model and data do not fit together, or `out` holds another evaluation.
        OSError: the disk is full or fails, or another rank is gone; what is scored is kept.
    """
    if embeddings is not None and not candidates:
        raise UsageError("embeddings are for finding candidates: give a number of `candidates`")
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
    folder, result = score(evaluation, None if out is None else Path(out))
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if result is None:
            return Evaluated(folder)
        return Evaluated(folder, report(evaluation, folder, result, data.folds, photographs, candidates, vectors))


def recount(scores: PathLike, folds: int = 1) -> dict[str, Any]:
    """Counts the score matrix of a finished evaluation again.

    Args:
        scores: the folder that `evaluate` wrote
        folds: into how many equal parts of the images the figures are averaged

    Returns:
        R@K, ranks, intervals and more, as recall.json has them.

    Raises:
        UsageError: there is no evaluation, it has changed since it was written, or its images make no such folds.
    """
    matrix, _ = kept_scores(Path(scores))
    return count_matrix(*matrix, folds)


def compare(a: PathLike, b: PathLike) -> list[dict[str, Any]]:
    """Says whether two evaluations of the same queries differ by more than other images would make them differ.

    Args:
        a, b: folders that `evaluate` wrote

    Returns:
        For R@1, R@5 and R@10 both ways and R-sum: "a", "b", their "difference", its 95 % "interval", and whether that
        is "larger than noise".

    Raises:
        UsageError: one is missing, or they asked different queries.
    """
    return compare_queries(Path(a), Path(b))


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        query: the words as they were read, or the picture
        unknown: words that the model does not know
        hits: the best images for words, or captions for a picture, the best first
    """

    query: str
    unknown: tuple[str, ...]
    hits: tuple[Hit, ...]
    _pictures: Pictures = field(repr=False)

    def draw(self, path: PathLike) -> int:
        """Draws the images that were found, in their order, into one JPEG; returns how many have a photograph.

        Raises:
            UsageError: the file cannot be written.
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
        model: a model folder, or a finished run
        store: the region store of the images
        words: such as "two dogs playing on grass"
        image: a picture, or the key of one in the store, in place of words
        top: how many are found
        pairs: the pair store whose captions answer a picture
        pictures: the folder of the photographs; None: images/ beside the store, if there is one
        extractor: the YAML description of what finds the regions of a picture that is not in the store; None: the
            demo's own, for the demo's pictures

    Returns:
        The hits, the best first, each with its number, name, score and probability.

    Raises:
        UsageError: model and store do not fit together, the words or the picture cannot be used, or what they are
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
    """Serves a page to search with words and pictures, until it is interrupted.

    Args:
        model: a model folder, or a finished run; None: what the demo made in runs/demo
        store: the region store of the images; with a model it has to be named
        pairs: the pair store whose captions answer a picture
        pictures: the folder of the photographs; None: images/ beside the store, if there is one
        extractor: the YAML description of what finds the regions of a picture; None: the demo's own, for its store
        host: address to listen at
        port: to listen at; 0: any free one

    Raises:
        UsageError: model and store do not fit together, or the address cannot be used.
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
    """Hard negatives that `mine` wrote: the file, and of how many images and captions."""

    file: Path
    images: int
    captions: int


def mine(model: PathLike, out: PathLike, data: Data, *, pool: int = 64, keep: int = 8, seed: int = 0) -> Mined:
    """Writes hard negatives for fine-tuning: what a model takes for matches; ranks share the work.

    Args:
        model: a model folder, or a finished run
        out: the safetensors file to write, which a recipe names as retrieval.hard_negatives
        data: what will be fine-tuned on; its split is mostly train
        pool: how many random candidates of each image and each caption are scored
        keep: how many of them are kept, the best-scoring
        seed: of the candidates that are drawn

    Returns:
        The file, and of how many images and captions it has negatives.

    Raises:
        UsageError: model and data do not fit together, or there are too few others to keep so many.
        OSError: the file cannot be written, or another rank is gone.
    """
    from imagebert.training.hard_negatives import write_hard_negatives

    file = Path(out)
    distributed.start(timeout_minutes=60)
    main = distributed.rank() == 0
    with distributed.together():
        if main:
            check_writable(file)
        opened = open_model(Path(model))
        corpus, limits = _opened(opened, data)
        scorer = make_scorer(opened, corpus, corpus, limits, distributed.device())
    mined = mine_negatives(scorer.score_anew, corpus, pool, keep, seed)
    with distributed.together():  # srun ends what is left some seconds after the first process is done
        if main:
            write_hard_negatives(file, mined, corpus)
    return Mined(file, corpus.images, len(corpus))
