"""Training from Python: what is returned is what the run's log says, and nothing is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebert import api
from imagebert.api.train import open_recipe
from imagebert.config import SourceConfig, UsageError, load_recipe
from imagebert.engine.metrics import read_log
from imagebert.strict_yaml import to_plain

RECIPE = "tests/recipe.yaml"


@pytest.fixture
def overrides(source: SourceConfig, tmp_path: Path) -> dict[str, Any]:
    data = {"regions": source.regions, "pairs": source.pairs, "split": "train"}
    return {
        "output": tmp_path / "run",
        "data.sources": [data],
        "schedule.steps": 4,
        "evaluation.sources": [data],
        "evaluation.images": 12,
        "evaluation.every_steps": 4,
    }


def test_training_evaluates_what_the_recipe_names(
    source: SourceConfig, overrides: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = api.pretrain(RECIPE, overrides, stop_at=3)
    assert (stopped.folder, stopped.steps, stopped.finished) == (tmp_path / "run", 3, False)
    assert stopped.figures == {}
    trained = api.pretrain(RECIPE, overrides)
    assert (trained.steps, trained.finished) == (4, True)
    last = read_log(tmp_path / "run/log.jsonl")[-1]
    assert trained.losses["total"] == last["loss/total"]
    assert trained.figures["rsum"] == last["recall/rsum"]
    data = api.Data(regions=source.regions, pairs=source.pairs, split="train")
    evaluated = api.evaluate(trained.folder, data, images=12)
    assert trained.figures["rsum"] == pytest.approx(evaluated.figures["rsum"])
    assert capsys.readouterr().out == ""
    assert "weighted sum of the losses" in (trained.folder / "report.html").read_text()
    assert api.report(trained.folder, out=tmp_path / "page.html") == tmp_path / "page.html"
    assert api.export(trained.folder, tmp_path / "out") == api.Exported(tmp_path / "out", 4)
    assert (tmp_path / "out/config.json").is_file()
    with pytest.raises(UsageError, match="is a recipe to pretrain: call `imagebert pretrain`"):
        api.finetune(RECIPE, overrides)


def test_a_page_that_cannot_be_written_ends_no_training(
    overrides: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run/report.html").mkdir(parents=True)
    assert api.pretrain(RECIPE, {**overrides, "evaluation.sources": []}, stop_at=1).steps == 1
    assert "no page of the run: cannot write" in caplog.text


def test_a_recipe_in_all_its_forms_is_one(overrides: dict[str, Any]) -> None:
    """A name or path, a plain tree, a loaded configuration; overrides as texts and as a mapping."""
    texts = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    wanted = load_recipe(RECIPE, texts)
    plain = to_plain(wanted)
    for recipe, given in (
        (RECIPE, overrides),
        (Path(RECIPE), texts),
        (plain, ()),
        (wanted, {}),
        (to_plain(load_recipe(RECIPE)), overrides),
        (load_recipe(RECIPE), overrides),
    ):
        assert open_recipe(recipe, given)[0] == wanted
    assert plain == to_plain(wanted)  # overrides go into a copy
    longer, name = open_recipe(wanted, {"schedule.epochs": 2.5, "optimizer.learning_rate": 1e-05})
    assert (longer.schedule.epochs, longer.schedule.steps) == (2.5, None)  # of two that exclude each other
    assert longer.optimizer.learning_rate == 1e-05
    assert name == f"the recipe of {overrides['output']}"
    with pytest.raises(UsageError, match=r"the recipe of .*run: unknown key optimizer.lerning_rate"):
        open_recipe(wanted, {"optimizer.lerning_rate": 1})
    with pytest.raises(UsageError, match="overrides is the text 'seed=1': give a list of such"):
        open_recipe(wanted, "seed=1")


def test_what_ships() -> None:
    assert {"stage1_lait", "finetune_coco"} <= set(api.recipes())
    assert "task: finetune" in api.recipe("finetune_coco")
    assert "table3" in api.ladders()
    with pytest.raises(UsageError, match="no recipe 'stage4': there are"):
        api.recipe("stage4")
    assert any("data/lait" in line for line in api.doctor_on_paper("stage1_lait", ranks=[16]))
