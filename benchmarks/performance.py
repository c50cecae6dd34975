"""Writes docs/performance.md from what was measured.

python -m benchmarks.performance
"""

from __future__ import annotations

import json
import statistics
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
    )
    environment.filters["median"] = statistics.median
    template = environment.get_template("performance.md.j2")
    return template.render(train=_result("train_cpu"), static=_result("ops_static"), gpu=_result("ops_gpu"))


def _result(name: str) -> dict[str, Any] | None:
    path = ROOT / "benchmarks/results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
