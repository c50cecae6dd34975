"""Retrieval from Python: the figures are those of the matrix that is left."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from imagebert import api
from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.retrieval.metrics import evaluate as count
from imagebert.training.hard_negatives import read_hard_negatives
from tests.retrieval.test_scoring import make_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def data(source: SourceConfig, folds: int = 1) -> api.Data:
    return api.Data(regions=source.regions, pairs=source.pairs, split="train", folds=folds, max_regions=6, max_words=8)


def test_an_evaluation(model: Path, source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = api.evaluate(model, data(source, folds=2), images=12, out=tmp_path / "out")
    assert done.folder == tmp_path / "out"
    assert json.loads(json.dumps(done.figures)) == json.loads((tmp_path / "out/recall-2-folds.json").read_text())
    scores = np.load(tmp_path / "out/scores.npy")
    assert scores.shape == (12, 36)
    whole = count(scores, Corpus([source]).caption_image[:36])
    again = api.recount(tmp_path / "out")
    assert again["rsum"] == whole["rsum"]
    assert again["ir"] == whole["ir"]
    # The whole-image region and the lengths fed are another evaluation.
    other = api.evaluate(model, data(source), images=12)
    assert other.folder.parent == model / "evaluation"
    assert {row["larger than noise"] for row in api.compare(other.folder, other.folder)} == {False}
    with pytest.raises(UsageError, match="embeddings are for finding candidates: give a number of `candidates`"):
        api.evaluate(model, data(source), embeddings="x.npz")
    assert capsys.readouterr().out == ""


def test_candidates_alone_are_those_beside_the_exact_count(model: Path, source: SourceConfig, tmp_path: Path) -> None:
    corpus, rng = Corpus([source]), np.random.default_rng(0)
    np.savez(
        tmp_path / "e.npz",
        images=rng.normal(size=(12, 5)),
        captions=rng.normal(size=(36, 5)),
        image_keys=[corpus.image_key(i) for i in range(12)],
        caption_texts=[corpus.text(c) for c in range(36)],
    )
    given = {"images": 12, "candidates": 4, "embeddings": tmp_path / "e.npz"}
    beside = api.evaluate(model, data(source), **given, out=tmp_path / "out").figures["two_step"]
    alone = api.evaluate(model, data(source), **given, exact=False).figures
    assert alone["pairs"] == beside["pairs"] < 12 * 36
    for way in ("ir", "tr"):
        for name, value in alone["two_step"][way].items():
            assert alone[way][name] == value == beside[way][name]
    assert alone["two_step"]["vectors"] == beside["vectors"]
    with pytest.raises(UsageError, match="give a number of `candidates`, and no `out`"):
        api.evaluate(model, data(source), images=12, exact=False)


def test_named_data() -> None:
    named = api.dataset("coco1k", "stores")
    assert (named.regions, named.pairs) == (Path("stores/coco/regions"), Path("stores/coco/pairs"))
    assert (named.split, named.folds) == ("test", 5)
    with pytest.raises(UsageError, match="dataset imagenet: there are flickr30k"):
        api.dataset("imagenet")


def test_hard_negatives(model: Path, source: SourceConfig, tmp_path: Path) -> None:
    mined = api.mine(model, tmp_path / "hard", data(source), pool=4, keep=2)
    corpus = Corpus([source])
    assert mined == api.Mined(tmp_path / "hard", corpus.images, len(corpus))
    assert read_hard_negatives(tmp_path / "hard", corpus).captions.shape == (corpus.images, 2)


def test_what_is_searched_for(model: Path, source: SourceConfig) -> None:
    for wrong in ({}, {"words": "a dog", "image": "x.jpg"}):
        with pytest.raises(UsageError, match="give words to search for"):
            api.search(model, source.regions, **wrong)
