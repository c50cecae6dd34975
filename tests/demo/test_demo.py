"""The demo's corpus, and the demo itself with its schedule cut to seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imagebert.demo.corpus as corpus_module
from imagebert.data.pairs import PairStore
from imagebert.data.records import WHOLE_IMAGE
from imagebert.data.regions import RegionStore
from imagebert.demo.corpus import RETRIEVAL, WEAK, build
from imagebert.demo.extractor import FEATURE_SIZE, SceneExtractor
from imagebert.demo.run import run_demo
from imagebert.demo.scenes import COLORS, SHAPES, Thing, describe, make_scene, render, write_set
from imagebert.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_things_do_not_touch_and_lie_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = make_scene(rng, RETRIEVAL)
        assert 2 <= len(scene) <= 4
        taken = np.zeros((120, 160), int)
        for t in scene:
            assert t.x >= 0 and t.y >= 0 and t.x + t.extent <= 160 and t.y + t.extent <= 120  # noqa: PT018
            taken[t.y : t.y + t.extent, t.x : t.x + t.extent] += 1
        assert taken.max() == 1


def test_the_extractor_sees_the_things_in_the_pixels() -> None:
    rng = np.random.default_rng(1)
    extractor, found, right, things = SceneExtractor(), 0, 0, 0
    for _ in range(60):
        scene = make_scene(rng, RETRIEVAL)
        record = extractor(render(scene, rng))
        assert record.classes[0] == WHOLE_IMAGE
        assert record.features.shape[1] == FEATURE_SIZE
        things += len(scene)
        for box, kind in zip(record.boxes[1:], record.classes[1:], strict=True):
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            near = [t for t in scene if abs(x - t.x - t.extent / 2) < 4 and abs(y - t.y - t.extent / 2) < 4]
            found += len(near)
            right += bool(near) and extractor.classes[kind] == f"{near[0].color} {near[0].shape}"
    assert found >= 0.97 * things
    assert 0.75 * found < right < found  # a detector that is good, and no oracle


def test_an_empty_picture_is_its_whole() -> None:
    record = SceneExtractor()(Image.new("RGB", (160, 120), (220, 220, 220)))
    assert record.classes.tolist() == [WHOLE_IMAGE]
    assert np.isfinite(record.features).all()


def test_clean_captions_are_true_and_weak_ones_often_not() -> None:
    rng = np.random.default_rng(0)
    scene = [Thing("star", "red", "big", "striped", 10, 10, 40), Thing("ring", "blue", "small", "plain", 100, 80, 25)]
    true_words = {"red", "crimson", "blue", "navy", "star", "ring", "hoop"}
    kinds = {w for _, words in COLORS.values() for w in words} | {w for words in SHAPES.values() for w in words}

    def false_words(mixture: corpus_module.Mixture) -> float:
        captions = [describe(scene, rng, mixture).split() for _ in range(300)]
        return float(np.mean([bool(kinds & set(c) - true_words) for c in captions]))

    assert false_words(RETRIEVAL) == 0
    assert 0.1 < false_words(WEAK) < 0.5


def test_a_seed_gives_the_same_corpus(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (write_set(tmp_path / name, "x", 5, WEAK, 3) for name in ("a", "b"))
    assert first == second
    assert (tmp_path / "a/x-00004.jpg").read_bytes() == (tmp_path / "b/x-00004.jpg").read_bytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {name: (12, mixture) for name, (_, mixture) in corpus_module.SETS.items()}
    monkeypatch.setattr(corpus_module, "SETS", sets)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_whole_demo_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["schedule.steps=20", "schedule.batch_size=4"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(tmp_path / "demo")
    report = run_demo(tmp_path / "demo", 0, short)
    assert report is not None
    assert json.loads((tmp_path / "demo/report.json").read_text()) == report
    assert report["seconds"] > 0
    assert report["chance"]["ir"]["r1"] == pytest.approx(100 / 12)
    assert len(report["ladder"]) == 5
    for rung in report["ladder"]:
        assert set(rung) >= {"name", "ir", "tr"}
        for way in ("ir", "tr"):
            assert 0 <= rung[way]["r1"] <= rung[way]["r5"] <= rung[way]["r10"] <= 100
    page = (tmp_path / "demo/report.html").read_text()
    assert page.count("<svg") == 2 + 4 + 1  # R@1 both ways, losses of pre-training, loss of fine-tuning
    assert page.count("data:image/jpeg;base64") == 8 * 5 + 8
    assert page.count('class="query"') == 16
    again = run_demo(tmp_path / "demo", 0, short)  # goes on from what is there: nothing is trained again
    assert again is not None
    assert again["ladder"][-1]["ir"] == report["ladder"][-1]["ir"]
    # The README's lines of Python are for this.
    (lines,) = re.findall(r"^```python\n(from PIL.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(lines, known)
    assert known["probabilities"].shape == (1, 2)
    assert bool(((known["probabilities"] > 0) & (known["probabilities"] < 1)).all())


@pytest.mark.usefixtures("small")
def test_a_corpus_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "weak/images").mkdir(parents=True)
    (tmp_path / "weak/images/weak-00000.jpg").write_bytes(b"cut")
    build(tmp_path, 0)
    assert len(RegionStore(tmp_path / "weak/regions")) == 12


@pytest.mark.usefixtures("small")
def test_a_corpus_knows_its_seed(tmp_path: Path) -> None:
    build(tmp_path, 0)
    build(tmp_path, 0)
    with pytest.raises(UsageError, match="holds the corpus of another demo: name another folder"):
        build(tmp_path, 1)
    with pytest.raises(UsageError, match="of another demo"):
        build(tmp_path, 0, web=True)


@pytest.mark.usefixtures("small")
def test_the_weak_set_from_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the LAIT builder finds on pages around scenes: keys of its tars, and the scenes' own captions, mostly."""
    monkeypatch.setattr(corpus_module, "PAGES", 60)
    monkeypatch.setitem(corpus_module.SETS, "weak", (60, corpus_module.WEAK))
    build(tmp_path, 0, web=True)
    pairs, regions = PairStore(tmp_path / "weak/pairs"), RegionStore(tmp_path / "weak/regions")
    assert (regions.find(pairs.images) >= 0).all()
    assert len(pairs) == len(pairs.images) > 30
    assert np.isfinite(pairs.relevance).all()
    # What the scenes were described by when they were drawn; the grammar is the demo's, the pages are not.
    again = tmp_path / "again"
    again.mkdir()
    own = {text for _, text in write_set(again, "weak", 60, corpus_module.WEB, 0)}

    def normal(text: str) -> str:
        return " ".join(re.findall(r"[a-z]+", text.lower()))

    known = {normal(text) for text in own}
    right = sum(normal(pairs.text(number)) in known for number in range(len(pairs)))
    assert right > 0.6 * len(pairs)
