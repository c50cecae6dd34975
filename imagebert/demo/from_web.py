"""The demo's weak set made as LAIT is: pages around its scenes, read by the LAIT builder (imagebert/lait).

What is wrong with such a set is what is wrong with the Web: texts of the page that say something else, pictures without
a sentence of their own, advertisements, opt-outs, other languages. The scenes' own captions are right, as far as they
are found. Scenes are small drawings, so that the filters for photographs are off.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyarrow import parquet

from imagebert.demo.extractor import SceneExtractor
from imagebert.demo.scenes import Mixture, write_set
from imagebert.demo.web import Subject, make_web, write_warcs
from imagebert.lait.aggregate import write_pairs_table
from imagebert.lait.archived import take_pictures
from imagebert.lait.build import read_pages
from imagebert.lait.engine import Engine
from imagebert.lait.filter import filter_pictures
from imagebert.lait.recipe import SHIPPED, read_recipe
from imagebert.lait.score import SHIPPED as SCORER
from imagebert.lait.score import score_pairs
from imagebert.regions.extract import extract

SETTINGS = ("filter.side=100", "filter.natural=0", "filter.nsfw=1", "filter.hamming=-1", "pairs.relevance=0.3")
_SHOWN = (640, 480)  # pixels, as pages say
_MEMORY = 1.0  # GiB


def weak_from_web(folder: Path, images: int, pages: int, mixture: Mixture, seed: int) -> list[tuple[str, str, float]]:
    """Renders scenes, puts them on pages, and builds what the builder finds there into folder/{lait,regions}.

    Returns:
        Key, caption and relevance of each pair; the regions are in the store.
    """
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    captions: dict[str, str] = {}
    for key, text in write_set(pictures, "weak", images, mixture, seed):
        captions.setdefault(key, text)
    subjects = [Subject(Path(key).stem, text, *_SHOWN) for key, text in captions.items()]
    web = make_web(subjects, pages, seed)
    shown = {
        url: (pictures / f"{subject.name}.jpg").read_bytes()
        for page in web
        for url, subject in page.images.items()
        if subject is not None
    }
    (folder / "crawl").mkdir(exist_ok=True)
    write_warcs(web, folder / "crawl", 4, shown)
    recipe, engine, lait = (
        read_recipe(SHIPPED, SETTINGS),
        Engine(processes=len(os.sched_getaffinity(0))),
        folder / "lait",
    )
    read_pages([folder / "crawl"], lait / "candidates", recipe, engine)
    take_pictures(lait / "candidates", [folder / "crawl"], lait / "pictures", recipe, engine, _MEMORY)
    filter_pictures(lait / "candidates", lait / "pictures", lait / "kept", recipe, engine, None, _MEMORY)
    score_pairs(lait / "kept", lait / "scored", SCORER, engine, None, "")
    write_pairs_table(lait / "scored", lait / "pairs.parquet", recipe.pairs, _MEMORY)
    extract(lait / "kept", folder / "regions", SceneExtractor(), overwrite=True)
    table = parquet.read_table(lait / "pairs.parquet", columns=["key", "caption", "relevance"])
    return [(row["key"], row["caption"], row["relevance"]) for row in table.to_pylist()]
