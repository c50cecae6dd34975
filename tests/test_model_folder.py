from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertTokenizerFast

from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.tokens import SPECIALS, Settings, Tokenizer
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.files import read_json
from imagebert.model_folder import open_model, processing_of
from tests.corpora import write_corpus

RECIPE = str(Path(__file__).parent / "recipe.yaml")
FED = {"max_regions": 3, "max_words": 4, "whole_image": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that feeds little of a pair, on data of its own."""
    folder = tmp_path_factory.mktemp("fed")
    source = write_corpus(folder / "data", images=20)
    settings = [f"data.{name}={json.dumps(value)}" for name, value in FED.items()]
    settings += [f"data.sources.0.{kind}={getattr(source, kind)}" for kind in ("regions", "pairs")]
    settings += ["schedule.steps=3", "schedule.batch_size=4"]
    assert main(["pretrain", RECIPE, f"output={folder / 'run'}", *settings]) == 0
    return folder / "run"


def figures(model: Path, data: Path, out: Path, *more: str) -> dict[str, object]:
    call = ["evaluate", str(model), "--regions", str(data / "regions"), "--pairs", str(data / "pairs")]
    assert main([*call, "--split", "train", "--out", str(out), "--json", f"{out}.json", *more]) == 0
    found: dict[str, object] = json.loads(Path(f"{out}.json").read_text())
    return {name: found[name] for name in ("rsum", "ir", "tr")}


def test_a_model_is_fed_as_it_was_trained_wherever_it_lies(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = run.parent / "data"
    expected = figures(run, data, tmp_path / "a")
    shutil.copytree(run / "model", tmp_path / "elsewhere")
    assert figures(tmp_path / "elsewhere", data, tmp_path / "b") == expected
    # A checkpoint is enough: neither the data nor the recipe need be there.
    shutil.copytree(run / "checkpoints", tmp_path / "bare/checkpoints")
    aside = data.rename(data.with_name("aside"))
    assert main(["export", str(tmp_path / "bare"), str(tmp_path / "exported")]) == 0
    aside.rename(data)
    assert figures(tmp_path / "exported", data, tmp_path / "c") == expected
    assert "fed otherwise" not in caplog.text
    assert figures(run, data, tmp_path / "d", "--max-regions", "100", "--max-words", "41") != expected
    assert "fed otherwise than it was trained: max_regions 100 instead of 3; max_words 41 instead of 4" in caplog.text


def test_what_a_folder_says(run: Path) -> None:
    folder = run / "model"
    corpus = Corpus([SourceConfig(regions=str(run.parent / "data/regions"), pairs=str(run.parent / "data/pairs"))])
    found = open_model(run)
    assert {name: getattr(found.limits, name) for name in FED} == FED
    assert found.preprocessor["region_classes"] == corpus.classes
    assert found.preprocessor["extractor"] == {"name": "random", "digest": "0"}
    assert (found.preprocessor["feature_type"], found.preprocessor["feature_size"]) == ("int8", 12)
    assert found.training["data"] == json.loads(json.dumps(corpus.digest()))
    assert (found.training["steps"], found.training["recipe"]["stage"]) == (3, "test")
    card = (folder / "README.md").read_text()
    assert corpus.digest()["regions"][0][:16] in card  # type: ignore[index]
    assert "fed | 3 regions, 4 word pieces |" in card
    # As Hugging Face reads it.
    texts = ["Word01 word02, wörd", "word39"]
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == corpus.tokenizer.encode(texts)
    assert AutoTokenizer.from_pretrained(folder).mask_token == "[MASK]"
    assert (folder / "model.safetensors").stat().st_mode & 0o444 == 0o444


def test_words_become_pieces_as_in_training(tmp_path: Path) -> None:
    """By the settings of a pair store, here and in Hugging Face's hands."""
    source = write_corpus(tmp_path / "data", images=1)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "Café", "cafe", "café", "犬", "犬Dog"]))
    made = set()
    for number, settings in enumerate((Settings(False), Settings(True, False), Settings(False, True, False))):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer = Tokenizer(tmp_path, lambda _, settings=settings: settings)
        write_pairs(folder / "pairs", [Caption("image000.jpg", "Café 犬Dog")], tokenizer)
        corpus = Corpus([SourceConfig(regions=source.regions, pairs=str(folder / "pairs"))])
        words = processing_of(corpus, Limits(**FED))
        (folder / "vocab.txt").write_text(words.vocabulary)
        (folder / "tokenizer_config.json").write_text(json.dumps(words.tokenizer))
        expected = [corpus.pieces(0).tolist()]
        assert Tokenizer(folder).encode(["Café 犬Dog"]) == expected
        assert not Tokenizer(folder).difference(corpus.tokenizer)
        theirs = BertTokenizerFast.from_pretrained(folder)
        assert theirs(["Café 犬Dog"], add_special_tokens=False)["input_ids"] == expected
        made.add(str(expected))
    assert len(made) == 3


def test_a_changed_byte_of_any_file_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    for file in sorted((tmp_path / "model").iterdir()):
        if file.is_file():
            data = file.read_bytes()
            file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
            with pytest.raises(UsageError, match=f"{file.name}"):
                open_model(tmp_path / "model")
            file.write_bytes(data)
    other = tmp_path / "other"
    shutil.copytree(run / "model", other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"model.safetensors has changed since it was written"):
        open_model(other)


def test_a_model_of_before_is_told_once_what_it_lacks(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (tmp_path / "run/model").mkdir(parents=True, exist_ok=True)
        shutil.copy(run / "model" / name, tmp_path / "run/model")
    with caplog.at_level(logging.WARNING):
        assert open_model(tmp_path / "run").limits.max_regions == 100
    (record,) = [r.message for r in caplog.records if r.name == "imagebert.model_folder"]
    assert "lacks tokenizer_config.json, preprocessor_config.json, training.json, digests.json" in record
    assert "it is fed 100 regions and 41 words, the whole image among them" in record
    shutil.copy(run / "config.yaml", tmp_path / "run")
    assert open_model(tmp_path / "run/model").limits.max_regions == 3


def test_search_says_that_regions_are_anothers(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = write_corpus(tmp_path, images=4, feature_type="float32")
    assert main(["search", str(run), other.regions, "word01"]) == 0
    assert "fed otherwise than it was trained: features as float32 instead of int8" in caplog.text


def test_weights_that_are_not_finite_are_not_written(run: Path, tmp_path: Path) -> None:
    from imagebert.model import ImageBertForPreTraining
    from imagebert.model_folder import Processing, write_model

    model = ImageBertForPreTraining.from_pretrained(run / "model")
    weights = dict(model.named_parameters())
    weights["itm.score.bias"].data[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"itm.score.bias \(one of 1 tensors\) is not finite"):
        write_model(model, weights, Processing({}, {}, ""), read_json(run / "model/training.json"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
