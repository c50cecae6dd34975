from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.retrieval.candidates import Index, Kind, nearest, read_embeddings, two_step
from imagebert.retrieval.metrics import recalls
from imagebert.retrieval.scoring import PairScorer
from imagebert.retrieval.vectors import Embeddings
from tests.retrieval.test_scoring import LIMITS, make_model

RNG = np.random.default_rng(0)
IMAGES, CAPTIONS = 20, 60
CAPTION_IMAGE = np.arange(CAPTIONS) // 3
SCORES = RNG.integers(0, 40, (IMAGES, CAPTIONS)).astype(np.float32)  # with ties
VECTORS = Embeddings(RNG.normal(size=(IMAGES, 5)).astype(np.float32), RNG.normal(size=(CAPTIONS, 5)).astype(np.float32))


def search(count: int) -> dict[str, Any]:
    scorer: Any = lambda images, captions: SCORES[images, captions]  # noqa: E731
    found = two_step(scorer, np.arange(IMAGES), np.arange(CAPTIONS), CAPTION_IMAGE, count, VECTORS)
    assert found.figures().keys() == found.figures(SCORES).keys()
    return found.figures(SCORES)


@pytest.mark.parametrize("count", [1, 4, 60])
def test_equals_an_exact_count_over_the_candidates(count: int) -> None:
    found = search(count)
    products = VECTORS.images @ VECTORS.captions.T
    text_ranks, image_ranks, overlap = [], [], []
    for c in range(CAPTIONS):
        chosen = np.argsort(-products[:, c])[:count].tolist()
        truth = CAPTION_IMAGE[c]
        text_ranks.append(sum(SCORES[i, c] >= SCORES[truth, c] for i in chosen) if truth in chosen else IMAGES)
    for i in range(IMAGES):
        chosen = np.argsort(-products[i])[:count].tolist()
        own = [c for c in chosen if CAPTION_IMAGE[c] == i]
        best = max((SCORES[i, c] for c in own), default=None)
        wrong = [c for c in chosen if CAPTION_IMAGE[c] != i]
        image_ranks.append(CAPTIONS if best is None else 1 + sum(SCORES[i, c] >= best for c in wrong))
        overlap.append(count >= CAPTIONS)
    for way, ranks in (("ir", text_ranks), ("tr", image_ranks)):
        for name, value in recalls(np.array(ranks)).items():
            assert found[way][name] == pytest.approx(value)
    alone = [int((products[:, c] >= products[CAPTION_IMAGE[c], c]).sum()) for c in range(CAPTIONS)]
    assert found["vectors"]["ir"] == recalls(np.array(alone))
    if all(overlap):
        assert found["tr"]["recall_of_exact_top_10"] == 100
        assert found["pairs"] == IMAGES * CAPTIONS
    else:
        assert found["tr"]["recall_of_exact_top_10"] <= 100 * count / 10


def test_nearest_is_the_largest_product() -> None:
    products = VECTORS.captions @ VECTORS.images.T
    np.testing.assert_array_equal(nearest(VECTORS.captions, VECTORS.images, 4), np.argsort(-products)[:, :4])


def test_the_dual_heads_vectors_are_those_of_training(source: SourceConfig) -> None:
    """A side encoded alone has the vector that it has within a pair."""
    from imagebert.feed.arena import Arena
    from imagebert.feed.packer import Packer
    from imagebert.feed.plan import Samples

    corpus, model = Corpus([source]), make_model(dual_size=6)
    scorer = PairScorer(model, corpus, corpus, LIMITS, torch.device("cpu"), tokens=50)
    images, captions = np.arange(9), np.arange(20, 29)
    batch = Packer(corpus, LIMITS).pack(Samples(images, captions, np.ones(9, int), np.arange(9)), Arena())
    with torch.inference_mode():
        expected = model(batch).vectors
    scale = model.dual.log_scale.exp().item()
    np.testing.assert_allclose(scorer.image_vectors(images) * scale, expected[0], atol=1e-5)
    np.testing.assert_allclose(scorer.text_vectors(captions), expected[1], atol=1e-6)
    with pytest.raises(UsageError, match="no dual head"):
        PairScorer(make_model(), corpus, corpus, LIMITS, torch.device("cpu")).image_vectors(images)


def write(path: Path, **changes: Any) -> Path:
    arrays = {
        "images": np.ones((2, 3), np.float32),
        "captions": np.ones((3, 3), np.float32),
        "image_keys": np.array(["b", "a"]),
        "caption_texts": np.array(["x", "y", "z"]),
    }
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path


@pytest.mark.parametrize("content", [b"PK\x03\x04 no archive", b"", b"\x93NUMPY"])
def test_files_that_are_no_vectors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"give an \.npz with"):
        read_embeddings(tmp_path / "e.npz", ["a"], ["x"])
    np.save(tmp_path / "e.npy", np.ones(3))
    with pytest.raises(UsageError, match=r"give an \.npz with"):
        read_embeddings(tmp_path / "e.npy", ["a"], ["x"])


def test_vectors_that_a_person_brings(tmp_path: Path) -> None:
    images = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = read_embeddings(write(tmp_path / "e.npz", images=images), ["a", "b"], ["x", "y"])
    np.testing.assert_array_equal(found.images, images[::-1])
    assert found.captions.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_keys": np.array(["a", "a"])}, "names image 'a' twice"),
        ({"image_keys": np.array(["a", "c"])}, "lacks image 'b' .one of 1."),
        ({"caption_texts": np.array(["x", "q", "z"])}, "caption 1 is not 'y'"),
        ({"images": np.ones((2, 4))}, "do not fit"),
        ({"images": np.full((2, 3), np.nan)}, "not finite"),
        ({"captions": None}, "give an .npz with"),
        ({"image_keys": np.array(["a", {}], object)}, "give an .npz with"),
    ],
)
def test_vectors_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "e.npz", **changes)
    with pytest.raises(UsageError, match=message):
        read_embeddings(path, ["a", "b"], ["x", "y"])


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_finds_nearly_what_is_nearest(kind: Kind, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    Index.build(kind, vectors).write(tmp_path / "index")
    index = Index.read(tmp_path / "index")  # with its parameters
    best = np.argsort(-vectors[:50] @ vectors.T, axis=1)[:, :10]
    found = [index(query, 10) for query in vectors[:50]]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, best, strict=True)]) > 0.9
    assert all(numbers[0] == number for number, numbers in enumerate(found))  # itself, the nearest first
    described = index.described
    assert (described["kind"], described["vectors"], described["dimensions"]) == (kind, 2000, 16)
    assert (
        described["parameters"]
        == {
            "hnsw": {"links": 32, "build_candidates": 200, "search_candidates": 400},
            "ivf": {"lists": 31, "probes": 31},
        }[kind]
    )
    index.search_as(1)
    assert 1 in index.described["parameters"].values()
    assert kind == "hnsw" or len(index(vectors[0], 2000)) < 200  # one list of 31
    Index.build(kind, vectors[:3]).write(tmp_path / "index")  # few make one, too
    assert Index.read(tmp_path / "index")(vectors[0], 10).tolist()[0] == 0
    (tmp_path / "index").write_bytes((tmp_path / "index").read_bytes()[:-7])
    with pytest.raises(UsageError, match="faiss cannot read"):
        Index.read(tmp_path / "index")
