"""Two logistic regressions: against the formula, against scikit-learn, and files that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from imagebert.errors import UsageError
from imagebert.files import write_sealed
from imagebert.lait import images, texts
from imagebert.lait.document import Document
from imagebert.lait.ranker import SHIPPED, Logistic, Ranker, fit_logistic

CONTENT = {"features": ["a", "b"], "weights": [2.0, -1.0], "bias": 0.5}


def test_a_probability_is_the_formulas() -> None:
    model = Logistic(CONTENT, ["a", "b"], "it")
    rows = [[0.0, 0.0], [1.0, 2.0], [-3.0, 4.5], [1e9, 0.0], [-1e9, 0.0]]
    expected = [1 / (1 + math.exp(-max(-60, min(60, 2 * a - b + 0.5)))) for a, b in rows]
    assert model.probabilities(rows).tolist() == pytest.approx(expected)
    assert model.probabilities([]).tolist() == []
    # The same bits, however many rows there are.
    random = np.random.default_rng(1).normal(size=(500, 2))
    together = model.probabilities(random)
    assert [model.probabilities([row])[0] for row in random] == together.tolist()


def test_a_fit_separates_what_can_be_separated() -> None:
    random = np.random.default_rng(2)
    rows = random.normal(size=(2000, 3)) * [1, 100, 0.01] + [5, 0, 0]
    labels = (rows[:, 0] - 5) + rows[:, 1] / 100 > 0
    content = fit_logistic(["x", "y", "z"], rows, labels)
    chances = Logistic(content, ["x", "y", "z"], "it").probabilities(rows)
    assert ((chances > 0.5) == labels).mean() > 0.98
    assert json.loads(json.dumps(content)) == content


@pytest.mark.parametrize("change", [{"features": ["b", "a"]}, {"features": []}, {"weights": [1.0]}, {"weights": []}])
def test_a_model_of_other_features_is_refused(change: dict[str, list[object]]) -> None:
    with pytest.raises(UsageError, match="it was trained on other features than this version measures: train it anew"):
        Logistic({**CONTENT, **change}, ["a", "b"], "it")


def test_the_shipped_one_knows_all_features_and_is_sealed(tmp_path: Path) -> None:
    shipped = json.loads(SHIPPED.read_text())
    assert shipped["pictures"]["features"] == list(images.FEATURES)
    assert shipped["sentences"]["features"] == list(texts.FEATURES)
    assert Ranker().digest == shipped["digest"]
    damaged = tmp_path / "ranker.json"
    damaged.write_text(
        SHIPPED.read_text().replace('"bias": -', '"bias": ', 1).replace('"bias": 0', '"bias": 1', 1) + " "
    )
    assert damaged.read_text().strip() != SHIPPED.read_text().strip()
    with pytest.raises(UsageError, match="ranker"):
        Ranker(damaged)
    write_sealed(damaged, {"pictures": shipped["pictures"]})
    with pytest.raises(UsageError, match="train it anew"):
        Ranker(damaged)


def test_a_hero_is_likelier_dominant_than_a_logo() -> None:
    html = """<img src=/img/logo.png alt="Acme logo" class=logo><article><figure>
    <img src=/photos/dog-on-sand.jpg width=1024 height=768 alt="A dog is on the sand."></figure></article>"""
    logo, hero = Ranker().dominance(images.images_of(Document("http://example.org/", html), 9))
    assert logo < 0.5 < hero
