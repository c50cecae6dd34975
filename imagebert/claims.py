"""Work that ranks claim one piece after the other, so that a slow one holds up no more than the piece it is at.

There is no server: a claim is a file that only one rank can create, in a folder that all of them see, beside the store
that they write. Each call has a folder of its own. So what a killed call had claimed is free in the next one, and a
rank of a dead call that still lives finds its folder gone and ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from imagebert.workers import Workers

Thing = TypeVar("Thing")

# Things of a piece: few, so that no rank waits long for the last one, and of very many things more, since every rank
# tries every piece: no more than so many pieces a rank.
PIECE, _PIECES = 64, 128


class Claims:
    """What of a job this rank has claimed. A worker that is alone gets everything and leaves no file.

    Args:
        folder: that all workers see; the first one removes what an earlier call has left in it

    Attributes:
        reached: how many things lie up to the end of the last piece, about how far all workers are
    """

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._parent, self._workers = folder, workers
        self.reached = 0
        token = 0
        if workers.rank == 0:
            self.clear()
            token = secrets.randbits(62) if workers.size > 1 else 0
            if token:
                self._folder_of(token).mkdir()
        (token,) = workers.total([token])  # of which all but one are 0: so the first tells the others
        self._folder = self._folder_of(token)

    def _folder_of(self, token: int) -> Path:
        return self._parent / f"claims-{token:016x}"

    def take(self, name: str) -> bool:
        """Whether a piece of work is this worker's, since no other one was before it.

        Raises:
            OSError: the disk fails, or a later call has begun.
        """
        if self._workers.size == 1:
            return True
        try:
            # Exclusive creation is decided by the file server itself, whatever this node remembers of the folder.
            os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise OSError(
                f"{self._folder} is gone: a later call has begun, or it was removed; make the call again"
            ) from None
        return True

    def pieces(self, things: Sequence[Thing]) -> Iterator[Thing]:
        """Those of `things` that are this worker's, a piece of them claimed when the one before it is used up.

        Args:
            things: the same ones at every worker, in one order
        """
        size = self._workers.size
        length = max(1, min(PIECE, len(things) // (8 * size)), len(things) // (_PIECES * size))
        for start in range(0, len(things), length):
            if self.take(f"piece-{start}"):
                piece = things[start : start + length]
                self.reached = start + len(piece)
                yield from piece

    def clear(self) -> None:
        """Removes all claims, of earlier calls, too. For the first worker, while no other one claims."""
        for folder in self._parent.glob("claims-*"):
            shutil.rmtree(folder, ignore_errors=True)
