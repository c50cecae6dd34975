"""The same run as capacity.py describes by formulas, event by event: stragglers, buckets on the network, failures."""

from __future__ import annotations

import heapq

import numpy as np

from imagebert.training.capacity import (
    Job,
    buckets_of,
    failures,
    gather_seconds,
    reduce_seconds,
    step_time,
)


def simulate(job: Job, steps: int, seed: int = 0, with_failures: bool = True) -> float:
    """Seconds until `steps` steps are done; ZeRO 0 to 2.

    A bucket is reduced when the slowest rank has filled it and the network is free. A node fails after an exponential
    time; then the cluster goes back to its newest checkpoint that was written whole.
    """
    rng = np.random.default_rng(seed)
    c, trouble, analytic = job.constants, failures(job), step_time(job)
    parameters = job.parameters
    buckets = [reduce_seconds(job, size) for size in buckets_of(job, parameters)]
    gather = gather_seconds(job, parameters)
    # Next failure of each node.
    queue = [(float(rng.exponential(c.node_mtbf_hours * 3600)), node) for node in range(job.nodes)]
    heapq.heapify(queue)
    now, done, saved, last_save = 0.0, 0, 0, 0.0
    pending: list[tuple[float, int]] = []  # checkpoints being written: when each is whole, and its step
    while done < steps:
        shares = 1 + c.jitter * rng.standard_normal((job.accumulation, job.ranks))
        micro = analytic.compute / job.accumulation * shares
        # Ranks meet once a step, before their last backward is through.
        before = micro[:-1].sum(axis=0) + micro[-1] / 3
        backward = micro[-1] * 2 / 3
        end = 0.0
        for number, seconds in enumerate(buckets, 1):
            filled = float((before + backward * number / len(buckets)).max())
            end = max(end, filled) + seconds
        duration = max(end, float((before + backward).max())) + gather + analytic.overhead
        if with_failures and queue[0][0] < now + duration:
            failed, node = heapq.heappop(queue)
            heapq.heappush(queue, (failed + float(rng.exponential(c.node_mtbf_hours * 3600)), node))
            saved = max([saved, *(step for whole, step in pending if whole <= failed)])
            now, done, pending = failed + c.detect + c.restart, saved, []
            last_save = now
            continue
        now += duration
        done += 1
        if with_failures and now - last_save >= trouble.interval:
            now += trouble.pause
            pending.append((now + trouble.writing, done))
            last_save = now
    return now
