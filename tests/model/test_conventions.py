"""What Hugging Face's programs ask of a model besides its forward."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagebert.config import SourceConfig
from imagebert.files import check_digests, write_sealed
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining, modeling
from imagebert.model.card import model_digest
from tests.model.test_modeling import SHAPE, make_batch
from tests.model.test_padded import padded_of


def make_model(**options: Any) -> ImageBertForPreTraining:
    torch.manual_seed(0)
    return ImageBertForPreTraining(ImageBertConfig(**SHAPE, **options))


def test_gradient_checkpointing_can_be_turned_on(source: SourceConfig) -> None:
    """It changes no gradient, and layers are computed twice."""
    batch, grads, calls = make_batch(source, 11), [], []
    for recompute in (False, True):
        model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if recompute:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == recompute
        count = []
        model.imagebert.layers[0].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        sum(model(batch).result).backward()
        grads.append([p.grad for p in model.parameters()])
        calls.append(len(count))
    assert calls == [1, 2]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [52, 40])
def test_the_vocabulary_can_grow_and_shrink(source: SourceConfig, size: int) -> None:
    model = make_model().eval()
    before = model.imagebert.embeddings.word_embeddings.weight.detach().clone()
    model.resize_token_embeddings(size)
    words = model.get_input_embeddings().weight
    assert model.config.vocab_size == size == len(words) == len(model.mlm.decoder.bias)
    assert model.mlm.decoder.weight is words  # still tied
    torch.testing.assert_close(words[: min(size, 45)], before[: min(size, 45)])
    padded = padded_of(make_batch(source, 11))
    padded["input_ids"] %= size
    padded["labels"] = torch.where(padded["labels"] < size, padded["labels"], -100)
    model(**padded).loss.backward()
    assert words.grad is not None


def test_from_pretrained_in_another_type_and_by_a_device_map(source: SourceConfig, tmp_path: Path) -> None:
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644
    batch = make_batch(source, 11)
    half = ImageBertForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.dtype == torch.bfloat16
    for a, b in zip(half(batch).result, model(batch).result, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.5)
    placed = ImageBertForPreTraining.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    torch.testing.assert_close(placed(batch).result, model(batch).result)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, as training writes it."""
    out = tmp_path / "model"
    ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).save_pretrained(out)
    for name in ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json", "training.json", "README.md"):
        (out / name).write_text(json.dumps(name))
    modeling.write_digests(out)
    return out


def test_a_model_folder_stays_whole(folder: Path, tmp_path: Path) -> None:
    """Saved again it has all its files; with other weights it no longer says how they came about."""
    model = ImageBertForImageTextRetrieval.from_pretrained(folder)
    model.save_pretrained(tmp_path / "copy")
    files = set(check_digests(tmp_path / "copy")["files"])
    assert files == set(check_digests(folder)["files"])
    with torch.no_grad():
        model.itm.score.bias += 1
    model.save_pretrained(tmp_path / "changed")
    assert files - set(check_digests(tmp_path / "changed")["files"]) == {"training.json", "README.md"}


def test_push_to_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, name: str, private: bool | None, exist_ok: bool) -> Any:
            sent["private"] = private
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id: str, folder_path: str, **commit: Any) -> str:
            check_digests(Path(folder_path))
            sent.update(commit, to=repo_id, files={p.name: p.read_bytes() for p in Path(folder_path).iterdir()})
            return "done"

    monkeypatch.setattr(modeling, "HfApi", Hub)
    recall = {"images": 4, "captions": 20, "folds": 1}
    recall |= {way: {"r1": r, "r5": r + 20, "r10": 99.0} for way, r in (("ir", 50.04), ("tr", 60.0))}
    for number, digest in enumerate((model_digest(folder), "another model's")):
        place = folder.parent / f"evaluation/test-{number}"
        place.mkdir(parents=True)
        about = {"model": digest, "split": "test", "data": {"regions": ["ab" * 32], "pairs": ["cd" * 32]}}
        write_sealed(place / "evaluation.json", about)
        (place / "recall.json").write_text(json.dumps(recall | {"images": 4 + number}))
    model = ImageBertForImageTextRetrieval.from_pretrained(folder)
    assert model.push_to_hub("somebody/imagebert", private=True, token="t", create_pr=True) == "done"
    assert sent["to"] == "somebody/imagebert"
    assert (sent["token"], sent["private"], sent["create_pr"]) == ("t", True, True)
    assert set(sent["files"]) == {p.name for p in folder.iterdir()}
    card = sent["files"]["README.md"].decode()
    assert card.startswith((folder / "README.md").read_text())
    assert "| test: 4 images, 20 captions | 50.0 | 70.0 | 99.0 | 60.0 | 80.0 | 99.0 |" in card
    assert "5 images" not in card
