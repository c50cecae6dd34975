"""Suppression and pooling beside loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from imagebert.regions.vg.operators import (
    RegionPooling,
    _over,
    _staying,
    overlaps,
    suppress,
    suppress_classes,
)


def some_boxes(n: int, seed: int, size: float = 60) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, generator=random) * size
    return torch.cat([corners, corners + torch.rand(n, 2, generator=random) * size / 2], dim=1)


def overlap_of(one: list[float], other: list[float], wider: float) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]) + wider)
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]) + wider)
    areas = sum((box[2] - box[0] + wider) * (box[3] - box[1] + wider) for box in (one, other))
    return width * height / (areas - width * height)


def kept_by_definition(boxes: torch.Tensor, limit: float, wider: float) -> list[int]:
    kept: list[int] = []
    for place, box in enumerate(boxes.tolist()):
        found = [overlap_of(boxes[other].tolist(), box, wider) for other in kept]
        if not any(one >= limit if wider else one > limit for one in found):
            kept.append(place)
    return kept


def together(over: torch.Tensor) -> list[int]:
    """As a GPU suppresses: all at once."""
    return _staying(over.triu(diagonal=1)).nonzero().flatten().tolist()


@pytest.mark.parametrize("wider", [0.0, 1.0])
@pytest.mark.parametrize("limit", [0.3, 0.7])
@pytest.mark.parametrize("n", [1, 2, 300])
def test_suppression_is_as_defined(n: int, limit: float, wider: float) -> None:
    boxes = some_boxes(n, seed=n)
    wanted = kept_by_definition(boxes, limit, wider)
    assert suppress(boxes, limit, wider=wider).tolist() == wanted
    assert suppress(boxes, limit, wider=wider, most=3).tolist() == wanted[:3]
    assert together(_over(overlaps(boxes, wider=wider), limit, wider)) == wanted


def test_overlap_at_the_limit_counts_in_caffes_pixels_only() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4]])  # 100 and 50 pixels: half
    assert suppress(boxes, 0.5, wider=1.0).tolist() == [0]
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    assert suppress(boxes, 0.5).tolist() == [0, 1]


def test_a_chain_of_boxes_is_settled_however_long() -> None:
    """Each overlaps the next one only: every second stays, which the rounds for all boxes find last."""
    places = torch.arange(100.0)[:, None] * 4
    boxes = torch.cat([places, torch.zeros(100, 1), places + 10, torch.full((100, 1), 10.0)], dim=1)
    wanted = list(range(0, 100, 2))
    assert suppress(boxes, 0.4).tolist() == wanted
    assert together(_over(overlaps(boxes), 0.4, 0.0)) == wanted


def test_no_boxes_leave_none() -> None:
    none = torch.zeros(0, 4)
    assert suppress(none, 0.5).tolist() == []
    assert suppress_classes(overlaps(none), torch.zeros(0, 5), 0.3).tolist() == []


def test_suppression_within_classes_is_as_defined() -> None:
    boxes = some_boxes(40, seed=3, size=30)
    scores = torch.rand(40, 7, generator=torch.Generator().manual_seed(4))
    best = np.zeros(40)
    for name in range(7):
        order = scores[:, name].argsort(descending=True)
        kept = order[kept_by_definition(boxes[order], 0.3, 1.0)]
        best[kept] = np.maximum(best[kept], scores[kept, name])
    found = suppress_classes(overlaps(boxes, wider=1.0), scores, 0.3)
    np.testing.assert_array_equal(found.numpy(), best.astype(np.float32))
    rank = scores.argsort(dim=0, descending=True).argsort(dim=0).T
    stays = _staying((overlaps(boxes, wider=1.0) >= 0.3) & (rank[:, :, None] < rank[:, None, :]))  # as on a GPU
    assert torch.equal(scores.masked_fill(~stays.T, 0).amax(dim=1), found)
    assert (found == 0).any()
    assert (found < scores.amax(dim=1)).any()


@pytest.mark.parametrize("shape", [(5, 7), (38, 63), (1, 20), (14, 14)])
def test_pooling_is_as_defined(shape: tuple[int, int]) -> None:
    height, width = shape
    random = torch.Generator().manual_seed(height)
    maps = torch.randn(2, 3, height, width, generator=random)
    corners = torch.rand(30, 2, 2, generator=random) * torch.tensor([16.0 * width, 16.0 * height])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes[0] = torch.tensor([0.0, 0, 16 * width, 16 * height])
    boxes[1] = torch.tensor(
        [16.0 * width - 1, 16 * height - 1, 16 * width, 16 * height]
    )  # reaches behind the last cell
    boxes[2] = torch.tensor([24.0, 8, 24, 8])  # of no size, and at halves
    pictures = torch.arange(30) % 2
    wanted = np.stack(
        [pooled_by_definition(maps[p].numpy(), box) for p, box in zip(pictures, boxes.tolist(), strict=True)]
    )
    pool = RegionPooling(maps)
    np.testing.assert_array_equal(pool(boxes, pictures).numpy(), wanted)
    parts = [pool(boxes[at], pictures[at]) for at in torch.arange(30).split(7)]
    assert torch.equal(torch.cat(parts), pool(boxes, pictures))
    assert (wanted[1] == 0).any()


def pooled_by_definition(feature_map: np.ndarray, box: list[float]) -> np.ndarray:
    channels, height, width = feature_map.shape
    x1, y1, x2, y2 = (math.floor(side / 16 + 0.5) for side in box)
    tall, wide = np.float32(max(y2 - y1 + 1, 1)) / np.float32(14), np.float32(max(x2 - x1 + 1, 1)) / np.float32(14)
    pooled = np.zeros((channels, 14, 14), np.float32)
    for row in range(14):
        for column in range(14):
            top, bottom = (math.floor(row * tall) + y1, math.ceil((row + 1) * tall) + y1)
            left, right = (math.floor(column * wide) + x1, math.ceil((column + 1) * wide) + x1)
            cells = feature_map[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
            if cells.size:
                pooled[:, row, column] = cells.max(axis=(1, 2))
    return pooled


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_keeps_and_pools_the_same() -> None:
    boxes = some_boxes(6000, seed=5, size=900)
    assert suppress(boxes.cuda(), 0.7, most=300).tolist() == suppress(boxes, 0.7, most=300).tolist()
    few, scores = some_boxes(300, seed=6), torch.rand(300, 1600, generator=torch.Generator().manual_seed(7))
    on_cpu = suppress_classes(overlaps(few, wider=1.0), scores, 0.3)
    assert torch.equal(suppress_classes(overlaps(few, wider=1.0).cuda(), scores.cuda(), 0.3).cpu(), on_cpu)
    maps = torch.randn(2, 5, 38, 57, generator=torch.Generator().manual_seed(8))
    inside, pictures = boxes[:200], torch.arange(200) % 2
    assert torch.equal(
        RegionPooling(maps.cuda())(inside.cuda(), pictures.cuda()).cpu(), RegionPooling(maps)(inside, pictures)
    )
