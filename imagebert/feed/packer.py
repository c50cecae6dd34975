"""Pairs to a PackedBatch: reads records and word pieces, lays them out, decides nothing.

The features, nearly all of the bytes, are copied once, from LMDB's pages into a buffer that is used again: on a fresh
one the page faults cost 25 times the copy. The index arrays are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imagebert.batch import PackedBatch
from imagebert.data.corpus import Corpus
from imagebert.data.records import WHOLE_IMAGE
from imagebert.feed.masking import Masking, mask_regions, mask_words
from imagebert.feed.plan import SPECIAL_TOKENS, Lengths, Samples


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What of a pair is fed: at most so many regions, the whole-image one included, and word pieces."""

    max_regions: int
    max_words: int
    whole_image: bool  # feed the whole-image region, where there is one
    mark_whole_image: bool = False  # and tell the model which one it is

    def lengths(self, corpus: Corpus) -> Lengths:
        regions = corpus.image_regions - self.skipped(corpus)
        return Lengths(np.minimum(regions, self.max_regions), np.minimum(corpus.caption_words, self.max_words))

    def skipped(self, corpus: Corpus) -> NDArray[np.int64]:
        """How many of each image's first regions are left out [I]."""
        return corpus.image_whole.astype(np.int64) * (not self.whole_image)


class FeatureBuffer:
    """Memory for the features of one microbatch, grown by doubling and kept."""

    def __init__(self) -> None:
        self._memory = self._allocate(0)

    def view(self, regions: int, feature_size: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        needed = regions * feature_size * dtype.itemsize
        if needed > self._memory.nbytes:
            self._memory = self._allocate(2 * needed)
        return self._memory[:needed].view(dtype).reshape(regions, feature_size)

    @staticmethod
    def _allocate(size: int) -> NDArray[np.uint8]:
        # From torch, which aligns to 64 bytes: sums in another alignment differ in their last bits.
        memory: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8).numpy()
        return memory


class Packer:
    """Packs pairs of one corpus. Safe to use from one thread at a time."""

    def __init__(self, corpus: Corpus, limits: Limits) -> None:
        self.corpus = corpus
        self.limits = limits
        self.lengths = limits.lengths(corpus)
        self._max_seqlen = int(self.lengths.regions.max() + self.lengths.words.max()) + SPECIAL_TOKENS
        tokenizer = corpus.tokenizer
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        self._skip = limits.skipped(corpus)

    def pack(
        self, samples: Samples, buffer: FeatureBuffer, step: int = 0, masking: Masking | None = None
    ) -> PackedBatch:
        """One microbatch, masked where `masking` is given; its features live in `buffer` until that is used."""
        pairs = len(samples.images)
        regions = self.lengths.regions[samples.images]  # [B]
        words = self.lengths.words[samples.captions]  # [B]
        cu_seqlens = _ends(regions + words + SPECIAL_TOKENS)
        starts, tokens = cu_seqlens[:-1], int(cu_seqlens[-1])

        region_pair = np.repeat(np.arange(pairs), regions)  # [R]
        region_place = _ramp(regions)
        region_rows = starts[region_pair] + 1 + region_place
        # Text tokens: place 0 is [CLS], 1 the first [SEP], then the words, last the second [SEP].
        texts = words + SPECIAL_TOKENS
        text_pair = np.repeat(np.arange(pairs), texts)  # [T-R]
        text_place = _ramp(texts)
        text_rows = starts[text_pair] + text_place + np.where(text_place > 0, regions[text_pair], 0)
        is_word = (text_place >= 2) & (text_place < texts[text_pair] - 1)

        input_ids = np.where(text_place == 0, self._cls, self._sep)
        pieces = [self.corpus.pieces(c)[:n] for c, n in zip(samples.captions, words, strict=True)]
        input_ids[is_word] = labels = np.concatenate(pieces).astype(np.int64)
        position_ids = np.ones(tokens, np.int64)
        position_ids[text_rows] = np.where(text_place == 0, 0, text_place + 1)
        token_type_ids = np.zeros(tokens, np.int64)
        token_type_ids[text_rows] = text_place >= 2

        features, scales, boxes, classes = self._regions(samples, regions, buffer)
        whole = classes == WHOLE_IMAGE
        matched = samples.labels == 1
        masked_words, masked_regions = np.zeros(len(labels), bool), np.zeros(len(region_rows), bool)
        zeroed = masked_regions
        if masking is not None:
            word_pair = text_pair[is_word]
            input_ids[is_word], masked_words = mask_words(
                masking, step, labels, samples.ids[word_pair], text_place[is_word]
            )
            masked_regions, zeroed = mask_regions(masking, step, ~whole, samples.ids[region_pair], region_place)
            masked_words = masked_words & matched[word_pair]
            masked_regions = masked_regions & matched[region_pair]

        word_rows = text_rows[is_word][masked_words]
        read = np.zeros(tokens, bool)
        read[starts] = read[word_rows] = read[region_rows[masked_regions]] = True
        place_of = np.cumsum(read) - 1  # [T] a row's place among the read ones
        reads_before = np.concatenate([[0], np.cumsum(read)])

        def index(array: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, np.int64))

        return PackedBatch(
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            max_seqlen=self._max_seqlen,
            position_ids=index(position_ids),
            token_type_ids=index(token_type_ids),
            text_rows=index(text_rows),
            input_ids=index(input_ids),
            region_rows=index(region_rows),
            region_features=torch.from_numpy(features),
            region_scales=torch.from_numpy(scales),
            region_boxes=torch.from_numpy(boxes),
            region_zeroed=torch.from_numpy(zeroed),
            global_regions=index(np.flatnonzero(whole) if self.limits.mark_whole_image else np.empty(0, np.int64)),
            read_rows=index(np.flatnonzero(read)),
            read_cu_seqlens=torch.from_numpy(reads_before[cu_seqlens].astype(np.int32)),
            cls_reads=index(place_of[starts]),
            mlm_reads=index(place_of[word_rows]),
            mlm_labels=index(labels[masked_words]),
            region_reads=index(place_of[region_rows[masked_regions]]),
            masked_regions=index(np.flatnonzero(masked_regions)),
            moc_labels=index(classes[masked_regions]),
            itm_labels=torch.from_numpy(samples.labels.astype(np.float32)),
        )

    def _regions(
        self, samples: Samples, counts: NDArray[np.int64], buffer: FeatureBuffer
    ) -> tuple[NDArray[np.generic], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        total = int(counts.sum())
        features = buffer.view(total, self.corpus.feature_size, np.dtype(self.corpus.feature_type))
        scales, boxes = np.empty(total, np.float32), np.empty((total, 5), np.float32)
        classes = np.empty(total, np.int64)
        at = 0
        for image, count in zip(samples.images, counts, strict=True):
            record = self.corpus.regions(image)
            rows, here = slice(self._skip[image], self._skip[image] + count), slice(at, at + count)
            features[here], scales[here] = record.features[rows], record.scales[rows]
            boxes[here, :4] = record.boxes[rows] / (record.width, record.height, record.width, record.height)
            classes[here] = record.classes[rows]
            at += count
        boxes[:, 4] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return features, scales, boxes, classes


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


def _ramp(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ..., n-1 for each n of `lengths`, one behind the other."""
    return np.arange(lengths.sum()) - np.repeat(_ends(lengths)[:-1], lengths)
