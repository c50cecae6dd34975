"""Time on a GPU: replays of CUDA graphs, and what this card can do at best."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

Pass = Callable[[], Any]


@lru_cache
def stream() -> torch.cuda.Stream:
    """All work is done here: a graph takes in a backward only on the stream of its forward."""
    return torch.cuda.Stream()


def seconds(passes: list[Pass], repeats: int = 20, graph: bool = True) -> float:
    """Median seconds of one pass, of all `passes` following each other: replayed, or launched one by one."""

    def all_passes() -> None:
        for one in passes:
            one()

    with torch.cuda.stream(stream()):
        all_passes()
        all_passes()
        run: Pass = all_passes
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded, stream=stream()):
                all_passes()
            run = recorded.replay
        times = []
        for _ in range(repeats + 3):
            begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begun.record()
            run()
            ended.record()
            ended.synchronize()
            times.append(begun.elapsed_time(ended) / 1000 / len(passes))
    return float(np.median(times[3:]))


def ceilings() -> dict[str, float]:
    """Bytes read and written per second by a large copy; FLOP/s of a large bf16 product of random numbers."""
    a = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    torch.cuda.synchronize()
    bandwidth = 2 * a.nbytes / seconds([lambda: b.copy_(a)])
    n = 8192
    x, y = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.cuda.synchronize()
    return {"bandwidth": bandwidth, "matmul": 2 * n**3 / seconds([lambda: x @ y] * 4)}
