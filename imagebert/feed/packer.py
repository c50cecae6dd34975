"""Pairs to a packed microbatch: reads records and word pieces, lays them out, decides nothing.

The features, nearly all of the bytes, are copied once, by the system, from its cache to their place in the microbatch.
What is small in a record is read in one piece and taken apart for all records together.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.config import DataConfig, UsageError
from imagebert.data.corpus import Items
from imagebert.data.records import WHOLE_IMAGE, Sections, crc32, header_word
from imagebert.feed.arena import Arena, Contents, Layout
from imagebert.feed.masking import Masking, mask_batch
from imagebert.feed.plan import SPECIAL_TOKENS, Lengths, Samples
from imagebert.feed.sizes import Sizes, room_for_masked
from imagebert.feed.sizes import matched as matched_contents

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Says what of a pair is fed: at most so many regions, the whole-image one included, and word pieces."""

    max_regions: int
    max_words: int
    whole_image: bool  # feed the whole-image region, where there is one
    mark_whole_image: bool = False  # and tell the model which one it is

    @classmethod
    def of(cls, data: DataConfig, mark_whole_image: bool = False) -> Limits:
        """Those of a recipe."""
        return cls(
            max_regions=data.max_regions,
            max_words=data.max_words,
            whole_image=data.whole_image,
            mark_whole_image=mark_whole_image,
        )

    def lengths(self, corpus: Items) -> Lengths:
        regions = corpus.image_regions - self.skipped(corpus)
        return Lengths(np.minimum(regions, self.max_regions), np.minimum(corpus.caption_words, self.max_words))

    def skipped(self, corpus: Items) -> NDArray[np.int64]:
        """How many of each image's first regions are left out [I]."""
        return corpus.image_whole.astype(np.int64) * (not self.whole_image)


class Packed(NamedTuple):
    """A microbatch as bytes, here or copied elsewhere."""

    memory: Tensor  # [layout.size] uint8
    layout: Layout

    def finish(self, step: int = 0, masking: Masking | None = None) -> PackedBatch:
        """The batch where its bytes lie, masked there if `masking` is given."""
        batch, places = self.layout.tensors(self.memory)
        if masking is None:
            return batch
        contents = self.layout.contents
        rooms = contents.room.masked
        if rooms is None and self.memory.is_cuda:  # how many there are, the host does not know
            words, regions = contents.matched
            rooms = room_for_masked(words, masking.words), room_for_masked(regions, masking.regions)
        return mask_batch(batch, places, masking, step, rooms)


class _Damaged(Exception):
    """Records that cannot be used: their images, and what is wrong with each."""

    def __init__(self, problems: dict[int, str]) -> None:
        self.problems = problems


class Packer:
    """Packs pairs of one corpus. Threads may share it, each with an arena of its own.

    A pair whose record is damaged is left out, with the group that it belongs to: what is left of a batch does not
    depend on the rank that met it. The record is named once.

    Args:
        group_size: P, pairs that form a group
        max_damaged: images with a damaged record after which it is an error; 0: none is tolerated
        attributes: whether regions' attributes are labels of a batch

    Attributes:
        damaged: the images met so far that have one, and what is wrong with it
    """

    def __init__(
        self, corpus: Items, limits: Limits, group_size: int = 1, max_damaged: int = 0, attributes: bool = False
    ) -> None:
        self.corpus, self.attributes = corpus, attributes
        self.group_size, self.max_damaged = group_size, max_damaged
        self.damaged: dict[int, str] = {}
        self.limits = limits
        self.lengths = limits.lengths(corpus)
        self._max_seqlen = int(self.lengths.regions.max() + self.lengths.words.max()) + SPECIAL_TOKENS
        tokenizer = corpus.tokenizer
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        self._skip = limits.skipped(corpus)
        self._feature_bytes = corpus.feature_size * np.dtype(corpus.feature_type).itemsize

    def will_read(self, samples: Samples) -> None:
        """Has the system fetch what packing `samples` will read."""
        self.corpus.will_read(np.unique(samples.images))

    def pack(
        self,
        samples: Samples,
        arena: Arena,
        step: int = 0,
        masking: Masking | None = None,
        sizes: Sizes | None = None,
        device: torch.device = CPU,
    ) -> PackedBatch:
        """Packs one microbatch on `device`, masked where `masking` is given, filled up where `sizes` are and hold it.

        Its fields live in `arena` until that is used again.
        """
        packed = self.lay_out(samples, arena, sizes)
        return packed._replace(memory=packed.memory.to(device)).finish(step, masking)

    def lay_out(self, samples: Samples, arena: Arena, sizes: Sizes | None = None) -> Packed:
        """One microbatch as bytes in `arena`.

        Raises:
            UsageError: more records are damaged than is tolerated, or all of this microbatch.
        """
        while True:
            if self.damaged:
                samples = self._without_damaged(samples)
            try:
                return self._lay_out(samples, arena, sizes)
            except _Damaged as found:
                for image, problem in found.problems.items():
                    if image in self.damaged:
                        continue  # another thread met it too
                    if len(self.damaged) >= self.max_damaged:
                        many = f"; {len(self.damaged)} more are damaged" * bool(self.damaged)
                        raise UsageError(problem + many) from None
                    log.warning("left out with all pairs that it is part of: %s", problem)
                    self.damaged[image] = problem

    def _without_damaged(self, samples: Samples) -> Samples:
        spoilt = np.isin(samples.images, list(self.damaged)).reshape(-1, self.group_size).any(axis=1)
        if spoilt.all():
            problem = next(self.damaged[image] for image in samples.images.tolist() if image in self.damaged)
            raise UsageError(f"all pairs of a microbatch have damaged records, one is: {problem}")
        return samples.take(np.flatnonzero(~np.repeat(spoilt, self.group_size))) if spoilt.any() else samples

    def _lay_out(self, samples: Samples, arena: Arena, sizes: Sizes | None) -> Packed:
        if sizes is not None and not sizes.hold(self.lengths, samples):
            sizes = None
        pairs = len(samples.images)
        regions = self.lengths.regions[samples.images]  # [B]
        words = self.lengths.words[samples.captions]  # [B]
        texts = words + SPECIAL_TOKENS
        cu_seqlens, region_ends, text_ends = _ends(regions + texts), _ends(regions), _ends(texts)
        tokens, region_count, text_count = int(cu_seqlens[-1]), int(region_ends[-1]), int(text_ends[-1])
        whole = self.corpus.image_whole[samples.images] & self.limits.whole_image  # [B] region 0 is the whole image
        contents = self._contents(samples, sizes or Sizes(pairs, region_count, text_count), tokens, whole)
        layout = Layout(contents)
        memory = arena.take(layout.size)
        field = layout.arrays(memory)
        starts, first_regions, first_texts = cu_seqlens[:-1], region_ends[:-1], text_ends[:-1]
        matched = samples.labels == 1

        def fill(name: str, values: NDArray[np.generic], rest: float) -> None:
            """The first elements of a field, and what fill has there."""
            field[name][: len(values)] = values
            field[name][len(values) :] = rest

        region_place = np.arange(region_count) - np.repeat(first_regions, regions)
        text_place = np.arange(text_count) - np.repeat(first_texts, texts)
        # Fill behind the pairs: regions, then words.
        spare = np.arange(tokens, len(field["position_ids"]))
        spare_regions = len(field["region_rows"]) - region_count

        field["region_rows"][:region_count] = np.arange(region_count) + np.repeat(starts + 1 - first_regions, regions)
        field["region_rows"][region_count:] = spare[:spare_regions]
        fill("region_samples", np.repeat(samples.ids, regions), 0)
        fill("region_places", region_place, 0)
        fill("region_matched", np.repeat(matched, regions), 0)
        field["region_zeroed"][:region_count] = False
        field["region_zeroed"][region_count:] = True

        # A text is [CLS], the first [SEP], its words, the second [SEP]; [CLS] alone stands before the regions.
        text_rows = np.arange(text_count) + np.repeat(starts + regions - first_texts, texts)
        text_rows[first_texts] = starts
        is_word = np.ones(text_count, bool)
        is_word[first_texts] = is_word[first_texts + 1] = is_word[text_ends[1:] - 1] = False
        field["text_rows"][:text_count] = text_rows
        field["text_rows"][text_count:] = spare[spare_regions:]
        field["input_ids"][:] = self._sep
        field["input_ids"][first_texts] = self._cls
        field["input_ids"][:text_count][is_word] = self.corpus.first_pieces(samples.captions, words)
        fill("text_samples", np.repeat(samples.ids, texts), 0)
        fill("text_places", text_place, 0)
        fill("text_maskable", is_word, 0)
        fill("text_matched", np.repeat(matched, texts), 0)

        field["position_ids"][:tokens] = 1
        field["position_ids"][text_rows] = text_place + 1
        field["position_ids"][starts] = 0
        field["position_ids"][tokens:] = 0
        field["token_type_ids"][:] = 0
        field["token_type_ids"][text_rows] = text_place >= 2

        fill("cu_seqlens", cu_seqlens, tokens)
        fill("side_cu_seqlens", np.append(np.stack([starts, starts + 1 + regions], axis=1).ravel(), tokens), tokens)
        fill("read_rows", starts, 0)
        fill("read_cu_seqlens", np.arange(pairs + 1), pairs)
        fill("cls_reads", np.arange(pairs), 0)
        fill("itm_labels", samples.labels, -1)
        field["counts"][:] = 0, 0, pairs
        if samples.contrast:
            for name, values in samples.contrast._asdict().items():
                fill(name, values, -1)
        if contents.whole_images:
            field["global_regions"][:] = first_regions[whole]
        self._fill_regions(samples.images, regions, region_place, arena, field)
        return Packed(memory, layout)

    def _contents(self, samples: Samples, room: Sizes, tokens: int, whole: NDArray[np.bool_]) -> Contents:
        return Contents(
            room=room,
            pairs=len(samples.images),
            tokens=tokens,
            matched=matched_contents(self.lengths, samples),
            whole_images=int(whole.sum()) if self.limits.mark_whole_image else 0,
            block=self.group_size if samples.contrast else 0,
            chosen=samples.contrast.negative_draws.shape[1] if samples.contrast else 0,
            max_seqlen=self._max_seqlen,
            feature_size=self.corpus.feature_size,
            feature_type=self.corpus.feature_type,
            attributes=self.attributes,
        )

    def _fill_regions(
        self,
        images: NDArray[np.int64],
        regions: NDArray[np.int64],
        region_place: NDArray[np.int64],
        arena: Arena,
        field: dict[str, NDArray],  # type: ignore[type-arg]
    ) -> None:
        skip, feature_bytes = self._skip[images], self._feature_bytes
        stored = self.corpus.image_regions[images]  # [B] regions of the whole record
        has_attributes = self.corpus.has_attributes
        at = Sections.of(stored, feature_bytes, has_attributes)
        # A record up to its features goes to a block of 16 bytes' multiple; the features go where they belong.
        blocks = _ends(-(-at.features // 16))
        scratch = arena.take_scratch(int(blocks[-1]) * 16)
        small, features = scratch.data.cast("B"), field["region_features"].reshape(-1).view(np.uint8).data
        columns = at.end, at.features, 16 * blocks[:-1], skip * feature_bytes, regions * feature_bytes
        rows = zip(*(column.tolist() for column in columns), strict=True)
        checksums = self.corpus.checksums(images).tolist() if self.corpus.verify else [None] * len(images)
        left_out = memoryview(bytearray(int((at.end - at.features).max(initial=0))))  # of a record, around what is fed
        damaged, to = [], 0
        records = zip(self.corpus.records(images), rows, checksums, strict=True)
        for number, (read, (end, head, block, skipped, length), checksum) in enumerate(records):
            # A record is read where it belongs, and so is what its checksum needs besides.
            front, here = small[block : block + head], features[to : to + length]
            before, after = left_out[:skipped], left_out[skipped : end - head - length]
            to += length
            whole = read((front, before, here, after)) == end  # not cut short, and it can be read at all
            if not whole or checksum not in (None, crc32(after[:-4], crc32(here, crc32(before, crc32(front))))):
                damaged.append(number)
        field["region_features"].reshape(-1).view(np.uint8)[to:] = 0  # fill has no scale, but a number it must be
        headers = scratch.view(np.uint32)[4 * blocks[:-1]], scratch.view(np.uint32)[4 * blocks[:-1] + 3]
        expected = header_word(stored, self.corpus.feature_type, has_attributes), self.corpus.feature_size
        damaged += np.flatnonzero((headers[0] != expected[0]) | (headers[1] != expected[1])).tolist()
        if damaged:
            raise _Damaged({int(images[number]): self._problem(int(images[number])) for number in damaged})

        total = len(region_place)
        place = region_place + np.repeat(skip, regions)
        words = scratch.view(np.float32)
        # A box is 16 bytes, as a complex number is: one read.
        boxes = scratch[np.repeat(blocks[:-1] + at.boxes // 16, regions) + place].view(np.float32).reshape(total, 4)
        sides = scratch.view(np.uint32)[4 * blocks[:-1, None] + (1, 2, 1, 2)].astype(np.float32)  # [B, 4]
        np.divide(boxes, np.repeat(sides, regions, axis=0), out=boxes)
        field["region_boxes"][:total, :4] = boxes
        field["region_boxes"][:total, 4] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        field["region_boxes"][total:] = 0
        field["region_scales"][:total] = words[np.repeat(4 * blocks[:-1] + at.scales // 4, regions) + place]
        field["region_scales"][total:] = 0
        numbers = scratch.view(np.uint16)
        classes = numbers[np.repeat(8 * blocks[:-1] + at.classes // 2, regions) + place]
        field["region_classes"][:total] = classes
        field["region_classes"][total:] = 0
        field["region_maskable"][:total] = classes != WHOLE_IMAGE
        field["region_maskable"][total:] = False
        if self.attributes:
            found = numbers[np.repeat(8 * blocks[:-1] + at.attributes // 2, regions) + place]
            field["region_attributes"][:total] = found
            field["region_attributes"][total:] = 0

    def _problem(self, image: int) -> str:
        try:
            self.corpus.regions(image)
        except UsageError as error:
            return str(error)
        return f"record {self.corpus.image_key(image)!r} was damaged while it was read"


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])
