"""JPEGs to RGB by NVIDIA DALI: the process that `dali_jpegs.py` runs, as a script. A gate of DALI, as feed/dali.py is.

Files come in by a pipe; pixels go out through memory that both processes have mapped, and only their sizes by a pipe.
Like imagebert/decoder.py it imports nothing of ImageBERT.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# How many files follow, with the length of each in front; how many pictures, with the height and width of each.
COUNT, LENGTH, SIZE = struct.Struct("!I"), struct.Struct("!Q"), struct.Struct("!II")
READY = b"\n"  # anything else at the beginning is a line that says why it is not

_THREADS = 4

Decode = Callable[[Sequence[bytes]], Sequence[NDArray[np.uint8]]]


def pipeline(batch: int, device: int | None) -> Decode:
    """What decodes at most `batch` JPEGs, upright, to [height, width, 3] each; raises RuntimeError where one is bad."""
    from nvidia.dali import Pipeline, fn, types

    made: Any = Pipeline(batch_size=batch, num_threads=_THREADS, device_id=device, prefetch_queue_depth=1)
    with made:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(
            files,
            device="cpu" if device is None else "mixed",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,  # colour of every second pixel is interpolated, as libjpeg and so Pillow do it
            affine=False,  # several parts of a job may run on one machine
        )
        made.set_outputs(images if device is None else images.cpu())
    made.build()

    def decode(jpegs: Sequence[bytes]) -> Sequence[NDArray[np.uint8]]:
        (found,) = made.run(files=[np.frombuffer(jpeg, np.uint8) for jpeg in jpegs])
        return [np.asarray(found[place]) for place in range(len(jpegs))]

    return decode


def main(memory: int, batch: int, device: int | None) -> None:
    """Answers requests until there are no more.

    Args:
        memory: descriptor of the memory that pixels go to, RGB, one picture behind the other
    """
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that DALI prints gets among the answers
    pixels = np.frombuffer(mmap.mmap(memory, 0), np.uint8)
    try:
        decode = pipeline(batch, device)
    except Exception as error:  # a half-installed DALI raises what it likes
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        target.write(said.encode(errors="replace") + b"\n")
        return
    target.write(READY)
    target.flush()
    while len(head := source.read(COUNT.size)) == COUNT.size:
        lengths = [LENGTH.unpack(source.read(LENGTH.size))[0] for _ in range(COUNT.unpack(head)[0])]
        jpegs = [source.read(length) for length in lengths]
        try:
            images = decode(jpegs)
        except RuntimeError:
            images = []
            decode = pipeline(batch, device)  # after an error one is not to be used again
        if sum(image.nbytes for image in images) > len(pixels):
            images = []
        at = 0
        for image in images:
            pixels[at : at + image.nbytes] = image.reshape(-1)
            at += image.nbytes
        target.write(COUNT.pack(len(images)) + b"".join(SIZE.pack(*image.shape[:2]) for image in images))
        target.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else None)
