"""Pictures, regions and texts to what a model takes: the same scores as the system's own retrieval gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

from imagebert import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertModel, ImageBertProcessor
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import Tokenizer
from imagebert.demo.extractor import FEATURE_SIZE, SceneExtractor
from imagebert.demo.scenes import COLORS
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.model_folder import open_model, processing_of, write_model
from imagebert.retrieval.evaluation import make_scorer

TEXTS = ["a red circle", "two blue squares on the left [MASK]", "nothing known"]


def draw(number: int) -> Image.Image:
    picture = Image.new("RGB", (160, 120), (240, 240, 240))
    picture.paste((200, 30 * number, 30), (20 + 10 * number, 20, 70 + 10 * number, 70))
    picture.paste((30, 60, 200), (90, 60, 130, 110))
    return picture


@pytest.fixture(scope="module", params=[True, False], ids=["whole image", "regions only"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, stores of them, and a model of new weights, as a run leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    extractor = SceneExtractor()
    (folder / "images").mkdir()
    with write_regions(Target(folder / "regions", extractor.classes, extractor.description, "int8")) as writer:
        for number in range(3):
            draw(number).save(folder / f"images/{number}.png")
            writer.add(f"{number}.png", extractor(draw(number)))
    words = sorted({word for text in TEXTS for word in text.split()} | set(COLORS) - {"[MASK]"})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    tokenizer = Tokenizer(folder / "vocab.txt")
    write_pairs(folder / "pairs", (Caption(f"{i}.png", text) for i, text in enumerate(TEXTS)), tokenizer)
    limits = Limits(max_regions=2, max_words=5, whole_image=request.param)
    torch.manual_seed(1)
    config = ImageBertConfig.preset("tiny", vocab_size=len(tokenizer), feature_size=FEATURE_SIZE, initializer_range=0.2)
    model = ImageBertForImageTextRetrieval(config)
    corpus = Corpus([SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"), split="train")])
    training = {
        "recipe": {"stage": "s", "task": "finetune", "seed": 0},
        "data": {"images": 3, "captions": 3, "regions": [], "pairs": []},
        "steps": 0,
    }
    write_model(model, dict(model.named_parameters()), processing_of(corpus, limits), training, folder / "model")
    return folder


def matrix(folder: Path) -> torch.Tensor:
    """Every image with every text, by the scorer that evaluation uses."""
    model = open_model(folder / "model")
    corpus = Corpus([SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"), split="train")])
    scorer = make_scorer(model, corpus, corpus, model.limits, torch.device("cpu"))
    images, captions = np.divmod(np.arange(9), 3)
    return torch.tensor(np.array(scorer(images, captions)).reshape(3, 3))


def test_five_lines(trained: Path) -> None:
    processor = ImageBertProcessor.from_pretrained(trained / "model")
    model = ImageBertForImageTextRetrieval.from_pretrained(trained / "model").eval()
    expected = matrix(trained)
    assert expected.std() > 0.01
    with torch.inference_mode():
        batch = processor(images=draw(1), texts=TEXTS)
        torch.testing.assert_close(model(**batch).logits, expected[1:2], rtol=1e-4, atol=1e-4)
        files = [trained / f"images/{number}.png" for number in range(3)]
        torch.testing.assert_close(model(**processor(files, TEXTS)).logits, expected, rtol=1e-4, atol=1e-4)
        keys = ["2.png", "0.png"]
        stored = processor(keys, TEXTS, regions=trained / "regions")
        torch.testing.assert_close(model(**stored).logits, expected[[2, 0]], rtol=1e-4, atol=1e-4)
        pairs = processor(files, TEXTS, pairs=True)
        torch.testing.assert_close(model(**pairs).logits, expected.diagonal(), rtol=1e-4, atol=1e-4)


def test_boxes_and_features(trained: Path) -> None:
    processor = ImageBertProcessor.from_pretrained(trained / "model")
    model = ImageBertForImageTextRetrieval.from_pretrained(trained / "model").eval()
    records = [RegionStore(trained / "regions").read(number) for number in range(3)]
    boxes = [record.boxes / np.array([160, 120, 160, 120]) for record in records]
    features = [record.dequantized() for record in records]
    with torch.inference_mode():
        batch = processor(texts=TEXTS, boxes=boxes, features=features)
        torch.testing.assert_close(model(**batch).logits, matrix(trained), rtol=1e-4, atol=1e-4)
        one = processor(texts=TEXTS[0], boxes=boxes[1], features=torch.tensor(features[1]))
        torch.testing.assert_close(model(**one).logits, matrix(trained)[1:2, :1], rtol=1e-4, atol=1e-4)


def test_auto_classes(trained: Path) -> None:
    folder = trained / "model"
    assert type(AutoConfig.from_pretrained(folder)) is ImageBertConfig
    assert type(AutoModel.from_pretrained(folder)) is ImageBertModel
    assert type(AutoProcessor.from_pretrained(folder)) is ImageBertProcessor
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = ImageBertProcessor.from_pretrained(folder)([draw(0)], TEXTS[:1])
    assert tokenizer(TEXTS[0])["input_ids"] == batch["input_ids"][0].tolist()


def test_saved_and_read_again(trained: Path, tmp_path: Path) -> None:
    processor = ImageBertProcessor.from_pretrained(trained / "model")
    processor.save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (trained / "model" / name).read_bytes()
    again = ImageBertProcessor.from_pretrained(tmp_path)
    for a, b in zip(again(draw(1), TEXTS).values(), processor(draw(1), TEXTS).values(), strict=True):
        assert a is b or torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": [draw(0)]}, "give texts, and images"),
        ({"texts": TEXTS, "boxes": [[0, 0, 1, 1]]}, "give texts, and images, or boxes with features"),
        ({"images": [draw(0)], "texts": TEXTS, "pairs": True}, "1 images and 3 texts make no pairs"),
        ({"images": "7.png", "texts": TEXTS, "regions": "REGIONS"}, "there is no image '7.png' in"),
        ({"texts": TEXTS, "boxes": [[0, 0, 1, 1]], "features": [[1.0] * 5]}, "have 5 features, the model's 96"),
        ({"texts": TEXTS, "boxes": [[0, 0, 160, 120]], "features": [[1.0] * 96]}, "boxes are shares of the image"),
    ],
)
def test_what_does_not_fit(trained: Path, arguments: dict[str, Any], message: str) -> None:
    processor = ImageBertProcessor.from_pretrained(trained / "model")
    given = {name: trained / "regions" if value == "REGIONS" else value for name, value in arguments.items()}
    with pytest.raises((ValueError, UsageError), match=message):
        processor(**given)


def test_pictures_need_an_extractor(trained: Path) -> None:
    processor = ImageBertProcessor.from_pretrained(trained / "model")
    processor.extractor = None
    with pytest.raises(
        ValueError, match="'connected components of rendered scenes': give from_pretrained an extractor"
    ):
        processor(draw(0), TEXTS)


def test_the_package_is_imported_when_it_is_asked() -> None:
    program = """
import sys, imagebert
assert "torch" not in sys.modules and "ImageBertModel" in dir(imagebert)
from imagebert import ImageBertModel
from transformers import AutoModel, AutoConfig
assert AutoConfig.for_model("imagebert", hidden_size=24, num_attention_heads=2).hidden_size == 24
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(ImportError):
        from imagebert import ImageBertNothing  # type: ignore[attr-defined]  # noqa: F401
