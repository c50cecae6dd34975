"""Models as `torch.export` and ONNX take them: padded tensors in, one graph for any numbers of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imagebert.errors import UsageError
from imagebert.model.dense import embed_images, embed_texts, encode, encode_side
from imagebert.model.dual import DualHead, Tower
from imagebert.model.modeling import ImageBertForImageTextRetrieval


class Scorer(nn.Module):
    """Padded pairs to the logits of their matching: what `ImageBertForImageTextRetrieval` does, for `torch.export`."""

    def __init__(self, model: ImageBertForImageTextRetrieval) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Int[Tensor, "B W"],
        attention_mask: Tensor,
        region_features: Float[Tensor, "B R F"],
        region_boxes: Float[Tensor, "B R 4"],
        region_mask: Tensor,
        whole_image: Tensor | None = None,
    ) -> Float[Tensor, " B"]:
        """Arguments as in PaddedPairs, all of them."""
        encoder, texts, regions = self.model.imagebert, attention_mask.bool(), region_mask.bool()
        image = embed_images(encoder.embeddings, region_features, region_boxes, whole_image)
        text = embed_texts(encoder.embeddings, input_ids, texts)
        states = encode(encoder.layers, image, text, regions, texts, False, encoder.config.fusion_layer).hidden
        logits = states[0].new_zeros(len(states[0])) if self.model.itm is None else self.model.itm(states[-1][:, 0])
        if self.model.config.residual_score:
            dual, sides, count = _dual(self.model), states[encoder.config.fusion_layer], regions.shape[1]
            images = _image_vectors(dual, sides[:, 1 : 1 + count], regions, region_features, whole_image)
            logits = logits + dual.scale * (images * _text_vectors(dual, sides[:, 1 + count :], texts)).sum(1)
        return logits


def _vectors(
    tower: Tower, tokens: Float[Tensor, "B S H"], real: Bool[Tensor, "B S"], more: Tensor | None = None
) -> Float[Tensor, "B D"]:
    hidden, weight = tower.weighed(tokens, real)
    vectors: Tensor = tower.project(hidden.sum(1), weight.sum(1), tokens.dtype, more)
    return vectors


def _image_vectors(
    dual: DualHead,
    tokens: Float[Tensor, "B R H"],
    real: Bool[Tensor, "B R"],
    features: Float[Tensor, "B R F"],
    whole_image: Tensor | None,
) -> Float[Tensor, "B D"]:
    if dual.shortcut is None:
        return _vectors(dual.image, tokens, real)
    if whole_image is None:
        raise ValueError("a model with a shortcut sees the whole image by itself: give whole_image")
    mean = (features * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
    whole = torch.where(whole_image[:, None].bool(), features[:, 0], mean)
    return _vectors(dual.image, tokens, real, dual.shortcut(whole))


def _text_vectors(dual: DualHead, tokens: Float[Tensor, "B W H"], real: Bool[Tensor, "B W"]) -> Float[Tensor, "B D"]:
    """Of `[SEP] words [SEP]`."""
    first = dual.first_place - 2
    return _vectors(dual.text, tokens[:, first:], real[:, first:])


class ImageVectors(nn.Module):
    """Padded regions to the images' vectors, by the model's dual head."""

    def __init__(self, model: ImageBertForImageTextRetrieval, cls_id: int | None = None) -> None:
        """
        Args:
            cls_id: the number of [CLS], where layers attend within an image: [CLS] is of its side

        Raises:
            ValueError: the model has no dual head, or there is no `cls_id`.
        """
        super().__init__()
        self.encoder, self.dual = model.imagebert, _dual(model)
        if cls_id is None and model.config.fusion_layer:
            raise ValueError("the layers before fusion_layer see [CLS] beside the regions: give its number as cls_id")
        self.cls_id = cls_id

    def forward(
        self,
        region_features: Float[Tensor, "B R F"],
        region_boxes: Float[Tensor, "B R 4"],
        region_mask: Tensor,
        whole_image: Tensor | None = None,
    ) -> Float[Tensor, "B D"]:
        """Unit vectors; arguments as in PaddedPairs."""
        tokens = embed_images(self.encoder.embeddings, region_features, region_boxes, whole_image)
        mask = region_mask.bool()
        if self.cls_id is not None and self.encoder.side_layers:
            cls = torch.full_like(region_mask[:, :1], self.cls_id, dtype=torch.int64)
            tokens = torch.cat(
                [embed_texts(self.encoder.embeddings, cls, torch.ones_like(cls) > 0)[:, :1], tokens], dim=1
            )
            real = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
            tokens = encode_side(self.encoder.side_layers, tokens, real)[:, 1:]
        return _image_vectors(self.dual, tokens, mask, region_features, whole_image)


class TextVectors(nn.Module):
    """Padded texts to their vectors, by the model's dual head."""

    def __init__(self, model: ImageBertForImageTextRetrieval) -> None:
        super().__init__()
        self.encoder, self.dual = model.imagebert, _dual(model)

    def forward(self, input_ids: Int[Tensor, "B W"], attention_mask: Tensor) -> Float[Tensor, "B D"]:
        """Unit vectors; arguments as in PaddedPairs."""
        mask = attention_mask.bool()
        tokens = embed_texts(self.encoder.embeddings, input_ids, mask)[:, 1:]
        return _text_vectors(self.dual, encode_side(self.encoder.side_layers, tokens, mask), mask)


def _dual(model: ImageBertForImageTextRetrieval) -> DualHead:
    if model.dual is None:
        raise ValueError(
            "this model has no dual head (dual_size is 0), so images and texts have no vectors of their own"
        )
    return model.dual


# Sizes that differ between batches, by dimension of each input.
_DIMENSIONS = {
    "input_ids": ("pairs", "words"),
    "attention_mask": ("pairs", "words"),
    "region_features": ("pairs", "regions"),
    "region_boxes": ("pairs", "regions"),
    "region_mask": ("pairs", "regions"),
    "whole_image": ("pairs",),
}


def dynamic_shapes(inputs: Iterable[str]) -> dict[str, dict[int, Any]]:
    """For `torch.export.export`: any numbers of pairs, word pieces and regions from 1 up (words: from 2)."""
    return {name: dict.fromkeys(range(len(_DIMENSIONS[name])), torch.export.Dim.AUTO) for name in inputs}


def write_onnx(model: ImageBertForImageTextRetrieval, folder: Path, cls_id: int | None = None) -> list[Path]:
    """Writes scorer.onnx, and image.onnx and text.onnx where the model has a dual head, with weights inside.

    Inputs have PaddedPairs' names, the output is `logits` or `vectors`; any numbers of pairs, regions and word pieces.

    Args:
        cls_id: the number of [CLS], for image.onnx of a model whose first layers attend within an image

    Raises:
        UsageError: torch's exporter lacks a package.
        OSError: the disk is full or failing.
    """
    config = model.config
    text = {"input_ids": torch.tensor([[1, 2, 3, 2]] * 3), "attention_mask": torch.ones(3, 4, dtype=torch.int64)}
    image = {
        "region_features": torch.zeros(3, 5, config.feature_size),
        "region_boxes": torch.tensor([0, 0, 1.0, 1.0]).expand(3, 5, 4).contiguous(),
        "region_mask": torch.ones(3, 5, dtype=torch.int64),
    }
    if config.marks_whole_image:
        image["whole_image"] = torch.ones(3, dtype=torch.bool)
    graphs: list[tuple[str, nn.Module, dict[str, Tensor], str]] = [("scorer", Scorer(model), text | image, "logits")]
    if model.dual is not None:
        graphs += [
            ("image", ImageVectors(model, cls_id), image, "vectors"),
            ("text", TextVectors(model), text, "vectors"),
        ]
    if find_spec("onnxscript") is None:
        raise UsageError("writing ONNX needs the package onnxscript: pip install onnxscript")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, module, inputs, output in graphs:
        path = folder / f"{name}.onnx"
        torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            f=path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic_shapes(inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        written.append(path)
    return written
