"""The demo's sets, as in the paper: a large weak one, a smaller clean one of another mixture, one for retrieval."""

from __future__ import annotations

import math
from pathlib import Path

from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.tokens import SPECIALS, Tokenizer
from imagebert.demo.extractor import SceneExtractor
from imagebert.demo.from_web import weak_from_web
from imagebert.demo.scenes import Mixture, write_set
from imagebert.errors import UsageError
from imagebert.files import read_sealed, sealed, write_sealed
from imagebert.regions.extract import extract

# Like LAIT: much of it, one caption each, often wrong.
WEAK = Mixture(things=(2, 4), captions=2, mentioned=(2, 3), swapped=0.2, wrong_words=0.1, clutter=0.4)
# What pages show around such pictures is as wrong as it is (from_web.py).
WEB = Mixture(things=(2, 4), captions=1, mentioned=(2, 3))
# Like Conceptual Captions and SBU: fewer pictures, captions that fit, fuller scenes.
CLEAN = Mixture(things=(3, 4), captions=3, mentioned=(2, 3))
# Like Flickr30k: five captions a picture.
RETRIEVAL = Mixture(things=(2, 4), captions=5)

SETS = {"weak": (1800, WEAK), "clean": (500, CLEAN), "train": (400, RETRIEVAL), "test": (100, RETRIEVAL)}


# Pages that show the weak set's scenes, where it is made from such: of them the builder finds about as many pairs.
PAGES = 1500


def build(folder: Path, seed: int, web: bool = False) -> None:
    """Renders, extracts and tokenises every set into folder/NAME/{images,regions,pairs}, unless all are there.

    Args:
        web: the weak set is what the LAIT builder finds on pages around its scenes

    Raises:
        UsageError: there is a corpus, of another seed or made in the other way.
    """
    note, wanted = folder / "corpus.json", {"seed": seed, "web": web}
    if all((folder / name / "pairs").is_dir() for name in SETS):
        there = read_sealed(note) if note.is_file() else sealed({**wanted, "web": False})  # of before there was a note
        if there != sealed(wanted):
            raise UsageError(f"{folder} holds the corpus of another demo: name another folder")
        return
    captions: dict[str, list[tuple[str, str]]] = {}
    relevance: dict[str, float] = {}
    for name, (images, mixture) in SETS.items():
        if web and name == "weak":
            found = weak_from_web(folder / name, images, PAGES, WEB, seed)
            captions[name] = [(key, text) for key, text, _ in found]
            relevance = {key: score for key, _, score in found}
            continue
        pictures = folder / name / "images"
        pictures.mkdir(parents=True, exist_ok=True)
        captions[name] = write_set(pictures, name, images, mixture, seed)
        extract(pictures, folder / name / "regions", SceneExtractor(), overwrite=True)
    words = sorted({word for pairs in captions.values() for _, text in pairs for word in text.split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIALS, *words]) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(vocabulary)
    for name, pairs in captions.items():
        write_pairs(
            folder / name / "pairs",
            (
                Caption(key, text, "test" if name == "test" else "train", relevance.get(key, math.nan))
                for key, text in pairs
            ),
            tokenizer,
            overwrite=True,
        )
    write_sealed(note, wanted)
