"""A recipe carried out: data, model, plan, engine, resume, loop, and the model folder at the end.

A run is a folder: config.yaml (the resolved recipe), log.jsonl, checkpoints/, model/ (Hugging Face's format, written
when training is done). Started again with the same recipe it goes on where it was; weights come, in this order, from
its own newest checkpoint, from model.initialize_from, or from nowhere.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from imagebert import distributed
from imagebert.config import RunConfig, UsageError, build, differences, to_plain, to_yaml
from imagebert.data.corpus import Corpus
from imagebert.data.folder import clear_lock
from imagebert.data.tokens import Tokenizer
from imagebert.data.vocabulary import has_vocabulary
from imagebert.endings import Stop, asked_to_stop, keep_tracebacks
from imagebert.engine.checkpoints import Checkpoints, find_newest, newest_manifest
from imagebert.engine.engine import Engine, check_monitors, zero_stage
from imagebert.engine.metrics import Meter
from imagebert.engine.schedule import learning_rate
from imagebert.engine.shards import Shards
from imagebert.errors import LostRank, MachineFault
from imagebert.feed.arena import Arena
from imagebert.feed.dali import DaliCarrier
from imagebert.feed.draws import stage_key
from imagebert.feed.feeder import Feeder
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Matches, Negatives, Plan, fit_microbatches
from imagebert.feed.sizes import Sizes, choose_sizes, first_held
from imagebert.files import file_digest, write_bytes
from imagebert.host import STOPPED, keep_memory
from imagebert.launch import find_job
from imagebert.log import BY_RANK_0, track
from imagebert.model import (
    ImageBertConfig,
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    initialize_from,
)
from imagebert.model.initialization import find_model, is_imagebert, read_architecture
from imagebert.model_folder import Processing, is_whole, model_digest, open_model, processing_of, write_model
from imagebert.training.attempts import Attempt, attempt, ended, read_attempts
from imagebert.training.capacity import matmul_rate, pair_flops
from imagebert.training.hard_negatives import read_hard_negatives
from imagebert.training.health import Health
from imagebert.training.loop import Steps, Stopped, train
from imagebert.training.objectives import make_objective
from imagebert.training.ownership import Ownership, own
from imagebert.training.profile import StepProfiler
from imagebert_kernels import backend

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Evaluates a model of its own, which is given the weights of the one in training."""

    model: nn.Module

    def __call__(self, alive: Callable[[], None]) -> Iterable[tuple[str, float]]:
        """Names and values to log. Collective; calls `alive` now and then, as the watchdog wants."""


# What a checkpoint of ours keeps beside weights and moments.
_STATE: dict[str, type] = {
    **dict.fromkeys(("config", "data", "layout", "model", "processing"), dict),
    **dict.fromkeys(("started_from", "hard_negatives"), object),  # there, though it be None
    "seconds": float,
}

# Makes one from the recipe, the model's shape and the type of its weights.
MakeEvaluator = Callable[[RunConfig, ImageBertConfig, torch.dtype], Evaluator]


def run(
    config: RunConfig, stop_at: int | None = None, profile: int = 0, make_evaluator: MakeEvaluator | None = None
) -> Stopped:
    """Trains until the end of the recipe, or until `stop_at` steps are done, or until asked to stop by a signal.

    Args:
        profile: record so many steps (profile.py), into the run's folder profile/
        make_evaluator: what evaluates while it trains; a recipe with evaluation.sources needs one, and imagebert.api
            gives it

    Raises:
        UsageError: the recipe, its data or its checkpoints do not fit, another process writes the run's folder, or the
            recipe wants to be evaluated and nothing does so.
        FloatingPointError: loss or gradient is not finite, again and again.
        OSError: another rank is gone, or the disk is full or cannot be written.
    """
    if config.evaluation.sources and make_evaluator is None:
        raise UsageError(
            "the recipe has evaluation.sources and nothing here evaluates them: train by imagebert.api.pretrain or "
            "finetune, or set evaluation.sources=[]"
        )
    folder, minutes = Path(config.output), config.engine.timeout_minutes
    keep_tracebacks(folder / "tracebacks")
    with asked_to_stop() as asked:
        distributed.start(minutes)
        with _watchdog(minutes) as alive, own(folder) as ownership, attempt(folder) as this:
            try:
                stopped = _run(config, stop_at, profile, make_evaluator, alive, ownership, asked, this)
            except LostRank:
                if asked.asked and not asked.begun:  # the others were asked a moment earlier
                    raise SystemExit(STOPPED) from None
                raise
            this.end = ended(stopped.step, stopped.finished)
            return stopped


def _run(
    given: RunConfig,
    stop_at: int | None,
    profile: int,
    make_evaluator: MakeEvaluator | None,
    alive: Callable[[], None],
    ownership: Ownership,
    asked: Stop,
    this: Attempt,
) -> Stopped:
    if given.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    keep_memory()
    main = distributed.rank() == 0
    _check_mounted(given)
    config, corpus, packer, plan, sizes = prepare(given)
    folder = Path(config.output)
    epochs, total = config.schedule.epochs, config.schedule.steps
    total = plan.steps(epochs) if epochs is not None else total
    assert total is not None  # RunConfig has exactly one of the two
    masking = make_masking(config, corpus)

    model = make_model(config, corpus)
    engine = Engine(model, config)
    keep = config.checkpoint
    checkpoints = Checkpoints(folder / "checkpoints", keep.keep, keep.keep_every, alive, _STATE)
    alive()
    identity = {**identity_of(given, corpus), "layout": engine.layout()}
    processing = processing_of(corpus, Limits.of(config.data))
    ownership.check()
    start, seconds = _resume(engine, checkpoints, identity)
    alive()
    if config.engine.step == "graphed":
        assert sizes is not None
        samples = first_held(plan, sizes, distributed.rank(), distributed.world_size())
        first = packer.pack(samples, Arena(), 0, masking, sizes, distributed.device())
        engine.capture(first)
    _write_recipe(folder, given)
    steps = Steps(start, min(total, stop_at or total), total)
    this.begin(start, total)

    ranks = distributed.world_size()
    with distributed.together():
        meter = Meter(folder, start, total, seconds, main, ranks, pair_share(config, packer, model.config) / ranks)
    objective = make_objective(config)
    limit = config.engine.max_skipped_steps
    health = Health(folder, list(objective.weights), limit, lambda step: describe_step(config, plan, corpus, step))
    profiler = StepProfiler(folder / "profile", profile) if profile and main else None

    def tick() -> None:
        alive()
        if profiler is not None:
            profiler.step()

    evaluator: Evaluator | None = None
    if config.evaluation.sources and make_evaluator is not None:
        evaluator = make_evaluator(config, model.config, next(model.parameters()).dtype)

    def evaluate(step: int) -> Iterator[tuple[str, float]]:
        assert evaluator is not None
        alive()
        begun = time.perf_counter()
        engine.copy_weights(evaluator.model)
        yield from evaluator(alive)
        took = time.perf_counter() - begun
        yield "recall/seconds", took
        # Since the evaluation before; resumed, the steps before this start took as long.
        spent = meter.seconds / step * config.evaluation.every_steps
        if took > config.evaluation.max_share * spent:
            log.warning(
                "evaluation takes %.1f s beside %.1f s of training, more than evaluation.max_share %.2g: raise "
                "evaluation.every_steps, or lower evaluation.images",
                *(took, spent, config.evaluation.max_share),
                extra=BY_RANK_0,
            )
        alive()

    def state() -> dict[str, Any]:
        """What a checkpoint keeps beside weights and moments: all that a model folder says of itself."""
        shape = model.config.to_dict()
        kept = {"seconds": meter.seconds, "log": meter.last}
        return {**identity, **kept, "model": shape, "processing": processing._asdict()}

    feeder = Feeder(
        plan,
        packer,
        masking,
        rank=distributed.rank(),
        world=distributed.world_size(),
        start=steps.start,
        stop=steps.stop,
        ahead=config.data.prefetch_steps,
        device=distributed.device(),
        sizes=sizes,
        workers=config.data.workers,
        read_ahead=config.data.read_ahead,
        carrier=make_carrier(config),
    )
    try:
        with feeder:
            stopped = train(
                engine,
                feeder,
                objective,
                meter,
                health,
                checkpoints,
                ownership,
                steps,
                key=plan.key,
                learning_rate=lambda step: learning_rate(step, total, config.schedule, config.optimizer, plan.pairs),
                log_every=config.logging.every_steps,
                save_every=config.checkpoint.every_steps,
                evaluate_every=config.evaluation.every_steps if evaluator is not None else 0,
                evaluate=evaluate,
                state=state,
                tick=tick,
                asked=asked,
            )
    finally:
        checkpoints.close()
        meter.close()
        if profiler is not None:
            profiler.close()
    # Rank 0 decides: the others may look after it has begun to write.
    (missing,) = distributed.total([main and not is_whole(folder / "model")])
    if stopped.finished and (steps.start < total or missing):
        alive()
        weights = engine.full_weights()
        ownership.check()
        with distributed.together():
            if weights is not None:  # `imagebert export` may be at it
                model_folder = folder / "model"
                write_model(model, weights, processing, training_of(state(), stopped.step), model_folder, wait=True)
    elif main and stopped.finished:
        clear_lock(folder / "model")  # of a call that was killed when it had written it
    engine.close()
    return stopped


def _check_mounted(config: RunConfig) -> None:
    """Whether data that is missing is missing for a fault of this machine: others see it, or this job did before.

    Raises:
        MachineFault: it is.
    """
    paths = [Path(path) for source in config.data.sources for path in (source.regions, source.pairs)]
    missing = next((path for path in paths if not path.exists()), None)
    job, _ = find_job(os.environ)
    before = job and any(line.get("job") == job for line in read_attempts(Path(config.output)))
    lacking, seen = distributed.total([missing is not None, bool(before)])
    if lacking and (seen or lacking < distributed.world_size()):
        with distributed.together():
            if missing is not None:
                who = "an earlier attempt of this job had it" if seen else "other ranks see it"
                raise MachineFault(f"{missing} is not there, and {who}: is its disk mounted on this machine?")


class Prepared(NamedTuple):
    """What a recipe comes to on this rank, before there is a model."""

    config: RunConfig  # with what the recipe leaves to the machine
    corpus: Corpus
    packer: Packer
    plan: Plan
    sizes: Sizes | None


def prepare(given: RunConfig) -> Prepared:
    """Opens a recipe's data and plans its steps: what most calls that are wrong fail at. The doctor asks too.

    Raises:
        UsageError: the recipe, its data and this machine do not fit together.
    """
    config = choose_step(fit_microbatches(given, distributed.world_size()))
    try:
        backend.choose(config.engine.kernels, distributed.device())
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_monitors(config)
    if zero_stage(config) == 3 and config.engine.step != "eager":
        raise UsageError(
            f"engine.step {config.engine.step} cannot follow ZeRO-3's gathering: take zero2, or step=eager"
        )
    corpus = Corpus(config.data.sources, config.data.verify_records)
    unnamed = next((store for store in corpus.stores if not store.has_classes), None)
    if config.task == "pretrain" and config.pretraining.moc > 0 and unnamed is not None:
        raise UsageError(
            f"{unnamed.path} has no region classes, no detector named its regions: set pretraining.moc=0, or import "
            "features with classes"
        )
    packer = Packer(
        corpus,
        Limits.of(config.data, mark_whole_image=config.model.global_image_token),
        candidates=config.candidates * config.contrast,
        max_damaged=config.data.max_damaged_records,
    )
    plan = make_plan(config, corpus, packer)
    return Prepared(config, corpus, packer, plan, make_sizes(config, plan))


def identity_of(given: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """What a run must have in common with its checkpoints."""
    hard = given.retrieval.hard_negatives if given.task == "finetune" else None
    return {
        "config": to_plain(given),
        "data": corpus.digest(),
        "hard_negatives": hard and file_digest(Path(hard)),
        "started_from": started_from(given),
    }


def check_resumable(given: RunConfig, corpus: Corpus) -> None:
    """Whether what the run's folder holds, if anything, is of this run, by the newest checkpoint's manifest.

    Raises:
        UsageError: it is of another recipe or other data, or what a run starts from is damaged.
    """
    identity = identity_of(given, corpus)
    newest = newest_manifest(Path(given.output) / "checkpoints", _STATE)
    if newest is not None:
        folder, manifest = newest
        check_same(manifest["state"], identity, folder)


def make_carrier(config: RunConfig) -> DaliCarrier | None:
    """What brings batches to the device, where that is not PyTorch.

    Raises:
        UsageError: it is not installed.
    """
    return DaliCarrier(distributed.device()) if config.data.feeder == "dali" else None


def choose_step(config: RunConfig) -> RunConfig:
    """The recipe with engine.step as it can be where that is auto: graphed, else compiled, else eager."""
    if config.engine.step != "auto":
        return config
    step: Literal["eager", "compiled", "graphed"]
    if not torch.cuda.is_available():
        step, reason = "eager", "there is no GPU"
    elif config.engine.kernels == "reference":
        step, reason = "eager", "the reference is chosen, not the kernels"
    elif zero_stage(config) == 3:
        step, reason = "eager", "neither a compiled nor a graphed step follows ZeRO-3's gathering"
    elif config.schedule.accumulation > 1:
        step, reason = "compiled", "a graph's replay would write over gradients that accumulate"
    elif config.model.global_image_token or config.model.dual_size:
        step, reason = "compiled", "a graph marks no whole images and holds no dual head"
    else:
        step, reason = "graphed", "all microbatches can have one shape"
    log.info("engine.step auto: %s, since %s", step, reason)
    return replace(config, engine=replace(config.engine, step=step))


def describe_step(config: RunConfig, plan: Plan, corpus: Corpus, step: int) -> dict[str, Any]:
    """A step's place in the plan, and its pairs, for people: the same for any number of ranks."""
    samples = plan.global_batch(step)
    rows = zip(samples.images.tolist(), samples.captions.tolist(), samples.labels.tolist(), strict=True)
    return {
        "stage": config.stage,
        "seed": config.seed,
        "again": "resume from a checkpoint before this step: batch, masks and dropout are functions of it",
        "pairs": [[corpus.image_key(i), corpus.text(c), "matched" if m else "mismatched"] for i, c, m in rows],
    }


def make_plan(config: RunConfig, corpus: Corpus, packer: Packer) -> Plan:
    pretrain, retrieval = config.pretraining, config.retrieval
    negatives = Negatives(
        share=pretrain.negatives,
        candidates=config.candidates,
        source=pretrain.negatives_from if config.task == "pretrain" else retrieval.negatives_from,
        hard=read_hard_negatives(Path(retrieval.hard_negatives), corpus)
        if config.task == "finetune" and retrieval.hard_negatives
        else None,
        hard_share=retrieval.hard_share,
    )
    weights = corpus.weights
    if weights is not None:
        each = (
            f"{w.sum():,.0f} from {len(w):,} captions of {s.pairs}"
            for s, w in zip(corpus.sources, weights, strict=True)
        )
        log.info("an epoch has on average %s", ", ".join(each))
    return Plan(
        corpus.caption_image,
        packer.lengths,
        negatives,
        seed=config.seed,
        stage=config.stage,
        batch_size=config.schedule.batch_size,
        batch_tokens=config.schedule.batch_tokens,
        parts=distributed.world_size() * config.schedule.accumulation,
        block=config.contrast,
        matches=Matches(corpus.image_class, corpus.caption_class, corpus.caption_image),
        weights=weights,
    )


def pair_share(config: RunConfig, packer: Packer, shape: ImageBertConfig) -> float:
    """What a pair a second is of this device's matmul rate; 0: that is not known."""
    rate = matmul_rate(distributed.device())
    regions, words = (float(lengths.mean()) for lengths in packer.lengths)
    flops = pair_flops(shape, regions, words, masked=config.task == "pretrain")
    return flops / rate if rate else 0.0


def make_masking(config: RunConfig, corpus: Corpus) -> Masking | None:
    """None when fine-tuning: nothing is masked there (paper, section 5.3)."""
    if config.task == "finetune":
        return None
    tokenizer = corpus.tokenizer
    return Masking(
        key=stage_key(config.seed, config.stage),
        words=config.pretraining.masked_words,
        regions=config.pretraining.masked_regions,
        mask_id=tokenizer.mask_id,
        vocabulary=len(tokenizer),
    )


def make_sizes(config: RunConfig, plan: Plan) -> Sizes | None:
    """One shape for all microbatches, where the step asks for it.

    Raises:
        UsageError: this machine cannot run such a step.
    """
    if config.engine.step == "eager":
        return None
    if not torch.cuda.is_available() and (config.engine.step == "graphed" or config.engine.kernels != "triton"):
        raise UsageError(f"engine.step {config.engine.step} needs a GPU, and there is none: take auto or eager")
    if config.engine.step == "graphed" and config.model.global_image_token:
        raise UsageError("engine.step graphed cannot mark whole images, whose number differs: take compiled or eager")
    if config.engine.kernels == "reference":
        raise UsageError(f"engine.step {config.engine.step} needs the kernels: take engine.kernels=auto, or step=eager")
    pretrain = config.task == "pretrain"
    words, regions = config.pretraining.masked_words, config.pretraining.masked_regions
    return choose_sizes(plan, words * pretrain, regions * pretrain)


def make_model(config: RunConfig, corpus: Corpus) -> PreTrainedModel:
    """New weights from the seed, then those of model.initialize_from.

    Raises:
        UsageError: what is started from is damaged, or is for other data or another vocabulary.
    """
    shape, origin = model_shape(config, sizes_of(corpus))
    longest = config.data.max_words + 4  # positions: [CLS], the regions' one, two [SEP], the words
    if longest > shape.max_position_embeddings:
        raise UsageError(f"data.max_words {config.data.max_words} needs {longest} positions: lower it")
    torch.manual_seed(config.seed)
    kind = ImageBertForPreTraining if config.task == "pretrain" else ImageBertForImageTextRetrieval
    model = kind(shape)
    if origin is not None:
        _check_origin(origin, config, corpus)
        log.info("%s: %s", origin, initialize_from(model, origin, config.model.allow_partial))
    if config.engine.step == "compiled":
        for layer in model.imagebert.layers:
            layer.compile(fullgraph=True, dynamic=False)
    return model


def sizes_of(corpus: Corpus) -> dict[str, int]:
    """What the data decides of a model's shape."""
    return {
        "vocab_size": len(corpus.tokenizer),
        "feature_size": corpus.feature_size,
        "num_region_classes": len(corpus.classes),
    }


def started_from(config: RunConfig) -> str | None:
    """The digest of what a run starts from; None: new weights."""
    origin = config.model.initialize_from
    return model_digest(find_model(Path(origin))) if origin is not None else None


def _check_origin(origin: Path, config: RunConfig, corpus: Corpus) -> None:
    """Whether what a run starts from is whole and has its vocabulary; what else differs is said."""
    if has_vocabulary(origin):
        theirs = Tokenizer(origin)
        if differs := theirs.difference(corpus.tokenizer):
            raise UsageError(
                f"{theirs.path} is not the vocabulary that the pairs were tokenised with ({differs}): tokenise them "
                f"with the vocabulary {origin}, or start from weights of their vocabulary"
            )
    if is_imagebert(origin):
        open_model(origin).note_differences(corpus.stores[0], Limits.of(config.data))


def model_shape(config: RunConfig, wanted: dict[str, int]) -> tuple[ImageBertConfig, Path | None]:
    """The model's configuration for data of the `wanted` sizes, and the folder that its weights come from.

    Raises:
        UsageError: no such folder, or it is for other data.
    """
    options = {
        "hidden_dropout_prob": config.model.hidden_dropout,
        "attention_probs_dropout_prob": config.model.attention_dropout,
        "use_pooler": config.model.pooler,
        "use_global_image_token": config.model.global_image_token,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "dual_size": config.model.dual_size,
    }
    if config.model.initialize_from is None:
        assert config.model.preset is not None
        return ImageBertConfig.preset(config.model.preset, **wanted, **options), None
    origin = find_model(Path(config.model.initialize_from))
    found = read_architecture(origin)
    for name, size in wanted.items():
        if found.get(name, size) != size:
            raise UsageError(
                f"model.initialize_from {origin} has {name} {found[name]}, the data has {size}: "
                "use data and weights of one kind"
            )
    return ImageBertConfig(**{**found, **wanted, **options}), origin


def training_of(state: dict[str, Any], steps: int) -> dict[str, Any]:
    """How a model was trained, for its folder, from what a checkpoint keeps."""
    kept = ("data", "started_from", "hard_negatives", "seconds")
    return {"recipe": state["config"], "steps": steps, **{name: state[name] for name in kept}}


def export_run(run_folder: Path, out: Path) -> int:
    """Writes the model of a run's newest good checkpoint, which may still be training, to `out`; returns its steps.

    Nothing but the checkpoint is needed: its data need not be there.

    Raises:
        UsageError: the folder holds no run or no checkpoint.
    """
    folder, manifest = find_newest(run_folder / "checkpoints", _STATE)
    state = manifest["state"]
    shards = Shards(folder, manifest["shards"])
    kind = ImageBertForPreTraining if state["config"]["task"] == "pretrain" else ImageBertForImageTextRetrieval
    model = kind(ImageBertConfig(**state["model"]))
    weights = {name: torch.empty(parameter.shape) for name, parameter in model.named_parameters()}
    for name, weight in track(weights.items(), "Reading the checkpoint", "tensors"):
        shards.read(name, "weight", 0, weight.view(-1))
    steps = int(manifest["step"])
    write_model(model, weights, Processing(**state["processing"]), training_of(state, steps), out, wait=True)
    return steps


@contextmanager
def _watchdog(timeout_minutes: float) -> Iterator[Callable[[], None]]:
    """What it yields is to be called that often: a process that does not shows where its threads stand, and ends.

    Peers that wait for it in a collective of ours end a little sooner, with a message.
    """

    def alive() -> None:
        faulthandler.dump_traceback_later(1.5 * 60 * timeout_minutes, exit=True, file=2)

    alive()
    try:
        yield alive
    except BaseException:
        if distributed.world_size() == 1:  # with others, the way out may hang too
            faulthandler.cancel_dump_traceback_later()
        raise
    faulthandler.cancel_dump_traceback_later()


def _write_recipe(folder: Path, config: RunConfig) -> None:
    """Writes config.yaml into a run's folder, which is made where there is none.

    Raises:
        UsageError: it cannot be there.
        OSError: the disk is full or fails.
    """
    with distributed.together():
        if distributed.rank() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / "config.yaml", to_yaml(config).encode())
            except OSError as error:
                reason = os.strerror(error.errno or errno.EIO)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # may be over when a job is requeued
                    raise OSError(
                        f"cannot write {folder / 'config.yaml'} ({reason}): free some space, then the same command "
                        "goes on"
                    ) from None
                raise UsageError(f"cannot write to the run's folder {folder}: {reason}") from None


def _resume(engine: Engine, checkpoints: Checkpoints, identity: dict[str, Any]) -> tuple[int, float]:
    """Steps done and seconds spent by this run so far.

    Raises:
        UsageError: the newest checkpoint belongs to another recipe, or other data.
    """
    newest = checkpoints.newest()
    if newest is None:
        return 0, 0.0
    folder, manifest = newest
    state = manifest["state"]
    check_same(state, identity, folder)
    engine.restore(Shards(folder, manifest["shards"]), manifest["counters"])
    old, new = state["layout"], identity["layout"]
    other = "".join(f", {key} {old[key]} -> {new[key]}" for key in new if old[key] != new[key])
    log.info("resuming from %s%s", folder, other)
    return int(manifest["step"]), float(state["seconds"])


def check_same(state: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    """Whether the state that a checkpoint keeps is of a run of this identity.

    Raises:
        UsageError: it is of another recipe, or other data.
    """
    before = state["config"]
    with suppress(UsageError):  # keys that it had not yet are as they are by default
        before = to_plain(build(RunConfig, before, str(folder)))
    changed = differences(before, identity["config"]) + differences(state["data"], identity["data"], "data of ")
    for name in ("started_from", "hard_negatives"):
        if state[name] != identity[name]:
            changed.append(f"{name}: {str(state[name])[:16]} -> {str(identity[name])[:16]}")
    if changed:
        raise UsageError(
            f"{folder} was made by another recipe or other data ({'; '.join(changed)}): undo that, "
            "or give another output folder"
        )
