"""The training loop: plan -> batch -> forward -> global counts -> backward -> step -> log.

No branch for a backend, a stage or a launcher: those are resolved before. A run can be stopped at any step boundary
and goes on from its checkpoint as if nothing had happened: the plan, the masks, the dropout and the learning rate are
functions of the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function

from imagebert import distributed
from imagebert.endings import Stop
from imagebert.engine.checkpoints import Checkpoints
from imagebert.engine.engine import Engine
from imagebert.engine.metrics import Meter
from imagebert.feed.draws import Purpose, draw
from imagebert.feed.feeder import Feeder
from imagebert.training.health import Health
from imagebert.training.objectives import Objective
from imagebert.training.ownership import Ownership
from imagebert.training.stragglers import OwnTime


class Stopped(NamedTuple):
    """Where the loop ended, and whether that was its end or a wish to stop."""

    step: int
    finished: bool


class Steps(NamedTuple):
    """Steps done, steps to do in this call, steps of the whole run."""

    start: int
    stop: int
    total: int


class Work(NamedTuple):
    """What a step is done with."""

    engine: Engine
    feeder: Feeder
    objective: Objective
    meter: Meter
    health: Health
    checkpoints: Checkpoints
    ownership: Ownership


class Every(NamedTuple):
    """After how many steps each is done; 0: never."""

    log: int
    save: int
    evaluate: int


class Calls(NamedTuple):
    """What a run answers the loop."""

    learning_rate: Callable[[int], float]  # of a step
    evaluate: Callable[[int], Iterable[tuple[str, float]]]  # names and values of figures after so many steps; all ranks
    state: Callable[[], dict[str, Any]]  # what a checkpoint keeps beside weights and moments
    tick: Callable[[], None]  # called at every step boundary


def train(work: Work, steps: Steps, every: Every, calls: Calls, key: int, asked: Stop) -> Stopped:
    """Runs steps.start to steps.stop - 1.

    Args:
        key: of the run's draws
        asked: whether to stop: from now on at the next step boundary

    Raises:
        TakenOver: another process has the run's folder now; nothing more is saved.
        FloatingPointError: loss or gradient was not finite in too many steps in a row, or in the run's last one.
        OSError: the last checkpoint could not be written, or another rank is gone.
    """
    engine, feeder, objective, meter, health, checkpoints, ownership = work
    save_due = False
    distributed.total([0])  # who is asked before all are here ends at once
    asked.at_once = False
    own = OwnTime()
    batches = iter(feeder)
    for step in range(steps.start, steps.stop):
        calls.tick()
        waited = time.perf_counter()
        with record_function("data"):
            microbatches = next(batches)
        waited = time.perf_counter() - waited
        own.step(waited)

        # Losses are means over the global batch: every rank must know its counts before the first backward. They
        # stay on the device; hosts tell each other what hosts know, and no GPU is waited for.
        counts = distributed.total_on_device(torch.stack([objective.counts(b) for b in microbatches]).sum(0))
        pairs, tokens = sum(b.real_pairs for b in microbatches), sum(b.real_tokens for b in microbatches)
        known = [pairs, tokens, feeder.damaged_records, asked.asked, ownership.lost, *checkpoints.progress()]
        pairs_fed, tokens_fed, damaged, stop, lost, *saved = distributed.total(known)
        ownership.settle(lost)
        checkpoints.settle(*saved)

        engine.set_learning_rate(calls.learning_rate(step))
        sums = torch.zeros_like(counts)
        for number, batch in enumerate(microbatches):
            torch.manual_seed(int(draw(key, Purpose.DROPOUT, step, distributed.rank(), number) >> 1))
            with record_function("forward"), own.running():
                losses = objective.losses(engine(batch), batch)
            engine.backward(objective.mean(losses, counts))
            sums += torch.stack([loss.detach() for loss in losses])

        done, asked.begun = step + 1, True
        health.note(step, engine.skipped(), engine.gradient_norm(), sums)
        meter.count(pairs_fed, tokens_fed, waited)
        last, stopping = done == steps.stop, stop > 0 or done == steps.stop
        # Who wishes to stop has no time for it; the run that goes on evaluates at its next turn.
        evaluating = every.evaluate > 0 and (done == steps.total or (done % every.evaluate == 0 and stop == 0))
        logging = done % every.log == 0 or done == steps.total or evaluating
        save_due |= done % every.save == 0 or stopping
        if logging or save_due:
            skipped = health.look()
            if logging:
                values = objective.values(distributed.total_on_device(sums), counts, skipped)
                values |= {"learning_rate": calls.learning_rate(step), "skipped_updates": engine.skipped_updates()}
                values |= {"damaged_records": damaged, **checkpoints.figures(), **own.gather()}
                if not skipped:
                    values["gradient_norm"] = float(engine.gradient_norm())
                if evaluating:
                    with meter.paused():
                        values |= dict(calls.evaluate(done))
                engine.write_monitors(meter.write(done, values), done)
            if done == steps.total and health.in_a_row >= min(2, done):  # one may be a bad batch
                raise FloatingPointError(
                    f"loss or gradient was not finite in the last {health.in_a_row} steps, up to {done}: they "
                    f"moved nothing, and neither a checkpoint nor a model is written; see {health.folder}, then "
                    "lower the learning rate or mend the data; `imagebert export` gives the checkpoint before"
                )
            # Weights that give no finite loss are not worth keeping; the next good step is saved.
            if save_due and (last or not skipped):
                save_due = False
                with meter.paused():
                    ownership.check()
                    checkpoints.save(engine, done, calls.state())
                if stopping:
                    checkpoints.finish()
                    return Stopped(done, finished=done == steps.total)
    return Stopped(steps.start, finished=steps.start == steps.total)
