"""Pictures from people, decoded by processes that a picture may break: what `decoder.py` does is asked for here.

A picture that raises, crashes its decoder or takes too long costs itself only: its process is ended and the next
picture gets another. Bytes go in by a pipe, pixels come back, no more than the limits say.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from imagebert.decoder import ANSWER, REFUSED, REQUEST
from imagebert.errors import UsageError

FILE_BYTES = 512 << 20  # of a picture's file


class UnreadableImage(UsageError):
    """This picture cannot be used; the message says why and what to do: "it ..."."""


class PictureLimits(NamedTuple):
    """What a picture may be and take before it is given up."""

    pixels: int
    seconds: int  # of a processor; twice as many on the clock
    web: bool  # JPEG, PNG and WebP only


LOCAL = PictureLimits(100_000_000, 20, web=False)  # the caller's own files
SENT = PictureLimits(25_000_000, 5, web=True)  # from anybody


# Memory that glibc has got for pictures it does not give back each time: a fault a page cost as much as decoding.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "OPENBLAS_NUM_THREADS": "1",
}


class Decoder:
    """Decodes in processes of its own: as many as there are threads that ask at once, and they are kept."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []

    def picture(self, data: bytes, limits: PictureLimits) -> Image.Image:
        """A picture, upright, mode RGB; `decoder.py` says what becomes of its pixels.

        Raises:
            UnreadableImage: it is none, is damaged, is larger than the limits or takes longer.
            OSError: no decoder can be started.
        """
        width, height, pixels = self._ask(data, limits, 0)
        return Image.frombytes("RGB", (width, height), pixels)

    def thumbnail(self, data: bytes, size: int, limits: PictureLimits) -> bytes:
        """A JPEG of at most size x size pixels; raises as `picture` does."""
        return bytes(self._ask(data, limits, size)[2])

    def close(self) -> None:
        """Ends the processes that wait."""
        while self._idle:
            _end(self._idle.pop())

    def _ask(self, data: bytes, limits: PictureLimits, size: int) -> tuple[int, int, bytearray]:
        worker = self._take()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(2 * limits.seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            _write(worker.stdin, REQUEST.pack(len(data), limits.pixels, limits.seconds, size, limits.web))
            _write(worker.stdin, data)
            outcome, length, width, height = ANSWER.unpack(_read(worker.stdout, ANSWER.size))
            if length > max(3 * limits.pixels, 1 << 20) or (
                outcome != REFUSED and not size and length != 3 * width * height
            ):
                raise EOFError  # its memory is not its own any more
            content = _read(worker.stdout, length)
        except (EOFError, BrokenPipeError):
            raise UnreadableImage(_why(_end(worker), late.is_set(), limits)) from None
        except BaseException:
            _end(worker)
            raise
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():
            _end(worker)
        else:
            self._idle.append(worker)
        if outcome == REFUSED:
            raise UnreadableImage(content.decode(errors="replace"))
        return width, height, content

    def _take(self) -> subprocess.Popen[bytes]:
        """A process that waits, or a new one."""
        with suppress(IndexError):
            while True:
                worker = self._idle.pop()
                if worker.poll() is None:
                    return worker
                _end(worker)
        # By its path and not by `-m`: it needs nothing of the package, and -P keeps the package's files out of its way.
        worker = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("decoder.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries say of damaged pictures is not for the log
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT},
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        for pipe in (worker.stdin, worker.stdout):
            with suppress(OSError):  # more than this user may have: it is only faster
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        if worker.stdout.read(1) != b"\n":
            worker.kill()
            raise OSError(f"the decoder of pictures does not start: {sys.executable} ended with {worker.wait()}")
        return worker


def _why(code: int, late: bool, limits: PictureLimits) -> str:
    if late or code == -signal.SIGXCPU:
        return f"decoding it takes longer than {limits.seconds} s: save it again, smaller"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its decoder broke ({how}), it is damaged: save it again"


def _end(worker: subprocess.Popen[bytes]) -> int:
    """Its exit code; of one that has crashed, what it crashed by."""
    worker.kill()
    code = worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()
    return code


def _write(pipe: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[pipe.write(left) :]


def _read(pipe: IO[bytes], length: int) -> bytearray:
    data = bytearray(length)
    left = memoryview(data)
    while left:
        count = pipe.readinto(left)  # type: ignore[attr-defined]  # a FileIO: there is no buffer
        if not count:
            raise EOFError
        left = left[count:]
    return data


DECODER = Decoder()  # of this process
atexit.register(DECODER.close)
os.register_at_fork(after_in_child=DECODER._idle.clear)  # two processes cannot talk to one
