"""What training needs of a cluster."""

from __future__ import annotations

import torch

from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining


def parameter_count(shape: ImageBertConfig, task: str) -> int:
    """Of the model as it is built, tied weights once; nothing is allocated."""
    with torch.device("meta"):
        model = (ImageBertForPreTraining if task == "pretrain" else ImageBertForImageTextRetrieval)(shape)
    return sum(p.numel() for p in model.parameters())


def checkpoint_bytes(parameters: int) -> int:
    """Weights and two moments in float32."""
    return 12 * parameters
