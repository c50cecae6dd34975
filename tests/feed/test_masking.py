from __future__ import annotations

import numpy as np
import pytest
import torch

from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking, mask_batch, mask_regions, mask_words
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Cut, Negatives, Plan
from imagebert.feed.sizes import Sizes, choose_sizes, contents, first_held

MASKING = Masking(key=stage_key(0, "s"), words=0.15, regions=0.15, mask_id=4, vocabulary=1000)
COUNT = 200_000
PAIR, PLACE = np.arange(COUNT) // 40, np.arange(COUNT) % 40


def test_words_are_masked_as_in_bert() -> None:
    pieces = np.full(COUNT, 500)
    seen, masked = mask_words(MASKING, 3, pieces, PAIR, PLACE)
    assert masked.mean() == pytest.approx(0.15, abs=0.005)
    assert (seen[~masked] == 500).all()
    assert (seen[masked] == 4).mean() == pytest.approx(0.8, abs=0.01)
    assert (seen[masked] == 500).mean() == pytest.approx(0.1, abs=0.01)
    random = seen[masked & (seen != 4) & (seen != 500)]
    assert len(np.unique(random)) > 900
    assert (seen < 1000).all()


def test_regions_lose_nine_of_ten_features() -> None:
    maskable = np.arange(COUNT) % 5 != 0
    masked, zeroed = mask_regions(MASKING, 3, maskable, PAIR, PLACE)
    assert not masked[~maskable].any()
    assert masked[maskable].mean() == pytest.approx(0.15, abs=0.005)
    assert (zeroed <= masked).all()
    assert zeroed[masked].mean() == pytest.approx(0.9, abs=0.01)


def test_a_pure_function_of_step_pair_and_place() -> None:
    pieces = np.full(COUNT, 500)
    seen, _ = mask_words(MASKING, 3, pieces, PAIR, PLACE)
    order = np.random.default_rng(0).permutation(COUNT)[:5000]
    again, _ = mask_words(MASKING, 3, pieces[order], PAIR[order], PLACE[order])
    np.testing.assert_array_equal(again, seen[order])
    other, _ = mask_words(MASKING, 4, pieces, PAIR, PLACE)
    assert (other != seen).mean() > 0.2


def make(source: SourceConfig, words: float = 0.3) -> tuple[Packer, Plan, Masking]:
    corpus = Corpus([source])
    packer = Packer(corpus, Limits(max_regions=5, max_words=6, whole_image=True))
    negatives = Negatives(share=0.5, candidates=1, source="batch")
    plan = Plan(corpus.caption_image, packer.lengths, negatives, Cut(batch_size=24, parts=2), key=stage_key(0, "s"))
    return packer, plan, Masking(stage_key(0, "s"), words=words, regions=0.3, mask_id=4, vocabulary=45)


@pytest.mark.parametrize("filled", [False, True])
def test_kernels_draw_the_same_batch(source: SourceConfig, filled: bool) -> None:
    packer, plan, masking = make(source)
    sizes = choose_sizes(plan, 0.3, 0.3) if filled else None
    for step in range(3):
        for samples in plan.step(step, 0, 1):
            packed = packer.lay_out(samples, Arena(), sizes)
            batch, places = packed.layout.tensors(packed.memory)
            rooms = sizes and sizes.masked
            ours, theirs = (mask_batch(batch, places, masking, step, rooms, draws) for draws in ("triton", "numpy"))
            assert 0 < ours.counts[0] < len(ours.mlm_labels) or not filled
            for name, right in theirs._asdict().items():
                got = torch.as_tensor(getattr(ours, name))
                right = torch.as_tensor(right)
                assert got.dtype == right.dtype, name
                assert torch.equal(got, right), name


def test_fill_names_no_row(source: SourceConfig) -> None:
    packer, plan, masking = make(source)
    sizes = Sizes(pairs=20, regions=80, texts=130, masked=(70, 50))
    for samples in plan.step(4, 0, 1):
        exact, filled = (packer.pack(samples, Arena(), 4, masking, room) for room in (None, sizes))
        words, regions = len(exact.mlm_labels), len(exact.moc_labels)
        assert torch.equal(filled.counts, torch.tensor([words, regions, 12.0]))
        assert torch.equal(filled.counts, exact.counts)
        for name, real, fill in (
            ("mlm_labels", words, -1),
            ("moc_labels", regions, -1),
            ("itm_labels", 12, -1),
            ("cu_seqlens", 13, exact.tokens),
        ):
            field = getattr(filled, name)
            assert torch.equal(field[:real], getattr(exact, name)), name
            assert (field[real:] == fill).all(), name
            assert len(field) > real, name
        read = len(exact.read_rows)
        assert int(filled.read_cu_seqlens[-1]) == read
        # Real rows as without fill; fill names rows that nothing real names, each once.
        for name, real in (("read_rows", read), ("mlm_reads", words), ("region_reads", regions)):
            field = getattr(filled, name)
            assert torch.equal(field[:real], getattr(exact, name)), name
            assert len(field) > real, name
            assert len(field.unique()) == len(field), name
        assert (filled.mlm_reads[words:] >= read).all()
        assert (filled.region_reads[regions:] <= -read).all()
        assert not set(filled.mlm_reads.tolist()) & set(filled.region_reads.abs().tolist())
        assert max(filled.mlm_reads.max(), filled.region_reads.abs().max()) < len(filled.read_rows)


def test_more_room_than_there_are_rows(source: SourceConfig) -> None:
    packer, plan, masking = make(source)
    samples = plan.step(4, 0, 1)[0]
    exact = packer.pack(samples, Arena(), 4, masking)
    room = Sizes(pairs=12, regions=64, texts=128, masked=(128, 64))
    filled = packer.pack(samples, Arena(), 4, masking, room)
    assert len(filled.read_rows) == 12 + 128 + 64 > filled.tokens
    assert filled.read_rows.max() < filled.tokens
    assert torch.equal(filled.read_rows[: len(exact.read_rows)], exact.read_rows)


def test_rows_beyond_the_room_are_not_learnt_from(source: SourceConfig) -> None:
    packer, plan, masking = make(source, words=0.9)
    samples = plan.step(0, 0, 1)[0]
    exact = packer.pack(samples, Arena(), 0, masking)
    room = Sizes(pairs=20, regions=80, texts=130, masked=(3, 50))
    few = packer.pack(samples, Arena(), 0, masking, room)
    assert int(few.counts[0]) == 3 < int(exact.counts[0])
    assert torch.equal(few.mlm_labels, exact.mlm_labels[:3])
    assert torch.equal(few.input_ids[: len(exact.input_ids)], exact.input_ids)


def test_sizes_hold_what_the_plan_gives(source: SourceConfig) -> None:
    packer, plan, _ = make(source)
    sizes = choose_sizes(plan, 0.15, 0.15)
    parts = [part for step in range(60) for part in plan.step(step, 0, 1)]
    held = [sizes.hold(packer.lengths, part) for part in parts]
    assert np.mean(held) > 0.95
    assert sizes[0] <= 20 >= max(contents(packer.lengths, part)[0] for part in parts)
    # What does not fit keeps its own shape.
    for tight in (sizes._replace(regions=1), sizes._replace(matched=(1, 1))):
        batch = packer.pack(parts[0], Arena(), 0, None, tight)
        assert batch.tokens == batch.real_tokens


def test_the_shape_for_all_is_not_an_exceptions(source: SourceConfig) -> None:
    packer, plan, _ = make(source)
    found = [contents(packer.lengths, part) for step in range(9) for part in plan.step(step, 0, 1)]
    # Rooms that the first does not fit into, but a later one.
    sizes = Sizes(*next(later for later in found if any(a < b for a, b in zip(later, found[0], strict=True))))
    assert not sizes.hold(packer.lengths, plan.step(0, 0, 1)[0])
    assert sizes.hold(packer.lengths, first_held(plan, sizes, 0, 1))


def test_rooms_are_for_matched_pairs(source: SourceConfig) -> None:
    """Half of the pairs match, and the rooms hold what of them may be masked: a brute-force count over many steps."""
    packer, plan, masking = make(source)
    sizes = choose_sizes(plan, 0.3, 0.3)
    assert sizes.masked is not None
    assert sizes.matched is not None
    most = [0, 0]
    for step in range(60):
        for part in plan.step(step, 0, 1):
            words = sum(int(packer.lengths.words[c]) for c, ok in zip(part.captions, part.labels, strict=True) if ok)
            if sizes.hold(packer.lengths, part):
                assert words <= sizes.matched[0]
                counts = packer.pack(part, Arena(), step, masking).counts
                most = [max(a, int(b)) for a, b in zip(most, counts, strict=False)]
    assert all(0 < found <= room for found, room in zip(most, sizes.masked, strict=True))
    everything = [packer.lengths.words[plan.global_batch(s).captions].sum() for s in range(60)]
    assert sizes.matched[0] < 0.8 * np.mean(everything)
    finetuned = choose_sizes(plan, 0.0, 0.0)
    assert (finetuned.masked, finetuned.matched) == ((0, 0), None)
