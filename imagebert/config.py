"""The configuration: one typed tree of frozen dataclasses, which is all that a recipe can say.

A recipe is complete: what it does not say is the default written here, and nothing else. A mistake is an error that
names the key, the value and the cure. The tree is plain data: it imports nothing of ImageBERT but its reader
(strict_yaml.py) and what warns of old names (renamed.py), so that every floor may read it.

What a key means is said by the comment behind it, or above it where that is too long; the documentation's table of keys
is made of these and of the classes' docstrings. Keys that had another name in the version before are in `RENAMED`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from imagebert.errors import UsageError as UsageError
from imagebert.renamed import warn_renamed
from imagebert.strict_yaml import apply_overrides, build, nearest, read_yaml

# ---------------------------------------------------------------------------------------------------------- the tree


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus: regions of its images and the captions that belong to them; which of these, and how often."""

    regions: str  # folder of the region store
    pairs: str  # folder of the pair store
    split: str | None = "train"  # only its pairs of this split; null: every pair
    min_relevance: float | None = None  # captions below it, or without a score, are left out; null: none is
    weight: float = 1.0  # how many times a pair is sampled in an epoch, on average
    sampling: Literal["uniform", "relevance"] = "uniform"  # uniform: all alike; relevance: by scores

    @property
    def weighted(self) -> bool:
        """Whether some pairs are sampled more or less often than once an epoch."""
        return self.weight != 1 or self.sampling != "uniform"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is fed. The keys from `feeder` on say how it comes; none of them changes what comes."""

    sources: tuple[SourceConfig, ...]  # the corpora, sampled together
    max_regions: int = 100  # of an image, the most confident first (paper, section 3: 100 RoIs)
    max_words: int = 41  # word pieces of a caption; the default is 144 tokens less 100 RoIs and 3 specials
    whole_image: bool = True  # feed the whole-image region, where the store has one
    feeder: Literal["plain", "dali"] = "plain"  # dali: through NVIDIA DALI, the same bytes
    prefetch_steps: int = 2  # steps that are ready or being packed while one runs
    workers: int = 2  # threads that pack
    read_ahead: bool = True  # ask the system for records before they are packed; for stores larger than memory
    verify_records: bool = True  # check each record's CRC-32 when it is read
    max_damaged_records: int = 100  # a rank leaves out the pairs of so many images with a damaged record, then stops


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Give a preset (new weights) or a folder to start from (an ImageBERT or any BERT in Hugging Face's format)."""

    preset: Literal["tiny", "small", "base", "large", "xl"] | None = None  # shape of new weights; base is the paper's
    layers: int | None = None  # how many, in place of the preset's or of the folder's; the first of the folder's
    # Layers before this one attend within an image or within a text, the others to both sides of a pair; 0: all to
    # both, as in the paper; as many as there are: none does. null: as the folder has it, else 0
    fusion_layer: int | None = None
    fused_from: str | None = None  # a BERT whose last layers those that see both sides start from, where they are new
    residual_score: bool | None = None  # a score is the product of vectors plus the ITM head's; null: as the folder
    # Begin with texts embedded as the BERT that is started from embeds a text alone: for layers that see one side only
    text_alone: bool = False
    initialize_from: str | None = None  # a model folder, or a run, whose shape and weights are taken
    allow_partial: bool = False  # start from it even where it lacks parts of the encoder
    hidden_dropout: float = 0.1  # probability, of embeddings and of each layer's two outputs
    attention_dropout: float = 0.1  # probability, of attention's weights
    pooler: bool = False  # score [CLS] through BERT's tanh pooler instead of directly
    global_image_token: bool = False  # mark the whole-image region with an embedding of its own (paper, section 5.4)
    gradient_checkpointing: bool = False  # compute each layer again in backward: less memory, more time
    dual_size: int = 0  # length of the vectors by which candidates are found; 0: no such head, as in the paper
    # Width of a hidden layer through which the feature of the whole image adds to its vector, past the layers; 0: none
    dual_shortcut: int = 0
    dual_shortcut_dropout: float = 0.5  # probability, before and behind that hidden layer
    # Epochs before training in which the shortcut alone learns, from vectors of captions as they are
    dual_fit_epochs: int = 0

    @property
    def marks_whole_image(self) -> bool:
        """Says whether the model wants to know which region is the whole image."""
        return self.global_image_token or self.dual_shortcut > 0


@dataclass(frozen=True, kw_only=True)
class PretrainingObjectives:
    """Weights of the four losses (paper, section 4) and the corruption they learn from."""

    mlm: float = 1.0  # weight of masked language modelling: words that were masked
    moc: float = 1.0  # weight of masked object classification: classes of regions that were masked
    mrfr: float = 1.0  # weight of masked region feature regression: features of regions that were masked
    itm: float = 1.0  # weight of image-text matching: does the caption belong to the image
    attributes: float = 0.0  # weight of masked attribute classification, where regions have some; not in the paper
    dual: float = 0.0  # weight of the dual head's contrastive loss; not in the paper
    contrast: int = 32  # pairs that it is contrasted over: those matched among them
    contrast_over: Literal["block", "step"] = "block"  # step: over all matched pairs of a step, on all ranks
    masked_words: float = 0.15  # probability that a word piece is masked
    masked_regions: float = 0.15  # probability that a region is masked
    negatives: float = 0.5  # share of pairs that are mismatched
    # Where the other half of these is from: the same step, or anywhere. similar: no pair that is sampled is mismatched,
    # but each gets two mismatched ones from its block, those whose vectors are near more likely (ALBEF)
    negatives_from: Literal["batch", "corpus", "similar"] = "batch"
    random_steps: int = 0  # with similar: for the first steps they are drawn by chance


@dataclass(frozen=True, kw_only=True)
class RetrievalObjectives:
    """Weights of the three fine-tuning losses (paper, section 5.3) over groups of one positive and P-1 negatives."""

    binary: float = 1.0  # weight of the binary loss: each pair of a group by itself
    multiclass: float = 0.0  # weight of the multi-class loss: which of a group is the positive
    triplet: float = 0.0  # weight of the triplet loss: the positive above the hardest negative by a margin
    dual: float = 0.0  # weight of the dual head's contrastive loss; not in the paper
    contrast: int = 8  # groups that it is contrasted over
    contrast_over: Literal["block", "step"] = "block"  # step: over all groups of a step, on all ranks
    group_size: int = 4  # P, pairs of a group: one positive, the others negatives
    margin: float = 0.2  # of the triplet loss, between probabilities
    # Where negatives come from: the same step, or anywhere; similar: from the `contrast` pairs of a pair's block, those
    # whose vectors are near more likely (ALBEF)
    negatives_from: Literal["batch", "corpus", "similar"] = "batch"
    random_steps: int = 0  # with similar: for the first steps they are drawn by chance
    hard_negatives: str | None = None  # file written by `imagebert mine`; null: none
    hard_share: float = 0.5  # of the negatives, how many are drawn from that file


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow gradients. Biases and LayerNorms are not decayed."""

    name: Literal["adamw", "lamb"] = "adamw"  # lamb needs ZeRO 0
    implementation: Literal["auto", "torch", "deepspeed", "apex"] = "auto"  # auto: the fastest that is installed
    learning_rate: float = 1e-4  # the highest, behind the warm-up
    learning_rate_batch: int | None = None  # pairs a step that learning_rate is for; null: the rate is taken as it is
    learning_rate_scaling: Literal["sqrt", "linear"] = "sqrt"  # how it grows with the pairs that there are
    new_rate: float = 1.0  # factor of it for what no text model has: projections of regions, and the dual head
    # Factor of it for what makes vectors: embeddings, layers before model.fusion_layer, the dual head; 0: it stays
    side_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the two moments
    epsilon: float = 1e-6  # added to the root of the second moment
    weight_decay: float = 0.01  # share of the learning rate by which weights shrink in a step
    gradient_clipping: float = 1.0  # largest norm of a step's whole gradient; 0: off


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length and shape of training. One step is one update of the weights by `batch_size` pairs over all ranks, or by
    about `batch_tokens` tokens: regions, words and specials."""

    batch_size: int | None = None  # pairs a step, over all ranks; fine-tuning: groups
    batch_tokens: int | None = None  # instead: tokens a step, to within a pair
    accumulation: int = 1  # microbatches per rank and step, at least
    microbatch_size: int | None = None  # pairs at most in a microbatch: fewer ranks accumulate more
    microbatch_tokens: int | None = None  # instead, where steps have batch_tokens
    epochs: float | None = None  # length of training; or:
    steps: int | None = None  # length of training, in updates
    warmup: float = 0.1  # share of all steps in which the rate rises to learning_rate
    decay: Literal["linear", "constant"] = "linear"  # of the rate behind the warm-up: to zero, or none


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is done. A run may be resumed with others of these."""

    deepspeed: str = "zero0"  # DeepSpeed's JSON: a file, or a name in ds_configs/
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU that has it, else fp32
    deterministic: bool = False  # PyTorch's deterministic algorithms: the same bits on the same GPU, slower
    kernels: Literal["auto", "reference", "triton"] = "auto"  # auto: Triton's on a GPU, else plain PyTorch
    # eager; or with all microbatches filled up to one shape: each layer compiled, or the model as two CUDA graphs.
    # auto: what is fastest of those that this run can have (docs/recipes.md); the log says which, and why
    step: Literal["auto", "eager", "compiled", "graphed"] = "eager"
    timeout_minutes: float = 10  # a step, a save or a start that takes longer ends the process
    max_skipped_steps: int = 10  # in a row, because loss or gradient is not finite; then the run stops


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a run can go on from. One is also written when a run is asked to stop."""

    every_steps: int = 1000  # steps between two checkpoints
    keep: int = 2  # how many of the newest stay
    keep_every: int = 0  # those at multiples of so many steps stay too; 0: none


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Exact R@K during training, on all ranks; the clock of the rates stands still meanwhile."""

    sources: tuple[SourceConfig, ...] = ()  # what is evaluated, without weights; none: no evaluation
    images: int = 100  # how many: the first of the split, with all their captions
    every_steps: int = 1000  # steps between two evaluations
    max_share: float = 0.05  # of the time of training; where it takes more, the log says so


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Besides these, every line goes to `log.jsonl` in the run's folder."""

    every_steps: int = 10  # steps between two lines
    monitors: tuple[Literal["tensorboard", "wandb", "csv"], ...] = ()  # DeepSpeed's, which get the same numbers


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The whole recipe. `stage` names the run's place in multi-stage training and keys its random choices."""

    task: Literal["pretrain", "finetune"]  # which of the two this recipe does
    stage: str  # the run's place among several stages; with the seed it keys all random choices
    output: str  # folder of the run
    seed: int = 0  # another one gives another run
    data: DataConfig  # what is fed
    model: ModelConfig  # its shape, and the weights it starts from
    pretraining: PretrainingObjectives = field(default_factory=PretrainingObjectives)  # what pre-training learns
    retrieval: RetrievalObjectives = field(default_factory=RetrievalObjectives)  # what fine-tuning learns
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # how weights follow gradients
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # batch, length, rate over time
    engine: EngineConfig = field(default_factory=EngineConfig)  # how the work is done
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # what a run can go on from
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # R@K during training
    logging: LoggingConfig = field(default_factory=LoggingConfig)  # what is written while it runs

    def __post_init__(self) -> None:
        check = _Checker()
        self._check_numbers(check)
        self._check_alternatives(check)
        self._check_together(check)

    def _check_numbers(self, check: _Checker) -> None:
        """Each key by itself."""
        check(bool(self.data.sources), "data.sources", "is empty", "name at least one {regions, pairs}")
        check.positive(
            ("data.max_regions", self.data.max_regions),
            ("data.max_words", self.data.max_words),
            ("schedule.accumulation", self.schedule.accumulation),
            ("checkpoint.every_steps", self.checkpoint.every_steps),
            ("checkpoint.keep", self.checkpoint.keep),
            ("engine.timeout_minutes", self.engine.timeout_minutes),
            ("engine.max_skipped_steps", self.engine.max_skipped_steps),
            ("evaluation.images", self.evaluation.images),
            ("evaluation.every_steps", self.evaluation.every_steps),
            ("evaluation.max_share", self.evaluation.max_share),
            ("logging.every_steps", self.logging.every_steps),
            ("optimizer.learning_rate", self.optimizer.learning_rate),
            ("optimizer.new_rate", self.optimizer.new_rate),
            ("optimizer.side_rate", 1 if self.optimizer.side_rate == 0 else self.optimizer.side_rate),
        )
        check.within(0.001, 1000, *((f"data.sources.{n}.weight", s.weight) for n, s in enumerate(self.data.sources)))
        for place, source in enumerate(self.evaluation.sources):
            check_unweighted(f"evaluation.sources.{place}", source)
        weights = [
            (f"pretraining.{name}", getattr(self.pretraining, name))
            for name in ("mlm", "moc", "mrfr", "itm", "attributes")
        ]
        weights += [(f"retrieval.{name}", getattr(self.retrieval, name)) for name in ("binary", "multiclass")]
        check.within(
            0,
            (1 << 63) - 1,
            ("seed", self.seed),
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("optimizer.gradient_clipping", self.optimizer.gradient_clipping),
            ("optimizer.epsilon", self.optimizer.epsilon),
            ("checkpoint.keep_every", self.checkpoint.keep_every),
            ("model.dual_size", self.model.dual_size),
            ("model.dual_shortcut", self.model.dual_shortcut),
            ("model.dual_fit_epochs", self.model.dual_fit_epochs),
            ("model.fusion_layer", self.model.fusion_layer or 0),
            ("pretraining.random_steps", self.pretraining.random_steps),
            ("retrieval.random_steps", self.retrieval.random_steps),
            ("pretraining.dual", self.pretraining.dual),
            ("retrieval.triplet", self.retrieval.triplet),
            ("retrieval.dual", self.retrieval.dual),
            ("retrieval.margin", self.retrieval.margin),
            *weights,
        )
        check.within(1, 1024, ("data.workers", self.data.workers), ("data.prefetch_steps", self.data.prefetch_steps))
        check.within(
            1,
            1 << 16,
            ("pretraining.contrast", self.pretraining.contrast),
            ("retrieval.contrast", self.retrieval.contrast),
        )
        for place, beta in enumerate(self.optimizer.betas):
            check(0 <= beta < 1, f"optimizer.betas.{place}", f"is {beta}", "give a share below 1")
        for name in ("steps", "epochs", "batch_size", "batch_tokens", "microbatch_size", "microbatch_tokens"):
            value = getattr(self.schedule, name)
            if value is not None:
                check.positive((f"schedule.{name}", value))
        batch = self.optimizer.learning_rate_batch
        if batch is not None:
            check.positive(("optimizer.learning_rate_batch", batch))
        check.share(
            ("model.hidden_dropout", self.model.hidden_dropout),
            ("model.attention_dropout", self.model.attention_dropout),
            ("model.dual_shortcut_dropout", self.model.dual_shortcut_dropout),
            ("pretraining.masked_words", self.pretraining.masked_words),
            ("pretraining.masked_regions", self.pretraining.masked_regions),
            ("pretraining.negatives", self.pretraining.negatives),
            ("retrieval.hard_share", self.retrieval.hard_share),
            ("schedule.warmup", self.schedule.warmup),
        )

    def _check_alternatives(self, check: _Checker) -> None:
        """Keys of which one stands for the other."""
        for unit, other in (("size", "tokens"), ("tokens", "size")):
            given = getattr(self.schedule, f"microbatch_{unit}")
            check(
                given is None or getattr(self.schedule, f"batch_{unit}") is not None,
                f"schedule.microbatch_{unit}",
                f"is {given} and there is no schedule.batch_{unit}",
                f"give that in place of batch_{other}, or microbatch_{other}",
            )
        check(
            (self.schedule.epochs is None) != (self.schedule.steps is None),
            "schedule",
            f"has epochs={self.schedule.epochs} and steps={self.schedule.steps}",
            "give exactly one of the two",
        )
        check(
            (self.schedule.batch_size is None) != (self.schedule.batch_tokens is None),
            "schedule",
            f"has batch_size={self.schedule.batch_size} and batch_tokens={self.schedule.batch_tokens}",
            "give exactly one of the two, such as batch_size=48, the paper's",
        )
        check(
            (self.model.preset is None) != (self.model.initialize_from is None),
            "model",
            f"has preset={self.model.preset} and initialize_from={self.model.initialize_from}",
            "give preset for new weights, or initialize_from for a folder whose shape and weights are taken",
        )

    def _check_together(self, check: _Checker) -> None:
        """Keys that do not go with each other."""
        check(
            self.optimizer.name == "lamb" or self.optimizer.implementation != "apex",
            "optimizer.implementation",
            "is apex, which is used for LAMB only",
            "take auto for AdamW",
        )
        check(
            self.engine.step != "graphed"
            or not (self.schedule.accumulation > 1 or self.schedule.microbatch_size or self.schedule.microbatch_tokens),
            "engine.step",
            "is graphed with schedule.accumulation above 1, a microbatch_size or microbatch_tokens",
            "a replay writes its gradients over those of the last one: take auto or compiled, or one microbatch a step",
        )
        dual = self.objectives.dual
        check(
            (dual > 0) == (self.model.dual_size > 0),
            "model.dual_size",
            f"is {self.model.dual_size} where the weight of the dual loss is {dual}",
            "give both, or neither",
        )
        check(
            not self.model.dual_shortcut or self.model.dual_size > 0,
            "model.dual_shortcut",
            f"is {self.model.dual_shortcut}, and there are no vectors that it adds to",
            "give model.dual_size, or leave it out",
        )
        check(
            not self.model.dual_fit_epochs or self.model.dual_shortcut > 0,
            "model.dual_fit_epochs",
            f"is {self.model.dual_fit_epochs}, and there is no shortcut to fit",
            "give model.dual_shortcut, or leave it out",
        )
        check(
            not self.model.dual_size or (self.schedule.batch_size or 1) % self.contrast == 0,
            "schedule.batch_size",
            f"is {self.schedule.batch_size}, and the dual head is contrasted over {self.contrast}",
            "give a multiple of that",
        )
        check(
            not self.model.dual_size or self.engine.step != "graphed",
            "engine.step",
            "is graphed with a dual head",
            "take eager or compiled",
        )
        if self.task == "finetune":
            r = self.retrieval
            check(r.group_size >= 2, "retrieval.group_size", f"is {r.group_size}", "give at least 2")
            check(r.binary + r.multiclass + r.triplet + r.dual > 0, "retrieval", "has no loss", "give one a weight")
            check(
                not (self.aligns and r.hard_negatives),
                "retrieval.hard_negatives",
                "is given, and there is no loss that takes negatives",
                "give binary, multiclass or triplet a weight, or leave it out",
            )
        made = self.task == "finetune" or self.pretraining.negatives > 0
        if made and self.objectives.negatives_from == "batch":
            check(self.schedule.batch_size != 1, "schedule.batch_size", "is 1", "in-batch negatives need at least 2")
        self._check_contrast(check)

    def _check_contrast(self, check: _Checker) -> None:
        """Keys that need vectors of the two sides."""
        name, o = ("pretraining" if self.task == "pretrain" else "retrieval"), self.objectives
        layers, fusion = self.model.layers, self.model.fusion_layer
        check(
            layers is None or fusion is None or fusion <= layers,
            "model.fusion_layer",
            f"is {fusion}, and model.layers {layers}",
            "give at most as many",
        )
        check(
            not self.model.text_alone or self.model.initialize_from is not None,
            "model.text_alone",
            "is true, and there is no BERT that is started from",
            "give model.initialize_from, or leave it out",
        )
        check(
            self.optimizer.side_rate == 1 or self.model.dual_size > 0,
            "optimizer.side_rate",
            f"is {self.optimizer.side_rate:g}, and there are no vectors",
            f"give model.dual_size and {name}.dual, or leave it out",
        )
        check(
            not self.model.residual_score or self.model.dual_size > 0,
            "model.residual_score",
            "is true, and there are no vectors whose product it adds to",
            f"give model.dual_size and {name}.dual, or leave it out",
        )
        if o.negatives_from == "similar":
            check(
                self.model.dual_size > 0 and o.contrast > 1,
                f"{name}.negatives_from",
                "is similar, and there is no block of vectors to find them in",
                f"give model.dual_size, {name}.dual and a contrast above 1",
            )
            check(
                self.engine.step in ("auto", "eager"),
                "engine.step",
                f"is {self.engine.step}, and {name}.negatives_from similar: a step's tokens are not known before",
                "take eager or auto",
            )
            check(
                self.task == "pretrain" or not self.retrieval.hard_negatives,
                "retrieval.hard_negatives",
                "is given beside negatives_from similar",
                "take one of the two",
            )
        if o.contrast_over == "step" and self.model.dual_size:
            check(
                self.schedule.accumulation == 1
                and not (self.schedule.microbatch_size or self.schedule.microbatch_tokens),
                f"{name}.contrast_over",
                "is step, and a rank may have several microbatches in it",
                "leave out schedule.accumulation and the microbatch's size, or take block",
            )

    @property
    def objectives(self) -> PretrainingObjectives | RetrievalObjectives:
        """Those of the recipe's task."""
        return self.pretraining if self.task == "pretrain" else self.retrieval

    @property
    def aligns(self) -> bool:
        """Whether it trains vectors of images and texts, and nothing that sees both."""
        r = self.retrieval
        return self.task == "finetune" and r.binary + r.multiclass + r.triplet == 0

    @property
    def predicts_attributes(self) -> bool:
        """Whether attributes of regions are labels."""
        return self.task == "pretrain" and self.pretraining.attributes > 0

    @property
    def contrast(self) -> int:
        """Groups of pairs that stay in one microbatch: 1 without a dual head."""
        return self.objectives.contrast if self.model.dual_size else 1

    @property
    def chosen_negatives(self) -> int:
        """N', mismatched pairs that each matched one gets in the step itself, by similarity."""
        if self.objectives.negatives_from != "similar" or self.aligns:
            return 0
        return self.retrieval.group_size - 1 if self.task == "finetune" else 2

    @property
    def group_size(self) -> int:
        """Pairs that the plan makes of a sampled one: itself and its negatives when fine-tuning, itself otherwise."""
        if self.task == "pretrain" or self.aligns or self.chosen_negatives:
            return 1
        return self.retrieval.group_size


def check_unweighted(key: str, source: SourceConfig) -> None:
    """Whether a source can be evaluated.

    Raises:
        UsageError: it has a weight.
    """
    if source.weighted:
        raise UsageError(
            f"{key} has weight {source.weight} and sampling {source.sampling}: an evaluation has each caption once; "
            "leave the two out (min_relevance may stay)"
        )


def is_installed(package: str) -> bool:
    """Whether it could be imported; it is not."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None  # a folder of that name is no package


def check_monitors(config: RunConfig) -> None:
    """Is all there that logging.monitors write with?

    Raises:
        UsageError: a package is not installed.
    """
    for name in config.logging.monitors:
        if not is_installed(name):
            extra = "monitors" if name == "wandb" else "train"
            raise UsageError(
                f"logging.monitors has {name}, which is not installed: pip install 'imagebert[{extra}]', or take it out"
            )


class _Checker:
    def __call__(self, holds: bool, key: str, found: str, cure: str) -> None:
        if not holds:
            raise UsageError(f"{key} {found}: {cure}")

    def positive(self, *items: tuple[str, float]) -> None:
        for key, value in items:
            self(value > 0, key, f"is {value}", "give a positive number")

    def within(self, low: float, high: float, *items: tuple[str, float]) -> None:
        for key, value in items:
            self(low <= value <= high, key, f"is {value}", f"give {low} to {high}")

    def share(self, *items: tuple[str, float]) -> None:
        for key, value in items:
            self(0 <= value <= 1, key, f"is {value}", "give a share between 0 and 1")


# Keys that may differ when a run is resumed: they change how the work is done, never its result.
# Where data and weights lie may change too; what they are is compared by digests.
FREE_ON_RESUME = (
    *("data.sources.regions", "data.sources.pairs", "model.initialize_from", "model.fused_from"),
    *(
        "retrieval.hard_negatives",
        "output",
        "engine",
        "checkpoint",
        "evaluation",
        "logging",
        "optimizer.implementation",
    ),
    *("schedule.accumulation", "schedule.microbatch_size", "schedule.microbatch_tokens", "data.max_damaged_records"),
    *(f"data.{key}" for key in ("feeder", "prefetch_steps", "workers", "read_ahead", "verify_records")),
)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys at which two plain recipes differ, as `key: old -> new`, those free on resume left out."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        key = prefix + name
        if re.sub(r"\.\d+", "", key) in FREE_ON_RESUME:  # whichever of a list
            continue
        before, after = old.get(name), new.get(name)
        if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            before, after = ({str(n): value for n, value in enumerate(values)} for values in (before, after))
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, key + ".")
        elif before != after:
            found.append(f"{key}: {before} -> {after}")
    return found


# The mapping that a key is in, its name in the version before, its name now. The old one works in this version.
RENAMED = (("retrieval", "candidates", "group_size"),)


def rename_keys(tree: dict[str, Any], where: str, quiet: bool = False) -> dict[str, Any]:
    """A plain recipe with the keys' names of today.

    Args:
        where: the recipe is from, for people
        quiet: whether no warning names them; of what no person wrote

    Raises:
        UsageError: a key is given by both of its names.
    """
    for mapping, old, new in RENAMED:
        keys = tree.get(mapping)
        if isinstance(keys, dict) and old in keys:
            _check_not_both(new in keys, f"{mapping}.{old}", f"{mapping}.{new}", where)
            if not quiet:
                warn_renamed(f"{mapping}.{old}", f"{mapping}.{new}")
            tree = {**tree, mapping: {new if key == old else key: value for key, value in keys.items()}}
    return tree


def _rename_overrides(overrides: typing.Sequence[str]) -> list[str]:
    found = [override.partition("=") for override in overrides]
    for mapping, *names in RENAMED:
        old, new = (f"{mapping}.{name}" for name in names)
        keys = {key for key, _, _ in found}
        if old in keys:
            _check_not_both(new in keys, old, new, "the overrides")
            warn_renamed(old, new)
            found = [(new if key == old else key, equals, text) for key, equals, text in found]
    return ["".join(parts) for parts in found]


def _check_not_both(both: bool, old: str, new: str, where: str) -> None:
    if both:
        raise UsageError(f"{where}: {old} is called {new} now, and both are given: leave out {old}")


RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name_or_path: str, overrides: typing.Sequence[str] = ()) -> RunConfig:
    """Reads a recipe (a file, or the name of one that ships with the package) and applies `key=value` overrides.

    Of two keys that exclude each other, such as batch_size and batch_tokens, the one that is overridden counts.

    Raises:
        UsageError: no such recipe, bad YAML, an unknown key, a wrong type or an impossible combination.
    """
    path = Path(name_or_path)
    if not os.path.isfile(path):  # Path's raises for a name that is too long
        shipped = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        if name_or_path not in shipped:
            raise UsageError(
                f"no recipe {name_or_path!r}: give a YAML file or one of {', '.join(shipped)}"
                + nearest(name_or_path, shipped)
            )
        path = RECIPES / f"{name_or_path}.yaml"
    return build_recipe(read_yaml(path), overrides, str(path))


def build_recipe(tree: dict[str, Any], overrides: typing.Sequence[str], where: str) -> RunConfig:
    """A recipe's plain tree, which is changed, with `key=value` overrides; either may have keys by their old names.

    Raises:
        UsageError: as `load_recipe`.
    """
    tree, overrides = rename_keys(tree, where), _rename_overrides(overrides)
    named = {key for key, _, text in (override.partition("=") for override in overrides) if text != "null"}
    for given, replaced in _EXCLUSIVE:
        if f"schedule.{given}" in named and isinstance(tree.get("schedule"), dict):
            for key in replaced:
                tree["schedule"].pop(key, None)
    # An override may have brought a mapping with an old name in it.
    return build(RunConfig, rename_keys(apply_overrides(tree, overrides), where), where)


# A key of the schedule, and those that it takes the place of.
_EXCLUSIVE = (
    ("batch_size", ("batch_tokens", "microbatch_tokens")),
    ("batch_tokens", ("batch_size", "microbatch_size")),
    ("steps", ("epochs",)),
    ("epochs", ("steps",)),
)
