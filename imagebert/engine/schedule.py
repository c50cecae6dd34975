"""The learning rate as a pure function of the step: linear warm-up, then linear decay to zero, or none."""

from __future__ import annotations

from imagebert.config import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, total_steps: int, schedule: ScheduleConfig, optimizer: OptimizerConfig) -> float:
    """The rate of step 0 <= `step` < `total_steps`. Every step moves: neither the first nor the last has rate 0."""
    warmup_steps = round(schedule.warmup * total_steps)
    if step < warmup_steps:
        return optimizer.learning_rate * (step + 1) / warmup_steps
    if schedule.decay == "constant":
        return optimizer.learning_rate
    return optimizer.learning_rate * (total_steps - step) / max(1, total_steps - warmup_steps)
