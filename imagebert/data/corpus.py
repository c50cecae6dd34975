"""Images and captions in one numbering: a corpus of stores, or a few that lie in memory."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imagebert.config import SourceConfig, UsageError
from imagebert.data.keys import keys_of, suggest
from imagebert.data.pairs import PairStore
from imagebert.data.records import WHOLE_IMAGE, FeatureType, RegionRecord, crc32, encode_record
from imagebert.data.regions import Read, RegionStore
from imagebert.data.tokens import Tokenizer

log = logging.getLogger(__name__)


class Items(Protocol):
    """What the packer asks of images 0..I-1 and captions 0..N-1; see Corpus for each."""

    caption_words: NDArray[np.int64]
    image_regions: NDArray[np.int64]
    image_whole: NDArray[np.bool_]
    feature_size: int
    feature_type: FeatureType
    has_attributes: bool
    verify: bool

    @property
    def image_class(self) -> NDArray[np.int64]: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def regions(self, image: int) -> RegionRecord: ...
    def records(self, images: NDArray[np.int64]) -> Iterator[Read]: ...
    def checksums(self, images: NDArray[np.int64]) -> NDArray[np.uint32]: ...
    def will_read(self, images: NDArray[np.int64]) -> None: ...
    def image_key(self, image: int) -> str: ...
    def first_pieces(self, captions: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint32]: ...


class Corpus:
    """Joins region stores and pair stores: images 0..I-1 that have a caption in the chosen split, and captions 0..N-1.

    Captions are in their stored order. Those that a source's min_relevance leaves out are none of them, and are counted
    in the log.

    Attributes:
        sources: as they were given
        caption_image: [N] int64, the image of each caption
        caption_words: [N] int64, word pieces of each caption, uncut
        image_regions: [I] int64, regions of each image, the whole-image region included
        image_whole: [I] bool, whether its first region is the whole image

    Raises:
        UsageError: a source is missing, or two sources do not fit together.
    """

    def __init__(self, sources: Sequence[SourceConfig], verify: bool = True) -> None:
        self.sources = tuple(sources)
        opened: dict[str, RegionStore] = {}
        self._sources: list[tuple[RegionStore, PairStore]] = []
        images, captions, caption_image, words, regions, whole = [], [], [], [], [], []
        image_count = 0
        for number, source in enumerate(sources):
            pairs = PairStore(source.pairs)
            if source.regions not in opened:
                opened[source.regions] = RegionStore(source.regions, verify)
            store = opened[source.regions]
            chosen = _relevant(pairs, _of_split(pairs, source.split), source.min_relevance)
            used, local = np.unique(pairs.pair_image[chosen], return_inverse=True)
            found = store.find(np.asarray(pairs.images)[used])
            if (found < 0).any():
                missing = [name.decode() for name in pairs.images[used[found < 0]].tolist()]
                raise UsageError(_without_regions(pairs, store, missing, found[found >= 0]))
            self._sources.append((store, pairs))
            images.append(np.stack([np.full_like(found, number), found], axis=1))
            captions.append(np.stack([np.full_like(chosen, number), chosen], axis=1))
            caption_image.append(local.astype(np.int64) + image_count)
            ends = np.asarray(pairs.piece_ends)
            words.append(np.diff(ends, prepend=0)[chosen])
            regions.append(store.region_counts[found].astype(np.int64))
            whole.append(store.whole_image[found])
            image_count += len(used)
        self._images: NDArray[np.int64] = np.concatenate(images)  # [I, 2] source, number in its store
        self._captions: NDArray[np.int64] = np.concatenate(captions)  # [N, 2] likewise
        self.caption_image: NDArray[np.int64] = np.concatenate(caption_image)
        self.caption_words: NDArray[np.int64] = np.concatenate(words)
        self.image_regions: NDArray[np.int64] = np.concatenate(regions)
        self.image_whole: NDArray[np.bool_] = np.concatenate(whole)
        first_store, first_pairs = self._sources[0]
        for store, pairs in self._sources[1:]:
            if (store.feature_size, store.feature_type) != (first_store.feature_size, first_store.feature_type):
                raise UsageError(
                    f"{store.path} has features {store.feature_type}[{store.feature_size}], {first_store.path} "
                    f"{first_store.feature_type}[{first_store.feature_size}]: one run needs one kind of feature"
                )
            if store.classes != first_store.classes:
                raise UsageError(f"{store.path} and {first_store.path} have different region classes")
            if store.attributes != first_store.attributes:
                raise UsageError(f"{store.path} and {first_store.path} have different attributes, or one has none")
            if pairs.vocabulary_digest != first_pairs.vocabulary_digest:
                raise UsageError(
                    f"{pairs.path} and {first_pairs.path} were tokenised with different vocabularies or settings"
                )
        self.verify = verify
        stored = sum(shard["bytes"] for store in opened.values() for shard in store.shards)
        self._fit_memory = stored < _memory() / 2
        self._asked = np.zeros(len(self._images), bool)
        self.feature_size = first_store.feature_size
        self.feature_type: FeatureType = first_store.feature_type
        self.classes = first_store.classes
        self.attributes, self.has_attributes = first_store.attributes, bool(first_store.attributes)
        self.dataset = first_pairs.dataset

    def __len__(self) -> int:
        return len(self._captions)

    @property
    def stores(self) -> list[RegionStore]:
        """The region store of each source."""
        return [store for store, _ in self._sources]

    @property
    def images(self) -> int:
        return len(self._images)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._sources[0][1].tokenizer()

    def regions(self, image: int) -> RegionRecord:
        source, number = self._images[image]
        return self._sources[source][0].read(number)

    def records(self, images: NDArray[np.int64]) -> Iterator[Read]:
        """The records of images [n], each to be read into buffers, unchecked."""
        source, number = self._images[images].T
        if len(self._sources) == 1:
            return self._sources[0][0].records(number)
        records = [store.records(number[source == s]) for s, (store, _) in enumerate(self._sources)]
        return (next(records[s]) for s in source.tolist())

    def checksums(self, images: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The CRC-32 that each record of images [n] must have."""
        source, number = self._images[images].T
        found = np.empty(len(images), np.uint32)
        for s, (store, _) in enumerate(self._sources):
            found[source == s] = store.checksums(number[source == s])
        return found

    def will_read(self, images: NDArray[np.int64]) -> None:
        """Has the system fetch the records of images [n] while other work goes on.

        Asking costs a fifth of a copy. Where all stores fit into memory, an image is asked for once only.
        """
        if self._fit_memory:
            images = images[~self._asked[images]]
            self._asked[images] = True
        source, number = self._images[images].T
        for s, (store, _) in enumerate(self._sources):
            store.will_read(number[source == s])

    def image_key(self, image: int) -> str:
        source, number = self._images[image]
        return self._sources[source][0].key(number)

    def pieces(self, caption: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """The word pieces of a caption, uncut."""
        source, number = self._captions[caption]
        pairs = self._sources[source][1]
        start = pairs.piece_ends[number - 1] if number else 0
        return pairs.pieces[start : pairs.piece_ends[number]]

    def first_pieces(self, captions: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The first counts[i] word pieces of each of captions [n], one caption behind the other."""
        source, number = self._captions[captions].T
        first = np.cumsum(counts) - counts
        place = np.arange(counts.sum()) - np.repeat(first, counts)
        found = np.empty(len(place), np.uint32)
        for s, (_, pairs) in enumerate(self._sources):
            here, rows = source == s, np.repeat(source == s, counts)
            starts = np.where(number[here] > 0, pairs.piece_ends[number[here] - 1], 0)
            found[rows] = pairs.pieces[np.repeat(starts, counts[here]) + place[rows]]
        return found

    def text(self, caption: int) -> str:
        source, number = self._captions[caption]
        return self._sources[source][1].text(number)

    @cached_property
    def image_class(self) -> NDArray[np.int64]:
        """[I]: images with equal records have equal numbers. Told by checksum and number of regions."""
        return _classes_of(self.checksums(np.arange(self.images)), self.image_regions)

    @cached_property
    def caption_class(self) -> NDArray[np.int64]:
        """[N]: captions of equal word pieces have equal numbers."""
        source, number = self._captions.T
        digests = np.empty(len(self), np.uint64)
        for s, (_, pairs) in enumerate(self._sources):
            digests[source == s] = pairs.piece_digests[number[source == s]]
        return np.unique(digests, return_inverse=True)[1]

    @cached_property
    def weights(self) -> list[NDArray[np.float64]] | None:
        """How many times each caption is to be sampled in an epoch, on average, source by source; None: once, all.

        Raises:
            UsageError: a source is sampled by scores that its captions do not have.
        """
        if not any(source.weighted for source in self.sources):
            return None
        each = (self._captions[self._captions[:, 0] == s, 1] for s in range(len(self.sources)))
        return [
            source.weight * (_shares(pairs, chosen) if source.sampling == "relevance" else np.ones(len(chosen)))
            for source, (_, pairs), chosen in zip(self.sources, self._sources, each, strict=True)
        ]

    def digest(self) -> dict[str, object]:
        """What identifies the data of a run, wherever it lies: "the same data" is asked of this."""
        least = [source.min_relevance for source in self.sources]
        return {
            "regions": [store.content for store, _ in self._sources],
            "pairs": [pairs.content for _, pairs in self._sources],
            "splits": [source.split for source in self.sources],
            **({"min_relevance": least} if any(one is not None for one in least) else {}),
            # For people, who are told what differs.
            "images": self.images,
            "captions": len(self),
            "features": f"{self.feature_type}[{self.feature_size}]",
            "vocabulary": self._sources[0][1].vocabulary_digest,
        }


class StoreImages:
    """All images of a region store, by their numbers in it; no captions."""

    verify = True

    def __init__(self, store: RegionStore, tokenizer: Tokenizer) -> None:
        self.store, self.tokenizer = store, tokenizer
        self.feature_size = store.feature_size
        self.feature_type: FeatureType = store.feature_type
        self.has_attributes = bool(store.attributes)
        self.image_regions = store.region_counts.astype(np.int64)
        self.image_whole = store.whole_image
        self.image_class = _classes_of(store.checksums(np.arange(len(store))), self.image_regions)
        self.caption_words = np.zeros(1, np.int64)  # one of no words, which every image is packed with
        self.records, self.checksums = store.records, store.checksums
        self.regions, self.will_read, self.image_key = store.read, store.will_read, store.key

    def first_pieces(self, captions: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint32]:
        return np.empty(0, np.uint32)


class LooseItems:
    """Images and texts that lie in no store: the regions of a picture that was sent, a query that was typed.

    Args:
        records: one at least, all with features of one size
        pieces: the word pieces of each text, one at least

    Raises:
        UsageError: a record has no region.
    """

    verify = False

    def __init__(
        self,
        records: Sequence[RegionRecord],
        pieces: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        feature_type: FeatureType,
    ) -> None:
        if not all(len(record.boxes) for record in records):
            raise UsageError("no region was found in the picture: give another one")
        self.tokenizer = tokenizer
        self.feature_type: FeatureType = feature_type
        self.feature_size = records[0].features.shape[1]
        self.has_attributes = False  # nothing asks for them
        records = [record._replace(attributes=None, attribute_confidences=None) for record in records]
        self._records = records
        self._encoded = [memoryview(encode_record(record, feature_type)) for record in records]
        self._pieces = [np.array(one, np.uint32) for one in pieces]
        self.image_regions = np.array([len(record.boxes) for record in records], np.int64)
        self.image_whole = np.array([record.classes[0] == WHOLE_IMAGE for record in records])
        self.image_class = np.arange(len(records))
        self.caption_words = np.array([len(one) for one in pieces], np.int64)

    def regions(self, image: int) -> RegionRecord:
        return self._records[image]

    def records(self, images: NDArray[np.int64]) -> Iterator[Read]:
        return (partial(_copy, self._encoded[image]) for image in images.tolist())

    def checksums(self, images: NDArray[np.int64]) -> NDArray[np.uint32]:
        return np.array([crc32(self._encoded[image][:-4]) for image in images.tolist()], np.uint32)

    def will_read(self, images: NDArray[np.int64]) -> None:
        """They are in memory."""

    def image_key(self, image: int) -> str:
        return f"picture {image}"

    def first_pieces(self, captions: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint32]:
        parts = [self._pieces[c][:n] for c, n in zip(captions.tolist(), counts.tolist(), strict=True)]
        return np.concatenate([np.empty(0, np.uint32), *parts])


def _classes_of(checksums: NDArray[np.uint32], regions: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(checksums.astype(np.int64) << 16 | regions, return_inverse=True)[1]


def _copy(data: memoryview, buffers: Sequence[Any]) -> int:
    at = 0
    for buffer in buffers:
        part = memoryview(buffer)
        part[:] = data[at : at + len(part)]
        at += len(part)
    return at


def _memory() -> int:
    """Bytes of this machine's memory, or of what a container may use of it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max": none
            limits.append(int(Path(limit).read_text()))
    return min(limits)


def _without_regions(pairs: PairStore, store: RegionStore, missing: list[str], found: NDArray[np.int64]) -> str:
    """A sentence on images that have captions in `pairs` and no regions in `store`, where those `found` are others'."""
    taken = np.zeros(len(store), bool)
    taken[found] = True
    near = suggest(missing, keys_of([store]), taken)
    if near is None:
        cure = f": extract it, or leave such images out with `imagebert pairs ... --regions {store.path}`"
        name = repr(missing[0])
    else:
        name, key = near.example
        call = f"`imagebert pairs ... --regions {store.path} --match {near.rule}`"
        cure = f", which has {key}: {call} finds {near.many:,} of those that are missing"
    return f"{pairs.path}: image {name} (one of {len(missing):,}) has captions but no regions in {store.path}{cure}"


def _of_split(pairs: PairStore, split: str | None) -> NDArray[np.int64]:
    if split is None:
        return np.arange(len(pairs))
    if split not in pairs.splits:
        raise UsageError(f"{pairs.path} has no split {split!r}: it has {', '.join(pairs.splits)}")
    return np.flatnonzero(np.asarray(pairs.pair_split) == pairs.splits.index(split))


def _relevant(pairs: PairStore, chosen: NDArray[np.int64], least: float | None) -> NDArray[np.int64]:
    """Those of captions `chosen` [n] that have a relevance of `least` or more."""
    if least is None:
        return chosen
    scores = pairs.relevance[chosen]
    with np.errstate(over="ignore"):
        kept = scores >= np.float32(least)  # as they are stored: 0.7 is not below 0.7
    unscored = int(np.isnan(scores).sum())
    if not kept.any():
        highest = f"the highest is {np.nanmax(scores):g}, " if unscored < len(scores) else ""
        raise UsageError(
            f"{pairs.path}: no caption has a relevance of {least:g} or more ({highest}{unscored:,} of {len(scores):,} "
            "have no score): lower min_relevance, or leave it out"
        )
    log.info(
        "%s: %s of %s captions are left out by min_relevance %g, %s of these for having no score",
        *(pairs.path, f"{len(scores) - int(kept.sum()):,}", f"{len(scores):,}", least, f"{unscored:,}"),
    )
    return chosen[kept]


def _shares(pairs: PairStore, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """The relevance of captions `chosen` [n] over its mean.

    Raises:
        UsageError: one has no score, or none that a share can be made of.
    """
    scores = pairs.relevance[chosen].astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(scores) & (scores >= 0)))
    if len(wrong):
        first = chosen[wrong[0]]
        found, name = pairs.relevance[first], pairs.images[pairs.pair_image[first]].decode()
        raise UsageError(
            f"{pairs.path}: {len(wrong):,} of {len(chosen):,} captions have no relevance to be sampled by, a number "
            f"from 0 on (the first, of image {name!r}, has {'no score' if np.isnan(found) else f'{found:g}'}): "
            "min_relevance=0 leaves out those without a score and below 0; or take sampling=uniform"
        )
    if not scores.any():
        raise UsageError(f"{pairs.path}: all {len(chosen):,} captions have relevance 0: take sampling=uniform")
    return scores * len(scores) / math.fsum(scores)
