"""Padded tensors are answered as the packed batch of the same pairs is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from imagebert.batch import PackedBatch
from imagebert.config import SourceConfig
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining, ImageBertModel
from imagebert.model.losses import PretrainingLosses
from tests.model.test_modeling import SHAPE, make_batch

MARKED = {"use_pooler": True, "use_global_image_token": True}


def padded_of(batch: PackedBatch, pretraining: bool = True) -> dict[str, Any]:
    """A packed batch's pairs, taken apart one by one."""
    regions_of = {row: place for place, row in enumerate(batch.region_rows.tolist())}
    texts_of = {row: place for place, row in enumerate(batch.text_rows.tolist())}
    labels = torch.full((batch.tokens,), -100)
    labels[batch.read_rows[batch.mlm_reads]] = batch.mlm_labels
    classes, masked = torch.full((len(regions_of),), -100), torch.zeros(len(regions_of), dtype=torch.bool)
    classes[batch.masked_regions], masked[batch.masked_regions] = batch.moc_labels, True
    features = batch.region_features.float() * batch.region_scales[:, None]
    found: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("ids", "labels", "features", "boxes", "classes", "masked")
    }
    ends = batch.cu_seqlens.tolist()
    for start, end in itertools.pairwise(ends):
        regions = torch.tensor([regions_of[row] for row in range(start, end) if row in regions_of])
        rows = torch.tensor([row for row in range(start, end) if row in texts_of and row != start + len(regions) + 1])
        found["ids"].append(batch.input_ids[torch.tensor([texts_of[row] for row in rows.tolist()])])
        found["labels"].append(labels[rows])
        found["features"].append(features[regions])
        found["boxes"].append(batch.region_boxes[regions, :4])
        found["classes"].append(classes[regions])
        found["masked"].append(batch.region_zeroed[regions])
    counts = torch.tensor([len(one) for one in found["ids"]])
    region_counts = torch.tensor([len(one) for one in found["boxes"]])
    ids = pad_sequence(found["ids"], True, 0)
    boxes = pad_sequence(found["boxes"], True, 0.0)
    padded = {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < counts[:, None]).long(),
        "region_features": pad_sequence(found["features"], True, 7.0),
        "region_boxes": boxes,
        "region_mask": (torch.arange(boxes.shape[1]) < region_counts[:, None]).long(),
        "masked_regions": pad_sequence(found["masked"], True, False),
    }
    if pretraining:
        padded["labels"] = pad_sequence(found["labels"], True, -100)
        padded["region_labels"] = pad_sequence(found["classes"], True, -100)
        padded["matched"] = batch.itm_labels
    else:
        padded["labels"] = batch.itm_labels
    if len(batch.global_regions):
        padded["whole_image"] = torch.ones(batch.pairs, dtype=torch.bool)
    return padded


@pytest.mark.parametrize("pairs", [1, 2, 11])
@pytest.mark.parametrize("options", [{}, MARKED])
def test_pretraining(source: SourceConfig, pairs: int, options: dict[str, bool]) -> None:
    torch.manual_seed(pairs)
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE, **options)).eval()
    batch = make_batch(source, pairs, mark=bool(options))
    counts = PretrainingLosses.counts(batch)
    expected = {n: s / c for n, s, c in zip(PretrainingLosses._fields, model(batch).result, counts, strict=True) if c}
    output = model(**padded_of(batch))
    assert list(output.losses) == list(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(output.losses[name], loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, sum(expected.values()))
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(loss, parameters) for loss in (output.loss, sum(expected.values()))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, MARKED, {"dual_size": 8}, {"dual_size": 8, "dual_shortcut": 5}])
def test_retrieval(source: SourceConfig, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE, **options)).eval()
    batch = make_batch(source, 9, rate=0.0, mark=model.config.marks_whole_image)
    packed = model(batch)
    logits, vectors = packed.result, packed.vectors
    output = model(**padded_of(batch, pretraining=False))
    torch.testing.assert_close(output.logits, logits, rtol=1e-5, atol=1e-6)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.itm_labels)
    torch.testing.assert_close(output.loss, expected)
    if vectors:
        scale = model.dual.log_scale.exp()
        torch.testing.assert_close(output.image_vectors * scale, vectors[0])
        torch.testing.assert_close(output.text_vectors, vectors[1])


def test_every_image_with_every_text(source: SourceConfig) -> None:
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE, dual_size=8)).eval()
    padded = padded_of(make_batch(source, 6, rate=0.0), pretraining=False)
    del padded["labels"], padded["masked_regions"]
    images = {name: padded[name][:4] for name in ("region_features", "region_boxes", "region_mask")}
    texts = {name: padded[name] for name in ("input_ids", "attention_mask")}
    output = model(**images, **texts, all_pairs=True)
    assert output.logits.shape == (4, 6)
    assert (output.image_vectors.shape, output.text_vectors.shape) == ((4, 8), (6, 8))
    for i in range(4):
        for t in range(6):
            one = {n: x[i : i + 1] for n, x in images.items()} | {n: x[t : t + 1] for n, x in texts.items()}
            torch.testing.assert_close(model(**one).logits[0], output.logits[i, t], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, MARKED])
def test_hidden_states_and_attentions(source: SourceConfig, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = ImageBertModel(ImageBertConfig(**SHAPE, **options)).eval()
    batch = make_batch(source, 5, mark=bool(options))
    padded = padded_of(batch)
    for name in ("labels", "region_labels", "matched"):
        del padded[name]
    output = model(**padded, output_hidden_states=True, output_attentions=True)
    mask = output.attention_mask
    torch.testing.assert_close(output.last_hidden_state[mask], model(batch), rtol=1e-5, atol=1e-5)
    assert bool((output.last_hidden_state[~mask] == 0).all())
    assert len(output.hidden_states) == SHAPE["num_hidden_layers"] + 1
    torch.testing.assert_close(output.hidden_states[0][mask], model.embeddings(batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.hidden_states[-1][mask], model(batch), rtol=1e-5, atol=1e-5)
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(3), torch.ones(weights.shape[:3]))
        assert bool((weights.transpose(1, 3)[~mask] == 0).all())  # nothing looks at padding
    assert isinstance(model(**padded, return_dict=False), tuple)


def test_without_labels_all_predictions(source: SourceConfig) -> None:
    torch.manual_seed(0)
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE)).eval()
    batch = make_batch(source, 5)
    padded = padded_of(batch)
    labels, classes, matched = (padded.pop(name) for name in ("labels", "region_labels", "matched"))
    zeroed = padded["masked_regions"]
    del padded["masked_regions"]
    padded["region_features"] = padded["region_features"].masked_fill(zeroed[..., None], 0)
    output = model(**padded)
    # From them the losses by hand.
    words = torch.nn.functional.cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten())
    regions = torch.nn.functional.cross_entropy(output.region_logits.flatten(0, 1), classes.flatten())
    match = torch.nn.functional.binary_cross_entropy_with_logits(output.matching_logits, matched)
    mlm, moc, _, itm = (s / c for s, c in zip(model(batch).result, PretrainingLosses.counts(batch), strict=True))
    torch.testing.assert_close(torch.stack([words, regions, match]), torch.stack([mlm, moc, itm]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "input_ids is needed"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "padding stands behind it"),
        ({"region_features": torch.zeros(1, 2, 5)}, r"region_features has shape \[1, 2, 5\]"),
        ({"region_boxes": torch.full((1, 2, 4), 30.0)}, "shares of the image's width and height"),
        ({"region_boxes": torch.tensor([[[0.5, 0, 0.2, 1]] * 2])}, "shares of the image's width and height"),
        ({"input_ids": torch.ones(3, 4, dtype=torch.int64)}, "1 images and 3 texts: give as many of each"),
        ({"labels": torch.ones(3)}, r"labels has shape \[3\]"),
        ({"pixel_values": torch.ones(1)}, "takes no pixel_values"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).eval()
    padded: dict[str, Any] = {
        "input_ids": torch.tensor([[2, 7, 8, 3]]),
        "region_features": torch.zeros(1, 2, SHAPE["feature_size"]),
        "region_boxes": torch.tensor([[[0, 0, 1.0, 1.0]] * 2]),
    }
    assert model(**padded).logits.shape == (1,)
    with pytest.raises((ValueError, TypeError), match=message):
        model(**padded | change)
