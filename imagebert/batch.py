"""PackedBatch: the contract between feed and model, and the legend of shapes for the whole repository.

    B  pairs            T  packed tokens          R  packed regions       Q  tokens whose last layer a head reads
    M  masked rows      F  region feature size    H  hidden size          N  attention heads     D  head size
    V  word pieces      C  region classes         L  layers               P  candidates of a group

A pair is `[CLS] RoI_1 ... RoI_o [SEP] w_0 ... w_{n-1} [SEP]` (paper, section 3). Pairs lie one behind the other and
nothing is padded: pair b owns tokens cu_seqlens[b] to cu_seqlens[b+1]. T = R + the word pieces and specials.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class PackedBatch(NamedTuple):
    """One microbatch on one device.

    A NamedTuple, not a dataclass: ZeRO-3's hooks look for tensors in tuples, lists and dictionaries only.
    Index tensors are int64. Rows that are masked in mismatched pairs are corrupted in the input, so that a mask does
    not give the match away, but they are no rows of a loss (paper, section 4: conditional mask).
    """

    # What the model sees
    cu_seqlens: Tensor  # [B+1] int32, cumulative token counts
    max_seqlen: int  # no pair of the corpus has more tokens
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
    read_rows: Tensor  # [Q] rows of T, ascending: each pair's [CLS] and its masked rows
    read_cu_seqlens: Tensor  # [B+1] int32, cumulative counts of read_rows per pair
    cls_reads: Tensor  # [B] indices into Q
    mlm_reads: Tensor  # [M] indices into Q
    mlm_labels: Tensor  # [M] original word pieces
    region_reads: Tensor  # [M'] indices into Q
    masked_regions: Tensor  # [M'] indices into R: where the target feature lies
    moc_labels: Tensor  # [M'] the detector's top class
    itm_labels: Tensor  # [B] float32, 1: matched

    @property
    def pairs(self) -> int:
        return self.itm_labels.shape[0]

    @property
    def tokens(self) -> int:
        return self.position_ids.shape[0]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on `device`; on the CPU the very same memory."""
        fields: dict[str, Any] = self._asdict()
        for name, field in fields.items():
            if isinstance(field, Tensor):
                fields[name] = field.to(device, non_blocking=True)
        return PackedBatch(**fields)
