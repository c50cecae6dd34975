"""PairStore: captions beside their image's key, split and relevance; word pieces tokenised once.

meta.json                        format, counts, split names, the tokenizer's settings, digests (files.py)
vocab.txt                        the vocabulary that the word pieces number
images.npy, pair_image.npy       distinct image keys [I]; each pair's place among them [pairs]
pieces.npy, piece_ends.npy       word pieces of all captions, flat, as uint16, or uint32 where there are more of them;
                                 where each caption ends
piece_digests.npy                64 bits of each caption's pieces: captions of equal ones are equal to a model
text.npy, text_ends.npy          the captions themselves, UTF-8, flat; where each ends
pair_split.npy, relevance.npy    number of the split; relevance score (NaN: none)
without_regions.txt              images that were left out, one a line, where some were (keys.py)

meta.json is sealed and has every other file's checksum, which is compared when the file is first used.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.data.folder import publish
from imagebert.data.regions import describe_array, read_array, read_meta
from imagebert.data.tokens import Settings, Tokenizer, settings_of_before
from imagebert.errors import UsageError
from imagebert.files import digest_of, file_digest, write_sealed

FORMAT, VERSION = "imagebert-pairs", 2
_LONGEST = 100_000  # characters of a caption: what is longer is no caption
_BLOCK = 1 << 16  # captions tokenised at once


class Caption(NamedTuple):
    """Holds a caption as people wrote it, and the key of its image."""

    image: str  # key in the region store
    text: str
    split: str = "train"
    relevance: float = float("nan")


def flaw(caption: Caption) -> str:
    """Why a caption cannot be stored; "" when it can."""
    if not caption.image:
        return f"it names no image ({caption.text[:40]!r})"
    # Spaces, control characters and those of no width, such as U+200B, make no word.
    if all(unicodedata.category(character)[0] in "CZ" for character in caption.text):
        return f"the caption of image {caption.image!r} is empty"
    if len(caption.text) > _LONGEST:
        return f"the caption of image {caption.image!r} has {len(caption.text):,} characters, more than {_LONGEST:,}"
    try:
        caption.text.encode("utf-8")
        size = len(caption.image.encode("utf-8"))
    except UnicodeEncodeError:
        return f"image {caption.image!r} or its caption has half a character, which UTF-8 cannot hold"
    return "" if size <= 511 else f"the image's name has {size} bytes: a region store's keys have at most 511"


class PairStore:
    """Reads a pair store. `len` is the number of its pairs.

    Attributes:
        content: SHA-256 of all that it holds

    Raises:
        UsageError: not a store, of another version, empty, changed since it was written, or not whole.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.meta = read_meta(self.path, FORMAT, VERSION, "imagebert pairs")
        self.splits: list[str] = self.meta["splits"]
        self.vocabulary_digest: str = self.meta["vocabulary_digest"]
        self.dataset: str = self.meta["dataset"]  # as Karpathy's file calls it
        self.content: str = self.meta["content"]
        self.images = self._load("images")
        self.pair_image: NDArray[np.int32] = self._load("pair_image")
        self.pieces: NDArray[np.uint16] | NDArray[np.uint32] = self._load("pieces")
        self.piece_ends: NDArray[np.int64] = self._load("piece_ends")
        self.piece_digests: NDArray[np.uint64] = self._load("piece_digests")
        self.relevance: NDArray[np.float32] = self._load("relevance")
        self.pair_split: NDArray[np.uint8] = self._load("pair_split")
        if len(self) == 0:
            raise UsageError(f"the pair store {self.path} is empty: give `imagebert pairs` a file with captions")

    def _load(self, name: str) -> NDArray:  # type: ignore[type-arg]
        return read_array(self.path / f"{name}.npy", self.meta["arrays"][name])

    @cached_property
    def _texts(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All texts, and where each ends; training asks for none."""
        return self._load("text"), self._load("text_ends")

    def __len__(self) -> int:
        return len(self.pair_image)

    def text(self, pair: int) -> str:
        """Returns the text of caption number `pair`."""
        text, ends = self._texts
        start = ends[pair - 1] if pair else 0
        return text[start : ends[pair]].tobytes().decode("utf-8")

    def in_two_splits(self) -> list[str]:
        """Images that have captions in several splits."""
        both = np.unique(np.asarray(self.pair_image, np.int64) << 8 | self.pair_split) >> 8
        return [self.images[image].decode("utf-8") for image in np.unique(both[1:][both[1:] == both[:-1]]).tolist()]

    def is_whole(self) -> bool:
        """Whether every file, those that were not used yet too, is what was written.

        Raises:
            UsageError: one is not, and can be named.
        """
        self._texts, self.tokenizer()
        for name, digest in self.meta["origin"].get("lists", {}).items():
            if file_digest(self.path / name) != digest:
                raise UsageError(f"{self.path / name} has changed since it was written: restore the store")
        return self.content == _content_of(self.path, self.meta)

    def tokenizer(self) -> Tokenizer:
        """Makes the tokenizer that the store's word pieces were made by.

        Raises:
            UsageError: The file vocab.txt has changed since the captions were tokenised.
        """
        kept = self.meta.get("tokenizer")  # stores of before have none
        settings = settings_of_before if kept is None else lambda _: Settings(**kept)
        tokenizer = Tokenizer(self.path / "vocab.txt", settings)
        if tokenizer.digest != self.vocabulary_digest:
            raise UsageError(f"{tokenizer.path} has changed since it was written: restore the store")
        return tokenizer


def write_pairs(
    path: Path | str,
    captions: Iterable[Caption],
    tokenizer: Tokenizer,
    overwrite: bool = False,
    dataset: Callable[[], str] = str,
    origin: Callable[[], dict[str, Any]] = dict,
    lists: Callable[[], Mapping[str, Sequence[str]]] = dict,
    refuse: Callable[[Caption], None] | None = None,
) -> None:
    """Tokenises captions and writes them as a pair store.

    Args:
        path: The folder of the store.
        captions: The captions, which are read once.
        tokenizer: The tokenizer, whose vocabulary the store keeps.
        overwrite: Whether a store that is already there is replaced, once the new one is whole.
        dataset: Gives the name of the data set, when all captions have been read.
        origin: Gives what else meta.json says, which is no part of the content, when all captions have been read.
        lists: Gives what else lies beside the store, which is no part of the content either: names of files, and their
            lines.
        refuse: A function that is called with each caption of which the tokenizer leaves no piece (combining marks,
            U+FFFD), and which is not stored. None makes that an error.

    Raises:
        UsageError: There is no caption at all, or one without words or image.
    """
    # From the beginning, so that another call is refused before its work.
    with publish(Path(path), "meta.json" if overwrite else None) as folder:
        columns = _Columns(words=len(tokenizer))
        for number, caption, pieces in _tokenised(captions, tokenizer):
            if pieces:
                columns.add(number, caption, pieces)
            elif refuse is None:
                raise UsageError(f"caption {number}: no word piece is left of {caption.text[:80]!r}")
            else:
                refuse(caption)
        if not columns.pair_image:
            raise UsageError(f"no captions for {path}: the input is empty")
        arrays = columns.arrays()
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "pairs": len(columns.pair_image),
            "images": len(columns.images),
            "splits": list(columns.splits),
            "vocabulary_digest": tokenizer.digest,
            "tokenizer": tokenizer.settings._asdict(),
            "dataset": dataset(),
        }
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        (folder / "vocab.txt").write_bytes(tokenizer.text.encode())
        digests = _write_lists(folder, lists())
        seal_pairs(folder, {**meta, "origin": {**origin(), **digests}})


def _tokenised(captions: Iterable[Caption], tokenizer: Tokenizer) -> Iterator[tuple[int, Caption, list[int]]]:
    """Each caption with its number and its word pieces, which may be none.

    Raises:
        UsageError: one cannot be stored.
    """
    numbered = enumerate(captions)
    while block := list(islice(numbered, _BLOCK)):
        for number, caption in block:
            if wrong := flaw(caption):
                raise UsageError(f"caption {number}: {wrong}")
        encoded = tokenizer.encode([caption.text for _, caption in block])
        for (number, caption), pieces in zip(block, encoded, strict=True):
            yield number, caption, pieces


class _Columns:
    """The arrays of a store while it grows, packed: a store has millions of captions.

    Args:
        words: of the vocabulary
    """

    def __init__(self, words: int) -> None:
        self.images: dict[str, int] = {}
        self.splits: dict[str, int] = {}
        self.pair_image, self._pair_split, self._relevance = array("i"), array("B"), array("f")
        self._width = "H" if words <= 1 << 16 else "I"
        self._pieces, self._piece_counts, self._piece_digests = array(self._width), array("q"), bytearray()
        self._text, self._text_sizes = bytearray(), array("q")

    def add(self, number: int, caption: Caption, pieces: Sequence[int]) -> None:
        """Appends the caption that came as the `number`th.

        Raises:
            UsageError: its split is one too many.
        """
        self.pair_image.append(self.images.setdefault(caption.image, len(self.images)))
        split = self.splits.setdefault(caption.split, len(self.splits))
        if split > 255:
            raise UsageError(f"caption {number} is of split {caption.split!r}, the 257th: is that column a split?")
        self._pair_split.append(split)
        self._relevance.append(caption.relevance)
        utf8 = caption.text.encode("utf-8")
        self._text += utf8
        self._text_sizes.append(len(utf8))
        own = array(self._width, pieces)
        self._pieces.extend(own)
        self._piece_counts.append(len(own))
        self._piece_digests += hashlib.blake2b(own.tobytes(), digest_size=8).digest()

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """By the names of their files."""
        return {
            "images": np.array([key.encode("utf-8") for key in self.images]),
            "pair_image": np.array(self.pair_image, np.int32),
            "pieces": np.array(self._pieces, np.dtype(self._width)),
            "piece_ends": np.cumsum(self._piece_counts, dtype=np.int64),
            "piece_digests": np.frombuffer(self._piece_digests, "<u8"),
            "text": np.frombuffer(self._text, np.uint8),
            "text_ends": np.cumsum(self._text_sizes, dtype=np.int64),
            "pair_split": np.array(self._pair_split, np.uint8),
            "relevance": np.array(self._relevance, np.float32),
        }


def _write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Writes what lies beside a store; the digests that meta.json has of it."""
    for name, lines in lists.items():
        # Names in a table may hold an end of line; those of files do not.
        text = "".join(line.replace("\n", "\\n").replace("\r", "\\r") + "\n" for line in lines)
        (folder / name).write_bytes(text.encode("utf-8"))
    return {"lists": {name: file_digest(folder / name) for name in lists}} if lists else {}


def seal_pairs(folder: Path, meta: dict[str, Any]) -> None:
    """Writes meta.json of a folder that has all other files."""
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    meta = {"origin": {}, **meta, "arrays": {name: describe_array(path) for name, path in files.items()}}
    write_sealed(folder / "meta.json", {**meta, "content": _content_of(folder, meta)})


def _content_of(folder: Path, meta: dict[str, Any]) -> str:
    """SHA-256 of all that a store holds, its texts, pieces and splits."""
    # The vocabulary's digest is one of the settings too, so that stores of before they were kept are still the same.
    apart = ("origin", "content", "digest", "tokenizer")
    what = {name: value for name, value in meta.items() if name not in apart}
    return digest_of({**what, "files": {name: file_digest(folder / f"{name}.npy") for name in meta["arrays"]}})
