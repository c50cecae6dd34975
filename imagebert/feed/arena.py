"""One microbatch as one run of bytes in memory that is used again.

A copy to a GPU is one copy, a DALI sample is one tensor; and no page is touched for the first time in a step, which
costs many times the copy. The layout follows from the sizes alone, so both ends compute it for themselves.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.feed.masking import Places
from imagebert.feed.sizes import Sizes

_ALIGNMENT = 64  # sums in another alignment differ in their last bits


def grown(size: int) -> int:
    """What to allocate where `size` is needed: microbatches hardly differ, and slots are many."""
    return size + size // 8


class Arena:
    """Memory for one microbatch, kept and grown as needed. A GPU reads `pinned` memory while the host goes on."""

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.scratch = np.empty(0, np.complex128)

    def take(self, size: int) -> Tensor:
        """[size] uint8; what it held before is lost."""
        if size > len(self._memory):
            self._memory = torch.empty(grown(size), dtype=torch.uint8, pin_memory=self._pinned)
        return self._memory[:size]

    def take_scratch(self, size: int) -> NDArray[np.complex128]:
        """At least `size` bytes, aligned to 16."""
        if size > self.scratch.nbytes:
            self.scratch = np.empty(grown(size) // 16 + 1, np.complex128)
        return self.scratch


class Contents(NamedTuple):
    """What the layout of a microbatch follows from: rooms, and what of them is filled."""

    room: Sizes
    pairs: int
    tokens: int
    matched: tuple[int, int]  # words and regions of matched pairs
    whole_images: int
    block: int  # pairs that are contrasted with each other; 0: none are
    chosen: int  # negatives that the model chooses for each pair
    max_seqlen: int
    feature_size: int
    feature_type: str
    attributes: bool = False  # whether they are labels


class Layout:
    """Where each field of a microbatch lies."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        room = contents.room
        pairs, regions, texts = room.pairs, room.regions, room.texts
        self._fields: dict[str, tuple[int, int, str, tuple[int, ...]]] = {}  # first and last byte, dtype, shape
        self.size = 0
        for dtype, shape, names in (
            (contents.feature_type, (regions, contents.feature_size), ["region_features"]),
            ("int64", (regions + texts,), ["position_ids", "token_type_ids"]),
            ("int64", (texts,), ["text_rows", "input_ids", "text_samples", "text_places"]),
            ("int64", (regions,), ["region_rows", "region_samples", "region_places", "region_classes"]),
            ("int64", (regions if contents.attributes else 0,), ["region_attributes"]),
            ("int64", (pairs,), ["read_rows", "cls_reads"]),
            ("int64", (pairs if contents.block else 0,), ["image_class", "text_class"]),
            ("int64", (contents.whole_images,), ["global_regions"]),
            ("int32", (pairs + 1,), ["cu_seqlens", "read_cu_seqlens"]),
            ("int32", (2 * pairs + 1,), ["side_cu_seqlens"]),
            ("float32", (regions, 5), ["region_boxes"]),
            ("float32", (regions,), ["region_scales"]),
            ("float32", (pairs,), ["itm_labels"]),
            ("float32", (pairs if contents.block else 0, contents.chosen), ["negative_draws"]),
            ("float32", (3,), ["counts"]),
            ("bool", (texts,), ["text_maskable", "text_matched"]),
            ("bool", (regions,), ["region_zeroed", "region_maskable", "region_matched"]),
        ):
            for name in names:
                self._place(name, dtype, shape)

    def _place(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        end = self.size + math.prod(shape) * np.dtype(dtype).itemsize
        self._fields[name] = self.size, end, dtype, shape
        self.size = -(-end // _ALIGNMENT) * _ALIGNMENT

    def arrays(self, memory: Tensor) -> dict[str, NDArray]:  # type: ignore[type-arg]
        """The fields as arrays to fill; `memory` [size] on the host."""
        whole = memory.numpy()
        return {name: whole[a:b].view(dtype).reshape(shape) for name, (a, b, dtype, shape) in self._fields.items()}

    def tensors(self, memory: Tensor) -> tuple[PackedBatch, Places]:
        """The microbatch without masks, and where they may fall; views of `memory` [size], wherever it is."""
        fields = {
            name: memory[a:b].view(getattr(torch, dtype)).view(shape)
            for name, (a, b, dtype, shape) in self._fields.items()
        }
        places = Places(**{name: fields.pop(name) for name in Places._fields})
        none = memory[:0].view(torch.int64)
        batch = PackedBatch(
            max_seqlen=self.contents.max_seqlen,
            real_pairs=self.contents.pairs,
            real_tokens=self.contents.tokens,
            block=self.contents.block,
            mlm_reads=none,
            mlm_labels=none,
            region_reads=none,
            masked_regions=none,
            moc_labels=none,
            attribute_labels=none,
            **fields,
        )
        return batch, places
