"""The packer against the layout of the paper's figure 1, written out pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.records import WHOLE_IMAGE
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.feed.arena import Arena
from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples

LIMITS = Limits(max_regions=5, max_words=6, whole_image=True)


def some_samples(corpus: Corpus, pairs: int = 9) -> Samples:
    rng = np.random.default_rng(0)
    captions = rng.integers(0, len(corpus), pairs)
    images = rng.integers(0, corpus.images, pairs)
    labels = np.arange(pairs) % 2
    images[labels == 1] = corpus.caption_image[captions[labels == 1]]
    return Samples(images, captions, labels, np.arange(100, 100 + pairs))


@pytest.mark.parametrize("whole_image", [True, False])
def test_layout_is_the_papers(source: SourceConfig, whole_image: bool) -> None:
    corpus = Corpus([source])
    limits = Limits(max_regions=5, max_words=6, whole_image=whole_image)
    samples = some_samples(corpus)
    batch = Packer(corpus, limits).pack(samples, Arena())
    vocabulary = corpus.tokenizer
    ids, positions, types, is_region, boxes, features = [], [], [], [], [], []
    lengths = []
    for image, caption in zip(samples.images, samples.captions, strict=True):
        record, words = corpus.regions(image), corpus.pieces(caption)[:6].tolist()
        rows = slice(0, 5) if whole_image else slice(1, 6)
        found = record.dequantized()[rows]
        n = len(found)
        ids += [vocabulary.cls_id, *[-1] * n, vocabulary.sep_id, *words, vocabulary.sep_id]
        positions += [0, *[1] * n, 2, *range(3, 3 + len(words) + 1)]
        types += [0, *[0] * n, 0, *[1] * len(words), 1]
        is_region += [False, *[True] * n, *[False] * (len(words) + 2)]
        for x1, y1, x2, y2 in record.boxes[rows]:
            w, h = record.width, record.height
            boxes.append([x1 / w, y1 / h, x2 / w, y2 / h, (x2 - x1) * (y2 - y1) / (w * h)])
        features += [*found]
        lengths.append(n + len(words) + 3)
    seen = np.full(len(ids), -1)
    seen[batch.text_rows] = batch.input_ids
    assert seen.tolist() == ids
    assert batch.position_ids.tolist() == positions
    assert batch.token_type_ids.tolist() == types
    assert batch.region_rows.tolist() == np.flatnonzero(is_region).tolist()
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths)]
    assert (batch.pairs, batch.tokens) == (9, sum(lengths))
    np.testing.assert_allclose(batch.region_boxes, boxes, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch.region_features * batch.region_scales[:, None], features)
    assert batch.itm_labels.tolist() == samples.labels.tolist()
    # Without masking a head reads [CLS] only.
    assert batch.read_rows.tolist() == batch.cu_seqlens[:-1].tolist()
    assert not batch.region_zeroed.any()


def test_masked_rows_are_read_on_matched_pairs_only(source: SourceConfig) -> None:
    corpus = Corpus([source])
    packer = Packer(corpus, LIMITS)
    samples = some_samples(corpus, 40)
    masking = Masking(stage_key(0, "s"), words=0.4, regions=0.5, mask_id=4, vocabulary=45)
    plain, batch = packer.pack(samples, Arena()), packer.pack(samples, Arena(), 3, masking)
    token_pair = np.repeat(np.arange(40), np.diff(batch.cu_seqlens))
    read = batch.read_rows.numpy()
    assert (np.diff(read) > 0).all()
    np.testing.assert_array_equal(np.bincount(token_pair[read], minlength=40), np.diff(batch.read_cu_seqlens))
    assert read[batch.cls_reads].tolist() == batch.cu_seqlens[:-1].tolist()

    words = read[batch.mlm_reads]
    assert (samples.labels[token_pair[words]] == 1).all()
    original = np.full(batch.tokens, -1)
    original[plain.text_rows] = plain.input_ids
    np.testing.assert_array_equal(original[words], batch.mlm_labels)
    changed = plain.text_rows[plain.input_ids != batch.input_ids].numpy()
    assert set(changed[samples.labels[token_pair[changed]] == 1]) <= set(words)
    assert (samples.labels[token_pair[changed]] == 0).any()  # mismatched pairs are corrupted too

    regions = batch.masked_regions.numpy()
    np.testing.assert_array_equal(read[batch.region_reads], batch.region_rows[regions])
    classes = np.concatenate([corpus.regions(i).classes[:5] for i in samples.images])
    np.testing.assert_array_equal(batch.moc_labels, classes[regions])
    assert (classes[regions] != WHOLE_IMAGE).all()
    zeroed = batch.region_zeroed.numpy()
    matched = samples.labels[token_pair[batch.region_rows]] == 1
    assert set(np.flatnonzero(zeroed & matched)) <= set(regions)
    assert (zeroed & ~matched).any()
    torch.testing.assert_close(batch.region_features, plain.region_features)  # targets stay


def test_the_whole_image_is_left_out_of_each_source_that_has_it(source: SourceConfig, tmp_path: Path) -> None:
    store = RegionStore(source.regions)
    with write_regions(Target(tmp_path / "bare", store.classes, store.extractor)) as writer:
        for i in range(len(store)):
            record = store.read(i)
            bare = record._replace(classes=np.zeros_like(record.classes))
            writer.add(store.key(i), bare)
    bare_source = SourceConfig(regions=str(tmp_path / "bare"), pairs=source.pairs)
    corpus = Corpus([source, bare_source])
    limits = Limits(max_regions=50, max_words=6, whole_image=False)
    np.testing.assert_array_equal(corpus.image_regions - limits.lengths(corpus).regions, np.arange(48) < 24)


def test_the_whole_image_is_marked_where_the_model_wants_it(source: SourceConfig) -> None:
    corpus = Corpus([source])
    limits = Limits(max_regions=5, max_words=6, whole_image=True, mark_whole_image=True)
    batch = Packer(corpus, limits).pack(some_samples(corpus), Arena())
    assert batch.region_rows[batch.global_regions].tolist() == (batch.cu_seqlens[:-1] + 1).tolist()


def test_a_buffer_is_used_again(source: SourceConfig) -> None:
    corpus, buffer = Corpus([source]), Arena()
    packer = Packer(corpus, LIMITS)
    samples = some_samples(corpus)
    packer.pack(samples, Arena())
    first = packer.pack(samples, buffer).region_features.data_ptr()
    fewer = samples.take(np.arange(4))
    assert packer.pack(fewer, buffer).region_features.data_ptr() == first
