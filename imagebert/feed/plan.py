"""The batch plan: pairs, negatives and microbatches of a step, as a pure function of (seed, stage, step, rank, world).

The global batch of a step does not depend on the number of ranks; it is cut into world x accumulation microbatches of
about equal token counts. A step has so many pairs, or so many tokens: it is a window of the line that all epochs make
(epochs.py), so that which pairs it has follows from its number alone. All ranks know the number of steps beforehand.
The sampler reads no data: it is given counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import RunConfig, UsageError
from imagebert.feed.draws import Purpose, below, draw, uniform
from imagebert.feed.epochs import Epochs

# [CLS], [SEP] between image and text, [SEP] at the end.
SPECIAL_TOKENS = 3

_TRIES = 8  # to find a partner by chance, before it is searched for
_BLOCK = 1 << 16  # partners that are looked at together in that search


class Contrast(NamedTuple):
    """By what pairs are contrasted with each other, and negatives chosen among them (batch.py)."""

    image_class: NDArray[np.int64]  # [B]
    text_class: NDArray[np.int64]  # [B]
    negative_draws: NDArray[np.float32]  # [B, N']


class Samples(NamedTuple):
    """Holds pairs to pack, in groups of P that lie one behind the other."""

    images: NDArray[np.int64]  # [B]
    captions: NDArray[np.int64]  # [B]
    labels: NDArray[np.int64]  # [B] 1: matched
    ids: NDArray[np.int64]  # [B] place in the global batch: keys the masking
    contrast: Contrast | None = None

    def take(self, rows: NDArray[np.int64]) -> Samples:
        c = self.contrast
        c = c and Contrast(c.image_class[rows], c.text_class[rows], c.negative_draws[rows])
        return Samples(self.images[rows], self.captions[rows], self.labels[rows], self.ids[rows], c)


class HardNegatives(NamedTuple):
    """What `imagebert mine` found: for each image the captions, and for each caption the images, that fool a model."""

    captions: NDArray[np.int64]  # [I, K]
    images: NDArray[np.int64]  # [N, K]


class Matches:
    """Which images and captions belong together by what they hold: two may be one picture, or one text.

    Args:
        image_class: [I] whole numbers from 0, equal where images are
        caption_class: [N] likewise
        caption_image: [N] the image of each caption
    """

    def __init__(
        self, image_class: NDArray[np.int64], caption_class: NDArray[np.int64], caption_image: NDArray[np.int64]
    ) -> None:
        self.image_class, self.caption_class = image_class, caption_class
        self._classes = int(caption_class.max()) + 1
        self._keys = np.unique(image_class[caption_image] * self._classes + caption_class)

    def __call__(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of images [n] belongs to that of captions [n]."""
        keys = self.image_class[images] * self._classes + self.caption_class[captions]
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[at] == keys


class Lengths(NamedTuple):
    """Tokens that a pair has: its image's regions and its caption's word pieces, cut to what is fed, and 3."""

    regions: NDArray[np.int64]  # [I]
    words: NDArray[np.int64]  # [N]

    def tokens(self, samples: Samples) -> NDArray[np.int64]:
        return self.regions[samples.images] + self.words[samples.captions] + SPECIAL_TOKENS


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """How mismatched pairs are made: by another caption for the image, or another image for the caption."""

    share: float  # with groups of one, how many pairs are mismatched
    group_size: int  # P; with more than one, the first of a group is matched and the others are not
    source: Literal["batch", "corpus", "similar"]  # similar: the model chooses, the plan draws
    hard: HardNegatives | None = None
    hard_share: float = 0.0
    chosen: int = 0  # N', those that the model chooses for each pair
    random_steps: int = 0  # the first steps in which it chooses by chance


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a step has, and how it is cut."""

    batch_size: int | None = None  # pairs sampled; P times as many are fed
    # Instead of it, tokens fed, to within half a pair on average; mismatched pairs count as the matched ones that they
    # were made from
    batch_tokens: int | None = None
    microbatches: int  # of all ranks, world size x accumulation
    block: int = 1  # groups that stay together, one behind the other, in one microbatch; a batch has a multiple of them
    contrasted: bool = False  # whether vectors of pairs are contrasted with each other


class BatchPlan:
    """The order of a stage.

    Args:
        caption_image: [N] the image of each caption; one caption with its image is a pair to sample
        key: of all draws (draws.py, stage_key)
        matches: which pairs are no negatives; None: an image with its own captions
        weights: how many times each pair is sampled in an epoch, source by source (Epochs); partners are drawn from all
            pairs alike. None: once
    """

    def __init__(
        self,
        caption_image: NDArray[np.int64],
        lengths: Lengths,
        negatives: Negatives,
        cut: Cut,
        *,
        key: int,
        matches: Matches | None = None,
        weights: Sequence[NDArray[np.float64]] | None = None,
    ) -> None:
        captions = np.arange(len(caption_image))
        sizes = np.broadcast_to(np.int64(1), len(captions))
        value, longest = cut.batch_size, None
        if cut.batch_tokens is not None:  # of the pairs that a caption becomes
            matched = Samples(caption_image, captions, np.ones_like(captions), captions)
            sizes = negatives.group_size * lengths.tokens(matched)
            value, longest = cut.batch_tokens, int(sizes.max())
        assert value is not None
        check_cut(value, cut.microbatches, cut.block, longest)
        self._matches = matches or Matches(np.arange(int(caption_image.max()) + 1), captions, caption_image)
        self.key = key
        self.caption_image = caption_image
        self.lengths = lengths
        self.negatives = negatives
        self.microbatches = cut.microbatches
        self._block, self._contrasted, self._weighted = cut.block, cut.contrasted, weights is not None
        self._together = negatives.group_size * cut.block  # pairs
        self._share = value  # what a step has of the line of epochs, in pairs or in tokens
        self._epochs = Epochs(self.key, sizes, weights)

    def steps(self, epochs: float) -> int:
        return max(1, round(epochs * self._epochs.size / self._share))

    @property
    def pairs(self) -> float:
        """Sampled in a step; on average, where steps go by tokens."""
        return self._share * self._epochs.pairs / self._epochs.size

    def global_batch(self, step: int) -> Samples:
        """All pairs of a step, the same for any number of ranks.

        Raises:
            UsageError: the corpus holds no negative for a group of several pairs.
        """
        captions = self._sampled(step)
        images = self.caption_image[captions]
        p, size = self.negatives.group_size, len(captions)
        place = np.arange(size * p)
        group, slot = place // p, place % p
        samples = Samples(images[group], captions[group], np.ones(size * p, np.int64), place)
        if p == 1:
            negative = uniform(self.key, Purpose.NEGATIVE, step, place) < self.negatives.share
            other_caption = draw(self.key, Purpose.DIRECTION, step, place) % np.uint64(2) == 0
        else:
            # Groups alternate, so that an odd number of negatives is even over the batch.
            negative, other_caption = slot > 0, (slot + group) % 2 == 0
        samples = self._with_negatives(step, samples, captions, np.flatnonzero(negative), other_caption)
        return samples._replace(contrast=self._contrast(step, samples)) if self._contrasted else samples

    def _contrast(self, step: int, samples: Samples) -> Contrast:
        chosen = np.arange(self.negatives.chosen)
        draws = uniform(self.key, Purpose.CHOICE, step, samples.ids[:, None], chosen)
        # As float32 still below 1, and whole numbers apart from what is behind the point.
        draws = np.floor(draws * 2**22) / 2**22 + (step < self.negatives.random_steps)
        classes = self._matches.image_class[samples.images], self._matches.caption_class[samples.captions]
        return Contrast(*classes, draws.astype(np.float32))

    def step(self, step: int, rank: int, world: int) -> list[Samples]:
        """The microbatches of one rank, in order."""
        samples = self.global_batch(step)
        p = self._together
        tokens = self.lengths.tokens(samples).reshape(-1, p).sum(axis=1)
        microbatches = balance(tokens, self.microbatches)
        mine = microbatches[rank::world]
        return [samples.take((groups[:, None] * p + np.arange(p)).ravel()) for groups in mine]

    def _sampled(self, step: int) -> NDArray[np.int64]:
        """The captions of a step: an epoch's are in an order of its own, and read on through its end."""
        captions = self._epochs.window(step * self._share, (step + 1) * self._share)
        return _apart(captions, len(captions) // self._block) if self._weighted and self._block > 1 else captions

    def _with_negatives(
        self,
        step: int,
        samples: Samples,
        batch: NDArray[np.int64],
        rows: NDArray[np.int64],
        other_caption: NDArray[np.bool_],
    ) -> Samples:
        """The samples with another caption, or another image, in `rows`, so that the pair fed there is no match.

        Where the step, or the corpus, has no partner for that, a group of one stays matched.

        Args:
            batch: captions of the step
            other_caption: [B] whether the caption is exchanged, or the image
        """
        images, captions, labels = samples.images.copy(), samples.captions.copy(), samples.labels.copy()

        def exchange(
            rows: NDArray[np.int64], others: NDArray[np.int64], their_images: NDArray[np.int64]
        ) -> NDArray[np.int64]:
            """Gives rows [n] their partners' side where that makes no match; returns the rows where it does."""
            text = other_caption[rows]
            new_images = np.where(text, samples.images[rows], their_images)
            new_captions = np.where(text, others, samples.captions[rows])
            match = self._matches(new_images, new_captions)
            images[rows[~match]], captions[rows[~match]] = new_images[~match], new_captions[~match]
            labels[rows[~match]] = 0
            return rows[match]

        left, pool = rows, batch if self.negatives.source == "batch" else None
        many = len(self.caption_image) if pool is None else len(pool)
        for attempt in range(_TRIES):  # in-batch partners may match; a few tries find another
            if len(left) == 0:
                break
            others = below(many, self.key, Purpose.PARTNER, step, left, attempt)
            others = others if pool is None else pool[others]
            left = exchange(left, others, self.caption_image[others])
        # A group must have its negatives, from wherever; that a batch holds none is rare.
        pools = [pool] if self.negatives.group_size == 1 or pool is None else [pool, None]
        for row in left.tolist():
            pair = samples.images[row], samples.captions[row]
            searches = (self._search(step, row, *pair, where, bool(other_caption[row])) for where in pools)
            found = next((f for f in searches if f is not None), None)
            if found is not None:
                images[row], captions[row], labels[row] = *found, 0
            elif self.negatives.group_size > 1:
                raise UsageError(
                    f"step {step + 1} has a pair of which no negative can be made: all images of data.sources show "
                    "the same, or all captions say the same; add others"
                )
        hard = self.negatives.hard
        if hard is not None:
            wanted = rows[uniform(self.key, Purpose.HARD, step, rows, 0) < self.negatives.hard_share]
            at = below(hard.captions.shape[1], self.key, Purpose.HARD, step, wanted, 1)
            exchange(wanted, hard.captions[samples.images[wanted], at], hard.images[samples.captions[wanted], at])
        return Samples(images, captions, labels, samples.ids)

    def _search(
        self,
        step: int,
        row: int,
        image: np.int64,
        caption: np.int64,
        pool: NDArray[np.int64] | None,
        other_caption: bool,
    ) -> tuple[np.int64, np.int64] | None:
        """Looks at all partners of a pair, from a drawn one on: at their captions or at their images, then the reverse.

        Args:
            pool: captions; None: all of the corpus

        Returns:
            The image and the caption of a mismatched pair; None: there is none.
        """
        many = len(self.caption_image) if pool is None else len(pool)
        first = int(below(many, self.key, Purpose.PARTNER, step, row, _TRIES))
        for text in (other_caption, not other_caption):
            for start in range(0, many, _BLOCK):
                others = (first + np.arange(start, min(start + _BLOCK, many))) % many
                others = others if pool is None else pool[others]
                images = np.full_like(others, image) if text else self.caption_image[others]
                captions = others if text else np.full_like(others, caption)
                good = np.flatnonzero(~self._matches(images, captions))
                if len(good):
                    return images[good[0]], captions[good[0]]
        return None


def _apart(captions: NDArray[np.int64], blocks: int) -> NDArray[np.int64]:
    """The captions of a step, those that come more than once dealt out over its blocks, where they would be contrasted.

    Two copies share a block only where there are more copies than blocks.
    """
    _, first, which = np.unique(captions, return_index=True, return_inverse=True)
    if len(first) == len(captions):
        return captions
    together = captions[np.argsort(first[which], kind="stable")]  # copies side by side
    return together.reshape(-1, blocks).T.ravel()


def balance(tokens: NDArray[np.int64], microbatches: int) -> list[NDArray[np.int64]]:
    """Cuts items into `microbatches` non-empty sets of about equal token sums: longest first, each to the lightest set.

    So the items of a set lie longest first: where a GPU starts them in that order, none is left over at the end.
    """
    sets: list[list[int]] = [[] for _ in range(microbatches)]
    heap = [(0, i) for i in range(microbatches)]
    for item in np.argsort(-tokens, kind="stable"):
        weight, lightest = heapq.heappop(heap)
        sets[lightest].append(int(item))
        heapq.heappush(heap, (weight + int(tokens[item]), lightest))
    return [np.array(s) for s in sets]


def least_to_cut(microbatches: int, block: int, longest: int | None = None) -> int:
    """Pairs, or tokens, that a step has at least, so that no microbatch is empty; arguments as check_cut's."""
    return microbatches * block if longest is None else (microbatches + 1) * longest


def check_cut(value: int, microbatches: int, block: int, longest: int | None = None) -> None:
    """Can a step be cut into its microbatches?

    Args:
        value: pairs, or tokens, that the step has
        microbatches, block: as Cut has them
        longest: tokens that a pair may become, where the step goes by tokens

    Raises:
        UsageError: no, a microbatch would be empty.
    """
    key, least = "batch_size" if longest is None else "batch_tokens", least_to_cut(microbatches, block, longest)
    if value < least:
        raise UsageError(
            f"schedule.{key} {value} cannot be cut into {microbatches} microbatches (ranks x accumulation)"
            f"{f' of {block}, over which the dual head is contrasted' * (block > 1)}: raise it to {least} or more, "
            f"or lower schedule.accumulation, {'contrast, ' * (block > 1)}or the number of ranks"
        )


def fit_microbatches(config: RunConfig, ranks: int) -> RunConfig:
    """The recipe with as many microbatches a step as `ranks` need to hold no more than schedule.microbatch_size, or
    about schedule.microbatch_tokens."""
    schedule = config.schedule
    if schedule.microbatch_size is not None and schedule.batch_size is not None:
        needed = math.ceil(schedule.batch_size * config.group_size / (ranks * schedule.microbatch_size))
    elif schedule.microbatch_tokens is not None and schedule.batch_tokens is not None:
        needed = math.ceil(schedule.batch_tokens / (ranks * schedule.microbatch_tokens))
    else:
        return config
    return replace(config, schedule=replace(schedule, accumulation=max(schedule.accumulation, needed)))
