"""The training loop: plan -> batch -> forward -> global counts -> backward -> step -> log.

No branch for a backend, a stage or a launcher: those are resolved before. A run can be stopped at any step boundary
and goes on from its checkpoint as if nothing had happened: the plan, the masks, the dropout and the learning rate are
functions of the step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch

from imagebert import distributed
from imagebert.engine.engine import Engine
from imagebert.engine.metrics import Meter
from imagebert.feed.draws import Purpose, draw
from imagebert.feed.feeder import Feeder
from imagebert.training.objectives import Objective


class Stopped(NamedTuple):
    """Where the loop ended, and whether that was its end or a wish to stop."""

    step: int
    finished: bool


class Steps(NamedTuple):
    """Steps done, steps to do in this call, steps of the whole run."""

    start: int
    stop: int
    total: int


def train(
    engine: Engine,
    feeder: Feeder,
    objective: Objective,
    meter: Meter,
    steps: Steps,
    *,
    key: int,
    learning_rate: Callable[[int], float],
    log_every: int,
    save_every: int,
    save: Callable[[int], None],
) -> Stopped:
    """Runs steps.start to steps.stop - 1; `save(n)` is called with the number of steps done."""
    with _wish_to_stop() as wish:
        batches = iter(feeder)
        for step in range(steps.start, steps.stop):
            waited = time.perf_counter()
            microbatches = next(batches)
            waited = time.perf_counter() - waited

            # Losses are means over the global batch: every rank must know its counts before the first backward. They
            # stay on the device; hosts tell each other what hosts know, and no GPU is waited for.
            counts = distributed.total_on_device(torch.stack([objective.counts(b) for b in microbatches]).sum(0))
            pairs, tokens = sum(b.real_pairs for b in microbatches), sum(b.real_tokens for b in microbatches)
            pairs_fed, tokens_fed, stop = distributed.total([pairs, tokens, wish()])

            engine.set_learning_rate(learning_rate(step))
            sums = torch.zeros_like(counts)
            for number, batch in enumerate(microbatches):
                torch.manual_seed(int(draw(key, Purpose.DROPOUT, step, distributed.rank(), number) >> 1))
                losses = objective.losses(engine(batch), batch)
                engine.backward(objective.mean(losses, counts))
                sums += torch.stack([loss.detach() for loss in losses])

            done = step + 1
            meter.count(pairs_fed, tokens_fed, waited)
            stopping = stop > 0 or done == steps.stop
            logging, saving = done % log_every == 0 or done == steps.total, done % save_every == 0 or stopping
            if logging or saving:
                means = (distributed.total_on_device(sums) / counts.clamp(min=1)).tolist()
                values = {f"loss/{name}": mean for name, mean in zip(objective.weights, means, strict=True)}
                values["loss/total"] = sum(w * m for w, m in zip(objective.weights.values(), means, strict=True))
                values |= {"learning_rate": learning_rate(step), "gradient_norm": engine.gradient_norm()}
                values["skipped_updates"] = engine.skipped_updates()
                if not all(map(math.isfinite, values.values())):
                    raise FloatingPointError(f"loss or gradient is not finite at step {done}, not saved: {values}")
                if logging:
                    engine.write_monitors(meter.write(done, values), done)
            if saving:
                with meter.paused():
                    save(done)
            if stopping:
                return Stopped(done, finished=done == steps.total)
    return Stopped(steps.start, finished=steps.start == steps.total)


@contextmanager
def _wish_to_stop() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and SIGUSR1 ask for a stop at the next step boundary; a second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
