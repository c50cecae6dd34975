from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.dali import DaliCarrier
from imagebert.feed.draws import stage_key
from imagebert.feed.feeder import Feeder, Prefetch, Share, Slot
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Cut, Negatives, Plan
from imagebert.feed.sizes import Sizes
from tests.corpora import change_last_feature
from tests.forked import start

CPU = torch.device("cpu")
# Threads must not share Triton's interpreter: on a GPU, with the real kernels only.
REAL = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
ON_GPU = [pytest.param(torch.device("cuda", 0), True, marks=pytest.mark.gpu)] if REAL else []


def make(
    source: SourceConfig, start: int, stop: int, device: torch.device = CPU, **options: Any
) -> tuple[Feeder, Plan, Packer, Masking]:
    corpus = Corpus([source])
    packer = Packer(corpus, Limits(max_regions=5, max_words=6, whole_image=True))
    negatives = Negatives(share=0.5, candidates=1, source="batch")
    plan = Plan(corpus.caption_image, packer.lengths, negatives, Cut(batch_size=8, parts=4), key=stage_key(0, "s"))
    masking = Masking(stage_key(0, "s"), words=0.15, regions=0.15, mask_id=4, vocabulary=45)
    prefetch = Prefetch(2, options.pop("workers", 1), options.pop("read_ahead", True))
    feeder = Feeder(plan, packer, masking, Share(1, 2, device), range(start, stop), prefetch, **options)
    return feeder, plan, packer, masking


@pytest.mark.parametrize("through", ["plain", "dali"])
@pytest.mark.parametrize("workers", [1, 3])
# Without sizes a GPU takes a room for masked rows that is likely to hold them, a CPU what there is.
@pytest.mark.parametrize(("device", "filled"), [(CPU, False), (CPU, True), *ON_GPU])
def test_from_any_step_the_same_bytes_as_the_plan(
    source: SourceConfig, through: str, workers: int, device: torch.device, filled: bool
) -> None:
    sizes = Sizes(pairs=6, regions=30, texts=60, masked=(20, 20)) if filled else None
    if through == "dali":
        pytest.importorskip("nvidia.dali")
    carrier = DaliCarrier(device) if through == "dali" else None
    feeder, plan, packer, masking = make(
        source, 3, 17, device, workers=workers, sizes=sizes, carrier=carrier, read_ahead=filled
    )
    with feeder:
        for step, batches in enumerate(feeder, start=3):
            expected = [packer.pack(s, Arena(), step, masking, sizes) for s in plan.step(step, 1, 2)]
            assert len(batches) == 2
            for got, want in zip(batches, expected, strict=True):
                for name, tensor in got._asdict().items():
                    on_host = torch.as_tensor(tensor).cpu()
                    assert torch.equal(on_host, torch.as_tensor(getattr(want, name))), (step, name)
            if device.type == "cuda":  # work that is still running reads what the next steps must not overwrite
                torch.cuda._sleep(10_000_000)
                got = batches[0].region_features.clone()
                assert torch.equal(got.cpu(), expected[0].region_features)
    assert step == 16


def test_memory_goes_round(source: SourceConfig) -> None:
    feeder, *_ = make(source, 0, 40, workers=2)
    with feeder:
        places = [batch.region_features.data_ptr() for step in feeder for batch in step]
    # Three steps of two microbatches; an arena may have grown once.
    assert len(set(places)) <= 2 * 3 * 2
    assert len(set(places[-6:])) == 6
    assert set(places[-6:]) == set(places[-12:-6])


def test_leaving_early_ends_the_thread(source: SourceConfig) -> None:
    feeder, *_ = make(source, 0, 1000)
    with feeder:
        next(iter(feeder))
    assert not [t for t in threading.enumerate() if t.name.startswith(("feeder", "packer"))]


def test_an_error_in_the_thread_reaches_the_consumer(source: SourceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    feeder, plan, *_ = make(source, 0, 1000)

    def fail(step: int, rank: int, world: int) -> None:
        raise UsageError("record 'x' is damaged")

    monkeypatch.setattr(plan, "step", fail)
    with feeder, pytest.raises(UsageError, match="record 'x' is damaged"):
        list(feeder)


def test_an_error_in_a_worker_reaches_the_consumer(source: SourceConfig, tmp_path: Path) -> None:
    shutil.copytree(source.regions, tmp_path / "regions")
    change_last_feature(tmp_path / "regions", "image003.jpg", b"\x55", checksum=False)
    feeder, *_ = make(SourceConfig(regions=str(tmp_path / "regions"), pairs=source.pairs), 0, 1000, workers=2)
    with feeder, pytest.raises(UsageError, match=r"image003.jpg.*checksum does not match"):
        list(feeder)


def test_dali_would_copy_what_it_gives_out() -> None:
    """Why DaliCarrier gives out the first bytes only on a CPU; should this fail, DALI does better: give out all."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(fn.external_source(name="x", no_copy=True, dtype=types.UINT8, ndim=1))
    memory = torch.arange(100_000).to(torch.uint8)
    (output,) = pipeline.run(x=[memory.numpy()])
    given = torch.utils.dlpack.from_dlpack(output[0])
    assert torch.equal(given, memory)
    assert given.data_ptr() != memory.data_ptr()
    carrier = DaliCarrier(CPU)
    assert carrier.carry(memory, Slot(pinned=False)).data_ptr() == memory.data_ptr()


def test_dali_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UsageError, match=r"data.feeder is dali, and DALI is missing .* or take plain"):
        DaliCarrier(CPU)


ORDER = """
import os, sys
from imagebert.config import SourceConfig
from tests.feed.test_feeder import make
source = SourceConfig(regions=sys.argv[1], pairs=sys.argv[2])
feeder, plan, packer, masking = make(source, int(sys.argv[4]), 18, workers=2)
log = open(sys.argv[3], "a", buffering=1)
with feeder:
    for step, batches in enumerate(feeder, int(sys.argv[4])):
        # What the model would see: labels, words as masked, and the features that came.
        for batch in batches:
            seen = [batch.itm_labels.tolist(), batch.input_ids.tolist(), batch.region_features.long().sum(1).tolist()]
            print(step, seen, file=log)
        if step == int(sys.argv[5]):
            os.kill(os.getpid(), 9)
"""


def test_killed_feeding_processes_repeat_and_skip_nothing(source: SourceConfig, tmp_path: Path) -> None:
    """An epoch of 72 captions is 9 steps of 8; two of them, once through and once with SIGKILLs on the way."""

    def feed(log: Path, begin: int, kill_at: int) -> int:
        return start(ORDER, source.regions, source.pairs, log, begin, kill_at).wait()

    assert feed(tmp_path / "whole", 0, -1) == 0
    begin = 0
    for kill_at in (2, 3, 8, 13):
        assert feed(tmp_path / "killed", begin, kill_at) == -9
        begin = kill_at + 1
    assert feed(tmp_path / "killed", begin, -1) == 0
    whole, killed = ((tmp_path / name).read_text().splitlines() for name in ("whole", "killed"))
    assert len(whole) == 18 * 2
    assert killed == whole
