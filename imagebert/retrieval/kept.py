"""Vectors of a store's images kept beside a model, with an index over them. Knows digests, and neither model nor faiss.

    MODEL/index/NAME.npy, NAME.json             of a store's images [I, D]; their size and CRC-32, sealed
    MODEL/index/NAME.faiss, NAME.faiss.json     an index over them; what it is, of which vectors, its SHA-256, sealed

NAME is the digest of what vectors follow from: model, store, what is fed, precision. All of it is made again where it
is missing; a changed file is never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.regions import describe_array, read_array
from imagebert.files import file_digest, read_sealed, replacing, write_sealed
from imagebert.lock import lock

if TYPE_CHECKING:  # `imagebert verify` needs no faiss
    from imagebert.retrieval.candidates import Index

Vectors = NDArray[np.float32]

_AGAIN = "make it again with `imagebert index`"


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

    def check_index(self) -> bool:
        """Whether there is an index over these very vectors, whole.

        Raises:
            UsageError: it has changed since it was written, or is of other vectors.
        """
        if not self.index_file.exists() and not self._index_described.exists():
            return False
        described = read_sealed(self._index_described, _AGAIN)
        if described.get("vectors_digest") != read_sealed(self._described, _AGAIN)["digest"]:
            raise UsageError(f"{self.index_file} is of other vectors than {self.file}: {_AGAIN}")
        if file_digest(self.index_file) != described["sha256"]:
            raise UsageError(f"{self.index_file} has changed since it was written: {_AGAIN}")
        return True

    def write_index(self, build: Callable[[Vectors], Index]) -> None:
        """Puts what is built over the vectors that are kept in place of an index that is there.

        Raises:
            UsageError: the vectors are not there, or have changed; or another process builds here.
            OSError: it cannot be written; what stood there is as it was.
        """
        vectors = self.read()
        with lock(self.folder / f".{self.index_file.name}.lock", self.index_file, "wait for it"):
            index = build(vectors)
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
