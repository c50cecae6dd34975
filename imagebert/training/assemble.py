"""From a recipe to the parts of a run: data, plan, masks, sizes, model. None of them has seen a step yet."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from imagebert import distributed
from imagebert.config import RunConfig, UsageError, check_monitors
from imagebert.data.corpus import Corpus
from imagebert.data.tokens import Tokenizer
from imagebert.data.vocabulary import has_vocabulary
from imagebert.engine.engine import zero_stage
from imagebert.feed.dali import DaliCarrier
from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import BatchPlan, Cut, Matches, Negatives, fit_microbatches
from imagebert.feed.sizes import Sizes, choose_sizes
from imagebert.model import (
    PRESETS,
    ImageBertConfig,
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    initialize_from,
)
from imagebert.model.initialization import (
    embed_text_alone,
    find_model,
    initialize_fused,
    is_imagebert,
    read_architecture,
)
from imagebert.model_folder import open_model
from imagebert.training.capacity import matmul_rate, pair_flops
from imagebert.training.hard_negatives import read_hard_negatives
from imagebert_kernels import backend

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What a recipe comes to on this rank, before there is a model."""

    config: RunConfig  # with what the recipe leaves to the machine
    corpus: Corpus
    packer: Packer
    plan: BatchPlan
    sizes: Sizes | None


def prepare(given: RunConfig) -> Prepared:
    """Opens a recipe's data and plans its steps: what most calls that are wrong fail at. The doctor asks too.

    Raises:
        UsageError: the recipe, its data and this machine do not fit together.
    """
    config = choose_step(fit_microbatches(given, distributed.world_size()))
    try:
        backend.choose(config.engine.kernels, distributed.device())
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_monitors(config)
    if zero_stage(config) == 3 and config.engine.step != "eager":
        raise UsageError(
            f"engine.step {config.engine.step} cannot follow ZeRO-3's gathering: take zero2, or step=eager"
        )
    corpus = Corpus(config.data.sources, config.data.verify_records)
    unnamed = next((store for store in corpus.stores if not store.has_classes), None)
    if config.task == "pretrain" and config.pretraining.moc > 0 and unnamed is not None:
        raise UsageError(
            f"{unnamed.path} has no region classes, no detector named its regions: set pretraining.moc=0, or import "
            "features with classes"
        )
    if config.predicts_attributes and not corpus.has_attributes:
        raise UsageError(
            f"{corpus.stores[0].path} has regions without attributes: set pretraining.attributes=0, or extract them "
            "with the Visual Genome detector"
        )
    packer = Packer(
        corpus,
        Limits.of(config.data, mark_whole_image=config.model.marks_whole_image),
        attributes=config.predicts_attributes,
        group_size=config.group_size * config.contrast,
        max_damaged=config.data.max_damaged_records,
    )
    plan = make_plan(config, corpus, packer)
    return Prepared(config, corpus, packer, plan, make_sizes(config, plan))


def make_carrier(config: RunConfig) -> DaliCarrier | None:
    """What brings batches to the device, where that is not PyTorch.

    Raises:
        UsageError: it is not installed.
    """
    return DaliCarrier(distributed.device()) if config.data.feeder == "dali" else None


def choose_step(config: RunConfig) -> RunConfig:
    """The recipe with engine.step as it can be where that is auto: graphed, else compiled, else eager."""
    if config.engine.step != "auto":
        return config
    step: Literal["eager", "compiled", "graphed"]
    if not torch.cuda.is_available():
        step, reason = "eager", "there is no GPU"
    elif config.engine.kernels == "reference":
        step, reason = "eager", "the reference is chosen, not the kernels"
    elif zero_stage(config) == 3:
        step, reason = "eager", "neither a compiled nor a graphed step follows ZeRO-3's gathering"
    elif config.chosen_negatives:
        step, reason = "eager", "negatives are chosen in the step, and so its number of tokens"
    elif config.schedule.accumulation > 1:
        step, reason = "compiled", "a graph's replay would write over gradients that accumulate"
    elif config.model.global_image_token or config.model.dual_size:
        step, reason = "compiled", "a graph marks no whole images and holds no dual head"
    else:
        step, reason = "graphed", "all microbatches can have one shape"
    log.info("engine.step auto: %s, since %s", step, reason)
    return replace(config, engine=replace(config.engine, step=step))


def describe_step(config: RunConfig, plan: BatchPlan, corpus: Corpus, step: int) -> dict[str, Any]:
    """A step's place in the plan, and its pairs, for people: the same for any number of ranks."""
    samples = plan.global_batch(step)
    rows = zip(samples.images.tolist(), samples.captions.tolist(), samples.labels.tolist(), strict=True)
    return {
        "stage": config.stage,
        "seed": config.seed,
        "again": "resume from a checkpoint before this step: batch, masks and dropout are functions of it",
        "pairs": [[corpus.image_key(i), corpus.text(c), "matched" if m else "mismatched"] for i, c, m in rows],
    }


def make_plan(config: RunConfig, corpus: Corpus, packer: Packer) -> BatchPlan:
    pretrain, retrieval = config.pretraining, config.retrieval
    negatives = Negatives(
        share=0.0 if config.chosen_negatives else pretrain.negatives,
        group_size=config.group_size,
        source=config.objectives.negatives_from,
        hard=read_hard_negatives(Path(retrieval.hard_negatives), corpus)
        if config.task == "finetune" and retrieval.hard_negatives
        else None,
        hard_share=retrieval.hard_share,
        chosen=config.chosen_negatives,
        random_steps=config.objectives.random_steps,
    )
    weights = corpus.weights
    if weights is not None:
        each = (
            f"{w.sum():,.0f} from {len(w):,} captions of {s.pairs}"
            for s, w in zip(corpus.sources, weights, strict=True)
        )
        log.info("an epoch has on average %s", ", ".join(each))
    return BatchPlan(
        corpus.caption_image,
        packer.lengths,
        negatives,
        Cut(
            batch_size=config.schedule.batch_size,
            batch_tokens=config.schedule.batch_tokens,
            microbatches=distributed.world_size() * config.schedule.accumulation,
            block=config.contrast,
            contrasted=config.model.dual_size > 0,
        ),
        key=stage_key(config.seed, config.stage),
        matches=Matches(corpus.image_class, corpus.caption_class, corpus.caption_image),
        weights=weights,
    )


def pair_share(config: RunConfig, packer: Packer, shape: ImageBertConfig) -> float:
    """What a pair a second is of this device's matmul rate; 0: that is not known."""
    rate = matmul_rate(distributed.device())
    regions, words = (float(lengths.mean()) for lengths in packer.lengths)
    flops = pair_flops(shape, regions, words, masked=config.task == "pretrain", chosen=config.chosen_negatives)
    return flops / rate if rate else 0.0


def make_masking(config: RunConfig, corpus: Corpus) -> Masking | None:
    """None when fine-tuning: nothing is masked there (paper, section 5.3)."""
    if config.task == "finetune":
        return None
    tokenizer = corpus.tokenizer
    return Masking(
        key=stage_key(config.seed, config.stage),
        words=config.pretraining.masked_words,
        regions=config.pretraining.masked_regions,
        mask_id=tokenizer.mask_id,
        vocabulary=len(tokenizer),
    )


def make_sizes(config: RunConfig, plan: BatchPlan) -> Sizes | None:
    """One shape for all microbatches, where the step asks for it.

    Raises:
        UsageError: this machine cannot run such a step.
    """
    if config.engine.step == "eager":
        return None
    if not torch.cuda.is_available() and (config.engine.step == "graphed" or config.engine.kernels != "triton"):
        raise UsageError(f"engine.step {config.engine.step} needs a GPU, and there is none: take auto or eager")
    if config.engine.step == "graphed" and config.model.marks_whole_image:
        raise UsageError("engine.step graphed cannot mark whole images, whose number differs: take compiled or eager")
    if config.engine.kernels == "reference":
        raise UsageError(f"engine.step {config.engine.step} needs the kernels: take engine.kernels=auto, or step=eager")
    pretrain = config.task == "pretrain"
    words, regions = config.pretraining.masked_words, config.pretraining.masked_regions
    return choose_sizes(plan, words * pretrain, regions * pretrain)


def make_model(config: RunConfig, corpus: Corpus) -> PreTrainedModel:
    """New weights from the seed, then those of model.initialize_from.

    Raises:
        UsageError: what is started from is damaged, or is for other data or another vocabulary.
    """
    shape, origin = model_shape(config, sizes_of(config, corpus))
    longest = config.data.max_words + 4  # positions: [CLS], the regions' one, two [SEP], the words
    if longest > shape.max_position_embeddings:
        raise UsageError(f"data.max_words {config.data.max_words} needs {longest} positions: lower it")
    torch.manual_seed(config.seed)
    kind = ImageBertForPreTraining if config.task == "pretrain" else ImageBertForImageTextRetrieval
    model = kind(shape)
    if shape.residual_score and model.itm is not None:  # the score begins as that of the vectors
        torch.nn.init.zeros_(model.itm.score.weight)
    if config.model.fused_from is not None:
        source = find_model(Path(config.model.fused_from))
        log.info("%s: %s", source, initialize_fused(model, source))
    if origin is not None:
        _check_origin(origin, config, corpus)
        log.info("%s: %s", origin, initialize_from(model, origin, config.model.allow_partial))
        if config.model.text_alone:
            _embed_text_alone(model, shape, origin, corpus)
    if config.engine.step == "compiled":
        for layer in model.imagebert.layers:
            layer.compile(fullgraph=True, dynamic=False)
    return model


def _embed_text_alone(model: PreTrainedModel, shape: ImageBertConfig, origin: Path, corpus: Corpus) -> None:
    if is_imagebert(origin) or not shape.fusion_layer:
        raise UsageError(
            f"model.text_alone is for a BERT of texts and layers that see one side only: {origin} is an ImageBERT, or "
            "model.fusion_layer is 0; leave it out"
        )
    embed_text_alone(model, corpus.tokenizer.cls_id, corpus.tokenizer.sep_id)


def sizes_of(config: RunConfig, corpus: Corpus) -> dict[str, int]:
    """What the data and the losses decide of a model's shape."""
    return {
        "vocab_size": len(corpus.tokenizer),
        "feature_size": corpus.feature_size,
        "num_region_classes": len(corpus.classes),
        "num_region_attributes": len(corpus.attributes) if config.predicts_attributes else 0,
    }


def _check_origin(origin: Path, config: RunConfig, corpus: Corpus) -> None:
    """Whether what a run starts from is whole and has its vocabulary; what else differs is said."""
    if has_vocabulary(origin):
        theirs = Tokenizer(origin)
        if differs := theirs.difference(corpus.tokenizer):
            raise UsageError(
                f"{theirs.path} is not the vocabulary that the pairs were tokenised with ({differs}): tokenise them "
                f"with the vocabulary {origin}, or start from weights of their vocabulary"
            )
    if is_imagebert(origin):
        open_model(origin).note_differences(corpus.stores[0], Limits.of(config.data))


def model_shape(config: RunConfig, wanted: dict[str, int]) -> tuple[ImageBertConfig, Path | None]:
    """The model's configuration for data of the `wanted` sizes, and the folder that its weights come from.

    Raises:
        UsageError: no such folder, or it is for other data.
    """
    options = {
        "hidden_dropout_prob": config.model.hidden_dropout,
        "attention_probs_dropout_prob": config.model.attention_dropout,
        "use_pooler": config.model.pooler,
        "use_global_image_token": config.model.global_image_token,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "dual_size": config.model.dual_size,
        "dual_shortcut": config.model.dual_shortcut,
        "dual_shortcut_dropout": config.model.dual_shortcut_dropout,
    }
    if config.model.layers is not None:
        options["num_hidden_layers"] = config.model.layers
    if config.model.initialize_from is None:
        assert config.model.preset is not None
        return ImageBertConfig.preset(config.model.preset, **_fusing(config, {}, {**wanted, **options})), None
    origin = find_model(Path(config.model.initialize_from))
    found = read_architecture(origin)
    for name, size in wanted.items():
        if found.get(name, size) != size:
            raise UsageError(
                f"model.initialize_from {origin} has {name} {found[name]}, the data has {size}: "
                "use data and weights of one kind"
            )
    shape = _fusing(config, found, {**found, **wanted, **options})
    try:
        return ImageBertConfig(**shape), origin
    except ValueError as error:
        raise UsageError(
            f"model.initialize_from {origin}: its config.json makes no model ({error}): name a whole folder"
        ) from None


def _fusing(config: RunConfig, origin: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """A shape with where its sides meet, and what a pair's score is made of.

    Args:
        origin: the shape of what weights are taken from

    Raises:
        UsageError: the two do not go together, or there are layers that no loss would reach.
    """
    m = config.model
    before = origin.get("fusion_layer", 0)
    fusion = before if m.fusion_layer is None else m.fusion_layer
    residual = origin.get("residual_score", False) if m.residual_score is None else m.residual_score
    if before not in (0, fusion):
        raise UsageError(
            f"model.fusion_layer is {fusion}, and {m.initialize_from} was trained with {before}: its first layers see "
            f"one side only; take {before}, or leave the key out"
        )
    layers = shape["num_hidden_layers"] if "num_hidden_layers" in shape else PRESETS[m.preset or ""][0]
    if fusion > layers:
        raise UsageError(f"model.fusion_layer is {fusion}, and there are {layers} layers: give at most as many")
    if config.aligns and fusion < layers:
        raise UsageError(
            f"retrieval.binary, multiclass and triplet are 0, so that nothing is learnt from layer {fusion} on, of "
            f"{layers}: set model.layers={fusion or layers} and model.fusion_layer to the same, or give a loss a weight"
        )
    if fusion == layers and not config.aligns:
        raise UsageError(
            f"model.fusion_layer is {fusion}, and there are {layers} layers, so that none sees both sides of a pair: "
            "raise model.layers, or lower model.fusion_layer"
        )
    return {**shape, "fusion_layer": fusion, "residual_score": residual or fusion == layers}
