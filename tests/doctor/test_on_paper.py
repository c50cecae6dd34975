"""What is said where a run is submitted: training's own sentences, without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imagebert.config import load_recipe
from imagebert.doctor.on_paper import problems
from imagebert.errors import UsageError
from imagebert.training.assemble import prepare

RECIPE = "tests/recipe.yaml"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["logging.monitors=[wandb]"], "logging.monitors has wandb"),
        (["schedule.accumulation=17"], "schedule.batch_size 16 cannot be cut into 17 microbatches"),
        (
            ["model.dual_size=8", "pretraining.dual=1", "pretraining.contrast=8", "schedule.accumulation=3"],
            "cannot be cut into 3 microbatches (ranks x accumulation) of 8, over which",
        ),
    ],
)
def test_what_training_refuses_is_refused_with_its_sentence(
    settings: list[str], named: str, recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as wandb itself makes it, where it runs: no package
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError) as refused:
        prepare(load_recipe(RECIPE, [*recipe, *settings]))
    assert named in str(refused.value)
    assert problems(RECIPE, [*recipe, *settings], None, [1], later=False) == [str(refused.value)]


def test_each_number_of_processes_has_to_do(recipe: list[str]) -> None:
    found = problems(RECIPE, [*recipe, "schedule.accumulation=4"], "pretrain", [2, 4, 5, 8], later=False)
    assert [line.split(" (")[0] for line in found] == [
        f"schedule.batch_size 16 cannot be cut into {parts} microbatches" for parts in (20, 32)
    ]


def test_pytorch_is_not_imported(recipe: list[str]) -> None:
    """It takes seconds, and a submission waits for it."""
    code = "import sys; from imagebert.doctor.on_paper import problems\n"
    code += "print(problems(sys.argv[1], sys.argv[2:], None, [1], False), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, RECIPE, *recipe]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[] False\n"
