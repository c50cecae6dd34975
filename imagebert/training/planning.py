"""A recipe, or an exact evaluation, as what capacity.py can answer for: with its own batch, lengths, data and engine.

Pairs and lengths are counted where the stores are there already. Where they are not, they have to be told, and what
was taken instead is said: nothing of an answer is guessed in silence.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagebert.config import RunConfig
from imagebert.data.corpus import Corpus
from imagebert.data.records import FeatureType, Sections
from imagebert.engine.engine import zero_stage
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.feed.plan import SPECIAL_TOKENS, fit_microbatches, least_to_cut
from imagebert.model import ImageBertConfig
from imagebert.training.assemble import model_shape, sizes_of
from imagebert.training.capacity import Constants, Job, run_seconds, score_flops, step_memory, step_time

_PAYS = 1.2  # times as fast by twice the GPUs, at least
_MOST = 4096  # GPUs
_BLOCK = 32  # images whose tiles lie behind each other (retrieval/matrix.py)


@dataclass(frozen=True, kw_only=True)
class Told:
    """Says what a person knows of data and model, where it cannot be counted.

    None takes what is found in the data, or the most that the recipe allows.

    Args:
        pairs: The number of pairs of an epoch.
        regions: The number of regions of an image.
        words: The number of word pieces of a caption.
        features: The type in which features are stored.
        model: The name of a preset, such as "base".
    """

    pairs: int | None = None
    regions: int | None = None
    words: int | None = None
    features: FeatureType | None = None
    model: str | None = None


class Data(NamedTuple):
    """What an epoch has.

    Attributes:
        longest: tokens of the longest pair
        sizes: what the data decides of a model's shape
    """

    pairs: int
    images: int | None
    regions: float
    words: float
    longest: int
    record: float | None
    feature_bytes: int
    sizes: dict[str, int]


def find_data(config: RunConfig, told: Told, notes: list[str]) -> Data:
    """Counts what a recipe feeds; appends to `notes` what is taken on trust.

    Raises:
        UsageError: the stores are not there and it is not told how many pairs there are; or they are damaged.
    """
    missing = [path for s in config.data.sources for path in (s.regions, s.pairs) if not Path(path).exists()]
    if missing:
        if told.pairs is None and config.schedule.steps is None:
            raise UsageError(f"{missing[0]} is not there: say how many `pairs` an epoch has, such as 10M")
        regions = told.regions or config.data.max_regions
        words = told.words or config.data.max_words
        notes.append(f"{missing[0]} is not there: {regions} regions and {words} words a pair, as told or at most")
        size = np.dtype(told.features or "int8").itemsize
        return Data(told.pairs or 0, None, regions, words, regions + words + SPECIAL_TOKENS, None, size, {})
    corpus = Corpus(config.data.sources, verify=False)
    lengths = Limits.of(config.data).lengths(corpus)
    own = lengths.regions[corpus.caption_image]
    weights = np.concatenate(corpus.weights) if corpus.weights is not None else np.ones(len(corpus))
    feature_bytes = np.dtype(corpus.feature_type).itemsize
    records = Sections.of(corpus.image_regions, corpus.feature_size * feature_bytes, corpus.has_attributes).end
    return Data(
        pairs=told.pairs or round(weights.sum()),
        images=None if told.pairs else corpus.images,
        regions=told.regions or float(np.average(own, weights=weights)),
        words=told.words or float(np.average(lengths.words, weights=weights)),
        longest=int((own + lengths.words).max()) + SPECIAL_TOKENS,
        record=None if told.regions else float(np.mean(records)),
        feature_bytes=feature_bytes,
        sizes=sizes_of(config, corpus),
    )


def find_shape(config: RunConfig, sizes: dict[str, int], told: Told, notes: list[str]) -> ImageBertConfig:
    """The recipe's model; where what it starts from is not there, one that is told, or base."""
    origin = config.model.initialize_from
    if origin is None or Path(origin).exists():
        return model_shape(config, sizes)[0]
    preset = told.model or "base"
    notes.append(f"{origin} is not there: the model is taken to be {preset} (`model` says another)")
    model = dataclasses.replace(config.model, preset=preset, initialize_from=None)  # type: ignore[arg-type]
    return model_shape(dataclasses.replace(config, model=model), sizes)[0]


class Planned:
    """A recipe as a job on any number of GPUs.

    Attributes:
        notes: what is taken on trust, or is not as the recipe says

    Raises:
        UsageError: see `find_data`; or the recipe and its model do not fit together.
    """

    def __init__(self, config: RunConfig, constants: Constants, told: Told) -> None:
        self.config, self.notes = config, list[str]()
        self.data = find_data(config, told, self.notes)
        self.shape = find_shape(config, self.data.sizes, told, self.notes)
        self.constants = constants
        if config.engine.precision == "fp32" and constants.word_bytes == 2:
            self.constants = dataclasses.replace(constants, word_bytes=4)
            self.notes.append(
                "engine.precision is fp32 and the matmul rate is that of bf16: a calibration brings another"
            )
        if "offload" in config.engine.deepspeed:
            self.notes.append(f"{config.engine.deepspeed}: what it keeps and computes on the host is not counted")

    def fitted(self, ranks: int) -> RunConfig:
        """The recipe with its microbatches for so many GPUs.

        Raises:
            UsageError: its batch cannot be cut for them, as training would say.
        """
        fitted = fit_microbatches(self.config, ranks)
        if not self.can_be_cut(ranks):
            key, value = self._batch
            most = self.most_gpus(1)
            raise UsageError(
                f"schedule.{key} {value} cannot be cut for {ranks} GPUs, which need {self._least(fitted, ranks)} or "
                f"more: take {most} GPUs at most, or raise it"
            )
        return fitted

    def can_be_cut(self, ranks: int) -> bool:
        return self._batch[1] >= self._least(fit_microbatches(self.config, ranks), ranks)

    def most_gpus(self, start: int) -> int:
        """For how many the batch can be cut, of `start` or more; 0: for none, or for more than is looked for."""
        found = next((n for n in range(start, 2 * _MOST) if not self.can_be_cut(n)), 1)
        return found - 1

    @property
    def _batch(self) -> tuple[str, int]:
        size, tokens = self.config.schedule.batch_size, self.config.schedule.batch_tokens
        return ("batch_size", size) if size is not None else ("batch_tokens", tokens or 0)

    def _least(self, fitted: RunConfig, ranks: int) -> int:
        by_pairs = fitted.schedule.batch_size is not None
        longest = None if by_pairs else self.data.longest * fitted.group_size
        return least_to_cut(ranks * fitted.schedule.accumulation, fitted.contrast, longest)

    def job(self, nodes: int, gpus_per_node: int) -> Job:
        """Raises UsageError as `fitted` does."""
        fitted = self.fitted(nodes * gpus_per_node)
        schedule, data = fitted.schedule, self.data
        tokens = fitted.group_size * (data.regions + data.words + SPECIAL_TOKENS)
        return Job(
            pairs=data.pairs,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            shape=self.shape,
            constants=self.constants,
            regions=data.regions,
            words=data.words,
            epochs=schedule.epochs or 0.0,
            batch_size=schedule.batch_size or (schedule.batch_tokens or 0) / tokens,
            accumulation=schedule.accumulation,
            stage=zero_stage(fitted),
            feature_bytes=data.feature_bytes,
            recompute=fitted.model.gradient_checkpointing,
            task=fitted.task,
            group_size=fitted.group_size,
            chosen=fitted.chosen_negatives,
            steps=schedule.steps,
            save_every=fitted.checkpoint.every_steps,
            images=data.images,
            record=data.record,
        )

    def hard_negatives(self, job: Job, pool: int = 64) -> dict[str, Any]:
        """What fine-tuning's negatives are, and what mining them takes on the same GPUs (`imagebert mine`)."""
        found: dict[str, Any] = {"negatives a pair": job.group_size - 1 + job.chosen}
        r = self.config.retrieval
        if r.hard_negatives is not None:
            found["of them mined, on average"] = (job.group_size - 1) * r.hard_share
            images = job.images or job.pairs
            mined = pool * (images + job.pairs)
            c = job.constants
            flops = mined * sum(score_flops(job.shape, job.regions, job.words)[:2])  # an image a pair is encoded anew
            found[f"pairs scored by mining (pool {pool})"] = mined
            found["hours of mining"] = flops / (job.ranks * c.matmul * c.share) / 3600
        return found


class Size(NamedTuple):
    """A number of GPUs, and what it makes of the work."""

    gpus: int
    hours: float
    milliseconds: float  # of a step, or 0
    microbatches: int  # of a GPU and step
    fits: bool


def cluster_sizes(gpus_per_node: int) -> Iterator[tuple[int, int]]:
    """Nodes and GPUs of each: 1, 2, 4, ... GPUs of one node, then 1, 2, 4, ... nodes."""
    yield from ((1, n) for n in itertools.takewhile(lambda n: n < gpus_per_node, (1 << k for k in range(20))))
    yield from ((1 << k, gpus_per_node) for k in range(20) if gpus_per_node << k <= max(_MOST, gpus_per_node))


def sizes_of_training(planned: Planned, gpus_per_node: int) -> list[Size]:
    """As far as the batch can be cut."""
    found = []
    for nodes, gpus in cluster_sizes(gpus_per_node):
        if not planned.can_be_cut(nodes * gpus):
            break
        job = planned.job(nodes, gpus)
        fits = step_memory(job, job.stage) <= job.constants.memory
        step = step_time(job).total
        found.append(Size(job.ranks, run_seconds(job) / 3600, 1e3 * step, job.accumulation, fits))
    return found


def knee(sizes: list[Size]) -> int | None:
    """The smallest number of GPUs of which twice as many gain less than a fifth; None: all of `sizes` pay."""
    pairs = itertools.pairwise(sizes)
    return next((a.gpus for a, b in pairs if a.hours / b.hours < _PAYS ** np.log2(b.gpus / a.gpus)), None)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """An exact evaluation: every image with every caption (retrieval/matrix.py).

    Args:
        candidates: of each query, that are also scored by the first process alone; None: none
    """

    images: int
    captions: int
    shape: ImageBertConfig
    constants: Constants
    regions: float
    words: float
    feature_bytes: int = 1
    candidates: int | None = None

    @property
    def _row(self) -> float:
        """Bytes of an encoded token: hidden state, query, key and value."""
        return 4 * self.shape.hidden_size * self.constants.word_bytes

    def seconds(self, ranks: int) -> tuple[float, float]:
        """Of scoring, with what each rank encodes for itself; and of the search with candidates behind it."""
        pair, image, text = score_flops(self.shape, self.regions, self.words)
        rate = self.constants.matmul * self.constants.share
        texts = float(self.captions)
        if self._row * texts * (self.words + 2) > self.constants.memory / 3:  # each block of images has them anew
            texts = max(texts, self.images / _BLOCK * texts / ranks)
        encoding = (self.images * image + texts * text) / rate
        scoring = self.images * self.captions * pair / rate / ranks
        again = (self.candidates or 0) * (self.images + self.captions) * pair / rate
        return scoring + encoding, again + encoding if self.candidates else 0.0

    def plan(self, nodes: int, gpus_per_node: int) -> dict[str, dict[str, Any]]:
        """Named figures in groups."""
        pairs, ranks = self.images * self.captions, nodes * gpus_per_node
        pair, image, text = score_flops(self.shape, self.regions, self.words)
        scoring, again = self.seconds(ranks)
        record = float(Sections.of(int(np.ceil(self.regions)), self.shape.feature_size * self.feature_bytes).end)
        found = {
            "evaluation": {
                "pairs": pairs,
                "hours": (scoring + again) / 3600,
                "GPU hours": (scoring * ranks + again) / 3600,
                "pairs a second": pairs / scoring,
            },
            "operations, GFLOP": {"a pair": pair / 1e9, "an image, once a rank": image / 1e9, "a text": text / 1e9},
            "encoded, GB (a third of memory each)": {
                "images": self.images * (self.regions + 1) * self._row / 1e9,
                "texts": self.captions * (self.words + 2) * self._row / 1e9,
            },
            "shared file system": {
                "records read by each node": self.images,
                "GB in all": self.images * record * nodes / 1e9,
                "scores written, GB": 2 * 4 * pairs / 1e9,  # tile by tile, and as one matrix
            },
        }
        if self.candidates:
            found["with candidates"] = {
                "pairs at most": self.candidates * (self.images + self.captions),
                "hours, of one process": again / 3600,
            }
        return found


def sizes_of_evaluation(exact: Exact, gpus_per_node: int) -> list[Size]:
    counts = (nodes * gpus for nodes, gpus in cluster_sizes(gpus_per_node))
    return [Size(n, sum(exact.seconds(n)) / 3600, 0.0, 1, True) for n in counts]
