"""JPEGs by NVIDIA DALI, in a process of its own that a picture may end: what `dali_decoder.py` does is asked for here.

A batch that ended the process is given to the next one file by file, so that the picture that does it has a name.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from imagebert.pictures import Ended, Worker
from imagebert.regions.dali_decoder import COUNT, LENGTH, READY, SIZE

log = logging.getLogger(__name__)

_RESTARTS = 6  # a picture that ends it twice costs two
_SECONDS_START, _SECONDS_BATCH = 300, 120


class NoDali(Exception):
    """DALI cannot be used; the message says why."""


class DaliJpegs:
    """Decodes batches of JPEGs, on a GPU's own decoder or on the CPU.

    Args:
        batch: the most that are given at once
        pixels: the most that they have together
        device: of a GPU; None: the CPU

    Raises:
        NoDali: it is not installed, or does not work here.
    """

    def __init__(self, batch: int, pixels: int, device: int | None) -> None:
        self.device = device
        self._arguments = [str(batch), *([] if device is None else [str(device)])]
        self._left = _RESTARTS
        # Pages that no picture has reached yet take no memory; unlike /dev/shm it is as large as it says in containers.
        self._descriptor = os.memfd_create("pictures")
        os.ftruncate(self._descriptor, 3 * pixels)
        self._pixels = memoryview(mmap.mmap(self._descriptor, 0))
        self._worker: Worker | None = None
        try:
            self._worker = self._start()
        except NoDali:
            self.close()
            raise

    def _start(self) -> Worker:
        script = Path(__file__).with_name("dali_decoder.py")
        worker = Worker(script, [str(self._descriptor), *self._arguments], [self._descriptor])
        said = bytearray()
        try:
            with worker.asked(_SECONDS_START):
                while not said.endswith(b"\n"):
                    said += worker.read(1)
        except Ended as ended:
            raise NoDali(f"DALI does not start ({ended})") from None
        if said != READY:
            worker.end()
            raise NoDali(f"DALI does not start ({said.decode(errors='replace').strip()})")
        return worker

    def decode(self, jpegs: Sequence[bytes], names: Sequence[str]) -> list[Image.Image | None]:
        """Each upright, mode RGB. None: what ends DALI, and every one of a batch that has a damaged one."""
        if not jpegs or self._worker is None:
            return [None] * len(jpegs)
        try:
            return [*self._run(self._worker, jpegs)] or [None] * len(jpegs)
        except Ended as ended:
            left = self._restart(names)
            what = names[0] if len(names) == 1 else f"one of {len(names)} pictures, {names[0]} to {names[-1]}"
            log.warning("DALI ended (%s) at %s; Pillow decodes %s", ended, what, left)
        if len(jpegs) == 1:
            return [None]
        return [self.decode([jpeg], [name])[0] for jpeg, name in zip(jpegs, names, strict=True)]

    def _run(self, worker: Worker, jpegs: Sequence[bytes]) -> list[Image.Image]:
        with worker.asked(_SECONDS_BATCH):
            worker.write(COUNT.pack(len(jpegs)) + b"".join(LENGTH.pack(len(jpeg)) for jpeg in jpegs))
            for jpeg in jpegs:
                worker.write(jpeg)
            (count,) = COUNT.unpack(worker.read(COUNT.size))
            if count not in (0, len(jpegs)):
                raise EOFError  # its memory is not its own any more
            sizes = [SIZE.unpack(worker.read(SIZE.size)) for _ in range(count)]
            if 3 * sum(height * width for height, width in sizes) > len(self._pixels):
                raise EOFError
        images, at = [], 0
        for height, width in sizes:
            end = at + 3 * height * width
            images.append(Image.frombytes("RGB", (width, height), self._pixels[at:end]))
            at = end
        return images

    def _restart(self, names: Sequence[str]) -> str:
        """Starts another, if it may be; says what of these and those to come is left to Pillow."""
        self._worker = None
        if self._left:
            self._left -= 1
            try:
                self._worker = self._start()
                return "it" if len(names) == 1 else "what ends it again"
            except NoDali as error:
                return f"all that is left, since {error}"
        return f"all that is left, since it was started again {_RESTARTS} times"

    def close(self) -> None:
        """Ends the process, for good."""
        self._left = 0
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
