"""Flickr8k from JPEGs to R@K, aligned first: vectors of images and captions, then layers that see both.

    python -m benchmarks.flickr8k_align --data FLICKR8K --models MODELS [--seeds 3] [--fused 1] [--json FILE]

FLICKR8K, MODELS and the packages are those of benchmarks/flickr8k.py, and so are regions and pairs. For each seed the
recipe flickr8k_align is trained and evaluated exactly, on all 1,000 dev images and on the first 100; for the first
`fused` seeds flickr8k_fuse is trained behind it, and evaluated in two steps on all and exactly on the first 100. Beside
them stands the linear baseline (benchmarks/ridge.py). Each step is a command; a second call goes on where the first one
stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.flickr8k import Steps, add_options, text_model
from benchmarks.report import Line, publish

CANDIDATES = 50
# R@1 of text-to-image and of image-to-text
WANTED = {"vectors-100": (50, 50), "fused-100": (50, 50), "vectors": (24, 26), "two-step": (24, 26)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fused", type=int, default=1, help="seeds whose fused layers are trained, too")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of both recipes")
    parsed = parser.parse_args()
    out: Path = parsed.out
    out.mkdir(parents=True, exist_ok=True)
    minilm, step = text_model(), Steps(out)
    step.make_stores(parsed.data, parsed.models)
    stores = ["--regions", out / "regions", "--pairs", out / "pairs"]
    path = out / "ridge.json"
    step("ridge", path, *stores, "--text", minilm, "--images", 100, 1000, "--json", path, module="benchmarks.ridge")
    ridge = json.loads(path.read_text())["figures"]["recall"]
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(parsed.seeds):
        figures = _align(step, seed, parsed.set)
        if seed < parsed.fused:
            figures |= _fuse(step, seed, parsed.set)
        for name, each in figures.items():
            found.setdefault(name, []).append(each)
        lines = [line for name, each in found.items() for line in _lines(name, each, ridge["1000"])]
        publish({"ridge": ridge, "recall": found, "seconds": step.seconds}, lines, parsed.json)


def _align(step: Steps, seed: int, changes: list[str]) -> dict[str, dict[str, Any]]:
    """The vectors of a seed, and their R@K by name: without fused layers a pair's score is their product."""
    run = step.out / f"align-{seed}"
    step(run.name, run / "model", "finetune", "flickr8k_align", *_data(step.out, seed), *changes, f"output={run}",
         f"model.initialize_from={text_model()}")  # fmt: skip
    return {"vectors": _evaluate(step, "vectors", run, seed),
            "vectors-100": _evaluate(step, "vectors-100", run, seed, "--images", 100)}  # fmt: skip


def _fuse(step: Steps, seed: int, changes: list[str]) -> dict[str, dict[str, Any]]:
    """The fused layers behind them, likewise."""
    run = step.out / f"fuse-{seed}"
    step(run.name, run / "model", "finetune", "flickr8k_fuse", *_data(step.out, seed), *changes, f"output={run}",
         f"model.initialize_from={step.out / f'align-{seed}'}", f"model.fused_from={text_model()}")  # fmt: skip
    two_step = "--candidates", CANDIDATES, "--candidates-only"
    return {"two-step": _evaluate(step, "two-step", run, seed, *two_step),
            "fused-100": _evaluate(step, "fused-100", run, seed, "--images", 100)}  # fmt: skip


def _data(out: Path, seed: int) -> list[str]:
    return [f"data.sources.0.regions={out / 'regions'}", f"data.sources.0.pairs={out / 'pairs'}", f"seed={seed}"]


def _evaluate(step: Steps, name: str, run: Path, seed: int, *words: object) -> dict[str, Any]:
    path = step.out / f"recall-{name}-{seed}.json"
    dev = ["--regions", step.out / "regions", "--pairs", step.out / "pairs", "--split", "dev", "--max-regions", 36]
    step(f"evaluate-{name}-{seed}", path, "evaluate", run, *dev, *words, "--json", path)
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def _lines(name: str, runs: list[dict[str, Any]], ridge: dict[str, Any]) -> list[Line]:
    """R@1 over seeds beside what is wanted, and beside the linear baseline on as many images."""
    lines = []
    for place, way in enumerate(("ir", "tr")):
        mean = {k: statistics.mean(run[way][k] for run in runs) for k in ("r1", "r5", "r10")}
        if name in WANTED:
            lines.append(Line(f"{name}: {way} R@1", mean["r1"], WANTED[name][place]))
        if not name.endswith("-100"):
            lines += [Line(f"{name}: {way} {k} over ridge's", mean[k] / ridge[way][k], 1.0) for k in mean]
    return lines


if __name__ == "__main__":
    main()
