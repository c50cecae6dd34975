from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebert.config import SourceConfig, load_recipe
from imagebert.training.doctor import compare, examine, look

PYTHON = Path(sys.executable)


def two_hosts(recipe: list[str]) -> list[dict[str, Any]]:
    facts = look(load_recipe("tests/recipe.yaml", recipe)) | {"all_reduce_gbs": 10.0, "open_files": 1 << 20}
    other = copy.deepcopy(facts) | {"host": "other"}
    return [facts, other]


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts.update(values)


def test_two_alike_hosts_are_fit(recipe: list[str]) -> None:
    found = compare(two_hosts(recipe))
    assert found.problems == found.faults == []
    assert [row["host"] for row in found.hosts][1] == "other"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda facts: facts["versions"].update(torch="1.0"), "other has torch 1.0, .* has .*: use one environment"),
        (lambda facts: facts["data"].update(dict.fromkeys(facts["data"], "0")), "other sees another .*regions than"),
        (change(gpu="8 x H100"), "other has GPUs 8 x H100, .* none: take nodes of one kind"),
        (change(given_gpus="8"), "other: Slurm gave 8 GPUs and PyTorch finds none: is PyTorch built for CUDA"),
    ],
)
def test_a_host_that_differs_is_named(recipe: list[str], spoil: Callable[[dict[str, Any]], None], problem: str) -> None:
    ranks = two_hosts(recipe)
    spoil(ranks[1])
    assert any(re.match(problem, found) for found in compare(ranks).faults), compare(ranks).faults


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda facts: facts.update(clock=facts["clock"] + 90), "other's clock is +90.0 s off"),
        (change(open_files=1024), "other allows 1024 open files"),
        (change(cores=0), "other: 1 processes share 0 cores"),
    ],
)
def test_what_only_hurts_is_a_note(recipe: list[str], spoil: Callable[[dict[str, Any]], None], note: str) -> None:
    ranks = two_hosts(recipe)
    spoil(ranks[1])
    found = compare(ranks)
    assert found.problems == found.faults == []
    assert any(note in line for line in found.notes), found.notes


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.sources.0.regions=nowhere", "nowhere is not there"),
        ("checkpoint.keep=1000000000", "GiB are needed for checkpoints"),
        ("engine.deepspeed=zero9", "engine.deepspeed is 'zero9'"),
    ],
)
def test_what_a_recipe_lacks_is_named(recipe: list[str], override: str, problem: str) -> None:
    found = examine(load_recipe("tests/recipe.yaml", [*recipe, override]), quick=True)
    assert any(problem in line for line in found.problems), found.problems


def test_ranks_tell_each_other(source: SourceConfig, recipe: list[str]) -> None:
    command = [PYTHON.parent / "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", PYTHON, "-m", "imagebert"]
    call = [*command, "doctor", "tests/recipe.yaml", *recipe]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes on 1 hosts" in done.stdout
    assert "fit to train" in done.stdout
