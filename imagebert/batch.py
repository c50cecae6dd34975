"""PackedBatch: the contract between feed and model, and the legend of shapes for the whole repository.

    B  pairs            T  packed tokens          R  packed regions       Q  tokens whose last layer a head reads
    M  masked rows      F  region feature size    H  hidden size          N  attention heads     D  head size
    V  word pieces      C  region classes         L  layers               P  pairs of a group
    N' negatives that are chosen for a pair by the vectors of the step that trains on it

A pair is `[CLS] RoI_1 ... RoI_o [SEP] w_0 ... w_{n-1} [SEP]` (paper, section 3). Pairs lie one behind the other and
nothing is padded: pair b owns tokens cu_seqlens[b] to cu_seqlens[b+1]. T = R + the word pieces and specials. Its two
sides, which the layers before `fusion_layer` do not mix, are `[CLS] RoI_1 ... RoI_o` and `[SEP] w_0 ... w_{n-1} [SEP]`.

Where all batches must have one shape (feed/sizes.py), some fill lies behind the pairs: tokens that belong to no pair,
pairs of no tokens, negative rows. Whatever reads a batch gives the same result with it and without.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Tensors = TypeVar("Tensors", bound=NamedTuple)


class PackedBatch(NamedTuple):
    """Holds one microbatch on one device.

    A NamedTuple, not a dataclass: ZeRO-3's hooks look for tensors in tuples, lists and dictionaries only.
    Index tensors are int64. Rows that are masked in mismatched pairs are corrupted in the input, so that a mask does
    not give the match away, but they are no rows of a loss (paper, section 4: conditional mask).
    """

    # What the model sees
    cu_seqlens: Tensor  # [B+1] int32, cumulative token counts
    side_cu_seqlens: Tensor  # [2B+1] int32, the same of each pair's image side and text side, alternately
    max_seqlen: int  # no pair of the corpus has more tokens
    real_pairs: int  # what lies behind them is fill
    real_tokens: int
    position_ids: Tensor  # [T]; every RoI and its place share position 1
    token_type_ids: Tensor  # [T]; 0 image side, 1 text side
    text_rows: Tensor  # [T-R] which tokens are words or specials
    input_ids: Tensor  # [T-R] their ids, after masking
    region_rows: Tensor  # [R] which tokens are regions
    region_features: Tensor  # [R, F] int8, float16 or float32, as stored and before masking
    region_scales: Tensor  # [R] float32; a feature is region_features * region_scales
    region_boxes: Tensor  # [R, 5] float32: x1/W, y1/H, x2/W, y2/H, area share
    region_zeroed: Tensor  # [R] bool: the model sees a feature of zeros
    global_regions: Tensor  # [0 or B] indices into R of the whole-image regions
    # What the heads read
    counts: Tensor  # [3] float32: masked words, masked regions and pairs, which the losses are divided by
    read_rows: Tensor  # [Q] rows of T, ascending: each pair's [CLS] and its masked rows; fill: other rows, each once
    read_cu_seqlens: Tensor  # [B+1] int32, cumulative counts of read_rows per pair
    cls_reads: Tensor  # [B] indices into Q
    mlm_reads: Tensor  # [M] indices into Q, each once; fill is told by its label
    mlm_labels: Tensor  # [M] original word pieces; fill -1
    region_reads: Tensor  # [M'] indices into Q; fill -q, each q once
    masked_regions: Tensor  # [M'] indices into R: where the target feature lies; fill: other ones
    moc_labels: Tensor  # [M'] the detector's top class; fill -1
    attribute_labels: Tensor  # [M'] the detector's likeliest attribute, fill -1; [0]: attributes are no labels
    itm_labels: Tensor  # [B] float32, 1: matched; fill -1
    # What pairs are contrasted by: all empty where they are not
    block: int  # pairs that lie one behind the other and are contrasted with each other
    image_class: Tensor  # [B] equal numbers: equal images, which are no negatives of each other's texts
    text_class: Tensor  # [B] likewise
    # [B, N'] float32 in [0, 1): where in the distribution of similarity a negative is taken; with 1 added: of chance
    negative_draws: Tensor

    @property
    def pairs(self) -> int:
        return self.itm_labels.shape[0]

    @property
    def tokens(self) -> int:
        return self.position_ids.shape[0]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on `device`; on the CPU the very same memory."""
        return to_device(self, device)


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """The same tuple with its tensors on `device`, copied without waiting."""
    fields: dict[str, Any] = tensors._asdict()
    moved = {n: f.to(device, non_blocking=True) if isinstance(f, Tensor) else f for n, f in fields.items()}
    return tensors._replace(**moved)
