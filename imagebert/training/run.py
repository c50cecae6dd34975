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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from imagebert import distributed
from imagebert.batch import PackedBatch
from imagebert.config import RunConfig, UsageError
from imagebert.data.folder import clear_lock
from imagebert.endings import Stop, asked_to_stop, keep_tracebacks
from imagebert.engine.checkpoints import Checkpoints
from imagebert.engine.engine import Engine
from imagebert.engine.metrics import Meter
from imagebert.engine.schedule import learning_rate
from imagebert.engine.shards import Shards
from imagebert.errors import LostRank, MachineFault
from imagebert.feed.arena import Arena
from imagebert.feed.feeder import Feeder, Prefetch, Share
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits
from imagebert.feed.sizes import first_held
from imagebert.files import write_bytes
from imagebert.host import STOPPED, keep_memory
from imagebert.launch import find_job
from imagebert.log import BY_RANK_0
from imagebert.model import ImageBertConfig
from imagebert.model_folder import is_whole, processing_of, write_model
from imagebert.strict_yaml import to_yaml
from imagebert.training.assemble import (
    Prepared,
    describe_step,
    make_carrier,
    make_masking,
    make_model,
    pair_share,
    prepare,
)
from imagebert.training.attempts import Attempt, attempt, ended, read_attempts
from imagebert.training.export import training_of
from imagebert.training.health import Health
from imagebert.training.identity import STATE, check_same, identity_of
from imagebert.training.loop import Calls, Every, Steps, Stopped, Work, train
from imagebert.training.objectives import make_objective
from imagebert.training.ownership import Ownership, own
from imagebert.training.profile import StepProfiler

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Evaluates a model of its own, which is given the weights of the one in training."""

    model: nn.Module

    def __call__(self, alive: Callable[[], None]) -> Iterable[tuple[str, float]]:
        """Names and values to log. Collective; calls `alive` now and then, as the watchdog wants."""


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
    prepared = prepare(given)
    config, corpus, packer, plan, _ = prepared
    folder = Path(config.output)
    epochs, total = config.schedule.epochs, config.schedule.steps
    total = plan.steps(epochs) if epochs is not None else total
    assert total is not None  # RunConfig has exactly one of the two
    masking = make_masking(config, corpus)

    model = make_model(config, corpus)
    engine = Engine(model, config)
    keep = config.checkpoint
    checkpoints = Checkpoints(folder / "checkpoints", keep.keep, keep.keep_every, alive, STATE)
    alive()
    identity = {**identity_of(given, corpus), "layout": engine.layout()}
    processing = processing_of(corpus, Limits.of(config.data))
    ownership.check()
    start, seconds = _resume(engine, checkpoints, identity)
    alive()
    if config.engine.step == "graphed":
        engine.capture(_first_batch(prepared, masking))
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
    evaluations = config.evaluation.every_steps if evaluator is not None else 0
    every = Every(config.logging.every_steps, config.checkpoint.every_steps, evaluations)

    def evaluate(step: int) -> Iterator[tuple[str, float]]:
        assert evaluator is not None
        yield from _evaluate(config, engine, evaluator, meter.seconds / step, alive)

    def rate(step: int) -> float:
        return learning_rate(step, total, config.schedule, config.optimizer, plan.pairs)

    def state() -> dict[str, Any]:
        """What a checkpoint keeps beside weights and moments: all that a model folder says of itself."""
        shape = model.config.to_dict()
        kept = {"seconds": meter.seconds, "log": meter.last}
        return {**identity, **kept, "model": shape, "processing": processing._asdict()}

    feeder = _make_feeder(prepared, masking, steps)
    try:
        with feeder:
            work = Work(engine, feeder, objective, meter, health, checkpoints, ownership)
            stopped = train(work, steps, every, Calls(rate, evaluate, state, tick), plan.key, asked)
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
                training = training_of(state(), stopped.step)
                write_model(model, weights, processing, training, folder / "model", wait=True)
    elif main and stopped.finished:
        clear_lock(folder / "model")  # of a call that was killed when it had written it
    engine.close()
    return stopped


def _first_batch(prepared: Prepared, masking: Masking | None) -> PackedBatch:
    """One of the run's shape, to record a step on."""
    _, _, packer, plan, sizes = prepared
    assert sizes is not None
    samples = first_held(plan, sizes, distributed.rank(), distributed.world_size())
    return packer.pack(samples, Arena(), 0, masking, sizes, distributed.device())


def _make_feeder(prepared: Prepared, masking: Masking | None, steps: Steps) -> Feeder:
    config, _, packer, plan, sizes = prepared
    share = Share(distributed.rank(), distributed.world_size(), distributed.device())
    prefetch = Prefetch(config.data.prefetch_steps, config.data.workers, config.data.read_ahead)
    todo = range(steps.start, steps.stop)
    return Feeder(plan, packer, masking, share, todo, prefetch, sizes, make_carrier(config))


def _evaluate(
    config: RunConfig, engine: Engine, evaluator: Evaluator, per_step: float, alive: Callable[[], None]
) -> Iterator[tuple[str, float]]:
    """Figures of the model as it is now; said where they take too long beside the training, `per_step` seconds each."""
    alive()
    begun = time.perf_counter()
    engine.copy_weights(evaluator.model)
    yield from evaluator(alive)
    took = time.perf_counter() - begun
    yield "recall/seconds", took
    # Since the evaluation before; resumed, the steps before this start took as long.
    spent = per_step * config.evaluation.every_steps
    if took > config.evaluation.max_share * spent:
        log.warning(
            "evaluation takes %.1f s beside %.1f s of training, more than evaluation.max_share %.2g: raise "
            "evaluation.every_steps, or lower evaluation.images",
            *(took, spent, config.evaluation.max_share),
            extra=BY_RANK_0,
        )
    alive()


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
