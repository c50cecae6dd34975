"""What surrounds a recording; that PyTorch replays it right is for a GPU to show (benchmarks/gpu_suite.sh)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from imagebert.batch import PackedBatch
from imagebert.config import SourceConfig
from imagebert.engine.graphs import Graphed
from tests.model.test_modeling import make_batch


class Model(nn.Module):
    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, int]:
        return batch.region_features.sum() * batch.max_seqlen, batch.pairs


def test_a_batch_arrives_whole_and_only_its_shape_fits(source: SourceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[torch.Tensor, ...]] = []

    def record(model: Callable[..., Any], tensors: tuple[torch.Tensor, ...], **_: Any) -> Callable[..., Any]:
        given.append(tensors)
        return model

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    batch, other = make_batch(source, 9), make_batch(source, 7)
    replayed = Graphed(Model(), batch)
    assert all(isinstance(t, torch.Tensor) for t in given[0])
    assert replayed(batch) == Model()(batch)
    assert replayed.fits(batch)
    assert replayed.fits(batch._replace(region_features=batch.region_features + 1))
    assert not replayed.fits(other)
