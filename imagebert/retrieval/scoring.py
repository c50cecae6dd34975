"""Pairs of images and captions to scores: the scoring function that everything in this room is given.

Three ideas, none of them an approximation. What depends on one side of a pair only (region projection, embeddings, the
layers before `fusion_layer`, the next one's queries, keys and values) is computed once an image and once a caption, and
kept while there is memory.
Pairs are sorted by length and packed without padding. The last layer computes [CLS] only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagebert.batch import PackedBatch
from imagebert.config import UsageError
from imagebert.data.corpus import Items
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import SPECIAL_TOKENS, Lengths, Samples
from imagebert.model import DualHead, ImageBertForImageTextRetrieval, Sides
from imagebert.model.dual import whole_image_features

Numbers = NDArray[np.int64]
# Scores pairs of image and caption numbers [B], [B]: float32 [B].
ScoreFunction = Callable[[Numbers, Numbers], NDArray[np.float32]]

# Tokens that go through the layers together. On a CPU what one operation leaves is still in the cache for the next, and
# the allocator hands the same pages out again (python -m benchmarks.score --tokens); a GPU wants to be filled.
TOKENS = {"cpu": 2048, "cuda": 65536}
_AT_ONCE = 4096  # pairs whose encoded sides are in memory together


NO_DUAL = (
    "the model has no dual head to find candidates with: train one (model.dual_size=256 retrieval.dual=1), or bring "
    "vectors as `embeddings`"
)


class Encoded(NamedTuple):
    """One image or one text as it goes into pairs."""

    tokens: Sides
    vector: Tensor  # [D], where a pair's score has the product of its vectors in it; else [0]


class PairScorer:
    """An ImageBERT as a scoring function of image numbers in `images` and caption numbers in `texts`.

    Args:
        images, texts: the two sides, each with numbers of its own: one corpus, or what a person typed or sent
        tokens: of a batch through the layers
        memory: bytes that encoded sides may take
    """

    def __init__(
        self,
        model: ImageBertForImageTextRetrieval,
        images: Items,
        texts: Items,
        limits: Limits,
        device: torch.device,
        tokens: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.model = model.eval().to(device)
        self.device = device
        self.limits = replace(limits, mark_whole_image=model.config.marks_whole_image)
        self._tokens = tokens or TOKENS[device.type]
        self._memory = memory or _free_memory(device) // 3
        self.show(images)
        self.ask(texts)

    # Of an image [CLS] and its regions stay, of a text both [SEP] and its words: what a pair of the two is made of.

    def show(self, images: Items) -> None:
        """From now on, image numbers are those of `images`; nothing of the texts is computed again."""
        packer = Packer(images, replace(self.limits, max_words=0))
        self._images = _Side(self, packer, slice(0, -2), self._memory)

    def ask(self, texts: Items) -> None:
        """From now on, caption numbers are those of `texts`; nothing of the images is computed again."""
        packer = Packer(texts, replace(self.limits, max_regions=0, mark_whole_image=False))
        self._texts = _Side(self, packer, slice(1, None), self._memory)

    @property
    def lengths(self) -> Lengths:
        """Tokens of each image and each caption, cut to what is fed."""
        return Lengths(self._images.lengths.regions, self._texts.lengths.words)

    @property
    def classes(self) -> tuple[Numbers, Numbers]:
        """Of all images and of all captions: equal numbers where records, or words that are fed, are equal."""
        return self._images.classes, self._texts.classes

    def __call__(self, images: Numbers, captions: Numbers) -> NDArray[np.float32]:
        """The logit of each pair matching, float32 [B]: of equal inputs the same bits, however many there are."""
        image_class, caption_class = self.classes
        key = image_class[images] * (int(caption_class.max()) + 1) + caption_class[captions]
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        order = np.argsort(first)  # as they were given
        parts = np.split(first[order], range(_AT_ONCE, len(first), _AT_ONCE))
        scores = np.empty(len(first), np.float32)
        scores[order] = np.concatenate([self.launch(images[part], captions[part]).cpu().numpy() for part in parts])
        return scores[inverse]

    def score_anew(self, images: Numbers, captions: Numbers) -> NDArray[np.float32]:
        """The same with nothing kept of what was asked before: bits that depend on this call alone.

        A side's last bits depend on what it was encoded beside.
        """
        self._images.forget()
        self._texts.forget()
        return self(images, captions)

    @torch.inference_mode()
    def launch(self, images: Numbers, captions: Numbers) -> Tensor:
        """The same on the device [B]: a GPU is not waited for."""
        image_numbers, image_of = np.unique(images, return_inverse=True)
        text_numbers, text_of = np.unique(captions, return_inverse=True)
        parts = self._images.get(image_numbers) + self._texts.get(text_numbers)
        if self.model.config.residual_score:
            vectors = torch.stack([part.vector for part in parts])
            images_at, texts_at = self._sent(image_of), self._sent(text_of + len(image_numbers))
            scale = self._dual().scale
            products = (vectors[images_at] * vectors[texts_at]).sum(1) * scale
            if not self.model.imagebert.fused_layers:
                return products.float()
        sides = Sides(*(torch.cat(each) for each in zip(*(part.tokens for part in parts), strict=True)))
        sizes = np.array([len(part.tokens.hidden) for part in parts])
        starts = np.cumsum(sizes) - sizes
        counts = np.stack([sizes[image_of], sizes[len(image_numbers) + text_of]], axis=1)  # [B, 2] tokens of each side
        begins = np.stack([starts[image_of], starts[len(image_numbers) + text_of]], axis=1)  # and where they lie

        # Longest first: programs of a GPU start in that order (feed/plan.py, balance).
        order = np.argsort(-counts.sum(axis=1), kind="stable")
        scores = torch.empty(len(order), dtype=torch.float32, device=self.device)
        for rows in self.batches(order, counts.sum(axis=1)):
            scores[self._sent(rows)] = self._score(sides, begins[rows], counts[rows]).float()
        return scores + products if self.model.config.residual_score else scores

    @torch.inference_mode()
    def image_vectors(self, numbers: Numbers) -> NDArray[np.float32]:
        """The dual head's vector of each image [n, D], of length 1."""
        dual = self._dual()
        parts = [dual.images(self._states(batch), batch).cpu() for _, batch in self._images.batches(numbers)]
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def image_features(self, numbers: Numbers) -> NDArray[np.float32]:
        """Of each image the feature of the whole of it, or the mean of its regions' [n, F]."""
        return torch.cat([whole_image_features(batch).cpu() for _, batch in self._images.batches(numbers)]).numpy()

    @torch.inference_mode()
    def text_vectors(self, numbers: Numbers) -> NDArray[np.float32]:
        """The dual head's vector of each text [n, D], of length 1."""
        dual = self._dual()
        parts = [dual.texts(self._states(batch), batch).cpu() for _, batch in self._texts.batches(numbers)]
        return torch.cat(parts).numpy()

    def _states(self, batch: PackedBatch) -> Tensor:
        encoder = self.model.imagebert
        return encoder.sides(batch, encoder.draw_seeds())

    def _dual(self) -> DualHead:
        if self.model.dual is None:
            raise UsageError(NO_DUAL)
        return self.model.dual

    def batches(self, order: Numbers, lengths: Numbers) -> Iterator[Numbers]:
        """Cuts items with `lengths`, in `order`, into runs of about the tokens that go through the layers together."""
        before = np.cumsum(lengths[order]) - lengths[order]
        cuts = np.flatnonzero(np.diff(before // self._tokens)) + 1
        yield from np.split(order, cuts)

    def _score(self, sides: Sides, begins: Numbers, counts: Numbers) -> Tensor:
        ends = np.cumsum(counts)  # of each pair's image tokens, then of its text's, alternately
        offsets, repeats = self._sent(begins.ravel() - (ends - counts.ravel())), self._sent(counts.ravel())
        total = int(ends[-1])
        rows = torch.arange(total, device=self.device)
        rows += torch.repeat_interleave(offsets, repeats, output_size=total)
        cu_seqlens = self._sent(np.concatenate([[0], ends[1::2]]).astype(np.int32))
        pairs = Sides(sides.hidden[rows], sides.first[rows])
        return self.model.score(pairs, cu_seqlens, int(counts.sum(axis=1).max()))

    def _sent(self, values: NDArray[np.generic]) -> Tensor:
        """On the device, without waiting for what it is at."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)


class _Side:
    """Images or texts as encoded tokens, each computed when it is first asked for; the longest unused make room."""

    def __init__(self, scorer: PairScorer, packer: Packer, kept: slice, memory: int) -> None:
        self._scorer, self._packer, self._kept = scorer, packer, kept
        self._is_images = bool(kept.stop)
        self.lengths = packer.lengths
        self._room = memory
        self._arena = Arena()
        self._encoded: OrderedDict[int, Encoded] = OrderedDict()

    @cached_property
    def classes(self) -> Numbers:
        """Equal numbers: equal inputs, byte for byte."""
        items, classes = (
            self._packer.corpus,
            np.arange(len(self.lengths.regions if self._is_images else self.lengths.words)),
        )
        if self._is_images:
            told = items.image_class  # by checksums
            inputs = [b""] * len(classes)
            for image in np.flatnonzero(np.bincount(told)[told] > 1).tolist():
                inputs[image] = b"".join(np.asarray(part).tobytes() for part in items.regions(image))
        else:
            pieces = items.first_pieces(classes, self.lengths.words)
            ends = np.cumsum(self.lengths.words).tolist()
            inputs = [pieces[end - n : end].tobytes() for end, n in zip(ends, self.lengths.words.tolist(), strict=True)]
        first: dict[bytes, int] = {}
        for number, content in enumerate(inputs):
            if content:
                classes[number] = first.setdefault(content, number)
        return classes

    def get(self, numbers: Numbers) -> list[Encoded]:
        """Of each number its tokens, in order."""
        missing = np.array([n for n in numbers.tolist() if n not in self._encoded], np.int64)
        if len(missing):
            self._encode(missing)
        found = []
        for number in numbers.tolist():
            self._encoded.move_to_end(number)
            found.append(self._encoded[number])
        # Only now: what was asked for together is there together, whatever it takes.
        while self._room < 0 and len(self._encoded) > len(found):
            _, oldest = self._encoded.popitem(last=False)
            self._room += _bytes(oldest)
        return found

    def forget(self) -> None:
        self._room += sum(map(_bytes, self._encoded.values()))
        self._encoded.clear()

    def _encode(self, numbers: Numbers) -> None:
        for some, batch in self.batches(numbers):
            model = self._scorer.model
            encoded = model.encode(batch)
            vectors = encoded.hidden.new_zeros(len(some), 0)
            if model.config.residual_score and model.dual is not None:
                vectors = (model.dual.images if self._is_images else model.dual.texts)(encoded.hidden, batch)
            sizes = batch.cu_seqlens.diff().tolist()
            parts = zip(encoded.hidden.split(sizes), encoded.first.split(sizes), vectors, strict=True)
            for number, (hidden, first, vector) in zip(some.tolist(), parts, strict=True):
                self._encoded[number] = Encoded(Sides(hidden[self._kept], first[self._kept]), vector)
                self._room -= _bytes(self._encoded[number])

    def batches(self, numbers: Numbers) -> Iterator[tuple[Numbers, PackedBatch]]:
        """The side alone, packed: some of the numbers, and those as pairs whose other side is empty."""
        nothing = np.zeros_like(numbers)
        images, texts = (numbers, nothing) if self._is_images else (nothing, numbers)
        lengths = self._packer.lengths.regions[images] + self._packer.lengths.words[texts] + SPECIAL_TOKENS
        for rows in self._scorer.batches(np.arange(len(numbers)), lengths):
            samples = Samples(images[rows], texts[rows], nothing[rows], np.arange(len(rows)))
            yield numbers[rows], self._packer.pack(samples, self._arena, device=self._scorer.device)


def _bytes(encoded: Encoded) -> int:
    return sum(tensor.nbytes for tensor in (*encoded.tokens, encoded.vector))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return 6 << 30  # of which each side takes a third


def find_precision(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on a GPU, as in training; float32 elsewhere. Scores are kept in float32 whatever it is."""
    if precision == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if able else torch.float32
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"precision {precision}: give auto, fp32 or bf16")
    return torch.bfloat16 if precision == "bf16" else torch.float32
