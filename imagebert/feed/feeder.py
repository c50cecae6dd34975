"""The feeder: threads pack steps ahead of the training loop, into memory that goes round.

A thread makes the plan and deals microbatches out to workers; a worker packs one, has it carried to the device and
masked there. How it is carried is a `Carrier`: not at all on a CPU, by an asynchronous copy to a GPU, or through DALI
(dali.py). Whichever it is, the same position of the plan gives the same bytes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.feed.arena import Arena, grown
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Packer
from imagebert.feed.plan import BatchPlan, Samples
from imagebert.feed.sizes import Sizes


class Carrier(Protocol):
    """Brings a microbatch to the device."""

    pinned: bool  # whether it wants the host's memory pinned

    def carry(self, memory: Tensor, slot: Slot) -> Tensor:
        """`memory` [n] uint8 on the device; called on the stream where masks are drawn next."""

    def close(self) -> None: ...


class Slot:
    """The memory of one microbatch, from being filled until the step after it is asked for."""

    def __init__(self, pinned: bool) -> None:
        self.arena = Arena(pinned)
        self.on_device: Tensor | None = None
        self.batch: PackedBatch | None = None  # kept: what was allocated on one stream is read on another
        self.ready: torch.cuda.Event | None = None
        self.done: torch.cuda.Event | None = None  # whatever reads the batch was launched before it


class CopyCarrier:
    """To a GPU by one asynchronous copy, into memory of the slot's own; on a CPU what is packed stays where it is."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.pinned = device.type == "cuda"

    def carry(self, memory: Tensor, slot: Slot) -> Tensor:
        if not self.pinned:
            return memory
        if slot.on_device is None or len(slot.on_device) < len(memory):
            slot.on_device = torch.empty(grown(len(memory)), dtype=torch.uint8, device=self._device)
        return slot.on_device[: len(memory)].copy_(memory, non_blocking=True)

    def close(self) -> None:
        pass


class RankSlice(NamedTuple):
    """Whose microbatches they are, and where they go."""

    rank: int
    world: int
    device: torch.device


class Prefetch(NamedTuple):
    """How far, and by how many threads, steps are packed ahead."""

    ahead: int  # steps that are ready or being packed while one is consumed
    workers: int = 1  # threads that pack; one fills a GPU's bus where its core copies fast enough
    read_ahead: bool = True  # have the system fetch a step's records before; for stores larger than memory


class Feeder:
    """Iterates over the microbatches of one rank's steps, which lie one behind the other.

    A step's batches stay valid until the next step is asked for. Use as a context manager: leaving it ends the threads.

    Args:
        carrier: how microbatches reach the device; None: CopyCarrier
    """

    def __init__(
        self,
        plan: BatchPlan,
        packer: Packer,
        masking: Masking | None,
        rank_slice: RankSlice,
        steps: range,
        prefetch: Prefetch,
        sizes: Sizes | None = None,
        carrier: Carrier | None = None,
    ) -> None:
        self._plan, self._packer, self._masking = plan, packer, masking
        self._rank, self._world, self._device = rank_slice
        ahead, self._workers, self._read_ahead = prefetch
        self._sizes, self._steps = sizes, steps
        self._carrier = carrier or CopyCarrier(self._device)
        self._free = threading.Semaphore(ahead + 1)
        self._slots = [
            [Slot(self._carrier.pinned) for _ in range(plan.microbatches // rank_slice.world)] for _ in range(ahead + 1)
        ]
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._ready: queue.SimpleQueue[tuple[list[Slot], list[Future[PackedBatch]]] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._deal, name="feeder", daemon=True)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._free.release()  # it may wait for a slot
        self._thread.join()
        self._carrier.close()

    @property
    def damaged_records(self) -> int:
        """Images left out so far because their record is damaged."""
        return len(self._packer.damaged)

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            slots, batches = item
            found = [batch.result() for batch in batches]
            self._wait_for(slots)
            yield found
            self._let_go(slots)

    def _deal(self) -> None:
        """The thread: plans steps and gives their microbatches to the workers, as memory gets free."""
        try:
            with ThreadPoolExecutor(self._workers, "packer") as pool:
                for step in self._steps:
                    samples = self._plan.step(step, self._rank, self._world)
                    if self._read_ahead:
                        for microbatch in samples:
                            self._packer.will_read(microbatch)
                    self._free.acquire()
                    if self._closed.is_set():
                        pool.shutdown(cancel_futures=True)
                        return
                    slots = self._slots[step % len(self._slots)]
                    packed = [pool.submit(self._pack, step, *one) for one in zip(samples, slots, strict=True)]
                    self._ready.put((slots, packed))
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._ready.put(error)

    def _pack(self, step: int, samples: Samples, slot: Slot) -> PackedBatch:
        if self._stream is None:
            packed = self._packer.lay_out(samples, slot.arena, self._sizes)
            return packed._replace(memory=self._carrier.carry(packed.memory, slot)).finish(step, self._masking)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            if slot.done is not None:
                slot.done.synchronize()
            packed = self._packer.lay_out(samples, slot.arena, self._sizes)
            packed = packed._replace(memory=self._carrier.carry(packed.memory, slot))
            slot.batch = packed.finish(step, self._masking)
            slot.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.ready.record()
        return slot.batch

    def _wait_for(self, slots: list[Slot]) -> None:
        """What the consumer launches from now on waits on the GPU until the slots are filled."""
        if self._stream is not None:
            for slot in slots:
                assert slot.ready is not None
                torch.cuda.current_stream(self._device).wait_event(slot.ready)

    def _let_go(self, slots: list[Slot]) -> None:
        if self._stream is not None:
            for slot in slots:
                # Blocking: a worker mostly waits here, and must not spin.
                slot.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                slot.done.record(torch.cuda.current_stream(self._device))
        self._free.release()
