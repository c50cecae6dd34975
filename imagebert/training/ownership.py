"""Whether a run's folder is still this run's: rank 0 holds its lock, and all ranks end where another process has it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.lock import Held, TakenOver, lock


class Ownership:
    """Made by `own`. Collective: all ranks make the same calls."""

    def __init__(self, folder: Path, held: Held | None) -> None:
        self._folder, self._held = folder, held

    @property
    def lost(self) -> bool:
        """Whether this rank knows that the folder is another's: to be summed."""
        return self._held is not None and self._held.lost

    def settle(self, lost: float) -> None:
        """Takes the sum of `lost` over all ranks.

        Raises:
            TakenOver: on all ranks, so that all end with the exit code that no script requeues.
        """
        if lost:
            if self._held is not None:
                self._held.check()
            raise TakenOver(f"another process has taken {self._folder} over, which rank 0 names: this one ends")

    def check(self) -> None:
        """Looks at the lock itself: before anything is written that a later call would read.

        Raises:
            TakenOver: see `settle`.
        """
        if self._held is not None:
            self._held.look()
        self.settle(*distributed.total([self.lost]))


def check_folder(folder: Path) -> Path:
    """The run's folder, or what is there of those above it, after it was asked whether that can be written.

    Raises:
        UsageError: it cannot.
    """
    folder = folder.absolute()
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            reason = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(reason, os.strerror(reason))
    except OSError as error:
        raise UsageError(f"cannot write to the run's folder {folder}: {error.strerror}") from None
    return there


@contextmanager
def own(folder: Path) -> Iterator[Ownership]:
    """The folder of a run, made where it is missing, as this run's alone.

    Raises:
        UsageError: another process is writing it, or it cannot be written.
        OSError: the disk is full or failing, or it failed on rank 0.
    """
    held, made = None, False
    with ExitStack() as stack:
        with distributed.together():
            if distributed.rank() == 0:
                check_folder(folder)
                try:
                    made = not folder.exists()
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UsageError(f"cannot write to the run's folder {folder}: {error.strerror}") from None
                held = stack.enter_context(lock(folder / ".lock", folder, "give another output folder"))
        try:
            yield Ownership(folder, held)
        finally:
            stack.close()
            if made:
                with suppress(OSError):  # a call that was wrong leaves nothing; any other has written there
                    folder.rmdir()
