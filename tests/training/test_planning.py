"""`imagebert plan RECIPE` beside what training itself makes of the recipe, and beside what the scorer computes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from imagebert import distributed
from imagebert.cli import main
from imagebert.config import RunConfig, SourceConfig, UsageError, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.data.regions import RegionStore
from imagebert.feed.packer import Limits
from imagebert.launch import Launch
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.retrieval.scoring import PairScorer
from imagebert.training.assemble import prepare
from imagebert.training.capacity import GPUS, score_flops, steps_of
from imagebert.training.planning import Exact, Planned, Size, Told, knee

RECIPE = "tests/recipe.yaml"
FINETUNE = ["task=finetune", "retrieval.candidates=3"]
TOKENS = ["schedule.batch_size=null", "schedule.steps=null", "schedule.epochs=40"]
DUAL = ["model.dual_size=8", "pretraining.dual=1", "pretraining.contrast=4", "schedule.batch_size=12"]


def trained(config: RunConfig, ranks: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What training itself makes of a recipe."""
    monkeypatch.setattr(distributed, "_launch", Launch(0, ranks, 0, "slurm", None))
    return prepare(config)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["schedule.steps=null", "schedule.epochs=3.5", "schedule.accumulation=2"],
        [*TOKENS, "schedule.batch_tokens=300", "schedule.microbatch_tokens=70", "data.max_regions=3"],
        [*TOKENS, "schedule.batch_tokens=700", *FINETUNE],
        ["data.sources.0.weight=2.5", "schedule.steps=null", "schedule.epochs=2", *FINETUNE],
    ],
    ids=["as it is", "epochs", "tokens", "finetune by tokens", "weighted"],
)
def test_a_recipe_is_planned_as_it_is_trained(
    overrides: list[str], ranks: int, recipe: list[str], source: SourceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe(RECIPE, [*recipe, *overrides])
    job = Planned(config, GPUS["cpu"], Told()).job(1, ranks)
    real = trained(config, ranks, monkeypatch)
    assert steps_of(job) == (config.schedule.steps or real.plan.steps(config.schedule.epochs))
    assert job.batch_size == pytest.approx(real.plan.pairs, rel=1e-3)
    assert job.accumulation * ranks == real.plan.parts
    tokens = np.mean([real.plan.lengths.tokens(real.plan.global_batch(step)).mean() for step in range(40)])
    assert job.tokens == pytest.approx(tokens, rel=0.05)
    store = RegionStore(source.regions)
    assert job.record == pytest.approx(sum(shard["bytes"] for shard in store.shards) / len(store))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 13, 40])
@pytest.mark.parametrize(
    "overrides", [["schedule.accumulation=3"], [*TOKENS, "schedule.batch_tokens=333", *FINETUNE], DUAL]
)
def test_a_batch_can_be_cut_where_training_can_cut_it(
    overrides: list[str], ranks: int, recipe: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipe(RECIPE, [*recipe, *overrides])
    planned = Planned(config, GPUS["h200"], Told())
    try:
        trained(config, ranks, monkeypatch)
    except UsageError as error:
        (least,) = re.findall(r"raise it to (\d+) or more", str(error))
        with pytest.raises(
            UsageError, match=rf"cut for {ranks} GPUs, which need {least} or more: take \d+ GPUs at most"
        ):
            planned.job(1, ranks)
    else:
        assert planned.job(1, ranks).ranks == ranks


@pytest.mark.parametrize("fusion", [0, 2])
def test_scoring_takes_what_the_scorer_computes(source: SourceConfig, fusion: int) -> None:
    """Products, counted by PyTorch: encoding each side once, and pairs of encoded sides."""
    corpus = Corpus([source])
    shape = ImageBertConfig.preset(
        "tiny",
        vocab_size=len(corpus.tokenizer),
        feature_size=corpus.feature_size,
        num_region_classes=5,
        fusion_layer=fusion,
    )
    scorer = PairScorer(
        ImageBertForImageTextRetrieval(shape),
        corpus,
        corpus,
        Limits(max_regions=7, max_words=8, whole_image=True),
        torch.device("cpu"),
    )
    image, caption = np.array([5]), np.array([7])
    counted = []
    for _ in range(2):  # the second time both sides are encoded
        with FlopCounterMode(display=False) as counter:
            scorer(image, caption)
        counted.append(counter.get_total_flops())
    lengths = scorer.lengths.regions[5], scorer.lengths.words[7]
    pair, *sides = score_flops(shape, *map(float, lengths))
    assert counted[1] == pytest.approx(pair, rel=0.03)
    # The sides are packed with the other one's specials.
    assert counted[0] - counted[1] == pytest.approx(sum(sides), rel=0.35)


def test_the_knee() -> None:
    hours = [16.0, 8.0, 5.0, 4.5, 4.4]
    sizes = [Size(1 << k, h, 1.0, 1, True) for k, h in enumerate(hours)]
    assert knee(sizes) == 4
    assert knee(sizes[:3]) is None


def test_more_ranks_share_pairs_and_not_sides() -> None:
    exact = Exact(
        images=1000, captions=5000, shape=ImageBertConfig.preset("base"), constants=GPUS["h200"], regions=36, words=14
    )
    pair, image, text = score_flops(exact.shape, 36, 14)
    rate = GPUS["h200"].matmul * GPUS["h200"].share
    for ranks in (1, 8):
        expected = (5_000_000 * pair / ranks + 1000 * image + 5000 * text) / rate
        assert exact.seconds(ranks) == (pytest.approx(expected), 0.0)
    small = replace(exact, constants=replace(GPUS["h200"], memory=1e9))  # texts do not stay: anew for 32 images each
    assert small.seconds(8)[0] - exact.seconds(8)[0] == pytest.approx((1000 / 32 / 8 - 1) * 5000 * text / rate)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hours(*words: str) -> float:
        assert main(["plan", *words, "--json", str(tmp_path / "plan.json")]) == 0
        found = json.loads((tmp_path / "plan.json").read_text())
        return float((found.get("run") or found["evaluation"])["hours"])

    batch = ["schedule.batch_tokens=null", "schedule.microbatch_tokens=null", "schedule.batch_size=1024"]
    assert hours("--nodes", "4") == pytest.approx(0.36, abs=0.01)  # of a batch that is not the recipe's
    assert hours("stage1_lait", "--pairs", "10M", "--nodes", "4", *batch) == pytest.approx(1.06, abs=0.01)
    told = capsys.readouterr().out
    assert "from 8 GPUs on more do not pay" in told
    assert "the batch can be cut for 1,024 GPUs at most" in told
    assert "data/lait/regions is not there: 100 regions and 41 words" in told
    assert hours("finetune_coco", "--pairs", "566747", "--gpus-per-node", "1", "retrieval.hard_negatives=x") > 1
    assert "hours of mining" in capsys.readouterr().out
    assert hours("evaluate", "--images", "5k", "--captions", "25k", "--gpus-per-node", "1") > hours(
        "evaluate", "--images", "5k", "--captions", "25k", "--gpus-per-node", "1", "--words", "14"
    )
    for words, error in {
        ("stage1_lait",): "data/lait/regions is not there: say how many `pairs` an epoch has",
        ("stage1_lait", "--epochs", "3"): "--epochs is the recipe's: give it as schedule.epochs=",
        ("evaluate", "--images", "5k"): "imagebert plan evaluate --images 5k --captions 25k",
        ("--images", "5k"): "--images is of an evaluation",
        ("finetune_coco", "--pairs", "1M", "--nodes", "4"): "cannot be cut for 32 GPUs, which need 32 or more: take 24",
    }.items():
        assert main(["plan", *words]) == 2
        assert error in capsys.readouterr().err
