"""The constants of `imagebert plan`, measured on this machine; and what a checkpoint costs training.

    python -m benchmarks.calibrate [--json FILE]            one process; under torchrun or srun the network too
    imagebert plan --gpu cpu --calibrate FILE

Measured, medians of several: a square product's rate; the share of it that training reaches, through the engine on
ready-made batches of --model, on a GPU with ZeRO 1 as in the paper's recipes; checkpoints of --checkpoint, saved while
training goes on: seconds that training stands still, and that the whole save takes; over several ranks an all-reduce of
a bucket and of one number.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.length_mixes import write_random_corpus
from benchmarks.report import Line, publish
from imagebert import distributed
from imagebert.config import RunConfig
from imagebert.data.corpus import Corpus
from imagebert.engine.checkpoints import Checkpoints
from imagebert.engine.engine import Engine, resolve_precision
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.strict_yaml import build
from imagebert.training.assemble import make_masking, make_model, make_plan
from imagebert.training.capacity import checkpoint_bytes, pair_flops
from imagebert.training.objectives import make_objective

GPU = torch.cuda.is_available()
DEEPSPEED = "zero1" if GPU else "zero0"  # in bf16 zero0's step reads 169 numbers on the host: DeepSpeed 0.19.8, base


def median_seconds(call: Callable[[], Any], times: int = 5) -> float:
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call()
        if GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def matmul_rate() -> float:
    """Operations a second, in the type that is trained in."""
    n = 8192 if GPU else 2048
    a = torch.randn(n, n, device=distributed.device(), dtype=torch.bfloat16 if GPU else torch.float32)
    return 2 * n**3 / median_seconds(lambda: a @ a)


class Training:
    """An engine and one batch of it."""

    def __init__(self, folder: Path, preset: str, pairs: int) -> None:
        folder.mkdir()
        source = write_random_corpus(folder, "full", 64, 1, 2048, 1600)
        tree = {
            "task": "pretrain",
            "stage": "calibrate",
            "output": str(folder),
            "data": {"sources": [{"regions": source.regions, "pairs": source.pairs}]},
            "model": {"preset": preset},
            "schedule": {"batch_size": pairs * distributed.world_size(), "steps": 1},
            "engine": {"deepspeed": DEEPSPEED},
        }
        self.config: RunConfig = build(RunConfig, tree, "benchmark")
        corpus = Corpus(self.config.data.sources)
        packer = Packer(corpus, Limits(max_regions=100, max_words=41, whole_image=True))
        samples = make_plan(self.config, corpus, packer).step(0, distributed.rank(), distributed.world_size())[0]
        masking = make_masking(self.config, corpus)
        self.batch = packer.pack(samples, Arena(), 0, masking, device=distributed.device())
        model = make_model(self.config, corpus)
        self.shape, self.parameters = model.config, sum(p.numel() for p in model.parameters())
        self.engine, self.objective = Engine(model, self.config), make_objective(self.config)

    def step(self) -> None:
        counts = distributed.total_on_device(self.objective.counts(self.batch))
        losses = self.objective.losses(self.engine(self.batch), self.batch)
        self.engine.backward(self.objective.mean(losses, counts))

    def flops(self) -> float:
        """Of one step on this rank."""
        regions = len(self.batch.region_rows) / self.batch.pairs
        words = self.batch.real_tokens / self.batch.pairs - regions - 3
        return pair_flops(self.shape, round(regions), round(words)) * self.batch.pairs


def checkpoint_cost(training: Training, folder: Path, saves: int) -> dict[str, float]:
    """Medians over saves while training goes on, and what the plan needs of them."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    training.step()
    paused, took = [], []
    for number in range(saves + 1):
        checkpoints.save(training.engine, number + 1, {})
        while True:  # training goes on beside the writer
            training.step()
            progress = distributed.total(checkpoints.progress())
            checkpoints.settle(*progress)
            if figures := checkpoints.figures():
                break
        paused.append(figures["checkpoint/seconds_paused"])
        took.append(figures["checkpoint/seconds"])
    checkpoints.finish()
    pause, whole = statistics.median(paused[1:]), statistics.median(took[1:])  # the first also gets its memory
    size = checkpoint_bytes(training.parameters)
    return {
        "bytes": size,
        "seconds_paused": pause,
        "seconds": whole,
        "first_seconds_paused": paused[0],
        "host_copy": size / distributed.world_size() / pause,
        "disk": size / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base" if GPU else "small", help="whose steps are timed (%(default)s)")
    parser.add_argument("--pairs", type=int, default=256 if GPU else 16, help="of a microbatch (%(default)s)")
    parser.add_argument("--checkpoint", default="base", help="the model that is saved (%(default)s)")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    distributed.start()
    matmul = matmul_rate()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = Training(folder / "trained", parsed.model, parsed.pairs)
        step = median_seconds(training.step)
        share = training.flops() / step / matmul
        training.engine.close()
        saved = Training(folder / "saved", parsed.checkpoint, 4 if not GPU else parsed.pairs)
        cost = checkpoint_cost(saved, Path(distributed.gather(name)[0]), parsed.saves)
        saved.engine.close()
    constants = {"matmul": matmul, "share": share, "host_copy": cost["host_copy"], "disk": cost["disk"]}
    ranks = distributed.world_size()
    if ranks > 1:
        bucket, one = (torch.zeros(n, device=distributed.device()) for n in (10_000_000, 1))
        size = 4 * len(bucket)
        seconds = median_seconds(lambda: distributed.total_on_device(bucket))
        constants["inside"] = constants["between"] = 2 * (ranks - 1) / ranks * size / seconds
        constants["latency"] = median_seconds(lambda: distributed.total_on_device(one), 50)
    if distributed.rank() == 0:
        engine = {"deepspeed": DEEPSPEED, "precision": resolve_precision(training.config)}
        title = f"{ranks} ranks, {', '.join(engine.values())}; {parsed.model} trains, {parsed.checkpoint} is saved"
        table = Table("", "", title=title)
        for key, value in {**constants, **{f"checkpoint: {k}": v for k, v in cost.items()}}.items():
            table.add_row(key, f"{value:.4g}")
        Console().print(table)
        lines = [Line("pause of training, of a save", cost["seconds_paused"] / cost["seconds"], 0.1, at_most=True)]
        figures = {"engine": engine, "constants": constants, "checkpoint": cost, "ranks": ranks}
        publish(figures, lines, parsed.json)


if __name__ == "__main__":
    main()
