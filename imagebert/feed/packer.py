"""Pairs to a PackedBatch: reads records and word pieces, lays them out, decides nothing.

The features, nearly all of the bytes, are copied once, from LMDB's pages into a buffer that is used again: on a fresh
one the page faults cost 25 times the copy. The index arrays are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imagebert.batch import PackedBatch, to_device
from imagebert.data.corpus import Corpus
from imagebert.data.records import WHOLE_IMAGE
from imagebert.feed.masking import Masking, Places, mask_batch
from imagebert.feed.plan import SPECIAL_TOKENS, Lengths, Samples
from imagebert.feed.sizes import Sizes

CPU = torch.device("cpu")


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
        self,
        samples: Samples,
        buffer: FeatureBuffer,
        step: int = 0,
        masking: Masking | None = None,
        sizes: Sizes | None = None,
        device: torch.device = CPU,
    ) -> PackedBatch:
        """One microbatch on `device`, masked where `masking` is given, filled up where `sizes` are and hold it.

        Its features live in `buffer` until that is used again.
        """
        if sizes is not None and not sizes.hold(self.lengths, samples):
            sizes = None
        batch, places = self._lay_out(samples, buffer, sizes)
        batch = to_device(batch, device)
        return batch if masking is None else mask_batch(batch, to_device(places, device), masking, step, sizes)

    def _lay_out(self, samples: Samples, buffer: FeatureBuffer, sizes: Sizes | None) -> tuple[PackedBatch, Places]:
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
        input_ids[is_word] = np.concatenate(pieces).astype(np.int64)
        position_ids = np.ones(tokens, np.int64)
        position_ids[text_rows] = np.where(text_place == 0, 0, text_place + 1)
        token_type_ids = np.zeros(tokens, np.int64)
        token_type_ids[text_rows] = text_place >= 2

        # Fill: regions and words of no pair, then pairs of no tokens.
        room = sizes or Sizes(pairs, len(region_rows), len(text_rows), 0, 0)
        spare_regions, spare_texts = room.regions - len(region_rows), room.texts - len(text_rows)
        spare_rows = np.arange(tokens, tokens + spare_regions + spare_texts)
        features, scales, boxes, classes = self._regions(samples, regions, buffer, room.regions)
        whole = classes == WHOLE_IMAGE
        matched = samples.labels == 1
        none = torch.zeros(0, dtype=torch.int64)

        def filled(array: NDArray[np.generic], size: int, value: float = 0) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([array, np.full(size - len(array), value, array.dtype)]))

        batch = PackedBatch(
            cu_seqlens=filled(cu_seqlens.astype(np.int32), room.pairs + 1, tokens),
            max_seqlen=self._max_seqlen,
            real_pairs=pairs,
            real_tokens=tokens,
            position_ids=filled(position_ids, room.regions + room.texts),
            token_type_ids=filled(token_type_ids, room.regions + room.texts),
            text_rows=torch.from_numpy(np.concatenate([text_rows, spare_rows[spare_regions:]])),
            input_ids=filled(input_ids, room.texts, self._sep),
            region_rows=torch.from_numpy(np.concatenate([region_rows, spare_rows[:spare_regions]])),
            region_features=torch.from_numpy(features),
            region_scales=torch.from_numpy(scales),
            region_boxes=torch.from_numpy(boxes),
            region_zeroed=filled(np.zeros(len(region_rows), bool), room.regions, True),
            global_regions=torch.from_numpy(np.flatnonzero(whole)) if self.limits.mark_whole_image else none,
            counts=torch.tensor([0, 0, pairs], dtype=torch.float32),
            read_rows=filled(starts, room.pairs),
            read_cu_seqlens=filled(np.arange(pairs + 1, dtype=np.int32), room.pairs + 1, pairs),
            cls_reads=filled(np.arange(pairs), room.pairs),
            mlm_reads=none,
            mlm_labels=none,
            region_reads=none,
            masked_regions=none,
            moc_labels=none,
            itm_labels=filled(samples.labels.astype(np.float32), room.pairs, -1),
        )
        places = Places(
            text_samples=filled(samples.ids[text_pair], room.texts),
            text_places=filled(text_place, room.texts),
            text_maskable=filled(is_word, room.texts),
            text_matched=filled(matched[text_pair], room.texts),
            region_samples=filled(samples.ids[region_pair], room.regions),
            region_places=filled(region_place, room.regions),
            region_maskable=filled(~whole[: len(region_rows)], room.regions),
            region_matched=filled(matched[region_pair], room.regions),
            region_classes=torch.from_numpy(classes),
        )
        return batch, places

    def _regions(
        self, samples: Samples, counts: NDArray[np.int64], buffer: FeatureBuffer, room: int
    ) -> tuple[NDArray[np.generic], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        features = buffer.view(room, self.corpus.feature_size, np.dtype(self.corpus.feature_type))
        scales, boxes, classes = np.zeros(room, np.float32), np.zeros((room, 5), np.float32), np.zeros(room, np.int64)
        at = 0
        for image, count in zip(samples.images, counts, strict=True):
            record = self.corpus.regions(image)
            rows, here = slice(self._skip[image], self._skip[image] + count), slice(at, at + count)
            features[here], scales[here] = record.features[rows], record.scales[rows]
            boxes[here, :4] = record.boxes[rows] / (record.width, record.height, record.width, record.height)
            classes[here] = record.classes[rows]
            at += count
        features[at:] = 0  # fill has no scale, but a number it must be
        boxes[:, 4] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return features, scales, boxes, classes


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


def _ramp(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ..., n-1 for each n of `lengths`, one behind the other."""
    return np.arange(lengths.sum()) - np.repeat(_ends(lengths)[:-1], lengths)
