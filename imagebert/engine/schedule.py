"""The learning rate as a pure function of the step: linear warm-up, then linear decay to zero, or none."""

from __future__ import annotations

from imagebert.config import OptimizerConfig, ScheduleConfig


def peak_learning_rate(optimizer: OptimizerConfig, pairs: float) -> float:
    """The recipe's rate, scaled from the batch that it is for to the `pairs` that a step has, on average.

    By the square root (Krizhevsky 2014; You et al. 2020, section 4.3, for LAMB) or linearly (Goyal et al. 2017).
    """
    if optimizer.learning_rate_batch is None:
        return optimizer.learning_rate
    power = {"sqrt": 0.5, "linear": 1.0}[optimizer.learning_rate_scaling]
    return optimizer.learning_rate * (pairs / optimizer.learning_rate_batch) ** power


def learning_rate(
    step: int, total_steps: int, schedule: ScheduleConfig, optimizer: OptimizerConfig, pairs: float
) -> float:
    """The rate of step 0 <= `step` < `total_steps`. Every step moves: neither the first nor the last has rate 0."""
    peak = peak_learning_rate(optimizer, pairs)
    warmup_steps = round(schedule.warmup * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule.decay == "constant":
        return peak
    return peak * (total_steps - step) / max(1, total_steps - warmup_steps)
