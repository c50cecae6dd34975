from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.mixes import draw_lengths
from imagebert.config import UsageError
from imagebert.feed.draws import stage_key
from imagebert.feed.plan import BatchPlan, Contrast, Cut, HardNegatives, Lengths, Matches, Negatives, Samples, balance

IMAGES, CAPTIONS = 40, 200


def make_plan(
    microbatches: int = 1, batch_size: int = 24, seed: int = 0, stage: str = "s", negatives: Negatives | None = None
) -> BatchPlan:
    rng = np.random.default_rng(0)
    caption_image = rng.permutation(np.arange(CAPTIONS) % IMAGES)
    lengths = Lengths(rng.integers(10, 101, IMAGES), rng.integers(4, 42, CAPTIONS))
    negatives = negatives or Negatives(share=0.5, group_size=1, source="batch")
    return BatchPlan(
        caption_image,
        lengths,
        negatives,
        Cut(batch_size=batch_size, microbatches=microbatches),
        key=stage_key(seed, stage),
    )


def token_plan(microbatches: int = 1, batch_tokens: int = 2000, group_size: int = 1, share: float = 0.5) -> BatchPlan:
    rng = np.random.default_rng(0)
    caption_image = rng.permutation(np.arange(CAPTIONS) % IMAGES)
    lengths = Lengths(rng.integers(10, 101, IMAGES), rng.integers(4, 42, CAPTIONS))
    negatives = Negatives(share=share, group_size=group_size, source="batch")
    return BatchPlan(
        caption_image,
        lengths,
        negatives,
        Cut(batch_tokens=batch_tokens, microbatches=microbatches),
        key=stage_key(0, "s"),
    )


def unit_plan(
    caption_image: NDArray[np.int64], negatives: Negatives, batch_size: int, matches: Matches | None = None
) -> BatchPlan:
    """Of images with a region and captions of a word."""
    lengths = Lengths(np.ones(caption_image.max() + 1, int), np.ones(len(caption_image), int))
    return BatchPlan(
        caption_image,
        lengths,
        negatives,
        Cut(batch_size=batch_size, microbatches=1),
        key=stage_key(0, "s"),
        matches=matches,
    )


def rows(samples: Samples) -> list[tuple[int, ...]]:
    return sorted(zip(*(array.tolist() for array in samples[:4]), strict=True))


def joined(microbatches: list[Samples]) -> Samples:
    columns = list(zip(*microbatches, strict=True))
    contrasts = [microbatch.contrast for microbatch in microbatches if microbatch.contrast is not None]
    contrast = Contrast(*map(np.concatenate, zip(*contrasts, strict=True))) if contrasts else None
    return Samples(*map(np.concatenate, columns[:4]), contrast)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_global_batch_does_not_depend_on_the_ranks(world: int, accumulation: int) -> None:
    alone, plan = make_plan(), make_plan(microbatches=world * accumulation)
    for step in (0, 1, 7, 20):
        microbatches = [m for rank in range(world) for m in plan.step(step, rank, world)]
        assert len(microbatches) == world * accumulation
        together = joined(microbatches)
        assert rows(together) == rows(alone.global_batch(step))


def test_a_pure_function_of_seed_stage_and_step() -> None:
    plan = make_plan()
    forward = [rows(plan.global_batch(s)) for s in range(20)]
    backward = [rows(make_plan().global_batch(s)) for s in reversed(range(20))][::-1]
    assert forward == backward
    assert rows(make_plan(seed=1).global_batch(3)) != forward[3]
    assert rows(make_plan(stage="t").global_batch(3)) != forward[3]


def test_every_caption_once_an_epoch_in_another_order() -> None:
    plan = make_plan(batch_size=24, negatives=Negatives(share=0, group_size=1, source="batch"))
    seen = np.concatenate([plan.global_batch(s).captions for s in range(50)])[: 3 * CAPTIONS].reshape(3, CAPTIONS)
    for epoch in seen:
        assert sorted(epoch) == list(range(CAPTIONS))
    assert not (seen[0] == seen[1]).all()
    assert plan.steps(3) == 25


@pytest.mark.parametrize("source", ["batch", "corpus"])
def test_half_are_negative_half_of_them_each_way(source: str) -> None:
    plan = make_plan(negatives=Negatives(share=0.5, group_size=1, source=source))  # type: ignore[arg-type]
    other_text = other_image = total = 0
    for step in range(400):
        batch = plan.global_batch(step)
        sampled = plan._sampled(step)
        negative = batch.labels == 0
        # A label is right whoever made the pair.
        assert ((plan.caption_image[batch.captions] == batch.images) == ~negative).all()
        changed_text = batch.captions != sampled
        changed_image = batch.images != plan.caption_image[sampled]
        assert not (changed_text & changed_image).any()
        other_text += int((changed_text & negative).sum())
        other_image += int((changed_image & negative).sum())
        total += len(sampled)
        if source == "batch":
            assert np.isin(batch.images, plan.caption_image[sampled]).all()
            assert np.isin(batch.captions, sampled).all()
    assert (other_text + other_image) / total == pytest.approx(0.5, abs=0.02)
    assert other_text / total == pytest.approx(0.25, abs=0.02)


def test_groups_start_with_the_match_and_go_both_ways() -> None:
    plan = make_plan(batch_size=20, negatives=Negatives(share=0, group_size=4, source="corpus"), microbatches=2)
    for step in range(10):
        for samples in plan.step(step, 0, 2):
            labels = samples.labels.reshape(-1, 4)
            assert (labels == [1, 0, 0, 0]).all()
            images, captions = samples.images.reshape(-1, 4), samples.captions.reshape(-1, 4)
            keeps_image, keeps_text = images[:, 1:] == images[:, :1], captions[:, 1:] == captions[:, :1]
            assert (keeps_image ^ keeps_text).all()
            assert 0.4 < keeps_image.mean() < 0.6


def test_hard_negatives_come_from_their_file() -> None:
    plain = make_plan()
    other = (np.arange(IMAGES) + 1) % IMAGES
    first_caption = np.array([np.flatnonzero(plain.caption_image == i)[0] for i in range(IMAGES)])
    hard = HardNegatives(captions=first_caption[other][:, None], images=other[plain.caption_image][:, None])
    plan = make_plan(
        negatives=Negatives(share=0, group_size=3, source="corpus", hard=hard, hard_share=1.0), batch_size=16
    )
    batch = plan.global_batch(2)
    images, captions = batch.images.reshape(-1, 3), batch.captions.reshape(-1, 3)
    for group in range(16):
        for slot in (1, 2):
            if images[group, slot] == images[group, 0]:
                assert captions[group, slot] == hard.captions[images[group, 0], 0]
            else:
                assert images[group, slot] == hard.images[captions[group, 0], 0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 144), min_size=1, max_size=200), st.integers(1, 9))
def test_balance_deals_all_and_evenly(tokens: list[int], microbatches: int) -> None:
    microbatches = min(microbatches, len(tokens))
    sets = balance(np.array(tokens), microbatches)
    assert sorted(np.concatenate(sets).tolist()) == list(range(len(tokens)))
    sums = [sum(tokens[i] for i in s) for s in sets]
    assert min(len(s) for s in sets) >= 1
    # Longest first to the lightest: no set is ahead of another by more than one item.
    assert max(sums) - min(sums) <= max(tokens)
    assert all(tokens[a] >= tokens[b] for s in sets for a, b in pairwise(s))


def test_more_parts_than_pairs() -> None:
    with pytest.raises(UsageError, match=r"schedule\.batch_size 24 cannot be cut into 25 microbatches"):
        make_plan(microbatches=25)


@pytest.mark.parametrize("group_size", [1, 4])
def test_steps_of_so_many_tokens(group_size: int) -> None:
    budget = 2000 * group_size
    plan = token_plan(batch_tokens=budget, group_size=group_size, share=0.0)
    steps = 60
    seen = [plan._sampled(step) for step in range(steps)]
    # A brute-force count: the captions of the epochs, one behind the other, each in the step in which it ends.
    tokens = plan.lengths.regions[plan.caption_image] + plan.lengths.words + 3
    epochs = plan._epochs
    order = np.concatenate([epochs.window(epochs.begin(e), epochs.begin(e + 1)) for e in range(12)])
    ends = np.cumsum(group_size * tokens[order])
    expected = [order[(ends > step * budget) & (ends <= (step + 1) * budget)] for step in range(steps)]
    assert all((a == b).all() for a, b in zip(seen, expected, strict=True))
    sums = np.array([group_size * tokens[s].sum() for s in seen])
    assert np.abs(sums - budget).max() < group_size * tokens.max()
    assert sums.mean() == pytest.approx(budget, rel=0.01)
    once = np.concatenate(seen)[:CAPTIONS]
    assert sorted(once) == list(range(CAPTIONS))
    assert plan.steps(3) == round(3 * group_size * tokens.sum() / budget)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_token_budgets_give_the_same_global_batches_to_any_ranks(world: int) -> None:
    alone, plan = token_plan(), token_plan(microbatches=world)
    for step in (11, 0, 40):  # in any order
        microbatches = [m for rank in range(world) for m in plan.step(step, rank, world)]
        together = joined(microbatches)
        assert rows(together) == rows(alone.global_batch(step))


def test_a_token_budget_that_is_too_small() -> None:
    with pytest.raises(UsageError, match=r"batch_tokens 300 cannot be cut into 4 microbatches .* raise it to \d+"):
        token_plan(microbatches=4, batch_tokens=300)


@pytest.mark.parametrize("lengths", ["flickr8k", "conceptual"])
@pytest.mark.parametrize("budget", ["pairs", "tokens"])
def test_ranks_have_the_same_number_of_tokens(lengths: str, budget: str) -> None:
    """Within 2 %: with the lengths that Flickr8k has, and with such as Conceptual Captions' with 10 to 100 regions."""
    rng = np.random.default_rng(0)
    images = 5000
    if lengths == "flickr8k":
        regions = draw_lengths(rng, "flickr8k", "regions", images)
        words = draw_lengths(rng, "flickr8k", "words", 5 * images)
    else:
        regions = np.clip(rng.gamma(3, 16, images), 10, 100).astype(int)
        words = np.clip(rng.lognormal(np.log(11), 0.45, 5 * images), 3, 41).astype(int)
    share = {"batch_size": 1024} if budget == "pairs" else {"batch_tokens": 40_000}
    plan = BatchPlan(
        np.arange(5 * images) // 5,
        Lengths(regions, words),
        Negatives(share=0.5, group_size=1, source="batch"),
        Cut(microbatches=8, **share),
        key=stage_key(0, "s"),
    )
    for step in range(10):
        tokens = [plan.lengths.tokens(microbatch).sum() for microbatch in plan.step(step, 0, 1)]
        assert max(tokens) / np.mean(tokens) < 1.02


def test_blocks_stay_together_however_a_step_is_cut() -> None:
    lengths = Lengths(np.arange(1, 31), np.arange(1, 61) % 9 + 1)
    negatives = Negatives(share=0.5, group_size=3, source="batch")
    for microbatches in (1, 2, 4):
        plan = BatchPlan(
            np.arange(60) // 2,
            lengths,
            negatives,
            Cut(batch_size=16, microbatches=microbatches, block=4),
            key=stage_key(0, "s"),
        )
        whole = plan.global_batch(5)
        cut = [microbatch for rank in range(microbatches) for microbatch in plan.step(5, rank, microbatches)]
        ids = [microbatch.ids.reshape(-1, 12) for microbatch in cut]
        assert all((block == np.arange(block[0], block[0] + 12)).all() for microbatch in ids for block in microbatch)
        np.testing.assert_array_equal(np.sort(np.concatenate([p.ids for p in cut])), whole.ids)
    with pytest.raises(UsageError, match="batch_size 16 cannot be cut into 8"):
        BatchPlan(
            np.arange(60) // 2, lengths, negatives, Cut(batch_size=16, microbatches=8, block=4), key=stage_key(0, "s")
        )


@pytest.mark.parametrize("source", ["batch", "corpus"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("mined", [False, True])
def test_what_is_equal_makes_no_negative(source: str, group_size: int, mined: bool) -> None:
    """200 captions of 12 texts, 40 images of 15 pictures: the pair that is fed is compared with all true ones."""
    rng = np.random.default_rng(1)
    plain = make_plan()
    pictures, texts = rng.integers(0, 15, IMAGES), rng.integers(0, 12, CAPTIONS)
    true = {(int(pictures[i]), int(texts[c])) for c, i in enumerate(plain.caption_image)}
    assert 0.3 < len(true) / (15 * 12) < 0.9
    hard = HardNegatives(rng.integers(0, CAPTIONS, (IMAGES, 3)), rng.integers(0, IMAGES, (CAPTIONS, 3)))
    negatives = Negatives(
        share=0.5,
        group_size=group_size,
        source=source,  # type: ignore[arg-type]
        hard=hard if mined else None,
        hard_share=0.7,
    )
    plan = unit_plan(plain.caption_image, negatives, 24, Matches(pictures, texts, plain.caption_image))
    wrong = 0
    for step in range(60):
        batch = plan.global_batch(step)
        fed = zip(pictures[batch.images].tolist(), texts[batch.captions].tolist(), strict=True)
        assert [label == 1 for label in batch.labels] == [pair in true for pair in fed]
        wrong += int((batch.labels == 0).sum())
    assert wrong / (60 * 24) == pytest.approx(0.5 if group_size == 1 else 3, rel=0.1)


@pytest.mark.parametrize("group_size", [1, 3])
def test_where_nothing_is_equal_content_changes_nothing(group_size: int) -> None:
    plan = make_plan(negatives=Negatives(share=0.5, group_size=group_size, source="batch"))
    same = make_plan(negatives=plan.negatives)
    same._matches = Matches(np.arange(IMAGES), np.arange(CAPTIONS), plan.caption_image)
    for step in range(50):
        assert rows(same.global_batch(step)) == rows(plan.global_batch(step))


@pytest.mark.parametrize("source", ["batch", "corpus"])
def test_a_rare_partner_is_found(source: str) -> None:
    """One of 65 captions is another image's: eight draws mostly miss it."""
    caption_image = (np.arange(65) == 40).astype(int)
    plan = unit_plan(caption_image, Negatives(share=0, group_size=3, source=source), 65)  # type: ignore[arg-type]
    batch = plan.global_batch(0)
    assert (batch.labels.reshape(-1, 3) == [1, 0, 0]).all()
    assert ((caption_image[batch.captions] == batch.images) == batch.labels).all()


def test_a_group_has_its_negatives_though_the_batch_holds_none() -> None:
    """Batches of two captions, often of one image."""
    caption_image = np.arange(12) // 4
    negatives = [Negatives(share=1, group_size=p, source="batch") for p in (3, 1)]
    plans = [unit_plan(caption_image, n, 2) for n in negatives]
    alike = 0
    for step in range(30):
        batch, pair = (plan.global_batch(step) for plan in plans)
        assert (batch.labels.reshape(-1, 3) == [1, 0, 0]).all()
        assert ((caption_image[batch.captions] == batch.images) == batch.labels).all()
        lonely = len(set(caption_image[plans[1]._sampled(step)].tolist())) == 1
        assert (pair.labels == lonely).all()  # which is right: it is a match
        alike += lonely
    assert 3 < alike < 20
    same = Matches(np.zeros(3, int), np.arange(12), caption_image)
    plans = [unit_plan(caption_image, n, 2, same) for n in negatives]
    with pytest.raises(UsageError, match=r"no negative can be made: all images of .* show the same"):
        plans[0].global_batch(0)
    assert (plans[1].global_batch(0).labels == 1).all()


WEIGHTS = [np.full(120, 0.4), 3.5 * np.random.default_rng(7).random(80)]


def weighted_plan(microbatches: int, unit: str, group_size: int = 1) -> BatchPlan:
    """Of two sources of 120 and 80 captions, the second sampled by scores."""
    rng = np.random.default_rng(0)
    caption_image = rng.permutation(np.arange(CAPTIONS) % IMAGES)
    lengths = Lengths(rng.integers(10, 101, IMAGES), rng.integers(4, 42, CAPTIONS))
    negatives = Negatives(share=0.5, group_size=group_size, source="batch")
    share = {"batch_size": 24} if unit == "pairs" else {"batch_tokens": 2000 * group_size}
    return BatchPlan(
        caption_image,
        lengths,
        negatives,
        Cut(microbatches=microbatches, **share),
        key=stage_key(0, "s"),
        weights=WEIGHTS,
    )


@pytest.mark.parametrize("unit", ["pairs", "tokens"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_weighted_sources_give_the_same_global_batches_to_any_ranks(world: int, unit: str) -> None:
    alone, plan = weighted_plan(1, unit), weighted_plan(world, unit)
    for step in (11, 0, 300, 40):  # in any order
        microbatches = [m for rank in range(world) for m in plan.step(step, rank, world)]
        together = joined(microbatches)
        assert rows(together) == rows(alone.global_batch(step)) == rows(weighted_plan(1, unit).global_batch(step))


@pytest.mark.parametrize("unit", ["pairs", "tokens"])
@pytest.mark.parametrize("group_size", [1, 3])
def test_an_epoch_of_weighted_sources(unit: str, group_size: int) -> None:
    """Its steps, and the pairs of a step, against a count of what is sampled."""
    plan = weighted_plan(1, unit, group_size)
    steps = plan.steps(40)
    counts = [np.bincount(plan._sampled(step), minlength=CAPTIONS) for step in range(steps)]
    seen = np.sum(counts, axis=0)
    assert np.mean([c.sum() for c in counts]) == pytest.approx(plan.pairs, rel=0.01)
    # Within one of its share at an epoch's end, which lies within a step.
    weights = np.concatenate(WEIGHTS)
    assert (np.abs(seen - 40 * weights) < 1 + np.ceil(weights)).all()


@pytest.mark.parametrize("source", ["batch", "corpus"])
@pytest.mark.parametrize("group_size", [1, 4])
def test_a_pair_that_comes_twice_in_a_step_is_no_negative_of_its_own(source: str, group_size: int) -> None:
    caption_image = np.arange(12) // 2
    lengths = Lengths(np.ones(6, int), np.ones(12, int))
    negatives = Negatives(share=0.5, group_size=group_size, source=source)  # type: ignore[arg-type]
    weights = [np.full(12, 7.5)]
    plan = BatchPlan(
        caption_image, lengths, negatives, Cut(batch_size=24, microbatches=1), key=stage_key(0, "s"), weights=weights
    )
    for step in range(20):
        batch = plan.global_batch(step)
        assert len(np.unique(plan._sampled(step))) < 24
        assert ((caption_image[batch.captions] == batch.images) == batch.labels).all()
        # Copies are told apart by their place, which keys what is masked.
        assert sorted(batch.ids) == list(range(24 * group_size))


@pytest.mark.parametrize("group_size", [1, 3])
def test_copies_of_a_pair_are_not_contrasted_with_each_other(group_size: int) -> None:
    """40 captions, each up to 3 times in a step of 6 blocks of 12. Without weights a step is as it was."""
    lengths = Lengths(np.ones(20, int), np.ones(40, int))
    negatives = Negatives(share=0, group_size=group_size, source="corpus")
    plain, plan = (
        BatchPlan(
            np.arange(40) // 2,
            lengths,
            negatives,
            Cut(microbatches=2, batch_size=72, block=block),
            key=stage_key(0, "s"),
            weights=[np.full(20, 3.0), np.full(20, 0.6)],
        )
        for block in (1, 12)
    )
    for step in range(20):
        sampled = plan._sampled(step)
        assert sorted(sampled) == sorted(plain._sampled(step))
        assert np.bincount(sampled).max() > 1
        blocks = [microbatch.captions.reshape(-1, 12, group_size)[:, :, 0] for microbatch in plan.step(step, 0, 1)]
        assert all(len(set(block)) == 12 for microbatch in blocks for block in microbatch.tolist())
    once, same = (
        BatchPlan(
            np.arange(40) // 2,
            lengths,
            negatives,
            Cut(microbatches=1, batch_size=24, block=block),
            key=stage_key(0, "s"),
        )
        for block in (4, 1)
    )
    np.testing.assert_array_equal(once._sampled(1), same._sampled(1))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_negatives_that_the_model_chooses_are_drawn_by_the_plan(world: int) -> None:
    """The same draws and classes for any number of ranks; in the first steps by chance."""
    caption_image = np.repeat(np.arange(20), 3)
    lengths = Lengths(np.arange(20) % 5 + 1, np.arange(60) % 7 + 1)
    pictures, texts = np.arange(20) // 2, np.arange(60) % 50
    negatives = Negatives(share=0.0, group_size=1, source="similar", chosen=3, random_steps=2)

    def plan(microbatches: int) -> BatchPlan:
        matches = Matches(pictures, texts, caption_image)
        cut = Cut(batch_size=16, microbatches=microbatches, block=4, contrasted=True)
        return BatchPlan(caption_image, lengths, negatives, cut, key=stage_key(0, "s"), matches=matches)

    for step in range(4):
        whole = plan(1).global_batch(step)
        assert whole.contrast is not None
        assert (whole.labels == 1).all()
        assert (whole.contrast.image_class == pictures[whole.images]).all()
        assert (whole.contrast.text_class == texts[whole.captions]).all()
        assert whole.contrast.negative_draws.shape == (16, 3)
        assert len(np.unique(whole.contrast.negative_draws)) == 48
        assert (np.floor(whole.contrast.negative_draws) == (step < 2)).all()
        cut = joined([microbatch for rank in range(world) for microbatch in plan(world).step(step, rank, world)])
        order = np.argsort(cut.ids)
        assert (cut.ids[order].reshape(-1, 4) == whole.ids.reshape(-1, 4)).all()
        for a, b in zip(cut.take(order).contrast or (), whole.contrast, strict=True):
            assert (a == b).all()
