"""What lies between the products, beside PyTorch eager, torch.compile and Liger-Kernel: see benchmarks/ops.py.

Each operation at the sizes of a step (benchmarks/step.py), bf16, dropout 0.1 where there is any. Operations and bytes
are the least: each tensor read and written once. Liger has a LayerNorm and a fused linear cross-entropy; it is asked
where it is installed, with PyTorch doing what it has not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.report import Line
from benchmarks.step import ITEM, MODELS, Model, Work, work_of
from benchmarks.timing import Pass, seconds, stream
from imagebert_kernels import classification, embedding, gelu, layer_norm, region_projection, region_regression

DROPOUT, EPSILON = 0.1, 1e-12


class Case(NamedTuple):
    """Inputs of one call: those with gradients, and the rest; all by the names of the operation's arguments."""

    tensors: dict[str, Tensor]
    fixed: dict[str, Any]


class Cost(NamedTuple):
    flops: float
    bytes: float


class Operation(NamedTuple):
    make: Callable[[Model, Work, Random], Case]
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    liger: Callable[..., Tensor] | None
    forward: Callable[[Model, Work], Cost]
    backward: Callable[[Model, Work], Cost]


class Random:
    """Inputs from a seed."""

    def __init__(self, seed: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.dtype = device, dtype

    def normal(self, *shape: float) -> Tensor:
        size = [int(n) for n in shape]
        return torch.randn(*size, generator=self.generator, device=self.device, dtype=self.dtype)

    def below(self, most: int, count: float) -> Tensor:
        return torch.randint(most, (int(count),), generator=self.generator, device=self.device)

    def some(self, most: float, count: float) -> Tensor:
        """Different ones, ascending."""
        chosen = torch.randperm(int(most), generator=self.generator, device=self.device)[: int(count)]
        return chosen.sort().values

    def stored(self, regions: int, features: int) -> dict[str, Tensor]:
        values = torch.randint(-127, 128, (regions, features), generator=self.generator, device=self.device)
        scales = torch.rand(regions, generator=self.generator, device=self.device) / 50
        return {"features": values.to(torch.int8), "scales": scales}


# ------------------------------------------------------------------------------------------------------- operations


def _layer_norm(model: Model, work: Work, random: Random) -> Case:
    h = model.hidden
    rows = {name: random.normal(work.tokens, h) for name in ("x", "residual")}
    return Case(
        rows | {name: random.normal(h) for name in ("bias", "weight", "shift")},
        {"epsilon": EPSILON, "dropout": DROPOUT},
    )


def _layer_norm_liger(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, shift: Tensor, epsilon: float, dropout: float
) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(residual + F.dropout(x + bias, dropout), weight, shift, epsilon)


def _gelu(model: Model, work: Work, random: Random) -> Case:
    size = 4 * model.hidden
    return Case({"x": random.normal(work.tokens, size), "bias": random.normal(size)}, {})


def _embedding(model: Model, work: Work, random: Random) -> Case:
    h, order = model.hidden, torch.randperm(work.tokens, generator=random.generator, device=random.device)
    tables = {"word_table": model.words, "position_table": 512, "type_table": 2}
    words = random.below(model.words, work.texts)
    return Case(
        {name: random.normal(rows, h) for name, rows in tables.items()}
        | {"regions": random.normal(work.regions, h), "weight": random.normal(h), "shift": random.normal(h)},
        {
            "region_rows": order[: work.regions].sort().values,
            "text_rows": order[work.regions :].sort().values,
            # A third are [CLS] and [SEP], as in a batch.
            "input_ids": torch.where(random.below(3, work.texts) == 0, 102, words),
            "position_ids": random.below(46, work.tokens),
            "token_type_ids": random.below(2, work.tokens),
            "epsilon": EPSILON,
            "dropout": DROPOUT,
        },
    )


def _region_projection(model: Model, work: Work, random: Random) -> Case:
    h = model.hidden
    return Case(
        {
            "weight": random.normal(h, model.features),
            "bias": random.normal(h),
            "location_weight": random.normal(h, 5),
            "location_bias": random.normal(h),
        },
        {
            **random.stored(work.regions, model.features),
            "zeroed": random.below(10, work.regions) == 0,
            "boxes": random.normal(work.regions, 5).float(),
        },
    )


def _region_regression(model: Model, work: Work, random: Random) -> Case:
    h, reads = model.hidden, int(work.reads)
    rows = random.some(reads, work.masked_regions)
    return Case(
        {
            "hidden": random.normal(reads, h),
            "weight": random.normal(model.features, h),
            "bias": random.normal(model.features),
        },
        {**random.stored(work.regions, model.features), "rows": rows, "regions": random.some(work.regions, len(rows))},
    )


def _classification(classes: Callable[[Model], int], rows: Callable[[Work], float]) -> Callable[..., Case]:
    def make(model: Model, work: Work, random: Random) -> Case:
        count, size = int(rows(work)), classes(model)
        return Case(
            {
                "hidden": random.normal(count, model.hidden),
                "weight": random.normal(size, model.hidden) / 28,
                "bias": random.normal(size),
            },
            {"rows": None, "labels": random.below(size, count)},
        )

    return make


def _classification_liger(hidden: Tensor, weight: Tensor, bias: Tensor, rows: None, labels: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, labels, bias, reduction="sum", ignore_index=-1)


def _costs(
    classes: Callable[[Model], int], rows: Callable[[Work], float]
) -> tuple[Callable[[Model, Work], Cost], Callable[[Model, Work], Cost]]:
    def forward(m: Model, w: Work) -> Cost:
        return Cost(2 * rows(w) * m.hidden * classes(m), ITEM * (3 * rows(w) * classes(m) + classes(m) * m.hidden))

    def backward(m: Model, w: Work) -> Cost:
        return Cost(4 * rows(w) * m.hidden * classes(m), ITEM * (2 * rows(w) * classes(m) + 2 * classes(m) * m.hidden))

    return forward, backward


def _words(m: Model) -> int:
    return m.words


def _classes(m: Model) -> int:
    return m.classes


def _masked_words(w: Work) -> float:
    return w.masked_words


def _masked_regions(w: Work) -> float:
    return w.masked_regions


def _projection_cost(m: Model, w: Work) -> Cost:
    """Of either direction: the product of all regions, or that of the weight's gradient."""
    moved = w.regions * (m.features + ITEM * m.hidden) + ITEM * m.features * m.hidden
    return Cost(2 * w.regions * m.features * m.hidden, moved)


OPERATIONS: dict[str, Operation] = {
    "bias, dropout, residual, LayerNorm": Operation(
        _layer_norm,
        layer_norm.residual_layer_norm,
        layer_norm.residual_layer_norm_reference,
        _layer_norm_liger,
        lambda m, w: Cost(0, 3 * ITEM * w.tokens * m.hidden),
        lambda m, w: Cost(0, 5 * ITEM * w.tokens * m.hidden),
    ),
    "bias, GELU": Operation(
        _gelu,
        gelu.bias_gelu,
        gelu.bias_gelu_reference,
        None,
        lambda m, w: Cost(0, 8 * ITEM * w.tokens * m.hidden),
        lambda m, w: Cost(0, 12 * ITEM * w.tokens * m.hidden),
    ),
    "embedding, LayerNorm, dropout": Operation(
        _embedding,
        embedding.packed_embedding,
        embedding.packed_embedding_reference,
        None,
        lambda m, w: Cost(0, 2 * ITEM * w.tokens * m.hidden),
        lambda m, w: Cost(0, ITEM * m.hidden * (5 * w.tokens + w.texts + m.words)),
    ),
    "region projection": Operation(
        _region_projection,
        region_projection.project_regions,
        region_projection.project_regions_reference,
        None,
        _projection_cost,
        _projection_cost,
    ),
    "region regression": Operation(
        _region_regression,
        region_regression.region_regression_loss,
        region_regression.region_regression_loss_reference,
        None,
        lambda m, w: Cost(
            2 * w.masked_regions * m.features * m.hidden,
            w.masked_regions * (m.features + ITEM * m.hidden) + ITEM * m.features * m.hidden,
        ),
        lambda m, w: Cost(
            6 * w.masked_regions * m.features * m.hidden,
            w.masked_regions * (m.features * (1 + 3 * ITEM) + 3 * ITEM * m.hidden) + 3 * ITEM * m.features * m.hidden,
        ),
    ),
    "classification of words": Operation(
        _classification(_words, _masked_words),
        classification.classification_loss,
        classification.classification_loss_reference,
        _classification_liger,
        *_costs(_words, _masked_words),
    ),
    "classification of regions": Operation(
        _classification(_classes, _masked_regions),
        classification.classification_loss,
        classification.classification_loss_reference,
        _classification_liger,
        *_costs(_classes, _masked_regions),
    ),
}


# ----------------------------------------------------------------------------------------------------------- timing


def passes(operation: Callable[..., Tensor], case: Case) -> tuple[Pass, Pass]:
    """Forward, and backward of a forward done before."""
    tensors = {name: t.detach().requires_grad_() for name, t in case.tensors.items()}
    out = operation(**tensors, **case.fixed)
    grad = torch.randn_like(out)

    def backward() -> Any:
        return torch.autograd.grad(out, list(tensors.values()), grad, retain_graph=True, allow_unused=True)

    return lambda: operation(**tensors, **case.fixed), backward


def candidates(operation: Operation) -> dict[str, Callable[..., Tensor]]:
    found = {
        "ours": operation.ours,
        "eager": operation.plain,
        "torch.compile": torch.compile(operation.plain, dynamic=False),
    }
    return found | ({"Liger-Kernel": operation.liger} if operation.liger else {})


def measure(name: str, operation: Operation, model: str, mix: str, pairs: int) -> list[dict[str, Any]]:
    """Times and peak memory of all candidates; with `error` where one does not run."""
    shape, work = MODELS[model], work_of(mix, pairs)
    costs = operation.forward(shape, work), operation.backward(shape, work)
    rows = []
    for candidate, function in candidates(operation).items():
        row: dict[str, Any] = {"operation": name, "model": model, "mix": mix, "pairs": pairs, "candidate": candidate}
        row |= {"flops": [c.flops for c in costs], "bytes": [c.bytes for c in costs]}
        try:
            torch.cuda.empty_cache()
            with torch.cuda.stream(stream()):
                # So many that none is left in the L2 cache when its turn comes again.
                sets = max(2, min(16, int(4e8 / costs[0].bytes)))
                cases = [operation.make(shape, work, Random(seed)) for seed in range(sets)]
                run = [passes(function, case) for case in cases]
                torch.cuda.synchronize()
                used = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                one, back = passes(function, cases[0])
                back()
                row["peak_memory_gib"] = (torch.cuda.max_memory_allocated() - used) / 2**30
                del one, back
            torch.cuda.synchronize()
            # Liger's cross-entropy looks at the labels' number on the host, which no graph can record.
            graph = candidate != "Liger-Kernel"
            row["forward"], row["backward"] = (seconds([pair[i] for pair in run], graph=graph) for i in (0, 1))
        except Exception as error:  # a candidate that this version or shape does not have
            if candidate == "ours":
                raise
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def on_gpu(limits: dict[str, float], keep: Callable[[list[dict[str, Any]]], None], pairs: int = 256) -> list[Line]:
    """All operations at base and large, full and real lengths: the lines that ours must reach.

    `keep` is given the figures of each as they come.
    """
    rows = []
    for name, operation in OPERATIONS.items():
        for model, mix in (("base", "full"), ("base", "real"), ("large", "full")):
            found = measure(name, operation, model, mix, pairs)
            keep(found)
            rows += found
    _print(rows, limits)
    return [line for name in OPERATIONS for line in _lines(name, rows)]


def _lines(name: str, rows: list[dict[str, Any]]) -> list[Line]:
    """Speed of forward and backward together over the others, and their peak memory over ours: the least of all."""
    found: dict[str, list[float]] = {}
    for mine in (r for r in rows if r["operation"] == name and r["candidate"] == "ours"):
        for other in ("eager", "torch.compile"):
            where = {**{key: mine[key] for key in ("operation", "model", "mix", "pairs")}, "candidate": other}
            for row in (r for r in rows if "forward" in r and all(r[k] == v for k, v in where.items())):
                both = mine["forward"] + mine["backward"]
                found.setdefault(f"{name}: speed over {other}", []).append((row["forward"] + row["backward"]) / both)
                memory = row["peak_memory_gib"] / max(mine["peak_memory_gib"], 1e-9)
                found.setdefault(f"{name}: memory of {other} over ours", []).append(memory)
    return [Line(label, min(values), 1.0) for label, values in found.items()]


def _print(rows: list[dict[str, Any]], limits: dict[str, float]) -> None:
    table = Table("operation", "model", "mix", "candidate", "fwd us", "bwd us", "% floor fwd", "bwd", "peak MiB")
    for row in rows:
        cells = [row.get("error", "")[:40]]
        if "error" not in row:
            floors = [
                max(f / limits["matmul"], b / limits["bandwidth"])
                for f, b in zip(row["flops"], row["bytes"], strict=True)
            ]
            taken = row["forward"], row["backward"]
            cells = [f"{t * 1e6:.0f}" for t in taken]
            cells += [f"{100 * floor / t:.0f}" for floor, t in zip(floors, taken, strict=True)]
            cells.append(f"{row['peak_memory_gib'] * 1024:.0f}")
        table.add_row(row["operation"], row["model"], row["mix"], row["candidate"], *cells)
    Console(width=140).print(table)
