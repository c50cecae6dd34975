from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus, LooseItems
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.region_writer import Target, write_regions
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.retrieval.matrix import score_all
from imagebert.retrieval.scoring import PairScorer
from tests.corpora import WORDS, random_record, write_corpus, write_vocabulary
from tests.model.test_modeling import SHAPE

LIMITS = Limits(max_regions=6, max_words=8, whole_image=True)
CPU = torch.device("cpu")


def make_model(**shape: int) -> ImageBertForImageTextRetrieval:
    torch.manual_seed(0)
    return ImageBertForImageTextRetrieval(ImageBertConfig(**{**SHAPE, **shape})).eval()


def one_at_a_time(
    model: ImageBertForImageTextRetrieval, corpus: Corpus, limits: Limits, images: int | None = None
) -> np.ndarray:
    """Every pair of the first images by itself through the plain forward [images, captions]."""
    images = images or corpus.images
    captions = np.flatnonzero(corpus.caption_image < images)
    packer, one = Packer(corpus, limits), np.ones(1, np.int64)
    with torch.inference_mode():
        return np.array(
            [
                [model(packer.pack(Samples(i * one, c * one, one, one), Arena())).result.item() for c in captions]
                for i in range(images)
            ]
        )


def side_by_side(
    model: ImageBertForImageTextRetrieval, corpus: Corpus, images: np.ndarray, captions: np.ndarray
) -> np.ndarray:
    """These images with these captions, the pairs of an image in one plain forward [images, captions]."""
    packer, ones = Packer(corpus, LIMITS), np.ones(len(captions), np.int64)
    with torch.inference_mode():
        return np.stack(
            [model(packer.pack(Samples(i * ones, captions, ones, ones), Arena())).result.numpy() for i in images]
        )


@pytest.mark.parametrize(
    ("shape", "limits"),
    [
        ({"num_hidden_layers": 1}, LIMITS),
        ({"num_hidden_layers": 2}, LIMITS),
        ({"num_hidden_layers": 3, "use_pooler": True}, Limits(max_regions=4, max_words=3, whole_image=False)),
        ({"use_global_image_token": True}, LIMITS),
        ({"fusion_layer": 1, "dual_size": 6}, LIMITS),
        ({"fusion_layer": 1, "dual_size": 6, "dual_shortcut": 5, "residual_score": True}, LIMITS),
        ({"fusion_layer": 2, "dual_size": 6, "residual_score": True}, LIMITS),
        (
            {"fusion_layer": 3, "dual_size": 6, "residual_score": True},
            Limits(max_regions=4, max_words=3, whole_image=False),
        ),
    ],
)
def test_equals_one_pair_at_a_time(tmp_path: Path, shape: dict[str, int], limits: Limits) -> None:
    corpus = Corpus([write_corpus(tmp_path, images=7, captions=2)])
    model = make_model(**shape)
    if limits.whole_image and model.config.marks_whole_image:
        plain = Limits(**{**vars(limits), "mark_whole_image": True})
    else:
        plain = limits
    expected = one_at_a_time(model, corpus, plain)
    images, captions = np.repeat(np.arange(7), 14), np.tile(np.arange(14), 7)
    # Batches that cut anywhere, and room for so few sides that they are encoded again and again.
    for tokens, memory in ((10_000, 1 << 30), (60, 2000)):
        scorer = PairScorer(model, corpus, corpus, limits, CPU, tokens, memory)
        shuffled = np.random.default_rng(0).permutation(len(images))
        for some in (shuffled[:30], shuffled[30:], shuffled):
            scores = scorer(images[some], captions[some])
            assert scores.dtype == np.float32
            np.testing.assert_allclose(scores, expected.ravel()[some], rtol=1e-5, atol=1e-5)


def test_bf16_scores_are_kept_in_float32(source: SourceConfig) -> None:
    corpus = Corpus([source])
    exact = PairScorer(make_model(), corpus, corpus, LIMITS, CPU)
    rounded = PairScorer(make_model().to(torch.bfloat16), corpus, corpus, LIMITS, CPU)
    images, captions = np.arange(20), np.arange(20)
    assert rounded(images, captions).dtype == np.float32
    np.testing.assert_allclose(rounded(images, captions), exact(images, captions), atol=0.05)


def test_what_lies_in_memory_scores_like_what_lies_in_a_store(source: SourceConfig) -> None:
    corpus, model = Corpus([source]), make_model()
    pieces = [corpus.pieces(c).tolist() for c in range(5)]
    records = [corpus.regions(i) for i in range(4)]
    loose = LooseItems(records, pieces, corpus.tokenizer, corpus.feature_type)
    images, captions = np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4)
    expected = PairScorer(model, corpus, corpus, LIMITS, CPU)(images, captions)
    for sides in ((corpus, loose), (loose, corpus), (loose, loose)):
        np.testing.assert_allclose(PairScorer(model, *sides, LIMITS, CPU)(images, captions), expected, atol=1e-6)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    from tests.corpora import change_last_feature

    source = write_corpus(tmp_path, images=4)
    change_last_feature(Path(source.regions), "image002.jpg", b"\x55", checksum=False)
    corpus = Corpus([source])
    scorer = PairScorer(make_model(), corpus, corpus, LIMITS, CPU)
    with pytest.raises(UsageError, match=r"image002\.jpg.*damaged"):
        scorer(np.arange(4), np.zeros(4, np.int64))


def test_equal_inputs_have_equal_scores_whatever_lies_beside_them(tmp_path: Path) -> None:
    """64 images of one record and 70 captions of one text, among others of many lengths: ties must be ties."""
    rng = np.random.default_rng(0)
    same = random_record(rng, 5)
    with write_regions(Target(tmp_path / "regions", [f"c{i}" for i in range(5)], {"name": "x"}, "float32")) as writer:
        for i in range(100):
            writer.add(f"{i:03d}", same if i % 3 else random_record(rng, int(rng.integers(1, 7))))
    texts = [" ".join(WORDS[:7]) if i % 2 else " ".join(rng.choice(WORDS, int(rng.integers(1, 9)))) for i in range(140)]
    write_pairs(
        tmp_path / "pairs", (Caption(f"{i % 100:03d}", t) for i, t in enumerate(texts)), write_vocabulary(tmp_path)
    )
    corpus = Corpus([SourceConfig(regions=str(tmp_path / "regions"), pairs=str(tmp_path / "pairs"))])
    scorer = PairScorer(make_model(), corpus, corpus, LIMITS, CPU, tokens=100)
    scores = score_all(scorer, np.arange(100), np.arange(140))
    images, captions = np.arange(100) % 3 > 0, np.arange(140) % 2 > 0  # which are equal to each other
    assert len(np.unique(scores[np.ix_(images, captions)])) == 1
    assert (scores[images] == scores[np.flatnonzero(images)[0]]).all()
    assert (scores[:, captions] == scores[:, [np.flatnonzero(captions)[0]]]).all()
    # What differs, each once and with all of what differs; the rest has been found equal to it.
    some, others = (np.append(np.flatnonzero(~equal), np.flatnonzero(equal)[0]) for equal in (images, captions))
    np.testing.assert_allclose(
        scores[np.ix_(some, others)], side_by_side(make_model(), corpus, some, others), atol=1e-5
    )
    rows, columns = np.divmod(rng.permutation(100 * 140)[:9000], 140)
    called = scorer(rows, columns)
    assert len(np.unique(called[images[rows] & captions[columns]])) == 1
    np.testing.assert_allclose(called, scores[rows, columns], atol=1e-5)


def test_scores_anew_do_not_depend_on_what_was_asked_before(source: SourceConfig) -> None:
    """Bit for bit; of what is kept, encoded beside others, the last bits may differ."""
    corpus = Corpus([source])
    sizes = {"vocab_size": len(corpus.tokenizer), "feature_size": corpus.feature_size, "num_region_classes": 5}
    model = ImageBertForImageTextRetrieval(ImageBertConfig.preset("tiny", **sizes))
    images, captions = (numbers.ravel() for numbers in np.meshgrid(np.arange(24), np.arange(72)))
    fresh, asked = (PairScorer(model, corpus, corpus, LIMITS, torch.device("cpu")) for _ in range(2))
    for number in range(24):
        asked(np.array([number]), np.array([number]))
    np.testing.assert_array_equal(asked.score_anew(images, captions), fresh(images, captions))
