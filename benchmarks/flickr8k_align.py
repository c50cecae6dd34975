"""Flickr8k from JPEGs to R@K, aligned first: vectors of images and captions, then layers that see both.

    python -m benchmarks.flickr8k_align --data FLICKR8K --models MODELS [--seeds 3] [--json FILE]

FLICKR8K, MODELS and the packages are those of benchmarks/flickr8k.py, and so are regions and pairs. For each seed the
recipes flickr8k_align and flickr8k_fuse are trained, and evaluated on dev images: by vectors alone and in two steps on
all 1,000, exactly on the first 100. Beside them stands the linear baseline (benchmarks/ridge.py). Each step is a
command; a second call goes on where the first one stopped.
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
WANTED = {"exact-100": (50, 50), "two-step": (24, 26)}  # R@1 of text-to-image and of image-to-text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=1)
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
        for name, figures in _train(step, out / f"align-{seed}", out / f"fuse-{seed}", seed, parsed.set).items():
            found.setdefault(name, []).append(figures)
        lines = [line for name, each in found.items() for line in _lines(name, each, ridge["1000"])]
        publish({"ridge": ridge, "recall": found, "seconds": step.seconds}, lines, parsed.json)


def _train(step: Steps, align: Path, fuse: Path, seed: int, changes: list[str]) -> dict[str, dict[str, Any]]:
    """Both runs of a seed, and their R@K by name."""
    out, minilm = step.out, text_model()
    data = [f"data.sources.0.regions={out / 'regions'}", f"data.sources.0.pairs={out / 'pairs'}", f"seed={seed}"]
    step(align.name, align / "model", "finetune", "flickr8k_align", *data, *changes, f"output={align}",
         f"model.initialize_from={minilm}")  # fmt: skip
    step(fuse.name, fuse / "model", "finetune", "flickr8k_fuse", *data, *changes, f"output={fuse}",
         f"model.initialize_from={align}", f"model.fused_from={minilm}")  # fmt: skip
    dev = ["--regions", out / "regions", "--pairs", out / "pairs", "--split", "dev", "--max-regions", 36]
    candidates = ["--candidates", CANDIDATES, "--candidates-only"]
    evaluations: dict[str, list[object]] = {
        "aligned": [align, *dev],
        "two-step": [fuse, *dev, *candidates],
        "exact-100": [fuse, *dev, "--images", 100],
    }
    found = {}
    for name, words in evaluations.items():
        path = out / f"recall-{name}-{seed}.json"
        step(f"evaluate-{name}-{seed}", path, "evaluate", *words, "--json", path)
        found[name] = json.loads(path.read_text())
    found["vectors"] = found["two-step"]["two_step"]["vectors"]
    return found


def _lines(name: str, runs: list[dict[str, Any]], ridge: dict[str, Any]) -> list[Line]:
    """R@1 over seeds beside what is wanted, and beside the linear baseline on as many images."""
    lines = []
    for place, way in enumerate(("ir", "tr")):
        mean = {k: statistics.mean(run[way][k] for run in runs) for k in ("r1", "r5", "r10")}
        if name in WANTED:
            lines.append(Line(f"{name}: {way} R@1", mean["r1"], WANTED[name][place]))
        if name != "exact-100":
            lines += [Line(f"{name}: {way} {k} over ridge's", mean[k] / ridge[way][k], 1.0) for k in mean]
    return lines


if __name__ == "__main__":
    main()
