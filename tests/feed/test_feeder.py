from __future__ import annotations

import threading

import pytest
import torch

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.draws import stage_key
from imagebert.feed.feeder import Feeder
from imagebert.feed.masking import Masking
from imagebert.feed.packer import FeatureBuffer, Limits, Packer
from imagebert.feed.plan import Negatives, Plan


def make(source: SourceConfig, start: int, stop: int) -> tuple[Feeder, Plan, Packer, Masking]:
    corpus = Corpus([source])
    packer = Packer(corpus, Limits(max_regions=5, max_words=6, whole_image=True))
    negatives = Negatives(share=0.5, candidates=1, source="batch")
    plan = Plan(corpus.caption_image, packer.lengths, negatives, seed=0, stage="s", batch_size=8, parts=4)
    masking = Masking(stage_key(0, "s"), words=0.15, regions=0.15, mask_id=4, vocabulary=45)
    feeder = Feeder(plan, packer, masking, rank=1, world=2, start=start, stop=stop, ahead=2, device=torch.device("cpu"))
    return feeder, plan, packer, masking


def test_from_any_step_the_same_bytes_as_the_plan(source: SourceConfig) -> None:
    feeder, plan, packer, masking = make(source, 3, 17)
    with feeder:
        for step, batches in enumerate(feeder, start=3):
            expected = [packer.pack(s, FeatureBuffer(), step, masking) for s in plan.step(step, 1, 2)]
            assert len(batches) == 2
            for got, want in zip(batches, expected, strict=True):
                for name, tensor in got._asdict().items():
                    assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(getattr(want, name))), (step, name)
    assert step == 16


def test_leaving_early_ends_the_thread(source: SourceConfig) -> None:
    feeder, *_ = make(source, 0, 1000)
    with feeder:
        next(iter(feeder))
    assert not [t for t in threading.enumerate() if t.name == "feeder"]


def test_an_error_in_the_thread_reaches_the_consumer(source: SourceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    feeder, plan, *_ = make(source, 0, 1000)

    def fail(step: int, rank: int, world: int) -> None:
        raise UsageError("record 'x' is damaged")

    monkeypatch.setattr(plan, "step", fail)
    with feeder, pytest.raises(UsageError, match="record 'x' is damaged"):
        list(feeder)
