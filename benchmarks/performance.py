"""Writes docs/performance.md from what was measured.

python -m benchmarks.performance
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"


def render() -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    trained = _by_card("train_gpu", "_base", "_real", "_large", "_compiled")

    def gpu_step(floor: dict[str, Any]) -> dict[str, float] | None:
        """Measured seconds by part of the fastest of ours, beside a step's floors."""
        for setting in (setting for result in trained for setting in result["figures"]["settings"]):
            if (setting["model"], setting["mix"]) == (floor["model"], floor["mix"]):
                ours = [row for row in setting["candidates"].values() if "share_of_matmul" in row]
                fastest = max(ours, key=lambda row: row["pairs_per_second"])
                parts: dict[str, float] = fastest["seconds_by_part"]
                return parts
        return None

    environment.globals |= {"gpu_step": gpu_step, "parts_of": _parts_of}
    return environment.get_template("performance.md.j2").render(
        train=_result("train_cpu"),
        train_before=_result("train_cpu_before"),
        scored=[*_those_there("score_cpu", "score_cpu_fused"), *_by_card("score_gpu", "")],
        score_kept=_result("score_cpu_kept_memory"),
        searched=_those_there("search_cpu", "search_cpu_200k"),
        feed=_result("feed_cpu"),
        soak=_result("feed_soak_cpu"),
        cold=_result("feed_cold_cpu"),
        static=_result("ops_static"),
        counted_commit=(_result("counted_before") or {})["commit"],
        memory=_result("memory"),
        gpus=_by_card("ops_gpu", ""),
        gpu_trained=trained,
    )


def _parts_of(candidates: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """All parts that any candidate spends time in, the largest first."""
    found: dict[str, float] = {}
    for _, row in candidates:
        for part, seconds in row["seconds_by_part"].items():
            found[part] = found.get(part, 0.0) + seconds
    return sorted(found, key=lambda part: -found[part])


def _by_card(stem: str, *parts: str) -> list[dict[str, Any]]:
    """What gpu_suite.sh wrote of each card: its files are named by them."""
    names = [f"{stem}_{card}{part}" for card in ("h100", "h200", "other") for part in parts]
    return _those_there(*names)


def _those_there(*names: str) -> list[dict[str, Any]]:
    return [result for name in names if (result := _result(name))]


def _result(name: str) -> dict[str, Any] | None:
    path = ROOT / "benchmarks/results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
