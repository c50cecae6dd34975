from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from imagebert.batch import PackedBatch
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import BatchPlan, Cut, Negatives
from imagebert.feed.sizes import Sizes
from imagebert.model import (
    PRESETS,
    ImageBertConfig,
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    ImageBertModel,
    initialize_from,
)
from imagebert.model.initialization import embed_text_alone
from imagebert.model.losses import PretrainingLosses
from tests.corpora import CLASSES, FEATURE_SIZE, WORDS
from tests.kernels.conftest import entry  # noqa: F401
from tests.model import reference

SHAPE = {
    "vocab_size": len(WORDS) + 5,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "feature_size": FEATURE_SIZE,
    "num_region_classes": CLASSES,
    "initializer_range": 0.2,
}


def make_batch(
    source: SourceConfig, pairs: int, rate: float = 0.4, mark: bool = False, sizes: Sizes | None = None
) -> PackedBatch:
    corpus = Corpus([source])
    packer = Packer(corpus, Limits(max_regions=6, max_words=8, whole_image=True, mark_whole_image=mark))
    negatives = Negatives(share=0.5, group_size=1, source="corpus")
    plan = BatchPlan(
        corpus.caption_image, packer.lengths, negatives, Cut(batch_size=pairs, microbatches=1), key=stage_key(0, "s")
    )
    masking = Masking(stage_key(0, "s"), words=rate, regions=rate, mask_id=4, vocabulary=len(WORDS) + 5)
    return packer.pack(plan.global_batch(pairs), Arena(), pairs, masking, sizes)


@pytest.mark.parametrize("pairs", [1, 2, 11, 24])
@pytest.mark.parametrize(
    "options", [{}, {"use_pooler": True, "use_global_image_token": True}, {"fusion_layer": 1}, {"fusion_layer": 2}]
)
def test_packed_equals_padded(source: SourceConfig, pairs: int, options: dict[str, Any]) -> None:
    torch.manual_seed(pairs)
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE, **options)).eval()
    batch = make_batch(source, pairs, mark="use_pooler" in options)
    weights = dict(model.named_parameters())
    expected = reference.pretraining_losses(weights, batch, 3, 3, model.config.fusion_layer)
    got = model(batch).result
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    names, parameters = list(weights), list(weights.values())
    expected_grads = torch.autograd.grad(sum(expected), parameters, allow_unused=True, materialize_grads=True)
    for name, a, b in zip(names, torch.autograd.grad(sum(got), parameters), expected_grads, strict=True):
        largest = b.abs().max().clamp(min=1e-3)
        assert (a - b).abs().max() <= 1e-4 * largest, name


@pytest.mark.usefixtures("entry")
@pytest.mark.parametrize("entry", [pytest.param("triton", marks=pytest.mark.slow), "reference"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"use_pooler": True, "use_global_image_token": True}])
def test_fill_changes_nothing(source: SourceConfig, options: dict[str, bool]) -> None:
    """One shape for all batches: losses and gradients as without fill."""
    torch.manual_seed(0)
    heads = {**SHAPE, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = ImageBertForPreTraining(ImageBertConfig(**heads, **options)).eval()
    sizes = Sizes(pairs=12, regions=50, texts=80, masked=(40, 30))
    found = []
    for room in (None, sizes):
        batch = make_batch(source, 9, mark=bool(options), sizes=room)
        assert (batch.real_pairs, batch.real_tokens) == (9, int(batch.cu_seqlens[-1]))
        losses = model(batch).result
        found.append([*losses, PretrainingLosses.counts(batch), *torch.autograd.grad(sum(losses), model.parameters())])
    assert (batch.pairs, batch.tokens, len(batch.mlm_labels), len(batch.moc_labels)) == (12, 130, 40, 30)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_scores_equal_padded(source: SourceConfig) -> None:
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE)).eval()
    batch = make_batch(source, 13)
    hidden, _ = reference.hidden_states(dict(model.named_parameters()), batch, 3, 3)
    torch.testing.assert_close(
        model(batch).result, reference.itm_logits(dict(model.named_parameters()), hidden), rtol=1e-5, atol=1e-6
    )


def test_all_rows_or_the_read_ones(source: SourceConfig) -> None:
    model = ImageBertModel(ImageBertConfig(**SHAPE)).eval()
    batch = make_batch(source, 7)
    torch.testing.assert_close(model(batch, reads_only=True), model(batch)[batch.read_rows])


def test_gradient_checkpointing_changes_nothing(source: SourceConfig) -> None:
    batch, grads = make_batch(source, 7), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = ImageBertForPreTraining(ImageBertConfig(**SHAPE, gradient_checkpointing=recompute)).train()
        torch.manual_seed(1)
        sum(model(batch).result).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_every_head_has_a_gradient_without_any_masked_row(source: SourceConfig) -> None:
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE))
    batch = make_batch(source, 5, rate=0.0)
    losses = model(batch).result
    assert [float(x) for x in losses[:3]] == [0, 0, 0]
    sum(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def text_only(texts: list[list[int]]) -> PackedBatch:
    """[CLS] [SEP] words [SEP] without a region."""
    lengths = [len(t) + 3 for t in texts]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    total, none = int(ends[-1]), torch.zeros(0, dtype=torch.long)
    return PackedBatch(
        cu_seqlens=ends.to(torch.int32),
        side_cu_seqlens=torch.tensor([e for start in ends[:-1].tolist() for e in (start, start + 1)] + [total]).int(),
        max_seqlen=max(lengths),
        real_pairs=len(texts),
        real_tokens=total,
        position_ids=torch.cat([torch.tensor([0, *range(2, n + 1)]) for n in lengths]),
        token_type_ids=torch.cat([torch.tensor([0, 0] + [1] * (n - 2)) for n in lengths]),
        text_rows=torch.arange(total),
        input_ids=torch.tensor([i for t in texts for i in [2, 3, *t, 3]]),
        region_rows=none,
        region_features=torch.zeros(0, FEATURE_SIZE),
        region_scales=torch.zeros(0),
        region_boxes=torch.zeros(0, 5),
        region_zeroed=torch.zeros(0, dtype=torch.bool),
        global_regions=none,
        counts=torch.zeros(3),
        read_rows=ends[:-1],
        read_cu_seqlens=torch.arange(len(texts) + 1, dtype=torch.int32),
        cls_reads=torch.arange(len(texts)),
        mlm_reads=none,
        mlm_labels=none,
        region_reads=none,
        masked_regions=none,
        moc_labels=none,
        attribute_labels=none,
        itm_labels=torch.ones(len(texts)),
        block=0,
        image_class=none,
        text_class=none,
        negative_draws=torch.zeros(0, 0),
    )


@pytest.mark.parametrize("fusion", [0, 1, 3])
def test_text_only_equals_transformers_bert(tmp_path: Path, fusion: int) -> None:
    torch.manual_seed(0)
    names = {k: v for k, v in SHAPE.items() if k not in ("feature_size", "num_region_classes")}
    bert = BertModel(BertConfig(**names, attn_implementation="eager")).eval()
    bert.save_pretrained(tmp_path)
    sides = {"fusion_layer": fusion, "dual_size": 4, "residual_score": True} if fusion else {}
    model = ImageBertForPreTraining(ImageBertConfig(**SHAPE, **sides)).eval()
    initialize_from(model, tmp_path)
    batch = text_only([[7, 8, 9], [10] * 11, [12]])
    hidden = model.imagebert(batch)
    ends = batch.cu_seqlens.tolist()
    for a, b in itertools.pairwise(ends):
        expected = bert.embeddings(
            input_ids=batch.input_ids[None, a:b],
            token_type_ids=batch.token_type_ids[None, a:b],
            position_ids=batch.position_ids[None, a:b],
        )
        # [CLS] is the image's side, the two [SEP] and the words are the text's.
        apart = torch.zeros(1, 1, b - a, b - a)
        apart[..., 0, 1:] = apart[..., 1:, 0] = -torch.inf
        for number, layer in enumerate(bert.encoder.layer):
            expected = layer(expected, apart if number < fusion else None)
            expected = expected[0] if isinstance(expected, tuple) else expected
        torch.testing.assert_close(hidden[a:b], expected[0], rtol=1e-5, atol=1e-5)


def test_a_text_alone_is_what_bert_says_of_it(tmp_path: Path) -> None:
    """`[SEP] words [SEP]` behind the layers of one side, and their mean, are transformers' of `[CLS] words [SEP]`."""
    torch.manual_seed(0)
    names = {k: v for k, v in SHAPE.items() if k not in ("feature_size", "num_region_classes")}
    bert = BertModel(BertConfig(**names, attn_implementation="eager"), add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path)
    layers, size = SHAPE["num_hidden_layers"], SHAPE["hidden_size"]
    sides = {"fusion_layer": layers, "dual_size": size, "residual_score": True}
    model = ImageBertForImageTextRetrieval(ImageBertConfig(**SHAPE, **sides)).eval()
    initialize_from(model, tmp_path)
    embed_text_alone(model, cls_id=2, sep_id=3)
    texts = [[7, 8, 9], [10] * 11, [12]]
    batch = text_only(texts)
    sides = model.imagebert.sides(batch, model.imagebert.draw_seeds())
    vectors = model.dual.texts(sides, batch)
    for number, words in enumerate(texts):
        expected = bert(torch.tensor([[2, *words, 3]])).last_hidden_state[0]
        start = int(batch.cu_seqlens[number]) + 1
        torch.testing.assert_close(sides[start : start + len(expected)], expected, rtol=1e-5, atol=1e-5)
        mean = torch.nn.functional.normalize(expected.mean(0), dim=0)
        torch.testing.assert_close(vectors[number], mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"fusion_layer": 1, "dual_size": SHAPE["hidden_size"]}])
@pytest.mark.parametrize("kind", [ImageBertForPreTraining, ImageBertForImageTextRetrieval])
def test_save_and_load(source: SourceConfig, tmp_path: Path, kind: type, options: dict[str, Any]) -> None:
    model = kind(ImageBertConfig(**SHAPE, use_pooler=True, **options)).eval()
    if options:
        assert torch.equal(model.dual.text.projection.weight, torch.eye(SHAPE["hidden_size"]))
        torch.nn.init.normal_(model.dual.text.projection.weight)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = kind.from_pretrained(tmp_path).eval()
    batch = make_batch(source, 5)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    for a, b in zip(model(batch).result, again(batch).result, strict=True):
        torch.testing.assert_close(a, b)
    if kind is ImageBertForPreTraining:
        assert again.mlm.decoder.weight is again.imagebert.embeddings.word_embeddings.weight


def test_presets() -> None:
    assert set(PRESETS) == {"tiny", "small", "base", "large", "xl"}
    base = ImageBertConfig.preset("base")
    shape = base.num_hidden_layers, base.hidden_size, base.num_attention_heads, base.intermediate_size
    assert shape == (12, 768, 12, 3072)
    assert base.initializer_range == pytest.approx(0.02)
    with torch.device("meta"):
        encoder = ImageBertModel(base).layers
    assert sum(p.numel() for p in encoder.parameters()) == 85_054_464  # BERT-base's encoder
    with pytest.raises(ValueError, match="no multiple"):
        ImageBertConfig(hidden_size=30, num_attention_heads=4)
