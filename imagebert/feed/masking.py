"""Which words and regions are masked, and with what (paper, section 4): a pure function of (key, step, pair, place).

The draws are NumPy's on a CPU and a kernel's on a GPU, the same bits. What follows from them, the rows that heads read,
is computed where the batch lies, without waiting for a GPU: there the number of rows is a room with some fill.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.feed.draws import Purpose, below, draw, uniform
from imagebert_kernels import masking as kernels

# Of the masked words 80 % become [MASK], 10 % a random piece, 10 % stay (Devlin et al. 2019, section 3.1).
_WORD_TO_MASK, _WORD_TO_RANDOM = 0.8, 0.9
# Of the masked regions 90 % lose their feature, 10 % keep it (paper, section 4).
_REGION_ZEROED = 0.9


class Masking(NamedTuple):
    """Rates and vocabulary; `key` from draws.stage_key."""

    key: int
    words: float
    regions: float
    mask_id: int
    vocabulary: int


def mask_words(
    masking: Masking, step: int, pieces: NDArray[np.int64], pair: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Word pieces [W] as the model sees them, and which are masked.

    Args:
        pair: [W] the pair's place in the global batch
        place: [W] the word's place in its caption
    """
    masked = uniform(masking.key, Purpose.WORD_MASK, step, pair, place) < masking.words
    change = uniform(masking.key, Purpose.WORD_CHANGE, step, pair, place)
    other = below(masking.vocabulary, masking.key, Purpose.WORD_ID, step, pair, place)
    seen = np.where(masked & (change < _WORD_TO_MASK), masking.mask_id, pieces)
    return np.where(masked & (change >= _WORD_TO_MASK) & (change < _WORD_TO_RANDOM), other, seen), masked


def mask_regions(
    masking: Masking, step: int, maskable: NDArray[np.bool_], pair: NDArray[np.int64], place: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which regions [R] are masked, and of which the model sees a feature of zeros."""
    masked = maskable & (uniform(masking.key, Purpose.REGION_MASK, step, pair, place) < masking.regions)
    change = uniform(masking.key, Purpose.REGION_CHANGE, step, pair, place)
    return masked, masked & (change < _REGION_ZEROED)


class Places(NamedTuple):
    """Where masks may fall: what is to be known of each word or special, and of each region."""

    text_samples: Tensor  # [T-R] the pair's place in the global batch
    text_places: Tensor  # [T-R] place in its text
    text_maskable: Tensor  # [T-R] bool: a word
    text_matched: Tensor  # [T-R] bool: of a matched pair
    region_samples: Tensor  # [R]
    region_places: Tensor  # [R]
    region_maskable: Tensor  # [R] bool: a detector named it
    region_matched: Tensor  # [R] bool
    region_classes: Tensor  # [R]
    region_attributes: Tensor  # [R]; [0] where they are no labels


def mask_batch(
    batch: PackedBatch,
    places: Places,
    masking: Masking,
    step: int,
    rooms: tuple[int, int] | None = None,
    draws: str = "auto",
) -> PackedBatch:
    """The batch with its masks, and the rows that heads read; words and regions are masked in the same pass.

    Args:
        batch: as packed, without masks
        rooms: for masked words and masked regions; None: just what there is, which makes the host wait for a GPU
        draws: numpy or triton; auto: by where the batch lies
    """
    on_device = batch.input_ids.is_cuda if draws == "auto" else draws == "triton"
    draw_all = _draw_on_device if on_device else _draw_in_numpy
    seen, words, regions, zeroed = draw_all(batch, places, masking, step)
    zeroed = batch.region_zeroed | zeroed & places.region_maskable
    # Rows masked in mismatched pairs are no rows of a loss.
    words = words & places.text_maskable & places.text_matched
    regions = regions & places.region_maskable & places.region_matched
    if rooms is None:
        rooms = int(words.sum()), int(regions.sum())
    words, word_slots, word_count = _compact(words, rooms[0])  # [M] indices into T-R
    regions, region_slots, region_count = _compact(regions, rooms[1])  # [M'] indices into R

    cls_rows = batch.read_rows[batch.cls_reads]  # [B], that of a pair of no tokens being row 0
    read = torch.zeros(batch.tokens, dtype=torch.bool, device=words.device)
    read[batch.text_rows], read[batch.region_rows] = words, regions
    read.scatter_(0, cls_rows, torch.ones_like(cls_rows, dtype=torch.bool))
    place_of = torch.cumsum(read, 0) - 1  # [T] a row's place among the read ones
    before = torch.cat([place_of.new_zeros(1), place_of + 1])
    _, read_rows, read_count = _compact(read, batch.pairs + sum(rooms))
    # Fill names the rows behind those that are read, each once: a gradient that many rows add to takes its time.
    word_fill = torch.arange(rooms[0], device=words.device) - word_count  # [M], of real ones negative
    region_fill = torch.arange(rooms[1], device=words.device) - region_count  # [M']
    no_word, no_region = word_fill >= 0, region_fill >= 0
    behind_words = read_count + rooms[0] - word_count
    attributes = places.region_attributes
    if len(attributes):
        attributes = attributes[region_slots].masked_fill(no_region, -1)
    return batch._replace(
        input_ids=torch.where(places.text_maskable, seen, batch.input_ids),
        region_zeroed=zeroed,
        counts=torch.stack([word_count.float(), region_count.float(), batch.counts[2]]),
        read_rows=read_rows,
        read_cu_seqlens=before[batch.cu_seqlens].to(torch.int32),
        cls_reads=place_of[cls_rows],
        mlm_reads=torch.where(no_word, read_count + word_fill, place_of[batch.text_rows[word_slots]]),
        mlm_labels=batch.input_ids[word_slots].masked_fill(no_word, -1),
        region_reads=torch.where(no_region, -(behind_words + region_fill), place_of[batch.region_rows[region_slots]]),
        masked_regions=region_slots,
        moc_labels=places.region_classes[region_slots].masked_fill(no_region, -1),
        attribute_labels=attributes,
    )


def _compact(chosen: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `room` of the chosen: as flags [n], as ascending indices [room], others behind, and their number."""
    place = torch.arange(len(chosen), device=chosen.device)
    rank = torch.cumsum(chosen, 0)
    chosen = chosen & (rank <= room)
    count = chosen.sum()
    # A permutation: the chosen ones, then the others, both in their order.
    slots = torch.where(chosen, rank - 1, count + place - rank.clamp(max=room))
    order = torch.empty_like(place).scatter_(0, slots, place)
    if room > len(order):
        order = order.repeat(-(-room // len(order)))
    return chosen, order[:room], count


def _draw_in_numpy(
    batch: PackedBatch, places: Places, masking: Masking, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words as seen [T-R], which are masked; which regions are masked [R], which of them zeroed."""
    text = (t.numpy() for t in (batch.input_ids, places.text_samples, places.text_places))
    region = (t.numpy() for t in (places.region_maskable, places.region_samples, places.region_places))
    seen, words = mask_words(masking, step, *text)
    regions, zeroed = mask_regions(masking, step, *region)
    return (*map(torch.from_numpy, (seen, words, regions, zeroed)),)  # type: ignore[return-value]


def _draw_on_device(
    batch: PackedBatch, places: Places, masking: Masking, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def states(*purposes: Purpose) -> list[int]:
        return [int(draw(masking.key, purpose, step)) for purpose in purposes]

    seen, words = kernels.mask_words(
        batch.input_ids,
        places.text_samples,
        places.text_places,
        states(Purpose.WORD_MASK, Purpose.WORD_CHANGE, Purpose.WORD_ID),
        (masking.words, _WORD_TO_MASK, _WORD_TO_RANDOM),
        masking.mask_id,
        masking.vocabulary,
    )
    regions, zeroed = kernels.mask_regions(
        places.region_samples,
        places.region_places,
        states(Purpose.REGION_MASK, Purpose.REGION_CHANGE),
        (masking.regions, _REGION_ZEROED),
    )
    return seen, words, regions, zeroed
