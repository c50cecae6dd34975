"""DeepSpeed's engine, optimizers, the schedule, checkpoints and metrics; knows no task."""
