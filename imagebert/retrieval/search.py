"""Typed words to images, pictures to captions: what `imagebert search` prints and `imagebert serve` shows."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imagebert import distributed
from imagebert.data.corpus import LooseItems, StoreImages
from imagebert.data.pairs import PairStore
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import Tokenizer
from imagebert.errors import UsageError
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.files import digest_of
from imagebert.model.attention_maps import word_region_attention
from imagebert.model_folder import ModelFolder
from imagebert.retrieval.candidates import Index, Kind, nearest
from imagebert.retrieval.evaluation import make_scorer
from imagebert.retrieval.kept import KeptVectors
from imagebert.retrieval.pictures import Pictures
from imagebert.retrieval.scoring import PairScorer
from imagebert.retrieval.vectors import encode

log = logging.getLogger(__name__)

# Scored for a query, where the model has vectors that find them and there are more.
CANDIDATES = 200


class Query(NamedTuple):
    text: str
    pieces: list[int]
    unknown: list[str]  # words that the vocabulary lacks


class Hit(NamedTuple):
    number: int  # of the image in its store, of the text among the captions
    name: str  # the image's key, the caption itself
    score: float  # the ITM head's logit

    @property
    def probability(self) -> float:
        return float(1 / (1 + np.exp(-self.score)))


class Explanation(NamedTuple):
    """A picture's regions, and how much each word of a query looks at each."""

    record: RegionRecord  # as many regions as are fed
    classes: list[str]
    words: list[str]
    attention: NDArray[np.float32]  # [words, regions]

    def answers(self) -> list[list[str]]:
        """For each region the words that look at it, of all regions but the whole image, most above what others do."""
        shown: list[list[str]] = [[] for _ in self.classes]
        parts = np.flatnonzero(self.record.classes != WHOLE_IMAGE)
        if len(parts) == 0 or not self.words:
            return shown
        relative = self.attention[:, parts] / self.attention[:, parts].mean(axis=0, keepdims=True)
        for word, region in zip(self.words, parts[relative.argmax(axis=1)].tolist(), strict=True):
            shown[region].append(word)
        return shown


class Finder:
    """A model over the images of a region store, and over captions where there are some.

    Args:
        model: model folder
        captions: what pictures are answered with

    Raises:
        UsageError: the model is for other features or another vocabulary, or lacks its vocabulary.
    """

    def __init__(
        self,
        model: ModelFolder,
        store: RegionStore,
        limits: Limits,
        captions: PairStore | None = None,
        precision: str = "auto",
    ) -> None:
        self.tokenizer = captions.tokenizer() if captions is not None else Tokenizer(model.path)
        self._folder, self.store, self.limits = model, store, limits
        device = distributed.device()
        nothing = self._loose([store.read(0)], [[self.tokenizer.unk_id]])
        # Two, so that neither forgets its side: images that queries are asked of, captions that pictures are shown to.
        self._by_text = make_scorer(model, StoreImages(store, self.tokenizer), nothing, limits, device, precision)
        self.model = self._by_text.model
        self._by_image = PairScorer(self.model, nothing, nothing, limits, device)
        self._nearest: Callable[[NDArray[np.float32], int], NDArray[np.int64]] | None = None
        self.captions: list[str] = []
        if captions is not None:
            # Equal texts once.
            places: dict[str, int] = {}
            for number in range(len(captions)):
                places.setdefault(captions.text(number), number)
            self.captions = list(places)
            self._by_image.ask(self._loose([store.read(0)], self.tokenizer.encode(self.captions)))

    def _loose(self, records: Sequence[RegionRecord], pieces: Sequence[Sequence[int]]) -> LooseItems:
        return LooseItems(records, pieces, self.tokenizer, self.store.feature_type)

    def number(self, key: str) -> int | None:
        """The image of a key in the store; None where there is none."""
        (found,) = self.store.find(np.array([key.encode()])).tolist()
        return found if found >= 0 else None

    def query(self, text: str) -> Query:
        """A typed text as word pieces.

        Raises:
            UsageError: it is empty, or nothing of it is in the vocabulary: it may be in another script.
        """
        text = " ".join(text.split())
        if not text:
            raise UsageError("the query is empty: type some words, such as two dogs playing on grass")
        words = text.split()
        encoded = self.tokenizer.encode([text, *words])
        unknown = [w for w, pieces in zip(words, encoded[1:], strict=True) if set(pieces) <= {self.tokenizer.unk_id}]
        if len(unknown) == len(words):
            raise UsageError(
                f"the model knows no word of {text[:60]!r}: it was trained on captions in another language or script"
            )
        return Query(text, encoded[0], unknown)

    def images(self, query: Query, top: int) -> list[Hit]:
        """The best images for a query, the best first; all are scored, or the nearest CANDIDATES of many."""
        self._by_text.ask(self._loose([self.store.read(0)], [query.pieces]))
        numbers = np.arange(len(self.store))
        if len(numbers) > CANDIDATES and self.model.dual is not None:
            if self._nearest is None:
                self._nearest = self._open_index() or self._search_all()
            (vector,) = self._by_text.text_vectors(np.zeros(1, np.int64))
            numbers = self._nearest(vector, CANDIDATES)
        scores = self._by_text(numbers, np.zeros_like(numbers))
        best = np.argsort(-scores, kind="stable")[:top]
        return [Hit(int(numbers[i]), self.store.key(int(numbers[i])), float(scores[i])) for i in best]

    def _kept(self) -> KeptVectors:
        """Where vectors of this store's images by this model lie."""
        follow_from = [self._folder.digest, self.store.content, vars(self.limits), str(self.model.dtype)]
        return KeptVectors(self._folder.path / "index", digest_of(follow_from)[:16])

    def _open_index(self) -> Index | None:
        kept = self._kept()
        try:
            return Index.read(kept.index_file) if kept.check_index() else None
        except UsageError as error:
            log.warning("%s; until then all vectors are searched", error)
            return None

    def _search_all(self) -> Callable[[NDArray[np.float32], int], NDArray[np.int64]]:
        vectors = self.vectors()
        return lambda query, count: nearest(query[None], vectors, count)[0]

    def vectors(self, must_keep: bool = False) -> NDArray[np.float32]:
        """The vectors of all images [I, D], computed once for a model and a store and kept beside the model.

        All ranks share the work, where there are several.

        Raises:
            UsageError: the model has no dual head.
            OSError: another rank is gone; or they cannot be kept, where they must.
        """
        kept, vectors = self._kept(), None
        with suppress(UsageError):  # damaged: it is made again
            if len(found := kept.read()) == len(self.store):
                vectors = found
        (ranks,) = distributed.total([vectors is not None])
        if vectors is not None and ranks == distributed.world_size():
            return vectors
        vectors = encode(self._by_text, self._by_text.image_vectors, len(self.store))
        if distributed.rank() == 0:
            try:
                kept.write(vectors)
            except OSError as error:
                if must_keep:
                    raise
                log.warning("the index cannot be kept in %s (%s): it is made again", kept.folder, error.strerror)
        return vectors

    def build_index(self, kind: Kind | Literal["flat"]) -> Path:
        """Puts an index over the vectors where searches find it; returns its file. Flat: removes it, all are searched.

        All ranks share the computing of vectors; the first builds.

        Raises:
            UsageError: the model has no dual head.
            OSError: the model's folder cannot be written, or another rank is gone.
        """
        kept = self._kept()
        with distributed.together():
            self.vectors(must_keep=True)
        with distributed.together():
            if distributed.rank() == 0:
                if kind == "flat":
                    kept.remove_index()
                else:
                    kept.write_index(partial(Index.build, kind))
        return kept.file if kind == "flat" else kept.index_file

    def texts(self, record: RegionRecord, top: int) -> list[Hit]:
        """The best captions for the regions of a picture.

        Raises:
            UsageError: there are no captions, or the regions have features of another size.
        """
        if not self.captions:
            raise UsageError("there are no captions to choose from: name a pair store as `pairs`")
        if record.features.shape[1] != self.store.feature_size:
            raise UsageError(
                f"the picture's regions have {record.features.shape[1]} features and the store's "
                f"{self.store.feature_size}: extract both with one extractor"
            )
        self._by_image.show(self._loose([record], [[]]))
        captions = np.arange(len(self.captions))
        scores = self._by_image(np.zeros_like(captions), captions)
        best = np.argsort(-scores, kind="stable")[:top]
        return [Hit(int(c), self.captions[c], float(scores[c])) for c in best]

    def explain(self, image: int, query: Query) -> Explanation:
        """The regions of an image of the store as the model is fed them, and the words that look at them."""
        record = self.store.read(image)
        skip = self.store.whole_image[image] and not self.limits.whole_image
        fed = slice(int(skip), int(skip) + self.limits.max_regions)
        arrays: dict[str, Any] = {
            name: part[fed] for name, part in record._asdict().items() if isinstance(part, np.ndarray)
        }
        record = record._replace(**arrays)
        limits = replace(self.limits, mark_whole_image=self.model.config.marks_whole_image)
        packer, one = Packer(self._loose([self.store.read(image)], [query.pieces]), limits), np.ones(1, np.int64)
        batch = packer.pack(Samples(0 * one, 0 * one, one, one), Arena(), device=self._by_text.device)
        attention = word_region_attention(self.model.imagebert, batch).cpu().numpy()
        pieces = [self.tokenizer.pieces[p] for p in query.pieces[: self.limits.max_words]]
        # A word's pieces count as one: the mean of their weights.
        words: list[str] = []
        rows: list[list[int]] = []
        for row, piece in enumerate(pieces):
            if piece.startswith("##") and words:
                words[-1] += piece[2:]
                rows[-1].append(row)
            else:
                words.append(piece)
                rows.append([row])
        by_word = np.array([attention[r].mean(axis=0) for r in rows], np.float32).reshape(len(words), -1)
        names = [self.store.class_name(number) for number in record.classes.tolist()]
        return Explanation(record, names, words, by_word)


def contact_sheet(hits: Sequence[Hit], pictures: Pictures, path: Path, columns: int = 5, size: int = 220) -> int:
    """Draws the hits that have a picture, in order, into one JPEG; returns how many have one.

    Raises:
        UsageError: the file cannot be written.
    """
    margin, line = 8, 18
    shown = [(hit, data) for hit in hits if (data := pictures.thumbnail(hit.name, size)) is not None]
    if not shown:
        return 0
    rows = -(-len(shown) // columns)
    cell = size + margin, size + margin + line
    sheet = Image.new("RGB", (columns * cell[0] + margin, rows * cell[1] + margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (hit, data) in enumerate(shown):
        left, top = margin + place % columns * cell[0], margin + place // columns * cell[1]
        picture = Image.open(io.BytesIO(data))
        sheet.paste(picture, (left + (size - picture.width) // 2, top + (size - picture.height) // 2))
        draw.text((left, top + size + 2), f"{place + 1}.  {hit.probability:.1%}  {hit.name}"[:34], "black", font)
    try:
        sheet.save(path, quality=88)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the contact sheet {path}: {error}") from None
    return len(shown)
