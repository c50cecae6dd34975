"""The demo's sets, as in the paper: a large weak one, a smaller clean one of another mixture, one for retrieval."""

from __future__ import annotations

from pathlib import Path

from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.tokens import SPECIALS, Tokenizer
from imagebert.demo.extractor import SceneExtractor
from imagebert.demo.scenes import Mixture, write_set
from imagebert.regions.extract import extract

# Like LAIT: much of it, one caption each, often wrong.
WEAK = Mixture(things=(2, 4), captions=2, mentioned=(2, 3), swapped=0.2, wrong_words=0.1, clutter=0.4)
# Like Conceptual Captions and SBU: fewer pictures, captions that fit, fuller scenes.
CLEAN = Mixture(things=(3, 4), captions=3, mentioned=(2, 3))
# Like Flickr30k: five captions a picture.
RETRIEVAL = Mixture(things=(2, 4), captions=5)

SETS = {"weak": (1800, WEAK), "clean": (500, CLEAN), "train": (400, RETRIEVAL), "test": (100, RETRIEVAL)}


def build(folder: Path, seed: int) -> None:
    """Renders, extracts and tokenises every set into folder/NAME/{images,regions,pairs}, unless all are there."""
    if all((folder / name / "pairs").is_dir() for name in SETS):
        return
    captions = {}
    for name, (images, mixture) in SETS.items():
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
            (Caption(key, text, "test" if name == "test" else "train") for key, text in pairs),
            tokenizer,
            overwrite=True,
        )
