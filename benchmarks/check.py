"""Is a training step right on this machine? One line a check, exit 1 on any miss; nothing is timed for the record.

    python -m benchmarks.check [--steps 8] [--json FILE]        on a GPU: bf16, hidden size of base
    TRITON_INTERPRET=1 python -m benchmarks.check --steps 2     without one: float32, tiny, kernels in the interpreter

Each check trains the same few steps from the same weights, the whole way through engine, losses and update, in two
ways, and compares the losses of all steps: the later ones see what the earlier ones did to the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

import imagebert.model.configuration as configuration
from benchmarks.length_mixes import write_random_corpus
from benchmarks.report import publish
from benchmarks.train import waits
from imagebert import distributed
from imagebert.config import RunConfig
from imagebert.data.corpus import Corpus
from imagebert.engine.engine import Engine
from imagebert.engine.metrics import read_log
from imagebert.feed.arena import Arena
from imagebert.feed.draws import Purpose, draw
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.sizes import choose_sizes
from imagebert.strict_yaml import build
from imagebert.training.assemble import make_masking, make_model, make_plan
from imagebert.training.objectives import make_objective
from imagebert.training.run import run
from imagebert_kernels import backend

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Layers, hidden size and heads; pairs; images; feature size, region classes and word pieces
PRESET, PAIRS, IMAGES = ((4, 768, 12), 64, 128) if GPU else ((2, 64, 2), 8, 16)
SIZES = (2048, 1600, 30522) if GPU else (32, 9, 90)
# What another way of computing the same may differ by: relative, of a loss. Bits of bf16 add up over the steps.
CLOSE = 1e-2 if GPU else 1e-4


class Way(NamedTuple):
    """How the steps are trained."""

    kernels: str = "triton" if GPU or INTERPRETED else "reference"
    step: str = "eager"
    dropout: float = 0.1
    filled: bool = False  # to one shape; compiled and graphed steps always are
    deepspeed: str = "zero1"
    recompute: bool = False


PLAIN = Way()
# The reference draws dropout for all that a shape holds, fill too; kernels draw for a place, whatever lies behind it.
UNFILLED = PLAIN if PLAIN.kernels == "triton" else PLAIN._replace(dropout=0.0)


class Check(NamedTuple):
    """`way` gives the losses of `other`, up to a relative `tolerance`; 0: bit for bit."""

    name: str
    way: Way
    other: Way
    tolerance: float
    needs_gpu: bool = False


CHECKS = (
    Check("kernels as PyTorch's reference, without dropout", Way(dropout=0.0), Way("reference", dropout=0.0), CLOSE),
    Check("filled up to one shape as without fill", UNFILLED._replace(filled=True), UNFILLED, CLOSE),
    Check("ZeRO 2 as ZeRO 1", PLAIN._replace(deepspeed="zero2"), PLAIN, 1e-6),
    Check("layers computed again in backward as kept ones", PLAIN._replace(recompute=True), PLAIN, CLOSE / 10),
    Check("graphed as filled", PLAIN._replace(step="graphed"), PLAIN._replace(filled=True), 0.0, True),
    Check(
        "graphed, computed again in backward, as filled",
        PLAIN._replace(step="graphed", recompute=True),
        PLAIN._replace(filled=True),
        CLOSE / 10,
        True,
    ),
    Check(
        "compiled as filled, without dropout",
        Way(step="compiled", dropout=0.0),
        Way(filled=True, dropout=0.0),
        CLOSE,
        True,
    ),
)


class Trainer:
    """Trains steps on one random corpus of real lengths."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        configuration.PRESETS["base"] = PRESET
        (folder / "corpus").mkdir()
        self.source = write_random_corpus(folder / "corpus", "real" if GPU else "short", IMAGES, 2, *SIZES)
        self.losses = lru_cache(maxsize=None)(self.train)

    def config(self, way: Way, name: str = "run") -> RunConfig:
        tree = {
            "task": "pretrain",
            "stage": "check",
            "output": str(self.folder / name),
            "data": {"sources": [{"regions": self.source.regions, "pairs": self.source.pairs}]},
            "model": {
                "preset": "base",
                "hidden_dropout": way.dropout,
                "attention_dropout": way.dropout,
                "gradient_checkpointing": way.recompute,
            },
            "schedule": {"batch_size": PAIRS, "steps": self.steps, "warmup": 0.0, "decay": "constant"},
            "engine": {
                "deepspeed": way.deepspeed,
                "kernels": way.kernels,
                "step": way.step,
                "precision": "bf16" if GPU else "fp32",
            },
            "logging": {"every_steps": 1},
            "checkpoint": {"every_steps": 10**9},
        }
        return build(RunConfig, tree, "check")

    def train(self, way: Way) -> list[float]:
        """The losses of all steps, on batches that were packed before."""
        config = self.config(way)
        device = distributed.device()
        backend.choose(config.engine.kernels, device)
        corpus = Corpus(config.data.sources)
        packer = Packer(corpus, Limits.of(config.data))
        plan, masking = make_plan(config, corpus, packer), make_masking(config, corpus)
        sizes = choose_sizes(plan, 0.15, 0.15) if way.filled or way.step != "eager" else None
        batches = [packer.pack(plan.step(s, 0, 1)[0], Arena(), s, masking, sizes, device) for s in range(self.steps)]
        engine, objective = Engine(make_model(config, corpus), config), make_objective(config)
        try:
            if way.step == "graphed":
                engine.capture(next(batch for batch in batches if batch.tokens > batch.real_tokens))
            engine.set_learning_rate(config.optimizer.learning_rate)
            found = []
            for step, batch in enumerate(batches):
                torch.manual_seed(int(draw(plan.key, Purpose.DROPOUT, step, 0, 0) >> 1))
                sums = objective.losses(engine(batch), batch)
                loss = objective.mean(sums, objective.counts(batch))
                engine.backward(loss)
                found.append(loss.detach())
            return [float(loss) for loss in found]
        finally:
            engine.close()
            torch._dynamo.reset()

    def again(self, **environment: str) -> list[float]:
        """PLAIN's losses from a process of its own."""
        call = [sys.executable, "-m", "benchmarks.check", "--losses", "--steps", str(self.steps)]
        done = subprocess.run(call, env=os.environ | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-900:])
        return [float(loss) for loss in json.loads(done.stdout.splitlines()[-1])]

    def as_a_user(self) -> list[float]:
        """What the log of `imagebert pretrain` says: feeder threads, pinned memory, streams."""
        config = self.config(PLAIN, "user")
        run(config)
        return [line["loss/total"] for line in read_log(Path(config.output) / "log.jsonl")]


def difference(found: list[float], expected: list[float]) -> float:
    """The largest relative one; no number: infinite."""
    worst = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    return max(w if w == w else float("inf") for w in worst)


def checks(trainer: Trainer) -> list[dict[str, Any]]:
    console, rows = Console(width=140), []

    def check(name: str, tolerance: float, call: Callable[[], float], needs_gpu: bool = False) -> None:
        begun, row = time.perf_counter(), {"name": name, "tolerance": tolerance}
        if needs_gpu and not GPU:
            row["left_out"] = "needs a GPU"
        else:
            try:
                row["difference"] = call()
                row["holds"] = row["difference"] <= tolerance
            except Exception:
                row |= {"holds": False, "error": traceback.format_exc()[-2000:]}
        row["seconds"] = time.perf_counter() - begun
        rows.append(row)
        said = row.get("left_out") or f"{row.get('difference', float('nan')):.2g}, at most {tolerance:g}"
        mark = "left out" if "left_out" in row else "yes" if row["holds"] else "NO"
        console.print(f"{mark:9s}{name}: {said}, {row['seconds']:.1f} s", markup=False)
        if "error" in row:
            console.print(row["error"], markup=False)

    for c in CHECKS:
        check(c.name, c.tolerance, lambda c=c: difference(trainer.losses(c.way), trainer.losses(c.other)), c.needs_gpu)
    check("the same bits again", 0.0, lambda: difference(trainer.train(PLAIN), trainer.losses(PLAIN)))
    check("the same bits in another process", 0.0, lambda: difference(trainer.again(), trainer.losses(PLAIN)))
    check(
        "the same bits where each launch is waited for",
        0.0,
        lambda: difference(trainer.again(CUDA_LAUNCH_BLOCKING="1"), trainer.losses(PLAIN)),
        needs_gpu=True,
    )
    check(
        "imagebert pretrain as the same steps by hand",
        1e-6,
        lambda: difference(trainer.as_a_user(), trainer.losses(PLAIN)),
    )

    def waiting() -> float:
        found = waits(trainer.config(PLAIN))
        if found is not None:
            raise RuntimeError(found)
        return 0.0

    check("a step in which the host waits for nothing", 0.0, waiting, needs_gpu=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of each training (%(default)s)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--losses", action="store_true", help="only the plain way's losses, as JSON")
    parsed = parser.parse_args()
    distributed.start()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder), parsed.steps)
        if parsed.losses:
            print(json.dumps(trainer.losses(PLAIN)))
            return
        rows = checks(trainer)
    publish({"checks": rows, "steps": parsed.steps}, [], parsed.json)
    sys.exit(any(not row.get("holds", True) for row in rows))


if __name__ == "__main__":
    main()
