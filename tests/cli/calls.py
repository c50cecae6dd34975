"""A call that trains the tests' recipe."""

from __future__ import annotations

from pathlib import Path

from imagebert.config import SourceConfig

RECIPE = "tests/recipe.yaml"


def train(source: SourceConfig, tmp_path: Path, *overrides: str) -> list[str]:
    return [
        "pretrain",
        RECIPE,
        f"output={tmp_path / 'run'}",
        f"data.sources.0.regions={source.regions}",
        f"data.sources.0.pairs={source.pairs}",
        *overrides,
    ]
