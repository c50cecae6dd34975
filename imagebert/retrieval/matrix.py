"""The score matrix: every image with every caption, in tiles that ranks take as they are free.

A tile is a block of images of like length and a block of captions of like length. Which tiles there are follows from
the lengths alone, so any number of ranks can go on with what others left. A rank appends each tile that it has scored
to a file of its own in OUT/tiles/:

    tile, pairs, seconds, CRC-32      uint32, uint32, float64, uint32; little-endian
    scores                            float32 [images of the tile, captions of the tile]

That is the ledger. The checksum is of the evaluation's digest, the numbers before it and the scores: a tile that was
changed, cut or comes from another evaluation is told by it and scored again. Equal inputs are scored once: images of
equal records and captions of equal words have equal scores, bit for bit, so that ties are ties. When all tiles
are there, rank 0 puts them together into OUT/scores.npy, which is mapped, not read, whenever it is counted.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imagebert import distributed
from imagebert.config import UsageError
from imagebert.feed.plan import Lengths
from imagebert.files import replacing
from imagebert.log import Progress

Numbers = NDArray[np.int64]

_IMAGES, _CAPTIONS = 32, 64  # of a tile
_HEADER, _CHECKSUM = struct.Struct("<IId"), struct.Struct("<I")


class Tile(NamedTuple):
    """Rows and columns of the matrix: every row with every column."""

    rows: Numbers
    columns: Numbers

    @property
    def pairs(self) -> int:
        return len(self.rows) * len(self.columns)


class Scorer(Protocol):
    """A scoring function that need not be waited for (scoring.py)."""

    @property
    def lengths(self) -> Lengths: ...

    @property
    def classes(self) -> tuple[Numbers, Numbers]:
        """Of all images and of all captions: equal numbers, equal inputs."""

    def launch(self, images: Numbers, captions: Numbers) -> Tensor: ...


def tiles(regions: Numbers, words: Numbers) -> list[Tile]:
    """Cuts a matrix of images with `regions` [I] and captions with `words` [N] into tiles, the longest first.

    Tiles of the same images follow each other.
    """
    rows, columns = (np.argsort(-lengths, kind="stable") for lengths in (regions, words))
    return [
        Tile(rows[i : i + _IMAGES], columns[c : c + _CAPTIONS])
        for i in range(0, len(rows), _IMAGES)
        for c in range(0, len(columns), _CAPTIONS)
    ]


class Scored(NamedTuple):
    number: int
    scores: NDArray[np.float32]  # [rows, columns]
    seconds: float


def score_tiles(
    scorer: Scorer, images: Numbers, captions: Numbers, which: Sequence[Tile], numbers: Iterator[int]
) -> Iterator[Scored]:
    """Scores the tiles that `numbers` names, until it names one that there is not.

    Each is read when the next one has been launched, so a GPU does not run dry.

    Args:
        images, captions: what the rows and the columns of the matrix are
    """
    before: tuple[int, Tensor] | None = None
    begun = time.perf_counter()

    def read(number: int, scores: Tensor) -> Scored:
        nonlocal begun
        values = scores.cpu().numpy().reshape(len(which[number].rows), -1)
        now, since = time.perf_counter(), begun
        begun = now
        return Scored(number, values, now - since)

    for number in numbers:
        if number >= len(which):
            break
        rows, columns = which[number]
        launched = scorer.launch(np.repeat(images[rows], len(columns)), np.tile(captions[columns], len(rows)))
        if before is not None:
            yield read(*before)
        before = number, launched
    if before is not None:
        yield read(*before)


def score_all(
    scorer: Scorer, images: Numbers, captions: Numbers, tick: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """The matrix [len(images), len(captions)] on every rank, shared out among them, in memory: for small ones.

    Args:
        tick: called after each tile
    """
    (images, row_of), (captions, column_of) = _distinct(scorer, images, captions)
    which = tiles(scorer.lengths.regions[images], scorer.lengths.words[captions])
    scores = np.zeros((len(images), len(captions)), np.float32)
    for number, values, _ in score_tiles(scorer, images, captions, which, distributed.queue()):
        scores[np.ix_(*which[number])] = values
        tick()
    if distributed.world_size() > 1:
        scores = np.array(distributed.total(scores.ravel().tolist()), np.float32).reshape(scores.shape)
    return scores[np.ix_(row_of, column_of)]


def _distinct(
    scorer: Scorer, images: Numbers, captions: Numbers
) -> tuple[tuple[Numbers, Numbers], tuple[Numbers, Numbers]]:
    """Of each side one number of each class, in their order, and which of those each one is scored as."""
    found = []
    for numbers, classes in zip((images, captions), scorer.classes, strict=True):
        _, first, inverse = np.unique(classes[numbers], return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        found.append((numbers[first[order]], place[inverse]))
    return found[0], found[1]


# ------------------------------------------------------------------------------------------------------ on disk


class Ledger:
    """The tiles that are scored, by any rank in any call, in a folder.

    Args:
        identity: of the evaluation that they are part of
    """

    def __init__(self, folder: Path, which: Sequence[Tile], identity: str) -> None:
        self.folder, self._tiles = folder, which
        self._seed = zlib.crc32(identity.encode())

    def read(self) -> dict[int, tuple[Path, int, float]]:
        """Of each finished tile its file, where its scores begin, and the seconds that it took."""
        found = {}
        for path in sorted(self.folder.glob("*.tiles")):
            with path.open("rb") as file:
                while len(head := file.read(_HEADER.size)) == _HEADER.size:
                    number, pairs, seconds = _HEADER.unpack(head)
                    checksum = file.read(_CHECKSUM.size)
                    if number >= len(self._tiles) or pairs != self._tiles[number].pairs:
                        break  # damaged; or what was being written when its process ended
                    at, scores = file.tell(), file.read(4 * pairs)
                    if self._checksum(head, scores) != checksum:
                        break
                    found[number] = path, at, seconds
        return found

    def append(self, scored: Iterator[Scored], tick: Callable[[], None]) -> None:
        """Writes each tile behind those of this process.

        Args:
            tick: called after each tile

        Raises:
            OSError: the disk is full or cannot be written; the tiles before are kept.
        """
        name = f"rank{distributed.rank():05d}-{os.getpid()}-{time.time_ns()}.tiles"
        with (self.folder / name).open("xb") as file:
            for number, scores, seconds in scored:
                head, data = _HEADER.pack(number, scores.size, seconds), scores.astype("<f4").tobytes()
                file.write(head + self._checksum(head, data) + data)
                file.flush()
                tick()

    def _checksum(self, head: bytes, scores: bytes) -> bytes:
        return _CHECKSUM.pack(zlib.crc32(scores, zlib.crc32(head, self._seed)))

    def pairs(self) -> int:
        """About how many pairs all ranks have written, by the size of their files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.tiles")) // 4

    def assemble(self, path: Path, row_of: Numbers, column_of: Numbers) -> float:
        """Puts the matrix together; returns the seconds of scoring, summed over ranks and calls.

        Args:
            row_of, column_of: which row and column of the tiles each one of the matrix is

        Raises:
            OSError: a tile is missing, or there is no room.
        """
        found = self.read()
        if len(found) < len(self._tiles):
            raise OSError(
                f"{self.folder} has {len(found)} of {len(self._tiles)} tiles: call again, the others are scored"
            )
        with replacing(path) as part:
            matrix = np.lib.format.open_memmap(part, "w+", np.float32, (len(row_of), len(column_of)))
            with part.open("r+b") as whole:  # a mapped file that finds no room later ends the process
                os.posix_fallocate(whole.fileno(), 0, part.stat().st_size)
            for number, (file, at, _) in found.items():
                rows, columns = self._tiles[number]
                values = np.fromfile(file, "<f4", len(rows) * len(columns), offset=at).reshape(len(rows), len(columns))
                to_rows, from_rows = _scattered(rows, row_of)
                to_columns, from_columns = _scattered(columns, column_of)
                matrix[np.ix_(to_rows, to_columns)] = values[np.ix_(from_rows, from_columns)]
            matrix.flush()
        return sum(seconds for _, _, seconds in found.values())


def _scattered(numbers: Numbers, number_of: Numbers) -> tuple[Numbers, Numbers]:
    """Where the rows `numbers` of the tiles go: rows of the matrix, and for each its place in `numbers`."""
    place = np.full(int(number_of.max()) + 1, -1)
    place[numbers] = np.arange(len(numbers))
    found = place[number_of]
    to = np.flatnonzero(found >= 0)
    return to, found[to]


def score_to_disk(scorer: Scorer, images: Numbers, captions: Numbers, out: Path, identity: str) -> float:
    """Writes out/scores.npy [len(images), len(captions)], going on with what is there; all ranks share the tiles.

    Args:
        identity: of the evaluation

    Returns:
        Seconds of scoring, summed over ranks and over the calls that it took.

    Raises:
        OSError: the disk is full or cannot be written, or another rank failed; what is scored is kept.
    """
    (images, row_of), (captions, column_of) = _distinct(scorer, images, captions)
    which = tiles(scorer.lengths.regions[images], scorer.lengths.words[captions])
    ledger = Ledger(out / "tiles", which, identity)
    main = distributed.rank() == 0
    finished = np.zeros(len(which))
    with distributed.together():
        if main:
            ledger.folder.mkdir(parents=True, exist_ok=True)
            finished[list(ledger.read())] = 1
    finished = np.array(distributed.total(finished.tolist()))  # as rank 0 found them
    left = [tile for tile, done in zip(which, finished, strict=True) if not done]
    numbers = np.flatnonzero(finished == 0)
    seconds = 0.0
    with distributed.together(), _Bar(ledger, which, left, enabled=main) as bar:
        scored = score_tiles(scorer, images, captions, left, distributed.queue())
        ledger.append((s._replace(number=int(numbers[s.number])) for s in scored), bar.tell)
    with distributed.together():
        if main:
            seconds = ledger.assemble(out / "scores.npy", row_of, column_of)
    return seconds


class _Bar(Progress):
    """Rank 0's account of all ranks: pairs scored, pairs a second, time left."""

    def __init__(self, ledger: Ledger, which: Sequence[Tile], left: Sequence[Tile], enabled: bool) -> None:
        total = sum(tile.pairs for tile in which)
        super().__init__("Scoring", total, "pairs", enabled=enabled)
        self._ledger, self._all, self._counts = ledger, total, enabled
        self.done = self._before = float(total - sum(tile.pairs for tile in left))
        self._at_start = ledger.pairs() if enabled else 0
        self._looked = 0.0

    def tell(self) -> None:
        now = time.perf_counter()
        if self._counts and now - self._looked >= 0.5:
            self._looked = now
            self.update(min(self._all, self._before + self._ledger.pairs() - self._at_start))


# ---------------------------------------------------------------------------------------------------------- kept


class ScoreMatrix(NamedTuple):
    scores: NDArray[np.float32]  # [images, captions]
    caption_image: NDArray[np.int64]  # [captions]


def load_scores(folder: Path) -> ScoreMatrix:
    """The matrix of a finished evaluation, mapped.

    Raises:
        UsageError: there is none.
    """
    try:
        return ScoreMatrix(
            np.load(folder / "scores.npy", mmap_mode="r", allow_pickle=False),
            np.load(folder / "caption_image.npy", allow_pickle=False),
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no whole evaluation ({error}): make it with `imagebert evaluate`") from None
