from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from imagebert.config import UsageError
from imagebert.feed.plan import Lengths
from imagebert.retrieval import matrix
from imagebert.retrieval.matrix import Ledger, load_scores, score_all, score_to_disk, tiles

RNG = np.random.default_rng(0)
REGIONS, WORDS = RNG.integers(1, 101, 150), RNG.integers(1, 42, 170)


class Counting:
    """Scores a pair as a function of its numbers, and counts the pairs that it was asked for."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.lengths = Lengths(REGIONS, WORDS)
        self.classes = np.arange(150), np.arange(170)
        self.pairs, self.fail_after = 0, fail_after

    def launch(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        self.pairs += len(images)
        if self.fail_after is not None and self.pairs > self.fail_after:
            raise KeyboardInterrupt
        return torch.from_numpy((images * 1000 + captions).astype(np.float32))


EXPECTED = (np.arange(150)[:, None] * 1000 + np.arange(170)).astype(np.float32)


def test_tiles_cover_every_pair_once_and_hold_like_lengths() -> None:
    seen = np.zeros((150, 170), int)
    for rows, columns in tiles(REGIONS, WORDS):
        seen[np.ix_(rows, columns)] += 1
    assert (seen == 1).all()
    first, last = tiles(REGIONS, WORDS)[0], tiles(REGIONS, WORDS)[-1]
    assert REGIONS[first.rows].min() >= np.sort(REGIONS)[-32]
    assert WORDS[last.columns].max() <= np.sort(WORDS)[170 % 64]


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    images, captions = np.arange(150), np.arange(170)
    with pytest.raises(KeyboardInterrupt):
        score_to_disk(Counting(fail_after=12_000), images, captions, tmp_path, "e")
    (kept,) = (tmp_path / "tiles").glob("*.tiles")
    done = Ledger(tmp_path / "tiles", tiles(REGIONS, WORDS), "e").read()
    pairs = sum(tiles(REGIONS, WORDS)[n].pairs for n in done)
    assert 4096 <= pairs < 12_000
    # The last tile was being written: its end is missing. And one of the disk's bits has turned in another's scores.
    data = bytearray(kept.read_bytes()[:-3])
    kept.write_bytes(data)
    again = Counting()
    seconds = score_to_disk(again, images, captions, tmp_path, "e")
    assert again.pairs == 150 * 170 - pairs + 2048
    assert seconds > 0
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), EXPECTED)


def test_a_tile_with_a_turned_bit_is_scored_again(tmp_path: Path) -> None:
    images, captions = np.arange(150), np.arange(170)
    score_to_disk(Counting(), images, captions, tmp_path, "e")
    (kept,) = (tmp_path / "tiles").glob("*.tiles")
    data = bytearray(kept.read_bytes())
    data[-10] ^= 4
    kept.write_bytes(data)
    again = Counting()
    score_to_disk(again, images, captions, tmp_path, "e")
    assert again.pairs == tiles(REGIONS, WORDS)[-1].pairs
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), EXPECTED)


def test_every_turned_bit_of_a_tiles_head_is_met(tmp_path: Path) -> None:
    """Its number, pairs and seconds too: one bit there would have put its scores elsewhere."""
    images, captions = np.arange(150), np.arange(170)
    score_to_disk(Counting(), images, captions, tmp_path, "e")
    (kept,) = (tmp_path / "tiles").glob("*.tiles")
    whole = kept.read_bytes()
    ledger = Ledger(tmp_path / "tiles", tiles(REGIONS, WORDS), "e")
    for bit in range(8 * 20):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(data)
        assert len(ledger.read()) == 0
    kept.write_bytes(whole)
    assert len(ledger.read()) == len(tiles(REGIONS, WORDS))
    assert len(Ledger(tmp_path / "tiles", tiles(REGIONS, WORDS), "another").read()) == 0


def test_equal_inputs_have_equal_scores(tmp_path: Path) -> None:
    """Whatever a scorer's rounding makes of their places: each is scored once."""
    rng = np.random.default_rng(0)

    class Rounding(Counting):
        def launch(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
            return super().launch(images, captions) + torch.from_numpy(rng.random(len(images)).astype(np.float32))

    scorer = Rounding()
    image_class, caption_class = rng.integers(0, 60, 150), rng.integers(0, 50, 170)
    scorer.classes = image_class, caption_class
    images, captions = rng.permutation(150)[:140], np.arange(170)
    for scores in (
        score_all(scorer, images, captions),
        (score_to_disk(scorer, images, captions, tmp_path, "e"), np.load(tmp_path / "scores.npy"))[1],
    ):
        by_class: dict[tuple[int, int], float] = {}
        for row, image in enumerate(images.tolist()):
            for caption in captions.tolist():
                key = image_class[image], caption_class[caption]
                assert by_class.setdefault(key, scores[row, caption]) == scores[row, caption]
        first = [images[np.flatnonzero(image_class[images] == image_class[image])[0]] for image in images]
        first_caption = [np.flatnonzero(caption_class == c)[0] for c in caption_class]
        expected = np.array(first)[:, None] * 1000 + np.array(first_caption)
        np.testing.assert_allclose(scores, expected + 0.5, atol=0.51)


def test_other_lengths_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "x.tiles").write_bytes(b"\x07" * 500)
    scorer = Counting()
    score_to_disk(scorer, np.arange(150), np.arange(170), tmp_path, "e")
    assert scorer.pairs == 150 * 170


def test_ranks_share_the_tiles_in_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks one after the other: what each leaves at zero the other has, and the sum is the matrix."""
    which = len(tiles(REGIONS, WORDS))
    parts = []

    def numbers(rank: int) -> Iterator[int]:
        yield from [n for n in range(which) if n % 3 == 0] if rank == 0 else [n for n in range(which) if n % 3]

    for rank in range(2):
        monkeypatch.setattr(matrix.distributed, "queue", lambda rank=rank: numbers(rank))
        parts.append(score_all(Counting(), np.arange(150), np.arange(170)))
    assert ((parts[0] == 0) | (parts[1] == 0)).all()
    np.testing.assert_array_equal(parts[0] + parts[1], EXPECTED)


def test_no_scores(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no whole evaluation"):
        load_scores(tmp_path)
