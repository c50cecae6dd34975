"""Scorer and both towers by torch.export and as ONNX, at shapes that they were not exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from imagebert.config import SourceConfig
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.model.exportable import ImageVectors, Scorer, TextVectors, dynamic_shapes, write_onnx
from tests.model.test_modeling import SHAPE, make_batch
from tests.model.test_padded import MARKED, padded_of

IMAGE, TEXT = ("region_features", "region_boxes", "region_mask"), ("input_ids", "attention_mask")


def inputs(source: SourceConfig, pairs: int, marked: bool = False) -> dict[str, Any]:
    padded = padded_of(make_batch(source, pairs, rate=0.0, mark=marked), pretraining=False)
    names = (*TEXT, *IMAGE, *(("whole_image",) if marked else ()))
    return {name: padded[name] for name in names}


def make_model(**options: Any) -> ImageBertForImageTextRetrieval:
    torch.manual_seed(0)
    return ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE | {"num_hidden_layers": 2}, **options)).eval()


FUSED = {"dual_size": 8, "fusion_layer": 1, "residual_score": True}
SIDES = {"dual_size": 8, "fusion_layer": 2, "residual_score": True}
SHORTCUT = FUSED | {"dual_shortcut": 5}


@pytest.mark.parametrize("options", [{"dual_size": 8}, MARKED, FUSED, SIDES, SHORTCUT])
def test_plain_modules(source: SourceConfig, options: dict[str, Any]) -> None:
    model = make_model(**options)
    given = inputs(source, 9, model.config.marks_whole_image)
    output = model(**given)
    torch.testing.assert_close(Scorer(model)(**given), output.logits, rtol=1e-5, atol=1e-5)
    if model.dual is not None:
        text = {name: given[name] for name in TEXT}
        image = {name: value for name, value in given.items() if name not in TEXT}
        torch.testing.assert_close(ImageVectors(model, cls_id=2)(**image), output.image_vectors, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(TextVectors(model)(**text), output.text_vectors, rtol=1e-5, atol=1e-6)


def test_torch_export(source: SourceConfig) -> None:
    model = make_model()
    given = inputs(source, 4)
    program = torch.export.export(Scorer(model), (), given, dynamic_shapes=dynamic_shapes(given))
    for pairs in (2, 11):
        given = inputs(source, pairs)
        torch.testing.assert_close(program.module()(**given), model(**given).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"dual_size": 8}, FUSED, SHORTCUT])
def test_onnx(source: SourceConfig, tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_model(**options)
    assert [path.name for path in write_onnx(model, tmp_path, cls_id=2)] == ["scorer.onnx", "image.onnx", "text.onnx"]
    for pairs in (1, 2, 11):
        given = inputs(source, pairs, model.config.marks_whole_image)
        output = model(**given)
        expected = {"scorer": output.logits, "image": output.image_vectors, "text": output.text_vectors}
        for name, wanted in expected.items():
            session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
            image = tuple(name for name in given if name not in TEXT)
            names = {"scorer": (*TEXT, *image), "image": image, "text": TEXT}[name]
            assert [field.name for field in session.get_inputs()] == list(names)
            (got,) = session.run(None, {n: given[n].numpy() for n in names})
            np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_without_a_dual_head_there_are_no_towers() -> None:
    with pytest.raises(ValueError, match="has no dual head"):
        ImageVectors(make_model())
    with pytest.raises(ValueError, match="give whole_image"):
        ImageVectors(make_model(**SHORTCUT), cls_id=2)(
            torch.zeros(1, 2, SHAPE["feature_size"]), torch.zeros(1, 2, 4), torch.ones(1, 2)
        )
    with pytest.raises(ValueError, match="give its number as cls_id"):
        ImageVectors(make_model(**FUSED))
