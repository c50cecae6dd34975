from __future__ import annotations

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
