"""The feature of the whole image, against what the store's records say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.model.dual import whole_image_features
from tests.corpora import write_corpus


@pytest.mark.parametrize("whole", [True, False])
def test_the_whole_image_or_the_mean_of_its_regions(tmp_path: Path, whole: bool) -> None:
    corpus = Corpus([write_corpus(tmp_path, images=6)])
    limits = Limits(max_regions=3, max_words=4, whole_image=whole, mark_whole_image=whole)
    images = np.array([4, 0, 5, 1])
    ones = np.ones(4, np.int64)
    batch = Packer(corpus, limits).pack(Samples(images, images, ones, np.arange(4)), Arena())
    found = whole_image_features(batch)
    for row, image in enumerate(images.tolist()):
        features = corpus.regions(image).dequantized()
        expected = features[0] if whole else features[1:4].mean(0)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
    # What is masked is seen as zeros here, too.
    masked = batch._replace(region_zeroed=torch.ones_like(batch.region_zeroed))
    assert not whole_image_features(masked).any()
