"""A recipe carried out: data, model, plan, engine, resume, loop, and the model folder at the end.

A run is a folder: config.yaml (the resolved recipe), log.jsonl, checkpoints/, model/ (Hugging Face's format, written
when training is done). Started again with the same recipe it goes on where it was; weights come, in this order, from
its own newest checkpoint, from model.initialize_from, or from nowhere.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from imagebert import distributed
from imagebert.batch import PackedBatch
from imagebert.config import RunConfig, UsageError
from imagebert.data.folder import clear_lock
from imagebert.endings import Stop, asked_to_stop, keep_tracebacks
from imagebert.engine.checkpoints import Checkpoints, newest_manifest
from imagebert.engine.engine import Engine
from imagebert.engine.metrics import Meter
from imagebert.engine.schedule import learning_rate
from imagebert.engine.shards import Shards
from imagebert.errors import LostRank, MachineFault
from imagebert.feed.arena import Arena
from imagebert.feed.feeder import Feeder, Prefetch, RankSlice
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits
from imagebert.feed.plan import BatchPlan
from imagebert.feed.sizes import first_held
from imagebert.files import write_bytes
from imagebert.host import STOPPED, keep_memory
from imagebert.launch import find_job
from imagebert.log import BY_RANK_0
from imagebert.model_folder import Processing, is_whole, processing_of, write_model
from imagebert.retrieval.validation import Validation
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
from imagebert.training.dual_fit import fit_dual
from imagebert.training.export import training_of
from imagebert.training.health import Health
from imagebert.training.identity import STATE, check_same, identity_of
from imagebert.training.loop import Calls, Every, Steps, Stopped, Work, train
from imagebert.training.objectives import make_objective
from imagebert.training.ownership import Ownership, own
from imagebert.training.profile import StepProfiler

log = logging.getLogger(__name__)


def run(config: RunConfig, stop_at: int | None = None, profile: int = 0) -> Stopped:
    """Trains until the end of the recipe, or until `stop_at` steps are done, or until asked to stop by a signal.

    Args:
        profile: record so many steps (profile.py), into the run's folder profile/

    Raises:
        UsageError: the recipe, its data or its checkpoints do not fit, or another process writes the run's folder.
        FloatingPointError: loss or gradient is not finite, again and again.
        OSError: another rank is gone, or the disk is full or cannot be written.
    """
    folder, minutes = Path(config.output), config.engine.timeout_minutes
    keep_tracebacks(folder / "tracebacks")
    with asked_to_stop() as asked:
        distributed.start(minutes)
        with _watchdog(minutes) as alive, own(folder) as ownership, attempt(folder) as this:
            try:
                stopped = _run(config, stop_at, profile, alive, ownership, asked, this)
            except LostRank:
                if asked.asked and not asked.begun:  # the others were asked a moment earlier
                    raise SystemExit(STOPPED) from None
                raise
            this.end = ended(stopped.step, stopped.finished)
    gc.collect()  # an engine refers to itself: model, gradients and moments would stay beside those of the next run
    return stopped


def _run(
    given: RunConfig,
    stop_at: int | None,
    profile: int,
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
    total = _total_steps(config, plan)
    masking = make_masking(config, corpus)

    keep = config.checkpoint
    checkpoints = Checkpoints(folder / "checkpoints", keep.keep, keep.keep_every, alive, STATE)
    model = make_model(config, corpus)
    if config.model.dual_fit_epochs and not _has_checkpoint(checkpoints.folder):  # else it brings its weights
        fit_dual(model, corpus, config, alive)
    engine = Engine(model, config)
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

    def rate(step: int) -> float:
        return learning_rate(step, total, config.schedule, config.optimizer, plan.pairs)

    def state() -> dict[str, Any]:
        """What a checkpoint keeps beside weights and moments: all that a model folder says of itself."""
        shape = model.config.to_dict()
        kept = {"seconds": meter.seconds, "log": meter.last}
        return {**identity, **kept, "model": shape, "processing": processing._asdict()}

    calls = Calls(rate, _make_evaluate(config, model, engine, meter, alive), state, tick)
    evaluations = config.evaluation.every_steps if config.evaluation.sources else 0
    every = Every(config.logging.every_steps, config.checkpoint.every_steps, evaluations)
    feeder = _make_feeder(prepared, masking, steps)
    try:
        with feeder:
            work = Work(engine, feeder, objective, meter, health, checkpoints, ownership)
            stopped = train(work, steps, every, calls, plan.key, asked)
    finally:
        checkpoints.close()
        meter.close()
        if profiler is not None:
            profiler.close()
    if stopped.finished:
        alive()
        _write_model(folder / "model", steps, model, engine, state, ownership)
    engine.close()
    return stopped


def _total_steps(config: RunConfig, plan: BatchPlan) -> int:
    epochs, total = config.schedule.epochs, config.schedule.steps
    total = plan.steps(epochs) if epochs is not None else total
    assert total is not None  # RunConfig has exactly one of the two
    return total


def _write_model(
    path: Path,
    steps: Steps,
    model: PreTrainedModel,
    engine: Engine,
    state: Callable[[], dict[str, Any]],
    ownership: Ownership,
) -> None:
    """What a run ends in, where this call trained to the end, or an earlier one was killed before it was written."""
    # Rank 0 decides: the others may look after it has begun to write.
    (missing,) = distributed.total([distributed.rank() == 0 and not is_whole(path)])
    if steps.start < steps.total or missing:
        weights = engine.full_weights()
        ownership.check()
        with distributed.together():
            if weights is not None:  # `imagebert export` may be at it
                kept = state()
                training = training_of(kept, steps.total)
                write_model(model, weights, Processing(**kept["processing"]), training, path, wait=True)
    elif distributed.rank() == 0:
        clear_lock(path)  # of a call that was killed when it had written it


def _first_batch(prepared: Prepared, masking: Masking | None) -> PackedBatch:
    """One of the run's shape, to record a step on."""
    _, _, packer, plan, sizes = prepared
    assert sizes is not None
    samples = first_held(plan, sizes, distributed.rank(), distributed.world_size())
    return packer.pack(samples, Arena(), 0, masking, sizes, distributed.device())


def _make_feeder(prepared: Prepared, masking: Masking | None, steps: Steps) -> Feeder:
    config, _, packer, plan, sizes = prepared
    rank_slice = RankSlice(distributed.rank(), distributed.world_size(), distributed.device())
    prefetch = Prefetch(config.data.prefetch_steps, config.data.workers, config.data.read_ahead)
    todo = range(steps.start, steps.stop)
    return Feeder(plan, packer, masking, rank_slice, todo, prefetch, sizes, make_carrier(config))


def _make_evaluate(
    config: RunConfig, model: PreTrainedModel, engine: Engine, meter: Meter, alive: Callable[[], None]
) -> Callable[[int], Iterable[tuple[str, float]]]:
    """What gives figures of the model as it is after a step; says where they take too long beside the training."""
    if not config.evaluation.sources:
        return lambda step: ()
    validation = Validation(config, model.config, next(model.parameters()).dtype)

    def evaluate(step: int) -> Iterator[tuple[str, float]]:
        alive()
        begun = time.perf_counter()
        engine.copy_weights(validation.model)
        yield from validation(alive)
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

    return evaluate


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


def _has_checkpoint(folder: Path) -> bool:
    """Rank 0 decides, so that all ranks go the same way."""
    with distributed.together():
        found = distributed.rank() == 0 and newest_manifest(folder) is not None
    return distributed.total([found]) == [1]


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
