"""Adapters of the peft library: on each linear layer they do what they say, elsewhere they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from imagebert.config import SourceConfig
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining
from tests.model.test_modeling import SHAPE, make_batch

LINEAR = [
    *("query_key_value", "attention_output", "intermediate", "output"),
    *("region_projection", "location_projection", "transform", "decoder", "moc", "mrfr", "score"),
]


def total(model: Any, batch: Any) -> torch.Tensor:
    return sum(loss.double() for loss in model(batch).result)  # type: ignore[return-value]


def test_these_are_all_linear_layers() -> None:
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE))
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert found == set(LINEAR)


@pytest.mark.parametrize("layer", LINEAR)
def test_an_adapter_is_what_it_says(source: SourceConfig, layer: str) -> None:
    """Beside a model whose weights were changed by hand: the same loss, and a gradient for both factors."""
    torch.manual_seed(0)
    config = ImageBertConfig(**SHAPE, tie_word_embeddings=False)
    model, batch = ImageBertForPreTraining(config).eval(), make_batch(source, 11)
    plain = total(model, batch)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=[layer], lora_dropout=0.0)).eval()
    torch.testing.assert_close(total(adapted, batch), plain, rtol=1e-6, atol=1e-6)  # its second factor is zero
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    changed = total(adapted, batch)
    assert abs(changed - plain) > 1e-4
    changed.backward()
    grads = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    assert grads
    assert all(g is not None and float(g.abs().max()) > 0 for g in grads)
    merged = adapted.merge_and_unload()
    assert type(merged) is ImageBertForPreTraining
    torch.testing.assert_close(total(merged, batch), changed, rtol=1e-5, atol=1e-5)


def test_scores_of_an_adapted_model(source: SourceConfig) -> None:
    """Also by the way that encodes each side once."""
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).eval()
    batch = make_batch(source, 7, rate=0.0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=LINEAR[:4])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    scores = adapted(batch).result
    inner = adapted.base_model.model
    torch.testing.assert_close(inner.score(inner.encode(batch), batch.cu_seqlens, batch.max_seqlen), scores)
    torch.testing.assert_close(adapted.merge_and_unload()(batch).result, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
def test_an_adapter_without_effect_is_refused(source: SourceConfig, table: str) -> None:
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE, tie_word_embeddings=False)).eval()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[table]))
    with pytest.raises(TypeError, match="in place of a plain Embedding, whose parameters ImageBERT reads"):
        adapted(make_batch(source, 3))
