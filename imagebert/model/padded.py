"""Padded tensors, as Hugging Face's programs hand them to a model, to a packed batch; and what a model answers to them.

A text is `[CLS] w_0 ... w_{n-1} [SEP]`, as BERT's tokenizers make it, an image its regions. The model's own sequence,
`[CLS] regions [SEP] words [SEP]` (paper, section 3), is put together here; packed.py of the feed does the same from
stores, and is the fast way in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Required, TypedDict

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from imagebert.batch import PackedBatch
from imagebert.model.layers import with_area

IGNORED = -100  # a label that is none, as Hugging Face has it


class PaddedPairs(TypedDict, total=False):
    """Holds images and texts as padded tensors, whose numbers are finite: I images, S texts, R regions, W word pieces.

    Image b belongs to text b, unless `all_pairs` asks for every image with every text: I * S pairs, image by image.
    """

    input_ids: Required[Tensor]  # [S, W] int64, [CLS] words [SEP], padded behind
    region_features: Required[Tensor]  # [I, R, F] floating
    region_boxes: Required[Tensor]  # [I, R, 4] floating: x1, y1, x2, y2 as shares of the image's width and height
    attention_mask: Tensor  # [S, W] 1 where input_ids are no padding; all, if it is not given
    region_mask: Tensor  # [I, R] 1 where regions are no padding; all, if it is not given
    whole_image: Tensor  # [I] whether region 0 is the whole image; for a model with use_global_image_token
    all_pairs: bool
    labels: (
        Tensor  # pre-training: [S, W] word pieces that are predicted, else -100; retrieval: [pairs] 1 matched, 0 not
    )
    masked_regions: Tensor  # [I, R] 1: the model sees zeros
    region_labels: Tensor  # [I, R] classes of the regions that are predicted; without them those of masked_regions are
    matched: Tensor  # [pairs] 1 matched, 0 not: the label of image-text matching in pre-training
    output_hidden_states: bool
    output_attentions: bool
    return_dict: bool


@dataclass
class ImageBertModelOutput(ModelOutput):  # type: ignore[misc]
    """Holds what `ImageBertModel` answers to padded tensors.

    A pair is `[CLS] regions [SEP] words [SEP]`, then padding.
    """

    last_hidden_state: Tensor | None = None  # [pairs, 1 + R + W, H]
    hidden_states: tuple[Tensor, ...] | None = None  # L + 1 of that shape, the embeddings first
    attentions: tuple[Tensor, ...] | None = None  # L of [pairs, N, 1 + R + W, 1 + R + W]
    attention_mask: Tensor | None = None  # [pairs, 1 + R + W] bool: which are tokens


@dataclass
class ImageBertRetrievalOutput(ModelOutput):  # type: ignore[misc]
    """Holds what `ImageBertForImageTextRetrieval` answers to padded tensors."""

    loss: Tensor | None = None  # mean binary cross-entropy, where there are labels
    logits: Tensor | None = None  # [pairs], or [I, S] of all pairs; sigmoid makes them probabilities of a match
    image_vectors: Tensor | None = None  # [I, D] of unit length, where the model has a dual head
    text_vectors: Tensor | None = None  # [S, D]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class ImageBertPreTrainingOutput(ModelOutput):  # type: ignore[misc]
    """Holds what `ImageBertForPreTraining` answers to padded tensors."""

    loss: Tensor | None = None  # the sum of `losses`, where there are labels
    losses: dict[str, Tensor] | None = None  # mlm, moc, mrfr, itm: means over their rows, those that have any
    prediction_logits: Tensor | None = None  # [S, W, V] of word pieces
    region_logits: Tensor | None = None  # [I, R, C] of region classes
    matching_logits: Tensor | None = None  # [pairs]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Inputs(NamedTuple):
    """Checked tensors, and which image and text each pair has."""

    ids: Tensor  # [S, W]
    text_mask: Tensor  # [S, W] bool
    features: Tensor  # [I, R, F]
    boxes: Tensor  # [I, R, 4]
    region_mask: Tensor  # [I, R] bool
    image_of: Tensor  # [B]
    text_of: Tensor  # [B]

    def row(self, cls: Tensor, of_regions: Tensor, sep: Tensor, of_words: Tensor) -> Tensor:
        """A row a pair, [CLS], regions, [SEP], words and [SEP]; from values [S], [I, R], [S] and [S, W]."""
        text = self.text_of
        return torch.cat([cls[text, None], of_regions[self.image_of], sep[text, None], of_words[text, 1:]], dim=1)


class Padded(NamedTuple):
    """Pairs as `pack` lays them out, and where each packed token lies among `width` padded ones."""

    batch: PackedBatch
    inputs: Inputs
    rows: Tensor  # [T] place of each packed token in [pairs * width]
    width: int

    def unpack(self, hidden: Tensor) -> Tensor:
        """Packed tokens [T, H] as [pairs, width, H], padding zero."""
        padded = hidden.new_zeros(self.batch.pairs * self.width, hidden.shape[1])
        return padded.index_copy(0, self.rows, hidden).view(self.batch.pairs, self.width, -1)


def pack(pairs: PaddedPairs, feature_size: int, mark_whole_image: bool = False, pretraining: bool = False) -> Padded:
    """Padded tensors to a packed batch on their device.

    Args:
        mark_whole_image: the model has an embedding for the whole image's region
        pretraining: `labels` are word pieces, not matches

    Raises:
        ValueError: a tensor is missing, has another shape, or values that cannot be.
    """
    given: dict[str, Any] = {**pairs}
    inputs = _checked(given, feature_size)
    ids, regions, count = inputs.ids, inputs.features.shape[1], len(inputs.image_of)
    device = ids.device
    real, last = torch.ones_like(ids[:, 0], dtype=torch.bool), inputs.text_mask.sum(1) - 1
    kept = inputs.row(real, inputs.region_mask, real, inputs.text_mask)  # [B, width]
    rows, width = kept.flatten().nonzero()[:, 0], kept.shape[1]

    def packed(padded: Tensor) -> Tensor:
        return padded.expand(count, width).reshape(-1)[rows]

    column = torch.arange(width, device=device)
    is_region = packed((column > 0) & (column <= regions))
    region_rows, text_rows = is_region.nonzero()[:, 0], (~is_region).nonzero()[:, 0]
    numbers = torch.arange(inputs.region_mask.numel(), device=device).view_as(inputs.region_mask)
    nothing = torch.zeros(len(ids), dtype=torch.int64, device=device)
    region = packed(inputs.row(nothing, numbers, nothing, ids))[region_rows]  # [R] among those of all images
    # The first [SEP] is the text's last word piece once more.
    words = inputs.row(ids[:, 0], numbers, ids.gather(1, last[:, None])[:, 0], ids)
    box = inputs.boxes.reshape(-1, 4)[region].float()
    pair = rows // width  # [T]
    whole = torch.zeros(0, dtype=torch.int64, device=device)
    if mark_whole_image:
        marked = _needed(given, "whole_image").to(device).bool() & inputs.region_mask[:, 0]
        firsts = _ends(torch.bincount(pair[region_rows], minlength=count))[:-1].long()
        whole = firsts[marked[inputs.image_of]]
    batch = PackedBatch(
        cu_seqlens=_ends(kept.sum(1)),
        side_cu_seqlens=_ends(torch.stack([kept[:, : 1 + regions].sum(1), kept[:, 1 + regions :].sum(1)], 1).flatten()),
        max_seqlen=width,
        real_pairs=count,
        real_tokens=len(rows),
        position_ids=packed(torch.where(column > regions, column - regions + 1, (column > 0).long())),
        token_type_ids=packed((column > regions + 1).long()),
        text_rows=text_rows,
        input_ids=packed(words)[text_rows],
        region_rows=region_rows,
        region_features=inputs.features.reshape(-1, feature_size)[region].float(),
        region_scales=torch.ones(len(region), device=device),
        region_boxes=with_area(box),
        global_regions=whole,
        block=0,
        image_class=nothing[:0],
        text_class=nothing[:0],
        negative_draws=torch.zeros(0, 0, device=device),
        **_read(given, inputs, packed, pair, is_region, region, pretraining),
    )
    return Padded(batch, inputs, rows, width)


def _checked(given: dict[str, Any], feature_size: int) -> Inputs:
    ids, features, boxes = (_needed(given, name) for name in ("input_ids", "region_features", "region_boxes"))
    _shape("region_features", features, (None, None, feature_size))
    images, regions = features.shape[:2]
    _shape("region_boxes", boxes, (images, regions, 4))
    _shape("input_ids", ids, (None, None))
    texts, words = ids.shape
    text_mask = _mask(given, "attention_mask", ids, (texts, words))
    region_mask = _mask(given, "region_mask", ids, (images, regions))
    if words < 2 or not bool(text_mask[:, :2].all()) or bool((text_mask[:, 1:] & ~text_mask[:, :-1]).any()):
        raise ValueError("input_ids: each text is [CLS], words and [SEP], and padding stands behind it")
    inside = (boxes >= 0).all(2) & (boxes <= 1).all(2) & (boxes[..., :2] <= boxes[..., 2:]).all(2)
    if not bool((inside | ~region_mask).all()):
        raise ValueError("region_boxes: x1, y1, x2, y2 are shares of the image's width and height, from 0 to 1")
    image_of, text_of = torch.arange(images, device=ids.device), torch.arange(texts, device=ids.device)
    if given.get("all_pairs"):
        image_of, text_of = image_of.repeat_interleave(texts), text_of.repeat(images)
    elif images != texts:
        raise ValueError(f"{images} images and {texts} texts: give as many of each, or all_pairs=True")
    return Inputs(ids, text_mask, features, boxes, region_mask, image_of, text_of)


def _read(
    given: dict[str, Any],
    inputs: Inputs,
    packed: Callable[[Tensor], Tensor],
    pair: Tensor,
    is_region: Tensor,
    region: Tensor,
    pretraining: bool,
) -> dict[str, Tensor]:
    """What the heads read: each pair's [CLS], masked words and regions, and their labels."""
    ids, count = inputs.ids, len(inputs.image_of)
    name = "matched" if pretraining else "labels"
    match = given.get(name)
    matches = torch.full((count,), -1.0, device=ids.device) if match is None else match.flatten().float()
    _shape(name, matches, (count,))
    # Rows of mismatched pairs have no loss (paper, section 4: conditional mask).
    counted = matches != 0 if match is not None else torch.ones_like(matches, dtype=torch.bool)
    ignored = torch.full_like(ids[:, 0], IGNORED)
    words = given["labels"] if pretraining and given.get("labels") is not None else torch.full_like(ids, IGNORED)
    _shape("labels", words, tuple(ids.shape))
    none = torch.zeros_like(inputs.region_mask)
    zeroed = none if given.get("masked_regions") is None else given["masked_regions"].bool()
    classes = given.get("region_labels")
    predicted = zeroed if classes is None else classes != IGNORED
    classes = torch.full_like(none, IGNORED, dtype=torch.int64) if classes is None else classes
    for label, tensor in (("masked_regions", zeroed), ("region_labels", classes)):
        _shape(label, tensor, tuple(none.shape))
    labels = packed(inputs.row(ignored, none.long() + IGNORED, ignored, words)).masked_fill(~counted[pair], IGNORED)
    is_word = labels != IGNORED  # [T]
    chosen = predicted.flatten()[region] & counted[pair[is_region]]  # [R]
    is_masked = torch.zeros_like(is_region).masked_scatter(is_region, chosen)
    is_cls = torch.cat([pair.new_ones(1), pair[1:] - pair[:-1]]) > 0
    reads = is_cls | is_word | is_masked
    read_at = reads.cumsum(0) - 1
    classes = classes.flatten()[region][chosen]
    return {
        "region_zeroed": zeroed.flatten()[region],
        "counts": torch.stack([is_word.sum(), is_masked.sum(), pair.new_tensor(count)]).float(),
        "read_rows": reads.nonzero()[:, 0],
        "read_cu_seqlens": _ends(torch.bincount(pair[reads], minlength=count)),
        "cls_reads": read_at[is_cls],
        "mlm_reads": read_at[is_word],
        "mlm_labels": labels[is_word],
        "region_reads": read_at[is_masked],
        "masked_regions": chosen.nonzero()[:, 0],
        "moc_labels": classes.masked_fill(classes == IGNORED, -1),
        "attribute_labels": classes[:0],
        "itm_labels": matches,
    }


def _needed(given: dict[str, Any], name: str) -> Tensor:
    if not isinstance(given.get(name), Tensor):
        raise ValueError(f"{name} is needed, a tensor: give that, or a PackedBatch")
    tensor: Tensor = given[name]
    return tensor


def _mask(given: dict[str, Any], name: str, like: Tensor, shape: tuple[int, int]) -> Tensor:
    if given.get(name) is None:
        return torch.ones(shape, dtype=torch.bool, device=like.device)
    _shape(name, given[name], shape)
    mask: Tensor = given[name].to(like.device).bool()
    return mask


def _shape(name: str, tensor: Tensor, wanted: tuple[int | None, ...]) -> None:
    fits = tensor.dim() == len(wanted) and all(w in (None, s) for s, w in zip(tensor.shape, wanted, strict=True))
    if not fits:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {['any' if w is None else w for w in wanted]}")


def _ends(lengths: Tensor) -> Tensor:
    """Cumulative counts [B+1] int32."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
