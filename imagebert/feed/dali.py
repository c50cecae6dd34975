"""Microbatches through NVIDIA DALI: each is one sample, a run of bytes. The gate of DALI, with regions/decoding.py.

DALI takes the packed memory as it is (`no_copy`) and copies it to the GPU on a stream of its own. On a CPU it copies
every output once more, into a buffer of its executor (a test shows it): there the pipeline's output is the first bytes
only, and the batch stays where it was packed.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from imagebert.config import UsageError
from imagebert.feed.feeder import Slot

_TOKEN = 64  # bytes of a sample that a CPU's pipeline gives out


class DaliCarrier:
    """A `feeder.Carrier`.

    Raises:
        UsageError: DALI is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from nvidia.dali import Pipeline, fn, types
        except ImportError as error:
            raise UsageError(
                f"data.feeder is dali, and DALI is missing ({error}): pip install imagebert[dali], or take plain"
            ) from None
        self._gpu = device.type == "cuda"
        self.pinned = self._gpu
        # One run at a time: the feeder's slots are what is ahead.
        self._pipeline = Pipeline(
            batch_size=1, num_threads=1, device_id=device.index or 0 if self._gpu else None, prefetch_queue_depth=1
        )
        with self._pipeline:
            sample = fn.external_source(name="microbatch", no_copy=True, dtype=types.UINT8, ndim=1)
            self._pipeline.set_outputs(sample.gpu() if self._gpu else sample[:_TOKEN])
        self._pipeline.build()
        self._lock = threading.Lock()

    def carry(self, memory: Tensor, slot: Slot) -> Tensor:
        with self._lock:
            stream = torch.cuda.current_stream() if self._gpu else None
            (output,) = self._pipeline.run(stream, microbatch=[memory.numpy()])
        if not self._gpu:
            return memory
        slot.on_device = torch.utils.dlpack.from_dlpack(
            output[0]
        )  # its memory is DALI's again when the slot is filled again
        return slot.on_device

    def close(self) -> None:
        with self._lock:
            del self._pipeline
