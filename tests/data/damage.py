"""Damage to a source of captions, and what came of it."""

from __future__ import annotations

import random
from pathlib import Path

from imagebert.config import UsageError
from imagebert.data.captions import Captions

_BYTES = b"\x00\xff\xc3\t\n\r\",|#[]{}:0'"


def outcomes_of_damage(path: Path, content: bytes, times: int, seed: str, within: str = "") -> set[str]:
    """Writes damaged contents, and reads each: captions, refused lines or a UsageError, with counts that add up.

    Args:
        within: the file that is damaged, where `path` is the folder of it

    Returns:
        Which came of them: captions, refused, error.
    """
    chance = random.Random(seed)
    outcomes = set()
    for _ in range(times):
        (path / within if within else path).write_bytes(_damaged(content, chance))
        captions = Captions(path)
        try:
            given = list(captions)
        except UsageError:
            outcomes.add("error")
            continue
        counts = captions.counts
        assert counts.taken == len(given)
        assert counts.came == counts.taken + counts.refused + counts.not_downloaded
        assert all(c.image and c.text.strip() for c in given)
        outcomes |= {"captions"} if given else set()
        outcomes |= {"refused"} if counts.refused else set()
    return outcomes


def _damaged(content: bytes, chance: random.Random) -> bytes:
    """With bits flipped, bytes changed, inserted, cut or swapped."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, other = (chance.randrange(len(data)) for _ in range(2))
        match chance.choice(["flip", "change", "insert", "cut", "swap"]):
            case "flip":
                data[at] ^= 1 << chance.randrange(8)
            case "change":
                data[at] = chance.choice(_BYTES)
            case "insert":
                data[at:at] = bytes(chance.choices(_BYTES, k=3))
            case "cut":
                del data[at : at + chance.choice([1, 2, len(data)])]
                data = data or bytearray(b"x")
            case "swap":
                size = chance.randint(1, 8)
                data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
    return bytes(data)
