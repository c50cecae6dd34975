from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagebert.cli import main
from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore, describe_array
from imagebert.demo.extractor import SceneExtractor
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.files import write_sealed
from imagebert.model import ImageBertForImageTextRetrieval
from imagebert.model.attention_maps import word_region_attention
from imagebert.model_folder import open_model
from imagebert.retrieval.search import Finder
from tests.retrieval.scenes import Scenes, write_scenes
from tests.retrieval.test_scoring import make_model

LIMITS = Limits(max_regions=8, max_words=41, whole_image=True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def finder(scenes: Scenes) -> Finder:
    store, pairs = RegionStore(scenes.folder / "regions"), PairStore(scenes.folder / "pairs")
    return Finder(open_model(scenes.folder / "model"), store, LIMITS, pairs)


def exact(scenes: Scenes) -> np.ndarray:
    """Every image with every caption through the plain forward."""
    folder = scenes.folder
    corpus = Corpus([SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"))])
    model = ImageBertForImageTextRetrieval.from_pretrained(folder / "model").eval()
    images, captions = np.repeat(np.arange(9), 45), np.tile(np.arange(45), 9)
    samples = Samples(images, captions, np.ones(405, int), np.arange(405))
    with torch.inference_mode():
        return model(Packer(corpus, LIMITS).pack(samples, Arena())).result.numpy().reshape(9, 45)


def test_finds_what_scoring_everything_finds(scenes: Scenes, finder: Finder) -> None:
    scores, pairs = exact(scenes), PairStore(scenes.folder / "pairs")
    for caption in (0, 13, 44):
        hits = finder.images(finder.query("  " + pairs.text(caption)), top=4)
        best = np.argsort(-scores[:, caption])[:4]
        assert [hit.number for hit in hits] == best.tolist()
        assert [hit.score for hit in hits] == pytest.approx(scores[best, caption].tolist(), abs=1e-4)
        assert 0 < hits[0].probability < 1
    texts = [pairs.text(c) for c in range(45)]
    picture = Image.open(scenes.folder / "images" / finder.store.key(5)).convert("RGB")
    for record in (finder.store.read(5), SceneExtractor()(picture)):  # as stored, and as it was sent
        hits = finder.texts(record, top=3)
        best = list(dict.fromkeys(texts[c] for c in np.argsort(-scores[5])))[:3]
        assert [hit.name for hit in hits] == best


def test_candidates_come_first_where_there_are_many(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ImageBertForImageTextRetrieval.from_pretrained(scenes.folder / "model", dual_size=8)
    model.save_pretrained(scenes.folder / "dual")
    (scenes.folder / "dual" / "vocab.txt").write_bytes((scenes.folder / "vocab.txt").read_bytes())
    monkeypatch.setattr("imagebert.retrieval.search.CANDIDATES", 4)
    finder = Finder(open_model(scenes.folder / "dual"), RegionStore(scenes.folder / "regions"), LIMITS)
    query = finder.query("a red square")
    hits = finder.images(query, top=9)
    assert len(hits) == 4
    finder._by_text.ask(finder._loose([finder.store.read(0)], [query.pieces]))
    products = finder._by_text.image_vectors(np.arange(9)) @ finder._by_text.text_vectors(np.zeros(1, int))[0]
    assert {hit.number for hit in hits} == set(np.argsort(-products)[:4].tolist())
    # The index is kept, and made again where it is damaged or of something else.
    folder = scenes.folder / "dual" / "index"
    (index,) = folder.glob("*.npy")

    def found(limits: Limits = LIMITS) -> set[int]:
        again = Finder(open_model(scenes.folder / "dual"), RegionStore(scenes.folder / "regions"), limits)
        return {hit.number for hit in again.images(query, top=9)}

    np.save(index, -np.load(index))
    assert found() == {hit.number for hit in hits}
    np.save(index, -np.load(index))
    write_sealed(index.with_suffix(".json"), describe_array(index))
    assert found() == set(np.argsort(products)[:4].tolist())
    found(replace(LIMITS, max_regions=3))
    assert len(list(folder.glob("*.npy"))) == 2


def test_queries_that_cannot_be_answered(scenes: Scenes, finder: Finder) -> None:
    with pytest.raises(UsageError, match="the query is empty"):
        finder.query(" \n ")
    with pytest.raises(UsageError, match="knows no word of 'две собаки'"):
        finder.query("две собаки")
    query = finder.query("a red zebra")
    assert query.unknown == ["zebra"]
    bare = Finder(open_model(scenes.folder / "model"), finder.store, LIMITS)
    with pytest.raises(UsageError, match="no captions to choose from"):
        bare.texts(finder.store.read(0), 3)


def test_attention_is_that_of_the_layers(source: SourceConfig) -> None:
    """Of all layers but the last, query by query and head by head."""
    corpus, model = Corpus([source]), make_model(num_hidden_layers=3)
    one = np.ones(1, np.int64)
    batch = Packer(corpus, LIMITS).pack(Samples(4 * one, 13 * one, one, one), Arena())
    with torch.inference_mode():
        found = word_region_attention(model.imagebert, batch)
        hidden, expected = model.imagebert.embeddings(batch), 0
        size = model.config.hidden_size // model.config.num_attention_heads
        for layer in model.imagebert.layers[:2]:
            projected = torch.nn.functional.linear(hidden, layer.query_key_value.weight, layer.query_key_value.bias)
            q, k, _ = projected.split(model.config.hidden_size, dim=1)
            for head in range(model.config.num_attention_heads):
                part = slice(head * size, (head + 1) * size)
                for row in range(len(hidden)):
                    weights = torch.softmax(k[:, part] @ q[row, part] / size**0.5, dim=0)
                    if batch.token_type_ids[row] == 1:
                        place = int(row - batch.region_rows[-1]) - 2
                        expected = expected + torch.zeros(found.shape).index_add(
                            0, torch.tensor([place]), weights[batch.region_rows][None]
                        )
            hidden = layer(hidden, batch.cu_seqlens, batch.max_seqlen)
    torch.testing.assert_close(found, expected / (2 * model.config.num_attention_heads))


@pytest.mark.parametrize("fusion", [1, 2])
def test_what_words_look_at_where_sides_meet_late_or_never(source: SourceConfig, fusion: int) -> None:
    model = make_model(num_hidden_layers=2, fusion_layer=fusion, dual_size=8, residual_score=True)
    corpus, one = Corpus([source]), np.ones(1, np.int64)
    batch = Packer(corpus, LIMITS).pack(Samples(4 * one, 13 * one, one, one), Arena())
    found = word_region_attention(model.imagebert, batch)
    assert found.shape == (int(batch.token_type_ids.sum()), len(batch.region_rows))
    assert (found > 0).all()
    assert found.sum(1).max() < 1 + 1e-5
    if fusion == 2:
        torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


def test_an_explanation_counts_words_not_pieces(finder: Finder) -> None:
    query = finder.query("a dotted red square")
    explanation = finder.explain(2, query)
    assert explanation.words == ["a", "dotted", "red", "square"]
    assert len(explanation.record.boxes) == min(8, int(finder.store.region_counts[2]))
    assert explanation.attention.shape == (4, len(explanation.record.boxes))
    answers = explanation.answers()
    assert sorted(word for words in answers for word in words) == sorted(explanation.words)
    assert answers[0] == []  # the whole image is no answer
    assert explanation.classes[0] == "whole image"


def test_the_command(scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.jpg"
    assert main(["search", *scenes.serve, "a red square and a zebra", "--sheet", str(sheet), "--top", "7"]) == 0
    printed = capsys.readouterr()
    assert "scene-0000" in printed.out
    assert "does not know: zebra" in printed.err
    with Image.open(sheet) as drawn:
        assert drawn.width > 5 * 220
        assert drawn.height > 2 * 220
    key = "scene-00003.jpg"
    for image in (key, str(scenes.folder / "images" / key)):
        assert main(["search", *scenes.serve, "--image", image, "--top", "2"]) == 0
    first, second = (part.split("│ 1 │")[1] for part in capsys.readouterr().out.split("captions for")[1:])
    assert first.split("│")[1] == second.split("│")[1]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((scenes.folder / "images" / key).read_bytes()[:900])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    bomb = tmp_path / "bomb.png"
    Image.new("1", (30_000, 3000)).save(bomb)
    for arguments, message in (
        ([" "], "the query is empty"),
        (["--image", str(broken)], "cannot read the picture"),
        (["--image", str(text)], "cannot read the picture, it is not a picture in a known format"),
        (["--image", str(bomb)], "more pixels than 4,000,000"),
        (["--image", 300 * "x"], "neither a file nor the key of an image"),
        (["--image", "scene-9"], "neither a file nor the key of an image"),
        ([], "give words to search for"),
    ):
        assert main(["search", *scenes.serve, *arguments]) == 2
        assert message in capsys.readouterr().err
