"""A model's forward and backward as CUDA graphs: two launches instead of hundreds.

A graph replays what it recorded, on the memory that it recorded, so every batch must have the shape of the first
(feed/sizes.py); its tensors are copied to the first one's place. PyTorch draws dropout's seeds anew in each replay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imagebert.batch import PackedBatch


class _FromTensors(nn.Module):
    """A model that takes a batch's tensors one by one: a graph's arguments are tensors only."""

    def __init__(self, model: nn.Module, batch: PackedBatch) -> None:
        super().__init__()
        self.model = model
        self.names = [name for name, field in batch._asdict().items() if isinstance(field, Tensor)]
        self.batch = batch

    def forward(self, *tensors: Tensor) -> Any:
        fields: dict[str, Any] = dict(zip(self.names, tensors, strict=True))
        return self.model(self.batch._replace(**fields))


class Graphed:
    """Called like the model, for batches that it `fits`.

    Records the model in its present mode on `batch`, after a few runs to warm up; no gradient is kept of those. The
    model's outputs must be a tuple of tensors, and its parameters stay where they are from now on.
    """

    def __init__(self, model: nn.Module, batch: PackedBatch) -> None:
        flat = _FromTensors(model, batch)
        self._names, self._shapes = flat.names, [getattr(batch, name).shape for name in flat.names]
        self._call = torch.cuda.make_graphed_callables(flat, self._tensors(batch), allow_unused_input=True)

    def fits(self, batch: PackedBatch) -> bool:
        return [t.shape for t in self._tensors(batch)] == self._shapes

    def __call__(self, batch: PackedBatch) -> Any:
        return self._call(*self._tensors(batch))

    def _tensors(self, batch: PackedBatch) -> tuple[Tensor, ...]:
        return tuple(getattr(batch, name) for name in self._names)
