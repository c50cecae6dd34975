"""Microbenchmarks of the kernels, beside what else there is, in one run.

    python -m benchmarks.ops [--json FILE] [--plots FOLDER]     on a GPU
    python -m benchmarks.ops --tune MIX [--json FILE]           on a GPU: all tilings of attention that hold its pairs
    python -m benchmarks.ops --static [--json FILE]             without one

Attention in ops_attention.py, all other operations in ops_parts.py; bf16, dropout 0.1; base and large; length mixes of
mixes.py. Timed are replays of a CUDA graph that goes round inputs larger than the L2 cache; medians. `--static` prints
what compiling shows, the time that memory, matrix units and the issue of instructions take attention at least on an
H200, the floors of a whole step, part by part, and a step's launches and bytes beside those of an older tree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import counted, ops_attention, ops_parts
from benchmarks.mixes import MIXES
from benchmarks.report import Line, publish
from benchmarks.step import H200_BANDWIDTH, H200_MATMUL, MODELS, model_flops, parts, work_of
from benchmarks.timing import ceilings

PAIRS = 256


def static() -> dict[str, Any]:
    """What compiling shows, and floors of attention and of a step, printed."""
    from benchmarks.compiled import as_plain, compile_all, shipped

    configurations = shipped()
    results = [as_plain(c, r) for c, r in zip(configurations, compile_all(configurations), strict=True)]
    _print_compiled(results)
    shapes = [ops_attention.shape(mix, model, PAIRS) for mix in MIXES for model in MODELS]
    floors = [ops_attention.floor(shape, d, results) for shape in shapes for d in ops_attention.DIRECTIONS]
    _print_floors(floors)
    before = json.loads((Path(__file__).parent / "results/counted_before.json").read_text())["figures"]
    now = counted.count()
    step = {"before": before, "now": now, "saved": counted.show(before, now), "later": counted.later()}
    return {"compiled": results, "floors": floors, "steps": step_floors(), "counted": step}


def step_floors() -> list[dict[str, Any]]:
    """Each part of a step against the H200: what it must take at least."""
    found = []
    for model in MODELS:
        for mix in ("full", "real"):
            work = work_of(mix, PAIRS)
            table = Table(
                "part", "GFLOP", "GB", "ms at least", title=f"A step of {model}, {PAIRS} pairs, {mix} lengths"
            )
            each = {
                name: {"flops": part.flops, "bytes": part.bytes, "seconds": part.floor(H200_MATMUL, H200_BANDWIDTH)}
                for name, part in parts(MODELS[model], work).items()
            }
            for name, row in each.items():
                table.add_row(name, *(f"{row[k] / 1e9:.1f}" for k in ("flops", "bytes")), f"{row['seconds'] * 1e3:.2f}")
            Console(width=120).print(table)
            seconds = sum(row["seconds"] for row in each.values())
            found.append(
                {
                    "model": model,
                    "mix": mix,
                    "pairs": PAIRS,
                    "tokens": work.tokens,
                    "parts": each,
                    "seconds": seconds,
                    "pairs_per_second": PAIRS / seconds,
                    "share_of_matmul": model_flops(MODELS[model], work) / seconds / H200_MATMUL,
                }
            )
    return found


def _print_compiled(results: list[dict[str, Any]]) -> None:
    columns = (
        "sm operation kernel size holds type features dropout registers spills shared-kB programs/SM products HGMMA "
        "HMMA 16-byte-loads loop"
    )
    table = Table(*columns.split(), title="Compiled")
    for r in results:
        table.add_row(
            *map(str, (r["capability"], r["operation"], r["kernel"], r["size"], r["held"] or "")),
            *(r["dtype"], r["features"] if r["operation"].startswith("region") else ""),
            "yes" if r["dropout"] else "no",
            *map(str, (r["registers"], r["spills"], r["shared_memory"] // 1024, r["programs"])),
            f"{r['products_on_matrix_units']}/{r['products']}",
            *map(str, (r["matrix_instructions"]["HGMMA"], r["matrix_instructions"]["HMMA"])),
            *map(str, (sum(n for name, n in r["loads"].items() if name.endswith(".128")), r["longest_loop"])),
        )
    Console(width=160).print(table)


def _print_floors(floors: list[dict[str, Any]]) -> None:
    columns = "mix model direction tokens MB GFLOP memory-us matrix-us issue-us kB-under-way/SM limit"
    table = Table(*columns.split(), title=f"Attention, {PAIRS} pairs on an H200: least times")
    for f in floors:
        table.add_row(
            *map(str, (f["mix"], f["model"], f["direction"], f["tokens"])),
            *(f"{v:.0f}" for v in (f["bytes"] / 1e6, f["flops"] / 1e9)),
            *(f"{f[k] * 1e6:.0f}" for k in ("memory", "matrix", "issue")),
            f"{f['bytes_under_way'] / 1e3:.0f}",
            f["limit"],
        )
    Console(width=140).print(table)


def on_gpu(pair_counts: list[int], path: Path | None) -> tuple[dict[str, Any], list[Line]]:
    """All figures, written to `path` as they come: a limit of time loses only the rest."""
    figures: dict[str, Any] = {"ceilings": ceilings(), "operations": [], "attention": []}

    def keep(part: str, rows: list[dict[str, Any]]) -> None:
        figures[part] += rows
        publish(figures, [], path)

    lines = ops_parts.on_gpu(figures["ceilings"], lambda rows: keep("operations", rows))
    lines += ops_attention.on_gpu(figures["ceilings"], pair_counts, lambda rows: keep("attention", rows))
    return figures, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static", action="store_true", help="compile only; needs no GPU")
    parser.add_argument("--tune", choices=MIXES, help="time all attention tilings that could hold this mix")
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256, 512], help="of attention")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for PNG files")
    parsed = parser.parse_args()
    if parsed.static:
        publish(static(), [], parsed.json)
    elif not torch.cuda.is_available():
        parser.exit(2, "no GPU here: --static shows what needs none\n")
    elif parsed.tune:
        ops_attention.tune(parsed.tune, lambda found: publish(found, [], parsed.json))
    else:
        figures, lines = on_gpu(parsed.pairs, parsed.json)
        publish(figures, lines, parsed.json)
        if parsed.plots is not None:
            ops_attention.plot(figures["attention"], figures["ceilings"], parsed.plots)


if __name__ == "__main__":
    main()
