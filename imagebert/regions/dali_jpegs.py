"""JPEGs by NVIDIA DALI, in a process of its own that a picture may break. A gate of DALI, as feed/dali.py is.

Files go in through a pipe, pixels come back through shared memory: a batch of them has a hundred megabytes.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

log = logging.getLogger(__name__)

_RESTARTS = 3  # after them Pillow decodes the rest


class DaliJpegs:
    """Decodes batches of JPEGs on a GPU's own decoder, or on the CPU.

    Args:
        batch: the most that are given at once
        device: of a GPU; None: the CPU

    Raises:
        ImportError: DALI is not installed, or does not load.
    """

    def __init__(self, batch: int, device: int | None) -> None:
        self._batch, self._device = batch, device
        self._left = _RESTARTS
        self._process = self._start()

    def _start(self) -> ProcessPoolExecutor | None:
        process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _build, (self._batch, self._device))
        try:
            problem = process.submit(_problem).result()
        except BrokenProcessPool:
            problem = "it ends its process"
        if problem:
            process.shutdown()
            raise ImportError(problem)
        return process

    def decode(self, jpegs: Sequence[bytes], names: Sequence[str]) -> list[Image.Image]:
        """All of them; or none, where one is damaged or breaks the decoder: then another decoder tells which."""
        if not jpegs or self._process is None:
            return []
        try:
            memory, shapes = self._process.submit(_decode, list(jpegs)).result()
        except BrokenProcessPool:
            self._left -= 1
            more = "it is started again" if self._left else "Pillow decodes what is left"
            log.warning("DALI ended at a picture of %s to %s: %s", names[0], names[-1], more)
            self._process.shutdown()
            self._process = self._start() if self._left else None
            return []
        if memory is None:
            return []
        shared = SharedMemory(memory)
        try:
            pixels, at, found = _pixels(shared), 0, []
            for height, width in shapes:
                size = height * width * 3
                found.append(Image.fromarray(pixels[at : at + size].reshape(height, width, 3).copy()))
                at += size
            del pixels
            return found
        finally:
            shared.close()
            shared.unlink()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.shutdown()
            self._process = None


def _pixels(shared: SharedMemory) -> NDArray[np.uint8]:
    return np.frombuffer(shared.buf, np.uint8)  # type: ignore[arg-type]


# What the process has: a pipeline, or why there is none.
_pipeline: Any = None
_again: Any = None  # builds another
_missing = ""


def _build(batch: int, device: int | None) -> None:
    global _pipeline, _again, _missing
    try:
        from nvidia.dali import Pipeline, fn, types
    except Exception as error:  # a half-installed one raises what it likes
        _missing = f"DALI does not load ({type(error).__name__}: {error})"
        return
    pipeline = Pipeline(batch_size=batch, num_threads=4, device_id=device, prefetch_queue_depth=1)
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(files, device="cpu" if device is None else "mixed", output_type=types.RGB)
        pipeline.set_outputs(images if device is None else images.cpu())
    pipeline.build()
    _pipeline, _again = pipeline, partial(_build, batch, device)


def _problem() -> str:
    return _missing


def _decode(jpegs: list[bytes]) -> tuple[str | None, list[tuple[int, int]]]:
    """Name of the shared memory that has the pixels, RGB one behind the other, and heights and widths."""
    try:
        (images,) = _pipeline.run(files=[np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        arrays = [np.array(images[place]) for place in range(len(jpegs))]
    except RuntimeError:
        _again()  # after an error a pipeline is not to be used again
        return None, []
    shared = SharedMemory(create=True, size=sum(array.nbytes for array in arrays))
    pixels, at = _pixels(shared), 0
    for array in arrays:
        pixels[at : at + array.nbytes] = array.reshape(-1)
        at += array.nbytes
    del pixels
    shared.close()
    return shared.name, [array.shape[:2] for array in arrays]
