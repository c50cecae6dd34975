"""A small demo corpus of rendered scenes with a model of random weights: what search and its page are tried on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.tokens import SPECIALS, Tokenizer
from imagebert.demo.corpus import RETRIEVAL
from imagebert.demo.extractor import FEATURE_SIZE, SceneExtractor
from imagebert.demo.scenes import write_set
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.regions.extract import extract


class Scenes(NamedTuple):
    """regions, pairs and model lie beside images, as the demo has them."""

    folder: Path

    @property
    def serve(self) -> list[str]:
        """Arguments of `imagebert serve` and `search`."""
        return [str(self.folder / "model"), str(self.folder / "regions"), "--pairs", str(self.folder / "pairs")]


def write_scenes(folder: Path, images: int = 9) -> Scenes:
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    pairs = write_set(pictures, "scene", images, RETRIEVAL, seed=0)
    extract(pictures, folder / "regions", SceneExtractor())
    words = sorted({word for _, text in pairs for word in text.split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIALS, *words, "dot", "##ted"]) + "\n")
    write_pairs(folder / "pairs", (Caption(*pair) for pair in pairs), Tokenizer(vocabulary))
    torch.manual_seed(0)
    shape = ImageBertConfig.preset(
        "tiny",
        vocab_size=len(Tokenizer(vocabulary)),
        feature_size=FEATURE_SIZE,
        num_region_classes=len(SceneExtractor().classes),
        initializer_range=0.3,
    )
    ImageBertForImageTextRetrieval(shape).save_pretrained(folder / "model")
    (folder / "model" / "vocab.txt").write_bytes(vocabulary.read_bytes())
    return Scenes(folder)


def write_dual(scenes: Scenes, name: str, weight: float | None = None) -> Path:
    """A model like the scenes' own, with a dual head."""
    folder = scenes.folder / name
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval.from_pretrained(scenes.folder / "model", dual_size=8)
    if weight is not None:
        assert model.dual is not None
        model.dual.image.projection.weight.data.fill_(weight)
    model.save_pretrained(folder)
    shutil.copy(scenes.folder / "vocab.txt", folder)
    return folder
