"""PairStore: captions beside their image's key, split and relevance; word pieces tokenised once, as uint16.

meta.json                        format, counts, split names, digest of the vocabulary
vocab.txt                        the vocabulary that the word pieces number
images.npy, pair_image.npy       distinct image keys [I]; each pair's place among them [pairs]
pieces.npy, piece_ends.npy       word pieces of all captions, flat; where each caption ends
text.npy, text_ends.npy          the captions themselves, UTF-8, flat; where each ends
pair_split.npy, relevance.npy    number of the split; relevance score (NaN: none)
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.folder import publish
from imagebert.data.regions import read_meta
from imagebert.data.tokens import Tokenizer

_FORMAT, _VERSION = "imagebert-pairs", 1


class Caption(NamedTuple):
    image: str  # key in the region store
    text: str
    split: str = "train"
    relevance: float = float("nan")


class PairStore:
    """A store opened for reading. `len` is its pairs.

    Raises:
        UsageError: not a store, of another version, empty, or not whole.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        meta = read_meta(self.path, _FORMAT, _VERSION, "imagebert pairs")
        self.splits: list[str] = meta["splits"]
        self.vocabulary_digest: str = meta["vocabulary_digest"]
        self.images = self._load("images")
        self.pair_image: NDArray[np.int32] = self._load("pair_image")
        self.pieces: NDArray[np.uint16] = self._load("pieces")
        self.piece_ends: NDArray[np.int64] = self._load("piece_ends")
        self.relevance: NDArray[np.float32] = self._load("relevance")
        self.pair_split: NDArray[np.uint8] = self._load("pair_split")
        self._text: NDArray[np.uint8] = self._load("text")
        self._text_ends: NDArray[np.int64] = self._load("text_ends")
        if len(self) == 0:
            raise UsageError(f"the pair store {self.path} is empty: give `imagebert pairs` a file with captions")

    def _load(self, name: str) -> NDArray:  # type: ignore[type-arg]
        try:
            return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path}/{name}.npy is missing or damaged ({error}): make the store again") from None

    def __len__(self) -> int:
        return len(self.pair_image)

    def text(self, pair: int) -> str:
        start = self._text_ends[pair - 1] if pair else 0
        return self._text[start : self._text_ends[pair]].tobytes().decode("utf-8")

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.path / "vocab.txt")


def write_pairs(path: Path | str, captions: Iterable[Caption], tokenizer: Tokenizer, overwrite: bool = False) -> None:
    """Tokenises captions and writes them as a store.

    Raises:
        UsageError: no caption at all, or one without words or image.
    """
    images: dict[str, int] = {}
    splits: dict[str, int] = {}
    pair_image, pair_split, relevance, texts = [], [], [], []
    for number, caption in enumerate(captions):
        if not caption.text.strip():
            raise UsageError(f"caption {number} (image {caption.image!r}) is empty: remove it or write it")
        if not caption.image:
            raise UsageError(f"caption {number} ({caption.text[:40]!r}) names no image")
        pair_image.append(images.setdefault(caption.image, len(images)))
        pair_split.append(splits.setdefault(caption.split, len(splits)))
        relevance.append(caption.relevance)
        texts.append(caption.text)
    if not texts:
        raise UsageError(f"no captions for {path}: the input is empty")
    encoded = tokenizer.encode(texts)
    utf8 = [text.encode("utf-8") for text in texts]
    arrays: dict[str, NDArray[np.generic]] = {
        "images": np.array([key.encode("utf-8") for key in images]),
        "pair_image": np.array(pair_image, np.int32),
        "pieces": np.concatenate([np.array(e, np.uint16) for e in encoded]),
        "piece_ends": np.cumsum([len(e) for e in encoded], dtype=np.int64),
        "text": np.frombuffer(b"".join(utf8), np.uint8),
        "text_ends": np.cumsum([len(t) for t in utf8], dtype=np.int64),
        "pair_split": np.array(pair_split, np.uint8),
        "relevance": np.array(relevance, np.float32),
    }
    meta = {
        "format": _FORMAT,
        "version": _VERSION,
        "pairs": len(texts),
        "images": len(images),
        "splits": list(splits),
        "vocabulary_digest": tokenizer.digest,
    }
    with publish(Path(path), "meta.json" if overwrite else None) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        shutil.copyfile(tokenizer.path, folder / "vocab.txt")
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def read_captions(path: Path, columns: Sequence[str] | None, image_splits: dict[str, str]) -> Iterator[Caption]:
    """Captions of a TSV or CSV file with columns `image`, `caption` and, where known, `split` and `relevance`.

    Args:
        columns: the names of the columns, for a file without a header line; others than these four are ignored.
        image_splits: image key -> split. Where it is not empty, captions of other images are left out.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            # Tab-separated captions hold quotation marks that are not CSV's quotes.
            rows: csv.DictReader[str] = csv.DictReader(
                file,
                columns,
                delimiter=delimiter,
                quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE,
                strict=True,
            )
            if rows.fieldnames is None:
                raise UsageError(f"{path} is empty")
            missing = {"image", "caption"} - set(rows.fieldnames)
            if missing:
                raise UsageError(
                    f"{path} has no column {' and no column '.join(sorted(missing))}: "
                    "name the columns of a file without a header line with --columns image,caption"
                )
            for row in rows:
                if row["image"] is None or row["caption"] is None:
                    raise UsageError(f"{path}, line {rows.line_num}: has no caption beside its image")
                if None in row:
                    raise UsageError(f"{path}, line {rows.line_num}: has too many fields, quote a caption with commas")
                if (row["image"], row["caption"]) == ("image", "caption"):
                    raise UsageError(f"{path}, line {rows.line_num}: is a header line, leave --columns out")
                if image_splits and row["image"] not in image_splits:
                    continue
                split = image_splits.get(row["image"]) or row.get("split") or "train"
                try:
                    relevance = float(row.get("relevance") or "nan")
                except ValueError:
                    raise UsageError(
                        f"{path}, line {rows.line_num}: relevance {row['relevance']!r} is no number"
                    ) from None
                yield Caption(row["image"], row["caption"], split, relevance)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read captions from {path}: {error}") from None
