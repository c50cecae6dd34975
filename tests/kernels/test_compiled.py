"""The compile gate: every shipped configuration, for chips that need not be there. Slow the first time only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imagebert_kernels import gelu, layer_norm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITH_PRODUCTS = {
    ("attention", "forward"),
    ("attention", "backward"),
    ("region_projection", "forward"),
    ("region_projection", "backward"),
    ("region_regression", "forward"),
    ("region_regression", "backward"),
    ("embedding", "table"),
}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program may have


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    # A process of its own: in this one, Triton interprets.
    out = tmp_path_factory.mktemp("static") / "static.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "benchmarks.ops", "--static", "--json", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    configurations: list[dict[str, Any]] = json.loads(out.read_text())["figures"]["compiled"]
    assert {c["capability"] for c in configurations} == {80, 90}
    return configurations


def test_no_register_is_spilled(compiled: list[dict[str, Any]]) -> None:
    assert [c for c in compiled if c["spills"]] == []


def test_every_product_is_a_matrix_instruction(compiled: list[dict[str, Any]]) -> None:
    for c in compiled:
        assert c["products"] == c["products_on_matrix_units"], c
        if (c["operation"], c["kernel"]) in WITH_PRODUCTS:
            unit = "HGMMA" if c["capability"] == 90 else "HMMA"
            assert c["matrix_instructions"][unit] > 0, c
        else:
            assert c["products"] == 0, c


def test_shared_memory_is_within_the_chip(compiled: list[dict[str, Any]]) -> None:
    for c in compiled:
        assert c["shared_memory"] <= SHARED_MEMORY[c["capability"]], c
        assert c["programs"] >= 1, c


def test_attention_loads_16_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    for c in compiled:
        if c["operation"] == "attention":
            narrow = {name: n for name, n in c["loads"].items() if not name.endswith(".128")}
            # Single numbers: lengths and logsumexp (4 bytes), the seed (8).
            assert set(narrow) <= {"LDG.E", "LDG.E.64"}, c
            assert narrow.get("LDG.E.64", 0) == int(c["dropout"]), c
            assert sum(c["loads"].values()) - sum(narrow.values()) >= 4, c


def test_rows_are_loaded_16_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    for c in compiled:
        if c["operation"] in ("layer_norm", "gelu", "classification") and c["dtype"] == "bf16":
            # Besides: the seed, rows and labels (8 bytes), mean and deviation (4), one logit and its bias (2). Where
            # the next turns' loads come ahead, means and deviations of those too.
            narrow = sum(n for name, n in c["loads"].items() if not name.endswith(".128"))
            assert narrow <= 5 + 2 * (c["constants"].get("STAGES", 1) - 1), c
            assert sum(n for name, n in c["loads"].items() if name.endswith(".128")) >= 2, c


def test_backward_starts_as_many_programs_as_fit(compiled: list[dict[str, Any]]) -> None:
    """One more would wait for the others' end; one less would leave memory idle. And loads come ahead of their turn."""
    found = set()
    for c in compiled:
        if c["kernel"] == "backward" and c["operation"] in ("layer_norm", "gelu", "embedding"):
            started = gelu.RESIDENT if c["operation"] == "gelu" else layer_norm.resident(c["size"])
            assert c["programs"] >= started, c
            assert sum(n for name, n in c["loads"].items() if name.startswith("LDGSTS")) >= 8, c
            if c["operation"] != "embedding" and c["dropout"] == (c["operation"] == "layer_norm"):
                found.add((c["operation"], c["size"], c["programs"] - started))
    assert {extra for _, _, extra in found} == {0}


def test_the_common_size_fills_hopper(compiled: list[dict[str, Any]]) -> None:
    """Two programs at least on a multiprocessor: while one computes, the other's loads are under way."""
    for c in compiled:
        if c["capability"] == 90 and c["operation"] == "attention" and c["size"] == 64 and c["held"] <= 144:
            assert c["programs"] >= 2, c
        if c["operation"] in ("layer_norm", "gelu", "embedding"):
            assert c["programs"] >= 2, c
