"""The plain feeder: one background thread packs steps ahead of the training loop, into buffers that go round.

Another feeder (DALI) has to offer the same: iterating from any step on yields each step's microbatches in order.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType

import torch

from imagebert.batch import PackedBatch
from imagebert.feed.masking import Masking
from imagebert.feed.packer import FeatureBuffer, Packer
from imagebert.feed.plan import Plan
from imagebert.feed.sizes import Sizes


class Feeder:
    """Iterates over the microbatches of steps `start` to `stop` - 1 of one rank.

    A step's batches stay valid until the next step is asked for. Use as a context manager: leaving it ends the thread.
    """

    def __init__(
        self,
        plan: Plan,
        packer: Packer,
        masking: Masking | None,
        *,
        rank: int,
        world: int,
        start: int,
        stop: int,
        ahead: int,
        device: torch.device,
        sizes: Sizes | None = None,
    ) -> None:
        self._plan, self._packer, self._masking = plan, packer, masking
        self._rank, self._world, self._device = rank, world, device
        self._sizes = sizes
        self._steps = range(start, stop)
        self._ready: queue.Queue[list[PackedBatch] | BaseException | None] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        # One set of buffers is being consumed, `ahead` wait in the queue, one is being filled.
        microbatches = plan.parts // world
        self._rings = [[FeatureBuffer() for _ in range(microbatches)] for _ in range(ahead + 2)]
        self._thread = threading.Thread(target=self._fill, name="feeder", daemon=True)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        while self._thread.is_alive():  # free a place that the thread may wait for
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self) -> None:
        try:
            for step in self._steps:
                ring = self._rings[step % len(self._rings)]
                samples = self._plan.step(step, self._rank, self._world)
                batches = [
                    self._packer.pack(s, buffer, step, self._masking, self._sizes, self._device)
                    for s, buffer in zip(samples, ring, strict=True)
                ]
                self._ready.put(batches)
                if self._closed.is_set():
                    return
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._ready.put(error)
