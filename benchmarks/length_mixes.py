"""Length mixes: how many regions and word pieces pairs have in a real corpus, and random corpora that have them too.

    python -m benchmarks.length_mixes REGIONS PAIRS OUT.json

counts a corpus; the counts of Flickr8k (YOLOX-nano's regions and the whole image, BERT's word pieces) are kept in
benchmarks/lengths/flickr8k.json, so that benchmarks need no photographs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.mixes import draw_lengths
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.tokens import SPECIALS, Tokenizer

VOCABULARY = 30522


def write_random_corpus(
    folder: Path,
    mix: str,
    images: int,
    captions: int,
    feature_size: int,
    classes: int,
    pieces: int = VOCABULARY,
) -> SourceConfig:
    """A corpus of random features and words with the lengths of `mix` (a file in benchmarks/lengths/)."""
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(classes)]
    vocabulary = folder / "vocab.txt"
    words = [f"w{i:05d}" for i in range(pieces - len(SPECIALS))]
    vocabulary.write_text("\n".join([*SPECIALS, *words]) + "\n")
    with write_regions(Target(folder / "regions", names, {"name": "random"})) as writer:
        for image, n in enumerate(draw_lengths(rng, mix, "regions", images)):
            corners = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) * 224
            kinds = rng.integers(0, classes, n).astype(np.uint16)
            kinds[0] = WHOLE_IMAGE
            features = rng.standard_normal((n, feature_size), np.float32)
            ones = np.ones(n, np.float32)
            writer.add(f"{image:07d}", RegionRecord(224, 224, corners.astype(np.float32), ones, kinds, features, ones))
    lengths = draw_lengths(rng, mix, "words", images * captions)
    texts = (
        Caption(f"{number // captions:07d}", " ".join(words[i] for i in rng.integers(0, len(words), n)))
        for number, n in enumerate(lengths)
    )
    write_pairs(folder / "pairs", texts, Tokenizer(vocabulary))
    return SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"))


def main() -> None:
    regions, pairs, out = sys.argv[1:]
    corpus = Corpus([SourceConfig(regions=regions, pairs=pairs, split=None)])
    histograms = {"regions": corpus.image_regions, "words": corpus.caption_words}
    counted = {
        name: {str(v): int(n) for v, n in zip(*np.unique(lengths, return_counts=True), strict=True)}
        for name, lengths in histograms.items()
    }
    Path(out).write_text(json.dumps(counted) + "\n")


if __name__ == "__main__":
    main()
