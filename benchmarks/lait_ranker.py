"""Trains and measures what finds the dominant pictures of pages and their sentences (imagebert/lait/ranker.json).

    python -m benchmarks.lait_ranker [--out imagebert/lait/ranker.json] [--json FILE]

Labelled examples are the pages of a made-up web that knows its truth (imagebert/demo/web). Weights are trained on
`--pages` pages, and measured on as many of another seed: the share of pictures found that are dominant (precision), of
dominant ones that are found (recall), and of those found and described the share whose first sentence is the right one.
Then each kind of page is left out of the training in turn and measured alone: what a page of an unknown kind gets.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.report import Line, publish
from imagebert.demo.web import Page, Subject, make_web, some_subjects
from imagebert.files import write_sealed
from imagebert.lait import images, texts
from imagebert.lait.document import Document, decode
from imagebert.lait.ranker import SHIPPED, Logistic, fit_logistic
from imagebert.lait.recipe import LaitRecipe
from imagebert.lait.sentences import Judge

TRAINED, MEASURED = 1, 2  # seeds
# What a made-up web cannot say: whether a page's title speaks of its picture.
UNSAID = ("overlap_with_title",)
TRUST = 0.01  # what is rare there, and wrong each time, is not always so
LINES = {"precision": 0.95, "recall": 0.9, "right_sentence_first": 0.8}


class Example(NamedTuple):
    """A picture on a page, and the sentences that may describe it."""

    kind: str
    features: list[float]
    is_dominant: bool
    sentences: list[tuple[str, list[float]]]
    right: str  # the sentence that is right for it, "" where none is


def normal(text: str) -> str:
    """A sentence without what two writers of it may differ in."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def varied(subjects: Sequence[Subject], seed: int) -> list[Subject]:
    """The same as people write them: with a capital and a full stop, with one of them, with neither."""
    random = Random(seed)
    found = []
    for subject in subjects:
        text = subject.sentence.rstrip(".")
        text = (text[:1].upper() if random.random() < 0.6 else text[:1].lower()) + text[1:]
        found.append(subject._replace(sentence=text + "." * (random.random() < 0.5)))
    return found


def web(pages: int, seed: int) -> list[Page]:
    """Pages of a made-up web."""
    return make_web(varied(some_subjects(pages, seed), seed), pages, seed)


def examples(pages: Sequence[Page]) -> tuple[list[Example], Counter[str]]:
    """What the pages show, and how many dominant pictures of each kind of page are not even among the candidates."""
    recipe = LaitRecipe()
    judge = Judge(recipe.sentences)
    found, missed = [], Counter[str]()
    for page in pages:
        if not page.english or page.opted_out:
            continue
        charset = {name.lower(): value for name, value in page.headers}.get("content-type", "").partition("charset=")[2]
        document = Document(page.url, decode(page.html, charset.strip("\"' ") or None))
        shown = images.images_of(document, recipe.pages.images)
        missed[page.kind] += len(set(page.pictures) - {image.url for image in shown})
        dominant = [image for image in shown if image.url in page.pictures]
        for image in shown:
            right, said = page.pictures.get(image.url, ""), list[tuple[str, list[float]]]()
            if image.url in page.pictures:
                others = [other for other in dominant if other is not image]
                there = texts.candidates(document, image, not others, others, recipe.pages.around)
                said = [(c.sentence, c.features) for c in there if not judge.flaw(c.sentence)]
            found.append(Example(page.kind, image.features, image.url in page.pictures, said, normal(right)))
    return found, missed


def without(names: Sequence[str], unsaid: Sequence[str], rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Rows of features in which some are the same everywhere, so that nothing is learnt of them."""
    table = np.array(rows, np.float64)
    table[:, [names.index(name) for name in unsaid]] = 0
    return table


def train(found: Sequence[Example]) -> dict[str, Any]:
    """The weights of both models."""
    rows = [example.features for example in found]
    labels = [example.is_dominant for example in found]
    said = [(features, normal(text) == e.right) for e in found if e.right for text, features in e.sentences]
    rows_said, labels_said = zip(*said, strict=True)
    return {
        "pictures": fit_logistic(images.FEATURES, np.array(rows), np.array(labels), TRUST),
        "sentences": fit_logistic(
            texts.FEATURES, without(texts.FEATURES, UNSAID, rows_said), np.array(labels_said), TRUST
        ),
    }


def measure(content: dict[str, Any], found: Sequence[Example], missed: int, threshold: float = 0.5) -> dict[str, float]:
    """Precision and recall of dominant pictures, and of their first sentences the share that is right."""
    chances = Logistic(content["pictures"], images.FEATURES, "").probabilities([e.features for e in found])
    taken = chances >= threshold
    truth = np.array([example.is_dominant for example in found])
    sentences = Logistic(content["sentences"], texts.FEATURES, "")
    asked = right = 0
    for example in found:
        if example.is_dominant and example.right:
            asked += 1
            fits = sentences.probabilities([features for _, features in example.sentences])
            right += bool(len(fits)) and normal(example.sentences[int(fits.argmax())][0]) == example.right
    return {
        "pictures": int(truth.sum()) + missed,
        "precision": float((taken & truth).sum() / max(1, taken.sum())),
        "recall": float((taken & truth).sum() / max(1, truth.sum() + missed)),
        "right_sentence_first": right / max(1, asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    trained, _ = examples(web(parsed.pages, TRAINED))
    measured, missed = examples(web(parsed.pages, MEASURED))
    content = train(trained)
    figures = {"all": measure(content, measured, missed.total())}
    for kind in sorted({example.kind for example in measured}):
        without = train([example for example in trained if example.kind != kind])
        alone = [example for example in measured if example.kind == kind]
        figures[kind] = measure(without, alone, missed[kind])
    write_sealed(parsed.out, content)
    table = Table(
        "page", "pictures", "precision", "recall", "right sentence first", title="kinds: left out of training"
    )
    for kind, row in figures.items():
        shares = [f"{row[name]:.3f}" for name in ("precision", "recall", "right_sentence_first")]
        table.add_row(kind, f"{row['pictures']:,}", *shares)
    Console().print(table)
    lines = [Line(name, figures["all"][name], least) for name, least in LINES.items()]
    publish({"pages": parsed.pages, "figures": figures}, lines, parsed.json)


if __name__ == "__main__":
    main()
