"""Perceptual hashes of pictures, and which of very many lie near each other.

A hash is imagehash's pHash: of the picture in 32x32 greys the 8x8 lowest frequencies, a bit each for above the median.
The same picture, resized or compressed again, differs in a bit or two; two photographs in about 32 of 64. Near are
hashes that differ in at most 3 bits, and what is near to something of a group belongs to the group.

All near pairs are found without comparing all with all. Of hashes that differ in at most 3 bits, at least one of 4
bands of bits is equal (the pigeonhole principle), so only what shares a band is compared. Where very many share one,
they are cut into bands of the bits in which they still differ, and so on. Equal hashes are grouped before all that, so
that a million blank pictures cost one.

The gate of imagehash: no other file imports it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagebert.errors import UsageError

NEAR = 3  # bits
_MOST = 16  # bits that hashes may be told to differ in: with more, nearly all share a band
_FEW = 192  # hashes that share a band: they are compared with each other

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


def hash_of(pixels: NDArray[np.uint8]) -> int:
    """The perceptual hash of a picture, 64 bits; its first frequency is the highest bit.

    Args:
        pixels: [height, width, 3], RGB
    """
    from imagehash import phash

    return int.from_bytes(np.packbits(phash(Image.fromarray(pixels)).hash).tobytes(), "big")


def near(hashes: Hashes, most: int = NEAR) -> Indices:
    """Groups hashes: connected are those that differ in at most `most` bits, directly or over others.

    For hashes of photographs that is little more than sorting them most + 1 times, in some 140 bytes a hash.

    Args:
        hashes: [N]
        most: bits that two may differ in, 0 to 16

    Returns:
        [N], for each the smallest index of its group: its own where it is alone.

    Raises:
        UsageError: `most` is out of bounds.
    """
    if not 0 <= most <= _MOST:
        raise UsageError(f"near hashes differ in at most {most} bits: give 0 to {_MOST}")
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    groups = _Groups(len(values))
    if most:
        _join_near(values, np.arange(len(values)), most, groups)
    roots = groups.roots(np.arange(len(values)))
    smallest = np.full(len(values), len(hashes), np.int64)
    np.minimum.at(smallest, roots, first)
    return smallest[roots][inverse.reshape(-1)]


class _Groups:
    """Which things are connected: each has a parent in its group, with a smaller number, or is its root."""

    def __init__(self, things: int) -> None:
        self._parents: Indices = np.arange(things)

    def roots(self, things: Indices) -> Indices:
        """Of each of these things the smallest number of its group."""
        roots = self._parents[things]
        while not np.array_equal(above := self._parents[roots], roots):
            roots = above
        self._parents[things] = roots
        return roots

    def join(self, left: Indices, right: Indices) -> None:
        """Connects left[i] with right[i]."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            left, right = left[apart], right[apart]
            # Of several that one root should hang below it gets the smallest; the others come once more.
            np.minimum.at(self._parents, np.maximum(left, right), np.minimum(left, right))


def _join_near(values: Hashes, numbers: Indices, most: int, groups: _Groups) -> None:
    """Connects those of `values`, all different, that differ in at most `most` bits.

    Args:
        numbers: what `groups` knows them by
    """
    differ = _bits(np.bitwise_or.reduce(values) & ~np.bitwise_and.reduce(values)) if len(values) else []
    if len(differ) <= most:
        groups.join(numbers[:-1], numbers[1:])
        return
    for part in np.array_split(np.array(differ), most + 1):
        band = np.uint64(sum(1 << bit for bit in part.tolist()))
        order = np.argsort(values & band, kind="stable")
        ordered, known = values[order], numbers[order]
        shared = ordered & band
        begins = np.flatnonzero(np.concatenate(([True], shared[1:] != shared[:-1])))
        sizes = np.diff(np.append(begins, len(shared)))
        few = np.flatnonzero(np.repeat(sizes <= _FEW, sizes))
        _compare(ordered, known, few, np.repeat(begins + sizes, sizes), most, groups)
        for begin, size in zip(begins[sizes > _FEW].tolist(), sizes[sizes > _FEW].tolist(), strict=True):
            within = slice(begin, begin + size)
            if np.ptp(groups.roots(known[within])):  # else they are one group already
                _join_near(ordered[within], known[within], most, groups)


def _bits(mask: np.uint64) -> list[int]:
    return [bit for bit in range(64) if int(mask) >> bit & 1]


def _compare(ordered: Hashes, known: Indices, left: Indices, ends: Indices, most: int, groups: _Groups) -> None:
    """Connects what is near of those that share a band, which lie side by side.

    Args:
        left: places in `ordered` of those that are compared
        ends: for each place, where those that share its band end
    """
    for step in range(1, _FEW):
        left = left[left + step < ends[left]]
        if not len(left):
            return
        differ = ordered[left] ^ ordered[left + step]
        for _ in range(most):
            differ &= differ - np.uint64(1)  # takes the lowest bit away; 0 stays 0
        found = left[differ == 0]
        if len(found):
            groups.join(known[found], known[found + step])
