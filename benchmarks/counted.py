"""A step of base on a GPU, counted without one: launches, bytes of PyTorch's own operators, and what a change saves.

    python -m benchmarks.counted [--json FILE]
    PYTHONPATH=OLD:OLD/kernels python benchmarks/counted.py --json FILE      of another tree, such as an older commit's

Forward and backward run on tensors without contents (as in benchmarks/memory.py), 256 pairs of full length. Each of
PyTorch's operators that computes is a launch that reads its arguments and writes its results; an operator of ours is
as many launches as its file makes. `savings` turns what differs between two counts into milliseconds, by constants of
a card that stand below: a model, not a measurement.
"""

from __future__ import annotations

import argparse
import collections
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import batch_of
from benchmarks.mixes import SPECIALS, draw_lengths
from benchmarks.report import publish
from benchmarks.step import ITEM, Model, Work, work_of
from imagebert.feed import sizes
from imagebert.feed.draws import stage_key
from imagebert.feed.plan import Cut, Lengths, Negatives, Plan
from imagebert.feed.sizes import choose_sizes, room_for_masked
from imagebert.model import ImageBertConfig, ImageBertForPreTraining
from imagebert_kernels import backend, classification, gelu, layer_norm

PAIRS, MASKED, MATCHED = 256, 0.15, 0.5
BASE = Model(12, 768)

# Trees before they were for matched pairs only, and their fill named different rows, are counted too.
_MATCHED_ROOMS = hasattr(sizes, "matched")

# Launches of our operators: kernels, and PyTorch's around them.
_LAUNCHES = {
    "packed_attention": 1,
    "packed_attention_backward": 1,
    "residual_layer_norm": 1,
    "residual_layer_norm_backward": 2,  # and the sum of the parts
    "bias_gelu": 1,
    "bias_gelu_backward": 2,
    "packed_embedding": 2,  # words, regions
    "packed_embedding_backward": 12,  # those, three tables, identifiers, sums
    "project_regions": 1,
    "project_regions_backward": 2,
    "region_regression_loss": 3,
    "region_regression_loss_backward": 1,
    "classification_loss": 4,  # rows, product, softmax, sum
}
# What only looks at memory in another way, or asks.
_VIEWS = {
    *("detach", "t", "view", "slice", "permute", "unbind", "alias", "select", "expand", "split", "transpose"),
    *("device", "promote_types", "empty_like", "new_empty", "empty", "_unsafe_view", "as_strided", "unsqueeze"),
}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        if name in _LAUNCHES:
            self.launches[name] += _LAUNCHES[name]
        elif name not in _VIEWS:
            moved = sum(t.numel() * t.element_size() for t in _tensors((args, kwargs or {}, out)))
            if name == "addmm" and args[0].dim() == 2:
                # PyTorch's product copies a matrix that it adds to, unless the result may take its place.
                self.launches["copy for addmm"] += 1
                moved += 2 * args[0].numel() * args[0].element_size()
            self.launches[name] += 1
            self.bytes += moved
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def rooms(work: Work) -> tuple[int, int]:
    """Rows that a filled batch has for masked words and regions, as feed/sizes.py chooses them for this tree."""
    if not _MATCHED_ROOMS:
        return room_for_masked(round(1.02 * work.texts), MASKED), room_for_masked(round(1.02 * work.regions), MASKED)
    # Three deviations of the number of pairs that match, and as much spare as there is for all else.
    share = 1.02 * (MATCHED + 3 * (MATCHED * (1 - MATCHED) / work.pairs) ** 0.5)
    words = work.texts - 3 * work.pairs
    return room_for_masked(round(share * words), MASKED), room_for_masked(round(share * work.regions), MASKED)


def count() -> dict[str, Any]:
    """Of forward and backward of one step of this tree."""
    exact = work_of("full", PAIRS)
    words, regions = rooms(exact)
    work = exact._replace(masked_words=words, masked_regions=regions)
    asked = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = "triton"  # the kernels' operators, which a fake tensor only describes
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)
        model = ImageBertForPreTraining(ImageBertConfig.preset("base")).train()
        torch.set_default_dtype(torch.float32)
        batch = batch_of(work, BASE.features)
        with _Counter() as counter:
            sum(model(batch).result).backward()
    if asked is None:
        del os.environ[backend.VARIABLE]
    else:
        os.environ[backend.VARIABLE] = asked
    tilings = {"gelu": gelu.tiling(4 * BASE.hidden, True), "layer_norm": layer_norm.tiling(BASE.hidden, True)}
    resident = {
        "gelu": getattr(gelu, "RESIDENT", 2),
        "layer_norm": layer_norm.resident(BASE.hidden) if hasattr(layer_norm, "resident") else 2,
    }
    return {
        "launches": sum(counter.launches.values()),
        "by_operator": {k: n for k, n in counter.launches.most_common() if n},
        "gigabytes_of_pytorch": counter.bytes / 1e9,
        "rows_read": PAIRS + words + regions,
        "rows_needed": round(exact.reads),
        # Fill that names one row: its gradients are added one after the other.
        "rows_added_in_turn": 0 if _MATCHED_ROOMS else PAIRS + words + regions - round(exact.reads),
        # Rows of word logits that a bias is copied over before their product.
        "logits_copied": 0 if "bias" in classification.classification_softmax.arg_names else words,
        "word_room": words,
        "region_room": regions,
        # Bytes that a multiprocessor's programs of backward have asked for while they compute.
        "bytes_under_way": {
            name: resident[name]
            * max(1, cut.get("STAGES", 1) - 1)
            * cut["ROWS"]
            * tensors
            * ITEM
            * min(cut["BLOCK"], cut["COLUMNS"])
            for (name, cut), tensors in zip(tilings.items(), (2, 3), strict=True)
        },
    }


class Card(NamedTuple):
    """Bytes and operations a second that were seen, and guesses that a first measurement decides."""

    bandwidth: float
    matmul: float = 790e12
    multiprocessors: int = 132
    latency: float = 0.9e-6  # of a load from memory, guess
    launch: float = 2e-6  # of a kernel that does next to nothing, guess
    host: float = 5e-6  # what PyTorch takes to launch one, guess
    serial_row: float = 0.42e-6  # of a row that is added to one that others are added to as well, guess


CARDS = {"H100": Card(3.0e12), "H200": Card(4.3e12)}


def savings(before: dict[str, Any], after: dict[str, Any], card: Card) -> dict[str, float]:
    """Milliseconds that each change saves of a step."""
    work, h = work_of("full", PAIRS), BASE.hidden
    rows = (BASE.layers - 1) * work.tokens + work.reads

    def walking(counted: dict[str, Any], name: str, loaded: float) -> float:
        """Seconds of the loads of a backward kernel: memory gives what was asked for, once a latency."""
        rate = counted["bytes_under_way"][name] * card.multiprocessors / card.latency
        return loaded / min(card.bandwidth, rate)

    loads = {"gelu": 2 * ITEM * 4 * h * rows, "layer_norm": 2 * 3 * ITEM * h * rows}
    copies = before["by_operator"].get("copy for addmm", 0) - after["by_operator"].get("copy for addmm", 0)
    fewer = {key: before[key] - after[key] for key in ("rows_read", "word_room", "region_room")}
    flops = 60 * h * h * fewer["rows_read"] + 6 * fewer["word_room"] * h * (BASE.words + h)
    flops += fewer["region_room"] * h * (6 * BASE.classes + 8 * BASE.features)
    logits = (before["logits_copied"] - after["logits_copied"]) * BASE.words
    launches = before["launches"] - after["launches"] - copies
    seconds = {
        "backward of GELU and LayerNorm loads ahead": sum(
            walking(before, name, loaded) - walking(after, name, loaded) for name, loaded in loads.items()
        ),
        "residual products in place": copies * 2 * ITEM * h * rows / BASE.layers / card.bandwidth,
        "fill names different rows": (before["rows_added_in_turn"] - after["rows_added_in_turn"]) * card.serial_row,
        "rooms for matched pairs": flops / card.matmul,
        # Written over all logits, and read by the product.
        "no bias copied over word logits": 2 * ITEM * logits / card.bandwidth,
        "one draw of seeds, and other launches": launches * card.launch,
    }
    return {name: 1e3 * value for name, value in seconds.items()}


def later() -> dict[str, Any]:
    """What would be saved by what is not built: counted for base, in the same model."""
    work, h = work_of("full", PAIRS), BASE.hidden
    # Of each parameter: copied to a bucket, divided, copied to a partition, squared, joined, cast, updated, cast; or a
    # gradient of 16 bits read, master and moments read and written, a weight of 16 bits written.
    now, least = 74 * BASE.parameters, 28 * BASE.parameters
    bias = 3 * h * ITEM * work.tokens * (BASE.layers - 1)
    forward = 2 * 12 * h * h * work.tokens * (BASE.layers - 1)
    return {
        "update_gigabytes_now": now / 1e9,
        "update_gigabytes_least": least / 1e9,
        "update_ms": {name: 1e3 * (now - least) / card.bandwidth for name, card in CARDS.items()},
        "bias_gigabytes": bias / 1e9,
        "bias_ms": {name: 1e3 * bias / card.bandwidth for name, card in CARDS.items()},
        "fill_of_pairs": fill("real", by_tokens=False),
        "fill_of_tokens": fill("real", by_tokens=True),
        "products_gflop": 2 * forward / 1e9,
        "fp8_ms": 1e3 * forward / CARDS["H100"].matmul,
    }


def fill(mix: str, by_tokens: bool, pairs: int = 40_000, parts: int = 4) -> float:
    """The share of a filled microbatch that is fill, on average: steps of 1,024 pairs, or as many tokens, in four."""
    rng = np.random.default_rng(0)
    regions, words = draw_lengths(rng, mix, "regions", pairs), draw_lengths(rng, mix, "words", pairs)
    tokens = int((regions + words + SPECIALS).mean() * PAIRS * parts)
    size = {"batch_tokens": tokens} if by_tokens else {"batch_size": PAIRS * parts}
    negatives = Negatives(share=MATCHED, candidates=1, source="batch")
    plan = Plan(
        np.arange(pairs), Lengths(regions, words), negatives, Cut(parts=parts, **size), key=stage_key(0, "fill")
    )
    chosen = choose_sizes(plan, MASKED, MASKED)
    microbatches = [part for step in range(32) for part in plan.step(step, 0, 1)]
    real = np.mean([plan.lengths.tokens(m).sum() for m in microbatches if chosen.hold(plan.lengths, m)])
    return float(1 - real / (chosen.regions + chosen.texts))


def show(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Prints both, and returns the savings by card."""
    table = Table("base, 256 full pairs: forward and backward", *(["before"] if before else []), "now")
    for key, form in (("launches", "d"), ("gigabytes_of_pytorch", ".1f"), ("rows_read", "d"), ("rows_needed", "d")):
        table.add_row(key, *(format(counted[key], form) for counted in (before, after) if counted))
    console = Console(width=120)
    console.print(table)
    if before is None:
        return {}
    saved = {name: savings(before, after, card) for name, card in CARDS.items()}
    table = Table("milliseconds saved, by the model", *saved)
    for item in next(iter(saved.values())):
        table.add_row(item, *(f"{of_card[item]:.2f}" for of_card in saved.values()))
    table.add_row("together", *(f"{sum(of_card.values()):.2f}" for of_card in saved.values()))
    console.print(table)
    host = (before["launches"] - after["launches"]) * CARDS["H100"].host
    console.print(f"and {1e3 * host:.2f} ms of the host's time, where steps are eager")
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    counted = count()
    show(None, counted)
    publish(counted, [], parsed.json)


if __name__ == "__main__":
    main()
