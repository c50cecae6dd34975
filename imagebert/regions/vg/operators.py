"""Non-maximum suppression and RoI pooling in plain PyTorch, on a CPU and on a GPU, equal to their definitions.

No compiled extension: suppression of 6,000 boxes takes a hundredth of a second of a picture's ten, and pooling reads
tables of maxima, so that a bin of any size costs four reads.
"""

from __future__ import annotations

import torch

_ROUNDS = 8  # of a GPU's suppression between two looks whether it is done


def overlaps(boxes: torch.Tensor, others: torch.Tensor | None = None, wider: float = 0.0) -> torch.Tensor:
    """Intersection over union [n, m] of boxes [n, 4] and others [m, 4]; without others, of the boxes themselves.

    Args:
        wider: by how much a box is wider than the difference of its corners: 1 in Caffe's pixels
    """
    others = boxes if others is None else others
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low + wider).clamp(min=0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2] + wider).prod(dim=1)
    areas = (others[:, 2:] - others[:, :2] + wider).prod(dim=1)
    return shared / (area[:, None] + areas[None] - shared)


def suppress(boxes: torch.Tensor, overlap: float, *, wider: float = 0.0, most: int | None = None) -> torch.Tensor:
    """Which of the boxes [n, 4], the best first, no better box that stays overlaps: their places [k], rising.

    Args:
        overlap: above it a box is suppressed; in Caffe's pixels at it, too
        wider: see `overlaps`
        most: no more than so many
    """
    most = len(boxes) if most is None else most
    if boxes.is_cuda:
        over = _over(overlaps(boxes, wider=wider), overlap, wider)
        return _staying(over.triu(diagonal=1)).nonzero().flatten()[:most]
    left = torch.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < most:
        first, left = int(left[0]), left[1:]
        kept.append(first)
        over = _over(overlaps(boxes[first : first + 1], boxes[left], wider), overlap, wider)[0]
        left = left[~over]
    return torch.tensor(kept, dtype=torch.int64)


def _over(found: torch.Tensor, overlap: float, wider: float) -> torch.Tensor:
    return found >= overlap if wider else found > overlap


def suppress_classes(found: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
    """The best score [n] that each box keeps where suppression is done within each class, among all boxes; 0: none.

    Args:
        found: overlaps [n, n] of the boxes, in Caffe's pixels
        scores: [n, C]
    """
    over = found >= overlap
    order = scores.argsort(dim=0, descending=True, stable=True)  # [n, C]
    if scores.is_cuda:
        rank = order.argsort(dim=0).T  # [C, n]
        stays = _staying(over & (rank[:, :, None] < rank[:, None, :]))
        return scores.masked_fill(~stays.T, 0).amax(dim=1)
    gone = torch.zeros_like(scores, dtype=torch.bool).T.contiguous()  # [C, n]
    every = torch.arange(scores.shape[1])
    for place in range(len(scores)):
        box = order[place]  # [C]
        stays = ~gone[every, box]
        gone |= over[box] & stays[:, None]
        gone[every, box] = ~stays
    return scores.masked_fill(gone.T, 0).amax(dim=1)


def _staying(suppresses: torch.Tensor) -> torch.Tensor:
    """Which boxes [..., n] no better one that stays suppresses, all at once, for a GPU.

    Whether a box stays follows from better ones. So from any beginning each round settles at least one more of them,
    mostly all that have no longer chain above them; what a round leaves as it is, is the answer.

    Args:
        suppresses: [..., n, n], whether the first is better and overlaps the second
    """
    above = suppresses.to(torch.float16 if suppresses.is_cuda else torch.float32)
    stays = torch.ones(suppresses.shape[:-1], dtype=torch.bool, device=above.device)
    while True:
        for _ in range(_ROUNDS):
            before = stays
            stays = (before[..., None, :].to(above.dtype) @ above)[..., 0, :] == 0
        if torch.equal(before, stays):
            return stays


class RegionPooling:
    """RoI max pooling at a stride of 16 (Girshick 2015, section 2.1) from maps [b, C, h, w]; boxes may come in parts.

    The maximum of a bin is that of four rectangles that overlap and whose sides are powers of two: those of all places
    are made once, each from two smaller ones.
    """

    def __init__(self, maps: torch.Tensor, size: int = 14) -> None:
        b, self._channels, self._height, self._width = maps.shape
        self._size, self._maps = size, b
        # A bin has a row or column more than its share, since it begins and ends in the midst of some.
        tall, self._wide = ((-(-side // size) + 1).bit_length() for side in maps.shape[2:])
        tables = []
        column = maps.permute(0, 2, 3, 1).contiguous()  # [b, h, w, C]
        for i in range(tall):
            row = column
            for j in range(self._wide):
                tables.append(row)
                row = _doubled(row, 2, 1 << j)
            column = _doubled(column, 1, 1 << i)
        self._table = torch.stack(tables).view(-1, self._channels)

    def __call__(self, boxes: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Pools some regions.

        Args:
            boxes: [n, 4] x1 y1 x2 y2 in the network's pixels, inside the picture
            pictures: [n] int64, which of the maps each is on

        Returns:
            [n, C, size, size], channels last in memory; a bin without any place is 0.
        """
        n, size = len(boxes), self._size
        corners = (boxes / 16 + 0.5).floor().long()
        steps = torch.arange(size + 1, device=boxes.device)[:, None]
        extent = (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1)[:, None]
        edges = steps * (extent.float() / size)  # [n, size + 1, (x, y)]
        limits = torch.tensor([self._width, self._height], device=boxes.device)
        begin = torch.minimum(edges[:, :-1].floor().long() + corners[:, None, :2], limits)
        end = torch.minimum(edges[:, 1:].ceil().long() + corners[:, None, :2], limits)
        empty = end <= begin
        power = torch.frexp((end - begin).clamp(min=1).float()).exponent.long() - 1
        second = (end - (1 << power)).clamp(min=0)
        begin = torch.minimum(begin, limits - 1)
        level = power[:, :, None, 1] * self._wide + power[:, None, :, 0]  # [n, size (y), size (x)]
        first = (level * self._maps + pictures[:, None, None]) * self._height * self._width
        reads = [
            self._table.index_select(0, (first + ys[:, :, None] * self._width + xs[:, None]).reshape(-1))
            for ys in (begin[:, :, 1], second[:, :, 1])
            for xs in (begin[:, :, 0], second[:, :, 0])
        ]
        pooled = torch.maximum(torch.maximum(reads[0], reads[1]), torch.maximum(reads[2], reads[3]))
        pooled.masked_fill_((empty[:, :, None, 1] | empty[:, None, :, 0]).reshape(-1, 1), 0)
        return pooled.view(n, size, size, self._channels).permute(0, 3, 1, 2)


def _doubled(table: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """The maxima of two neighbours `step` apart along an axis; at its end, where one is missing, those of one."""
    length = table.shape[axis]
    if step >= length:
        return table
    both = torch.maximum(table.narrow(axis, 0, length - step), table.narrow(axis, step, length - step))
    return torch.cat([both, table.narrow(axis, length - step, step)], axis)
