from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagebert.cli import main
from imagebert.config import UsageError, load_recipe
from imagebert.ladder import LADDERS, climb, load_ladder
from tests.corpora import write_corpus

RECIPE = str(Path(__file__).parent / "recipe.yaml")


def tree() -> dict[str, Any]:
    source = {"regions": "{data}/regions", "pairs": "{data}/pairs", "split": "train"}
    return {
        "title": "A ladder",
        "evaluate": source,
        "images": 10,
        "runs": {
            "short": {"recipe": RECIPE, "sources": [source], "set": ["schedule.steps=2"]},
            "long": {"recipe": RECIPE, "start": "short", "sources": [source], "set": ["schedule.steps=3"]},
        },
        "rungs": [{"name": "two steps", "run": "short", "paper": [1.5, 2.5]}, {"name": "five steps", "run": "long"}],
        "relations": [{"better": "five steps", "worse": "two steps"}],
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "ladder.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def test_runs_start_from_each_other_and_seeds_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "data")
    call = ["ladder", write(tmp_path, tree()), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "runs")]
    assert main([*call, "--seeds", "3", "--json", str(tmp_path / "ladder.json"), "data.max_regions=5"]) == 0
    printed = capsys.readouterr().out
    assert "1.5 / 2.5" in printed
    assert "The paper's relations" in printed
    figures = json.loads((tmp_path / "ladder.json").read_text())
    for seed in range(3):
        folder = tmp_path / "runs" / f"seed-{seed}"
        config = load_recipe(str(folder / "long" / "config.yaml"))
        assert (config.seed, config.data.max_regions, config.model.preset) == (seed, 5, None)
        assert config.model.initialize_from == str(folder / "short")
    two, five = figures["rungs"]
    differences = [b["rsum"] - a["rsum"] for a, b in zip(two["seeds"], five["seeds"], strict=True)]
    (relation,) = figures["relations"]
    assert relation["rsum"]["difference"] == pytest.approx(sum(differences) / 3)
    mean = sum(differences) / 3
    error = (sum((d - mean) ** 2 for d in differences) / 2 / 3) ** 0.5
    assert relation["rsum"]["standard_error"] == pytest.approx(error)
    expected = "undecided" if abs(mean) <= 4.303 * error else "found" if mean > 0 else "against"
    assert relation["rsum"]["verdict"] == expected
    # What is there is not trained again.
    models = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("model.safetensors")}
    assert len(models) == 6
    assert main([*call, "--seeds", "3", "data.max_regions=5"]) == 0
    assert models == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("model.safetensors")}
    # What another recipe trained is not passed off as this one's.
    assert main([*call, "--seeds", "3", "data.max_regions=4"]) == 2
    assert "was trained otherwise (data.max_regions: 5 -> 4)" in capsys.readouterr().err
    assert main([*call, "--only", "six steps"]) == 2
    assert "there are two steps, five steps" in capsys.readouterr().err
    # One rung, one seed: with what it starts from, in folders without the seed's name.
    assert main([*call[:-1], str(tmp_path / "one"), "--only", "five steps"]) == 0
    assert {p.name for p in (tmp_path / "one").iterdir()} == {"short", "long"}


def test_asked_to_stop_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "data")
    ladder = load_ladder(write(tmp_path, tree()))
    from imagebert import ladder as module
    from imagebert.training.loop import Stopped

    with monkeypatch.context() as patch:
        patch.setattr(module, "run", lambda *_, **__: Stopped(1, finished=False))
        assert climb(ladder, tmp_path / "runs", tmp_path / "data", [0]) is None


@pytest.mark.parametrize("name", sorted(path.stem for path in LADDERS.glob("*.yaml")))
def test_every_shipped_ladder_is_made_of_shipped_recipes(name: str) -> None:
    ladder = load_ladder(name)
    for run in ladder.runs.values():
        start = ["model.preset=null", "model.initialize_from=x"] if run.start else []
        recipe = load_recipe(run.recipe, [*run.set, *start])
        assert recipe.stage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["runs"]["long"].update(start="none"), "runs.long.start is 'none': name a run above it"),
        (lambda t: t["rungs"][0].update(run="none"), "is of run 'none': there are short, long"),
        (lambda t: t["relations"][0].update(better="none"), "relation of 'none'"),
        (lambda t: t["runs"]["long"].update(recipes="x"), "unknown key recipes"),
        (lambda t: t["evaluate"].update(sampling="relevance"), "evaluate has weight 1.0 and sampling relevance"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    content = tree()
    change(content)
    with pytest.raises(UsageError, match=message):
        load_ladder(write(tmp_path, content))
    with pytest.raises(UsageError, match="no ladder 'table9'"):
        load_ladder("table9")


def test_a_relation_is_found_beyond_the_seeds_spread() -> None:
    """Against scipy's own paired test."""
    from scipy.stats import ttest_rel

    from imagebert.ladder import Ladder, Relation, _relations

    ladder = Ladder(
        title="", evaluate=load_ladder("demo").evaluate, runs={}, rungs=(), relations=(Relation(better="a", worse="b"),)
    )
    for b, expected in (((10, 11, 12), "found"), ((29, 30, 31.5), "undecided"), ((50, 51, 53), "against")):
        seeds = {"a": (30, 31, 31.1), "b": b}
        rungs = [
            {"name": n, "seeds": [{"rsum": v, "ir": {"r1": v}, "tr": {"r1": v}} for v in values]}
            for n, values in seeds.items()
        ]
        (row,) = _relations(ladder, rungs)
        assert row["rsum"]["verdict"] == expected
        assert (ttest_rel(seeds["a"], seeds["b"]).pvalue < 0.05) == (expected != "undecided")
