"""The plan beside what it plans: the engine's memory, the model that is built, and the same run event by event."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Contrast, Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining
from imagebert.training.capacity import (
    GPUS,
    Job,
    calibrated,
    failures,
    job_flops,
    pair_flops,
    parameter_count,
    plan,
    state_bytes,
    step_time,
)
from imagebert.training.simulation import simulate
from tests.training.probe import probe

BASE = ImageBertConfig.preset("base")


def job(nodes: int, **changes: object) -> Job:
    given = {"pairs": 10_000_000, "gpus_per_node": 8, "shape": BASE, "constants": GPUS["h200"]} | changes
    return Job(nodes=nodes, **{"batch_size": 2048 * nodes, **given})  # type: ignore[arg-type]


@pytest.mark.ranks
@pytest.mark.slow
def test_memory_is_what_the_engine_allocates(source: SourceConfig, tmp_path: Path) -> None:
    ranks = 2
    kinds = [(precision, stage) for precision in ("fp32", "bf16") for stage in range(4)]
    recipes = [[f"engine.precision={p}", f"engine.deepspeed=zero{s}", "model.preset=small"] for p, s in kinds]
    for (precision, stage), found in zip(kinds, probe(ranks, source, tmp_path / "out.json", recipes), strict=True):
        planned = state_bytes(int(found["parameters"]), stage, ranks, 2 if precision == "bf16" else 4)
        assert found["between_steps"] == pytest.approx(planned, rel=0.1), (precision, stage)


def test_parameters_are_the_models() -> None:
    shape = ImageBertConfig.preset("tiny")
    assert sum(p.numel() for p in ImageBertForPreTraining(shape).parameters()) == parameter_count(shape)


def test_operations_agree_with_the_benchmarks_count() -> None:
    from benchmarks.step import MODELS, Work, model_flops

    here = job(1)
    regions, words = 100.0, 41.0
    masked = [n * 0.15 * 0.5 for n in (words, regions)]
    work = Work(1, 100, 44, 144.0**2, *masked)
    assert job_flops(here) == pytest.approx(model_flops(MODELS["base"], work), rel=0.03)


@pytest.mark.parametrize("nodes", [1, 4, 32, 128])
@pytest.mark.parametrize("jitter", [0.02, 0.1])
def test_step_time_is_the_simulations(nodes: int, jitter: float) -> None:
    """Up to 1,024 GPUs: stragglers and buckets, event by event."""
    slow = dataclasses.replace(GPUS["h200"], jitter=jitter)
    for accumulation, stage in ((1, 1), (4, 0)):
        here = job(
            nodes, constants=slow, accumulation=accumulation, stage=stage, batch_size=2048 * nodes * accumulation
        )
        assert simulate(here, 300, with_failures=False) / 300 == pytest.approx(step_time(here).total, rel=0.1)


@pytest.mark.parametrize("nodes", [4, 128])
def test_failures_cost_what_the_simulation_says(nodes: int) -> None:
    """A cluster that fails often: days of it in seconds."""
    frail = dataclasses.replace(GPUS["h200"], node_mtbf_hours=0.1 * nodes, jitter=0.0, detect=5.0, restart=10.0)
    here, steps = job(nodes, gpus_per_node=1, batch_size=256 * nodes, constants=frail), 100_000
    simulated = [simulate(here, steps, seed) / (step_time(here).total * steps) - 1 for seed in range(3)]
    assert failures(here).share == pytest.approx(sum(simulated) / 3, rel=0.25)


def test_the_whole_answer_and_its_mistakes(tmp_path: Path) -> None:
    figures = plan(job(16))
    assert figures["run"]["steps"] == round(17 * 10_000_000 / (2048 * 16))
    assert figures["data"]["store, TB"] == pytest.approx(2.07, rel=0.01)
    assert figures["memory of a GPU, GB"]["ZeRO 3"] < figures["memory of a GPU, GB"]["ZeRO 0"]
    assert 0 < figures["scaling"]["pace of a GPU, of what it has on one node"] < 1
    with pytest.raises(UsageError, match="batch_size 8 cannot be cut into 128 microbatches"):
        plan(job(16, batch_size=8))
    (tmp_path / "measured.json").write_text(json.dumps({"constants": {"share": 0.25, "disk": 1e9}}))
    slower = calibrated(GPUS["h200"], tmp_path / "measured.json")
    assert step_time(job(1, constants=slower)).compute == pytest.approx(2 * step_time(job(1)).compute)
    (tmp_path / "measured.json").write_text(json.dumps({"constants": {"speed": 1}}))
    with pytest.raises(UsageError, match=r"benchmarks\.calibrate"):
        calibrated(GPUS["h200"], tmp_path / "measured.json")


@pytest.mark.parametrize(("fusion", "chosen"), [(0, 0), (2, 0), (2, 2), (4, 0)])
def test_a_steps_operations_are_those_that_torch_counts(source: SourceConfig, fusion: int, chosen: int) -> None:
    """Of fine-tuning on pairs of one length. Forward is a third; of backward torch does not count what is in place."""
    corpus = Corpus([source])
    shape = ImageBertConfig.preset(
        "tiny", vocab_size=len(corpus.tokenizer), feature_size=corpus.feature_size, num_region_classes=5,
        fusion_layer=fusion, dual_size=8, residual_score=fusion > 0, dual_shortcut=256 * (fusion == 2),
    )  # fmt: skip
    model = ImageBertForImageTextRetrieval(shape)
    limits = Limits(max_regions=5, max_words=6, whole_image=True)
    lengths = limits.lengths(corpus)
    long = (lengths.regions[corpus.caption_image] == 5) & (lengths.words == 6)
    captions = np.flatnonzero(long)[:8]
    images = corpus.caption_image[captions]
    draws = np.random.default_rng(0).random((8, chosen)).astype(np.float32)
    contrast = Contrast(np.arange(8), np.arange(8), draws)
    samples = Samples(images, captions, np.ones(8, int), np.arange(8), contrast)
    batch = Packer(corpus, limits, group_size=8).pack(samples, Arena())
    with FlopCounterMode(display=False) as counter:
        model(batch)
    expected = 8 * pair_flops(shape, 5, 6, masked=False, chosen=chosen) / 3
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)
