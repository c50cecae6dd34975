"""Trains and measures the relevance model of sentences (imagebert/lait/scorer.json).

    python -m benchmarks.lait_scorer --demo DEMO [--out imagebert/lait/scorer.json] [--json FILE]

DEMO is a finished `imagebert demo`: the made-up web (imagebert/demo/web) shows its scenes, so that a sentence is right
where it is a scene's own caption, and the demo's model of stage 2 scores each. Two parts are trained, without the
model's score and with it. Measured on pages of another seed: the area under the curve (how often a right sentence is
above a wrong one), and of pictures that have a right sentence the share whose best one it is.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.lait_ranker import TRUST, normal, varied, web, without
from benchmarks.report import publish
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.demo.web import Page, Subject, make_web
from imagebert.files import write_sealed
from imagebert.lait.pages import PageReader, PageSentence
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import LaitRecipe
from imagebert.lait.score import MATCHED, SHIPPED, Scorer, features_of, fit
from imagebert.lait.warc import Response
from imagebert.model_folder import open_model
from imagebert.retrieval.matching import Matcher

TRAINED, MEASURED = 11, 12  # seeds
UNSAID = ("title_overlap",)  # see lait_ranker.py


def subjects_of(pairs: PairStore, images: int) -> list[Subject]:
    """The first scenes of a store, each with its first caption."""
    first = {int(image): number for number, image in reversed(list(enumerate(pairs.pair_image)))}
    keys = [pairs.images[image].decode() for image in sorted(first)][:images]
    captions = [pairs.text(first[image]) for image in sorted(first)][:images]
    return [Subject(key.partition(".")[0], text, 640, 480) for key, text in zip(keys, captions, strict=True)]


def rows_of(pages: list[Page]) -> tuple[list[dict[str, Any]], list[str], NDArray[np.int64]]:
    """Rows as `imagebert lait filter` writes them, the scene of each, and whether its sentence is right."""
    reader = PageReader(LaitRecipe(), Ranker())
    found: list[tuple[PageSentence, Page]] = []
    for page in pages:
        told = {name.lower(): value for name, value in page.headers}
        charset = told.get("content-type", "").partition("charset=")[2].strip("\"' ") or None
        robots = [value for name, value in page.headers if name.lower() == "x-robots-tag"]
        answer = Response(page.url, "text/html", charset, robots, page.html, False)
        found += [(row, page) for row in reader.read(answer) if page.images.get(row.url) is not None]
    times = Counter((row.key, row.sentence) for row, _ in found)
    rows, scenes, labels, seen = list[dict[str, Any]](), list[str](), list[int](), set[tuple[str, str]]()
    for row, page in sorted(found, key=lambda pair: (pair[0].key, -pair[0].fit, pair[0].sentence)):
        if (row.key, row.sentence) in seen:
            continue
        seen.add((row.key, row.sentence))
        subject = page.images[row.url]
        assert subject is not None
        rows.append(
            # Scenes are drawn: what tells photographs from drawings is not asked.
            {
                **row._asdict(),
                "pages": times[row.key, row.sentence],
                "width": subject.width,
                "height": subject.height,
                "natural": 1.0,
            }
        )
        scenes.append(subject.name)
        labels.append(int(normal(row.sentence) == normal(subject.sentence)))
    return rows, scenes, np.array(labels)


def measure(chances: NDArray[np.float64], rows: list[dict[str, Any]], labels: NDArray[np.int64]) -> dict[str, float]:
    """Area under the curve, and the share of pictures with a right sentence whose best one is right."""
    best: dict[str, int] = {}
    able = {row["key"] for row, label in zip(rows, labels.tolist(), strict=True) if label}
    for number, row in enumerate(rows):
        if row["key"] in able and (row["key"] not in best or chances[number] > chances[best[row["key"]]]):
            best[row["key"]] = number
    taken = chances >= LaitRecipe().pairs.relevance
    return {
        "auc": float(roc_auc_score(labels, chances)),
        "best_is_right": float(labels[list(best.values())].mean()),
        "precision": float(labels[taken].mean()),
        "recall": float(labels[taken].sum() / labels.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    data = parsed.demo / "data" / "train"  # which stage 2 has not seen
    pairs = PairStore(data / "pairs")
    subjects = subjects_of(pairs, parsed.pages)
    match = Matcher(open_model(parsed.demo / "stage2"), RegionStore(data / "regions"))
    names = {key.partition(".")[0]: key for key in (image.decode() for image in pairs.images)}
    sets = {}
    for seed in (TRAINED, MEASURED):
        rows, scenes, labels = rows_of(make_web(varied(subjects, seed), parsed.pages, seed))
        logits = match([names[scene] for scene in scenes], [row["sentence"] for row in rows])
        rows = [{**row, "match": float(logit)} for row, logit in zip(rows, logits, strict=True)]
        others, _, more = rows_of(web(parsed.pages, seed))  # with other words than scenes have
        sets[seed] = rows, labels, [{**row, "match": math.nan} for row in others], more
    rows, labels, others, more = sets[TRAINED]
    content = fit(without(MATCHED, UNSAID, features_of([*rows, *others])), np.concatenate([labels, more]), TRUST)
    write_sealed(parsed.out, content)
    rows, labels, others, more = sets[MEASURED]
    scorer = Scorer(parsed.out)
    unscored = [{**row, "match": math.nan} for row in rows]
    figures = {
        "scenes, sentences": len(labels),
        "scenes, right": int(labels.sum()),
        "scenes, fit alone": measure(np.array([row["fit"] for row in rows]), rows, labels),
        "scenes, without a model": measure(scorer.relevance(unscored), rows, labels),
        "scenes, with a model": measure(scorer.relevance(rows), rows, labels),
        "others, sentences": len(more),
        "others, right": int(more.sum()),
        "others, without a model": measure(scorer.relevance(others), others, more),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    publish(figures, [], parsed.json)


if __name__ == "__main__":
    main()
