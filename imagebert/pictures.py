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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

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


class Ended(Exception):
    """A worker ended in the middle of a request; the message says by what."""

    def __init__(self, code: int, late: bool) -> None:
        self.late = late or code == -signal.SIGXCPU  # it took too long
        super().__init__(signal.Signals(-code).name if code < 0 else f"exit code {code}")


class Worker:
    """A process that is asked and answers by pipes, and that a picture may end.

    Args:
        script: what it runs. By its path and not by `-m`: it needs nothing of the package, and -P keeps the package's
            files out of its way.
        shared: descriptors of memory that it gets, under the same numbers
    """

    def __init__(self, script: Path, arguments: Sequence[str] = (), shared: Sequence[int] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what libraries say of damaged pictures is not for the log
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT},
            pass_fds=shared,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        for pipe in (self._to, self._from):
            with suppress(OSError):  # more than this user may have: it is only faster
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)

    @contextmanager
    def asked(self, seconds: float) -> Iterator[None]:
        """Around a request and its answer. It is ended where they are not whole, or take longer.

        Raises:
            Ended: so it is.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, BrokenPipeError):
            raise Ended(self.end(), late.is_set()) from None
        except BaseException:
            self.end()
            raise
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():
            self.end()

    def end(self) -> int:
        """Its exit code; of one that has crashed, what it crashed by."""
        self.process.kill()
        code = self.process.wait()
        self._to.close()
        self._from.close()
        return code

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._to.write(left) :]

    def read(self, length: int) -> bytearray:
        """Raises EOFError where it has ended."""
        data = bytearray(length)
        left = memoryview(data)
        while left:
            count = self._from.readinto(left)  # type: ignore[attr-defined]  # a FileIO: there is no buffer
            if not count:
                raise EOFError
            left = left[count:]
        return data


class Decoder:
    """Decodes in processes of its own: as many as there are threads that ask at once, and they are kept."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []

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
            self._idle.pop().end()

    def _ask(self, data: bytes, limits: PictureLimits, size: int) -> tuple[int, int, bytearray]:
        worker = self._take()
        try:
            with worker.asked(2 * limits.seconds):
                worker.write(REQUEST.pack(len(data), limits.pixels, limits.seconds, size, limits.web))
                worker.write(data)
                outcome, length, width, height = ANSWER.unpack(worker.read(ANSWER.size))
                if length > max(3 * limits.pixels, 1 << 20) or (
                    outcome != REFUSED and not size and length != 3 * width * height
                ):
                    raise EOFError  # its memory is not its own any more
                content = worker.read(length)
        except Ended as ended:
            if ended.late:
                raise UnreadableImage(
                    f"decoding it takes longer than {limits.seconds} s: save it again, smaller"
                ) from None
            raise UnreadableImage(f"its decoder broke ({ended}), it is damaged: save it again") from None
        self._idle.append(worker)
        if outcome == REFUSED:
            raise UnreadableImage(content.decode(errors="replace"))
        return width, height, content

    def _take(self) -> Worker:
        """A process that waits, or a new one."""
        with suppress(IndexError):
            while True:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.end()
        worker = Worker(Path(__file__).with_name("decoder.py"))
        try:
            worker.read(1)  # it is ready
        except EOFError:
            raise OSError(
                f"the decoder of pictures does not start: {sys.executable} ended with {worker.end()}"
            ) from None
        return worker


DECODER = Decoder()  # of this process
atexit.register(DECODER.close)
os.register_at_fork(after_in_child=DECODER._idle.clear)  # two processes cannot talk to one
