from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, PairStore, write_pairs
from tests.corpora import write_corpus, write_vocabulary


def test_two_sources_are_numbered_through(source: SourceConfig, tmp_path: Path) -> None:
    other = write_corpus(tmp_path, images=5, captions=2, seed=9)
    corpus = Corpus([source, other])
    first, second = PairStore(source.pairs), PairStore(other.pairs)
    assert len(corpus) == len(first) + len(second) == 24 * 3 + 5 * 2
    assert corpus.images == 24 + 5
    for caption in (0, 71, 72, 81):
        store, local = (first, caption) if caption < 72 else (second, caption - 72)
        assert corpus.text(caption) == store.text(local)
        assert corpus.image_key(corpus.caption_image[caption]) == store.images[store.pair_image[local]].decode()
        assert len(corpus.pieces(caption)) == corpus.caption_words[caption]
    for image in (0, 23, 24, 28):
        assert len(corpus.regions(image).features) == corpus.image_regions[image]


def test_splits(source: SourceConfig, tmp_path: Path) -> None:
    captions = [Caption(f"image{i:03d}.jpg", "word01", "dev" if i % 3 else "train") for i in range(24)]
    write_pairs(tmp_path / "pairs", captions, write_vocabulary(tmp_path))
    sources = [SourceConfig(regions=source.regions, pairs=str(tmp_path / "pairs"), split=s) for s in ("train", None)]
    assert [len(Corpus([s])) for s in sources] == [8, 24]
    np.testing.assert_array_equal(Corpus(sources[:1]).caption_image, np.arange(8))
    with pytest.raises(UsageError, match="no split 'test': it has train, dev"):
        Corpus([SourceConfig(regions=source.regions, pairs=str(tmp_path / "pairs"), split="test")])


def test_what_does_not_fit_is_named(source: SourceConfig, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", [Caption("nowhere.jpg", "word01")], write_vocabulary(tmp_path))
    with pytest.raises(
        UsageError, match=r"'nowhere.jpg'.*has captions but no regions.* with `imagebert pairs \.\.\. --regions \S+`$"
    ):
        Corpus([SourceConfig(regions=source.regions, pairs=str(tmp_path / "pairs"))])
    write_pairs(
        tmp_path / "png", [Caption(f"image{i:03d}.png", "word01") for i in range(30)], write_vocabulary(tmp_path)
    )
    with pytest.raises(UsageError) as error:
        Corpus([SourceConfig(regions=source.regions, pairs=str(tmp_path / "png"))])
    assert str(error.value) == (
        f"{tmp_path}/png: image 'image000.png' (one of 30) has captions but no regions in {source.regions}, which has "
        f"'image000.jpg': `imagebert pairs ... --regions {source.regions} --match stem` finds 24 of those that are "
        "missing"
    )
    with pytest.raises(UsageError, match="one run needs one kind of feature"):
        Corpus([source, write_corpus(tmp_path / "wide", images=2, feature_size=20)])


def scored(source: SourceConfig, folder: Path, scores: list[float], **keys: object) -> SourceConfig:
    """Captions of these scores, each of the next image, and one of another split that has none."""
    captions = [Caption(f"image{i:03d}.jpg", f"word{i:02d}", "train", score) for i, score in enumerate(scores)]
    captions.append(Caption("image023.jpg", "word39", "dev"))
    write_pairs(folder / "pairs", captions, write_vocabulary(folder), overwrite=True)
    return SourceConfig(regions=source.regions, pairs=str(folder / "pairs"), **keys)  # type: ignore[arg-type]


def test_captions_below_min_relevance_are_left_out_and_counted(
    source: SourceConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = [0.7, 0.69, np.nan, 0.9, -1.0, 0.7, np.nan, np.inf]
    with caplog.at_level("INFO"):
        corpus = Corpus([source, scored(source, tmp_path, scores, min_relevance=0.7)])  # stored as 0.69999999
    assert [corpus.text(c) for c in range(72, len(corpus))] == ["word00", "word03", "word05", "word07"]
    assert corpus.images == 24 + 4
    assert [corpus.image_key(i) for i in corpus.caption_image[72:]] == [f"image{i:03d}.jpg" for i in (0, 3, 5, 7)]
    assert caplog.messages == [
        f"{tmp_path}/pairs: 4 of 8 captions are left out by min_relevance 0.7, 2 of these for having no score"
    ]
    for least, highest in ((1e300, "the highest is 0.9, "), (2.0, "the highest is 0.9, ")):
        with pytest.raises(UsageError) as error:
            Corpus([scored(source, tmp_path, scores[:7], min_relevance=least)])
        assert str(error.value) == (
            f"{tmp_path}/pairs: no caption has a relevance of {least:g} or more ({highest}2 of 7 have no score): lower "
            "min_relevance, or leave it out"
        )
    with pytest.raises(UsageError, match=r"-1 or more \(2 of 2 have no score\)"):
        Corpus([scored(source, tmp_path, [np.nan] * 2, min_relevance=-1.0)])
    # A caption that is left out need not have regions.
    far = [Caption("image000.jpg", "word00", "train", 1.0), Caption("nowhere.jpg", "word01", "train", 0.5)]
    write_pairs(tmp_path / "far", far, write_vocabulary(tmp_path))
    assert len(Corpus([SourceConfig(regions=source.regions, pairs=str(tmp_path / "far"), min_relevance=0.8)])) == 1


def test_min_relevance_is_of_a_corpus_identity_where_it_is_set(source: SourceConfig, tmp_path: Path) -> None:
    plain = scored(source, tmp_path, [0.5, 0.5])
    digests = [Corpus([replace(plain, min_relevance=least)]).digest() for least in (None, 0.1, 0.2)]
    assert list(digests[0]) == ["regions", "pairs", "splits", "images", "captions", "features", "vocabulary"]
    assert [d.get("min_relevance") for d in digests] == [None, [0.1], [0.2]]
    assert Corpus([replace(plain, weight=2.0, sampling="relevance")]).digest() == digests[0]


def test_weights_of_sources(source: SourceConfig, tmp_path: Path) -> None:
    scores = [0.5, 0.0, 2.0, 1.5, np.nan]
    by_score = scored(source, tmp_path, scores, min_relevance=0.0, sampling="relevance", weight=3.0)
    assert Corpus([source, source]).weights is None
    plain, weighted = Corpus([replace(source, weight=0.25), by_score]).weights or ()
    np.testing.assert_array_equal(plain, np.full(72, 0.25))
    np.testing.assert_allclose(weighted, [1.5, 0, 6, 4.5])  # thrice as often as scores of mean 1 say


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1, np.nan, np.nan], r"2 of 3 captions have no relevance .* of image 'image001.jpg', has no score\): min_rel"),
        ([1, 2, -0.5], r"1 of 3 captions .* of image 'image002.jpg', has -0.5\): min_relevance=0 leaves out"),
        ([1, np.inf], r"1 of 2 captions .*, has inf\)"),
        ([0, 0], r"all 2 captions have relevance 0: take sampling=uniform"),
    ],
)
def test_scores_that_nothing_can_be_sampled_by(
    source: SourceConfig, tmp_path: Path, scores: list[float], message: str
) -> None:
    corpus = Corpus([scored(source, tmp_path, scores, sampling="relevance")])
    with pytest.raises(UsageError, match=message):
        _ = corpus.weights
