"""Where the time of a step goes: a few steps under PyTorch's profiler, its Chrome trace, and a table made of that.

The loop and the engine name their parts (data, forward, backward, optimizer); communication is what NCCL's kernels or
gloo's collectives take, wherever they run. A part's time is without the communication that it waits for.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from imagebert.files import write_json

log = logging.getLogger(__name__)

PARTS = ("data", "forward", "backward", "optimizer")
_WARM_UP = 3  # steps before the first that is recorded

Span = tuple[float, float]


class StepProfiler:
    """Records `steps` steps of this rank, then writes trace.json and profile.json into `folder`."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(skip_first=_WARM_UP - 1, wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def step(self) -> None:
        self._profiler.step()

    def close(self) -> None:
        self._profiler.stop()

    def _write(self, profiler: torch.profiler.profile) -> None:
        trace = self.folder / "trace.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(trace))
            figures = breakdown(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
            write_json(self.folder / "profile.json", figures)
        except (OSError, ValueError) as error:  # cut short by a full disk
            log.warning("cannot write %s (%s): training goes on without", self.folder, error)


def breakdown(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds a step of each part, of communication that nothing runs beside, of that which is hidden, and of the rest.

    Args:
        events: traceEvents of a Chrome trace. On a GPU parts are spans of its own time, where the profiler gives them
    """
    host: dict[str, list[Span]] = defaultdict(list)
    device: dict[str, list[Span]] = defaultdict(list)
    talking: list[Span] = []
    computing: list[Span] = []
    steps: list[Span] = []
    for event in events:
        if event.get("ph") != "X":
            continue
        name, kind = str(event["name"]), event.get("cat")
        span = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        if kind == "user_annotation" and name.startswith("ProfilerStep#"):
            steps.append(span)
        elif name in PARTS and kind in ("user_annotation", "gpu_user_annotation"):
            (host if kind == "user_annotation" else device)[name].append(span)
        elif name.startswith("gloo:") or (kind == "kernel" and name.startswith("nccl")):
            talking.append(span)
        elif kind == "kernel":
            computing.append(span)
    talking, whole = _union(talking), _union(steps)
    exposed = _without(talking, _union(computing))
    parts = {part: _union(device.get(part) or host[part]) for part in PARTS}
    figures = {part: _length(_without(spans, exposed)) for part, spans in parts.items()}
    figures["communication"] = _length(exposed)
    figures["communication_hidden"] = _length(talking) - _length(exposed)
    named = _union([*exposed, *(span for spans in parts.values() for span in spans)])
    figures["rest"] = _length(_without(whole, named))
    figures["step"] = _length(whole)
    return {name: seconds / max(1, len(steps)) / 1e6 for name, seconds in figures.items()}


def _union(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _without(a: list[Span], b: list[Span]) -> list[Span]:
    """What is in the union `a` and not in the union `b`."""
    left = []
    for start, end in a:
        for b_start, b_end in b:
            if b_end <= start or b_start >= end:
                continue
            if start < b_start:
                left.append((start, b_start))
            start = max(start, b_end)
        if start < end:
            left.append((start, end))
    return left


def _length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)
