"""The dual head's vectors of whole stores: computed once by all ranks, kept beside a model with an index over them.

    MODEL/index/NAME.npy, NAME.json             of a store's images [I, D]; their size and CRC-32, sealed
    MODEL/index/NAME.faiss, NAME.faiss.json     an index over them; what it is, of which vectors, its SHA-256, sealed

NAME is the digest of what vectors follow from: model, store, what is fed, precision. All of it is made again where it
is missing; a changed file is never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.data.regions import describe_array, read_array
from imagebert.files import file_digest, read_sealed, replacing, write_sealed
from imagebert.lock import lock
from imagebert.log import Progress
from imagebert.retrieval.candidates import Embeddings, Index, Kind
from imagebert.retrieval.scoring import NO_DUAL, PairScorer

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]
Block = TypeVar("Block")

_BLOCK = 1000  # images or captions that are encoded together
_AGAIN = "make it again with `imagebert index`"


# ------------------------------------------------------------------------------------------------ computed by all ranks


def shared(blocks: Sequence[Block], what: str, unit: str = "blocks") -> Iterator[Block]:
    """Those of the blocks that fall to this rank: whoever is free takes the next."""
    with Progress(what, len(blocks), unit) as progress:
        for number in distributed.queue():
            progress.update(min(number, len(blocks)))  # of all ranks: they take them in order
            if number >= len(blocks):
                return
            yield blocks[number]


def summed(values: NDArray[Any]) -> NDArray[Any]:
    """Over all ranks: each has zeros where another one's are."""
    on_device = torch.from_numpy(values).to(distributed.device())
    return distributed.total_on_device(on_device).cpu().numpy()


def encode(scorer: PairScorer, of: Callable[[Numbers], Vectors], count: int) -> Vectors:
    """The vectors [count, D] of images or captions; all ranks share the work, and all are given all of it.

    What is encoded together depends on the numbers alone, so that any number of ranks finds the same.

    Args:
        of: `scorer.image_vectors` or `scorer.text_vectors`

    Raises:
        UsageError: the model has no dual head, or gives numbers that are not finite.
        OSError: another rank failed, or is gone.
    """
    if scorer.model.dual is None:
        raise UsageError(NO_DUAL)
    vectors = np.zeros((count, scorer.model.config.dual_size), np.float32)
    blocks = [np.arange(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    with distributed.together():
        for numbers in shared(blocks, "Encoding", f"blocks of {_BLOCK:,}"):
            vectors[numbers] = of(numbers)
            if not np.isfinite(vectors[numbers]).all():
                raise UsageError("the model's vectors are not finite numbers: train it again with a lower rate")
    return summed(vectors)


def encode_both(scorer: PairScorer, images: int, captions: int) -> Embeddings:
    """Vectors of all images and of all captions; see `encode`."""
    return Embeddings(encode(scorer, scorer.image_vectors, images), encode(scorer, scorer.text_vectors, captions))


# ------------------------------------------------------------------------------------------------------- kept on a disk


class KeptVectors:
    """Vectors and their index in a folder.

    Args:
        name: NAME of the files
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.file, self._described = folder / f"{name}.npy", folder / f"{name}.json"
        self.index_file, self._index_described = folder / f"{name}.faiss", folder / f"{name}.faiss.json"

    def read(self) -> Vectors:
        """Vectors [I, D], mapped.

        Raises:
            UsageError: they are not there, or have changed since they were written.
        """
        cure = "remove it, it is made again"
        described = read_sealed(self._described, cure)
        if described.keys() != {"bytes", "crc32", "digest"}:
            raise UsageError(f"{self._described} describes no vectors, it is another file: {cure}")
        return read_array(self.file, described)

    def write(self, vectors: Vectors) -> None:
        """Raises OSError where the folder cannot be written; what stood there is as it was."""
        self.folder.mkdir(exist_ok=True)
        with replacing(self.file, f".{os.getpid()}.npy") as part:  # another process may be at it
            np.save(part, vectors, allow_pickle=False)
            description = describe_array(part)
        write_sealed(self._described, description)

    def read_index(self) -> Index | None:
        """What was built over these very vectors; None: nothing was.

        Raises:
            UsageError: it has changed since it was written, or is of other vectors.
        """
        return Index.read(self.index_file) if self.check_index() else None

    def check_index(self) -> bool:
        """Whether there is an index, which is then compared with its digest; raises as `read_index` does."""
        if not self.index_file.exists() and not self._index_described.exists():
            return False
        described = read_sealed(self._index_described, _AGAIN)
        if described.get("vectors_digest") != read_sealed(self._described, _AGAIN)["digest"]:
            raise UsageError(f"{self.index_file} is of other vectors than {self.file}: {_AGAIN}")
        if file_digest(self.index_file) != described["sha256"]:
            raise UsageError(f"{self.index_file} has changed since it was written: {_AGAIN}")
        return True

    def write_index(self, kind: Kind) -> None:
        """Builds an index over the vectors that are kept, in place of one that is there.

        Raises:
            UsageError: the vectors are not there, or have changed; or another process builds here.
            OSError: it cannot be written; what stood there is as it was.
        """
        vectors = self.read()
        with lock(self.folder / f".{self.index_file.name}.lock", self.index_file, "wait for it"):
            index = Index.build(kind, vectors)
            with replacing(self.index_file) as part:
                index.write(part)
                digest = file_digest(part)
            of = read_sealed(self._described)["digest"]
            write_sealed(self._index_described, {**index.described, "vectors_digest": of, "sha256": digest})

    def remove_index(self) -> None:
        """All vectors are searched from now on."""
        self._index_described.unlink(missing_ok=True)
        self.index_file.unlink(missing_ok=True)


def check_kept(folder: Path) -> tuple[int, list[str]]:
    """How many stores' vectors a folder holds, and a sentence for each file that is missing or has changed."""
    files = [file for file in folder.iterdir() if file.suffix in (".npy", ".json", ".faiss") and file.name[0] != "."]
    names, problems = sorted({file.name.split(".")[0] for file in files}), []
    for name in names:
        kept = KeptVectors(folder, name)
        for check in (kept.read, kept.check_index):
            try:
                check()
            except UsageError as error:
                problems.append(str(error))
    return len(names), problems
