from __future__ import annotations

import copy
from pathlib import Path

import pytest

from imagebert.config import RECIPES, UsageError, build_recipe, differences, load_recipe
from imagebert.renamed import warn_renamed
from imagebert.strict_yaml import parse_yaml, to_plain

RECIPE = "tests/recipe.yaml"
# 400 bytes, 9^9 values.
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_loads_and_states_its_command(name: str) -> None:
    load_recipe(name)
    head = (RECIPES / f"{name}.yaml").read_text().split("\ntask:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "imagebert" in head


def test_overrides_reach_lists_and_nested_keys() -> None:
    config = load_recipe(RECIPE, ["data.sources.0.split=dev", "optimizer.betas=[0.8, 0.9]", "seed=7"])
    assert config.data.sources[0].split == "dev"
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.seed == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "unknown key optimizer.learning_rat; did you mean learning_rate?"),
        ("optimiser.name=adamw", "unknown key optimiser; did you mean optimizer?"),
        ("optimizer.name=adam", "optimizer.name is 'adam': give one of adamw, lamb; did you mean adamw?"),
        ("schedule.batch_size=many", "schedule.batch_size is 'many': give a whole number"),
        ("schedule.batch_size=true", "schedule.batch_size is True: give a whole number"),
        ("schedule.batch_size=0", "schedule.batch_size is 0: give a positive number"),
        ("model.hidden_dropout=1.5", "model.hidden_dropout is 1.5: give a share between 0 and 1"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1 is 1.0: give a share below 1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0: give 0 to"),
        ("pretraining.mlm=-1", "pretraining.mlm is -1.0: give 0 to"),
        ("seed=-1", "seed is -1: give 0 to"),
        ("data.sources.0.weight=0", "data.sources.0.weight is 0.0: give 0.001 to 1000"),
        ("data.sources.0.weight=.inf", "data.sources.0.weight is inf: give a finite number"),
        ("data.sources.0.min_relevance=.nan", "data.sources.0.min_relevance is nan: give a finite number"),
        ("data.sources.0.sampling=relevanz", "give one of uniform, relevance; did you mean relevance?"),
        (
            "evaluation.sources=[{regions: r, pairs: p, min_relevance: 0.5}, {regions: r, pairs: p, weight: 2}]",
            "evaluation.sources.1 has weight 2.0 and sampling uniform: an evaluation has each caption once",
        ),
        ("data.workers=100000", "data.workers is 100000: give 1 to 1024"),
        ("schedule.steps=0", "schedule.steps is 0: give a positive number"),
        ("model.initialize_from=x", "give preset for new weights, or initialize_from"),
        ("optimizer.betas=[0.9]", "optimizer.betas has 1 values: give 2"),
        ("data.sources=[]", "data.sources is empty"),
        ("data.sources.3.split=x", "not an index into a list of 1"),
        ("schedule.steps.part=1", "schedule.steps is a value and has no parts"),
        ("learning_rate", "is not key=value"),
        ("engine.step=graph", "engine.step is 'graph': give one of auto, eager, compiled, graphed; did you mean graph"),
    ],
)
def test_a_mistake_names_key_value_and_cure(override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe(RECIPE, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_key_and_unknown_recipe(tmp_path: Path) -> None:
    short = tmp_path / "short.yaml"
    short.write_text("task: pretrain\n")
    with pytest.raises(UsageError, match=r"stage is missing"):
        load_recipe(str(short))
    with pytest.raises(UsageError, match="did you mean demo_stage1"):
        load_recipe("demo_stag1")


def test_yaml_is_strict_where_yaml_is_not() -> None:
    assert parse_yaml("1e-4", "here") == 1e-4
    with pytest.raises(UsageError, match="given twice"):
        parse_yaml("a: 1\na: 2", "here")
    with pytest.raises(UsageError, match=r"here, line 1: tags .* are not taken"):
        parse_yaml("!!python/object/apply:os.system [x]", "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, r"its aliases \(\*name\) unfold to more than 100,000 values"),
        ("a: &a [*a]", r"its aliases \(\*name\) are nested deeper than 32"),
        ("a: &a {b: *a}", r"its aliases \(\*name\) are nested deeper than 32"),
        ("a: 1\nb: *a", "not valid YAML"),
        ("a: 1\n? [a, b]\n: c", "line 2: a key is a list or a mapping"),
        ("a: 1\n2: b", "line 2: key 2 is no text: correct it, or quote it"),
        ("[" * 3000, "nested deeper than 32"),
        ("- " * 3000, "nested deeper than 32"),
        ("9" * 5000, r"line 1: 99999999999999999999\.\.\. has more digits than 64 bits"),
        (str(1 << 63), "has more digits than 64 bits"),
        ("0x_", "not valid YAML"),
        ('"\\UFFFFFFFF"', "not valid YAML"),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "not valid YAML"),
        ("!!bool perhaps", "tags .* are not taken"),
        ('"a\\0b"', "has a zero byte or half a character"),
        ('"\\ud800"', "has a zero byte or half a character"),
        ("\udc80", "not valid YAML"),
        ("a " * 100_000, "more than 131,072 characters"),
    ],
)
def test_what_yaml_can_do_and_no_recipe_needs(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_yaml(text, "here")
    assert str(error.value).startswith("here")
    assert len(str(error.value)) < 400
    if "\ud800" not in text and "\udc80" not in text:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UsageError, match=message if len(text) < 99_999 else "more than 131,072 bytes"):
            load_recipe(str(tmp_path / "x.yaml"))


def test_what_an_alias_stands_for_is_written_in_its_place() -> None:
    found = parse_yaml("a: &a {b: [1]}\nc: *a", "here")
    assert found == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert found["a"] is not found["c"]  # an override of one is none of the other
    assert found["a"]["b"] is not found["c"]["b"]


def test_dates_and_merges_are_text() -> None:
    text = "stage: 2020-13-45\nb: 2020-01-01\n<<: {a: =}"
    assert parse_yaml(text, "here") == {"stage": "2020-13-45", "b": "2020-01-01", "<<": {"a": "="}}
    assert load_recipe(RECIPE, ["stage=2020-13-45"]).stage == "2020-13-45"


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400"])
def test_numbers_are_finite(value: str) -> None:
    for key in ("optimizer.learning_rate", "optimizer.betas.0", "evaluation.max_share"):
        with pytest.raises(UsageError, match=rf"{key} is -?(inf|nan): give a finite number"):
            load_recipe(RECIPE, ["optimizer.betas=[0.9, 0.9]", f"{key}={value}"])


def test_names_that_no_file_has() -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(UsageError, match="no recipe"):
            load_recipe(name)
    with pytest.raises(UsageError, match="not an index into a list of 1"):
        load_recipe(RECIPE, ["data.sources.\u00b2=x"])


def test_differences_leaves_out_what_may_change() -> None:
    before = to_plain(load_recipe(RECIPE))
    after = to_plain(load_recipe(RECIPE, ["logging.every_steps=5", "output=elsewhere", "optimizer.learning_rate=2e-3"]))
    assert differences(before, after) == ["optimizer.learning_rate: 0.001 -> 0.002"]


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_batch_of_one_has_no_negatives_of_its_own(task: str) -> None:
    """Whatever the recipe says for the other task."""
    own, other = ("pretraining", "retrieval") if task == "pretrain" else ("retrieval", "pretraining")
    one = [f"task={task}", "schedule.batch_size=1"]
    for more in ([], [f"{other}.negatives_from=corpus"], ["pretraining.negatives=0"] * (task == "finetune")):
        with pytest.raises(UsageError, match=r"schedule\.batch_size is 1: in-batch negatives need at least 2"):
            load_recipe(RECIPE, [*one, *more])
    load_recipe(RECIPE, [*one, f"{own}.negatives_from=corpus"])


def test_a_replayed_step_has_one_microbatch() -> None:
    load_recipe(RECIPE, ["engine.step=graphed"])
    for many in (["schedule.accumulation=2"], ["schedule.batch_tokens=400", "schedule.microbatch_tokens=200"]):
        with pytest.raises(UsageError, match=r"engine\.step is graphed with schedule\.accumulation above 1"):
            load_recipe(RECIPE, ["engine.step=graphed", *many])
        load_recipe(RECIPE, ["engine.step=auto", *many])


def test_of_two_keys_that_exclude_each_other_the_given_one_counts() -> None:
    schedule = load_recipe("stage1_lait", ["schedule.batch_size=64", "schedule.steps=7"]).schedule
    assert (schedule.batch_size, schedule.batch_tokens, schedule.microbatch_tokens) == (64, None, None)
    assert (schedule.steps, schedule.epochs) == (7, None)
    schedule = load_recipe(RECIPE, ["schedule.batch_tokens=500", "schedule.batch_size=null"]).schedule
    assert (schedule.batch_size, schedule.batch_tokens) == (None, 500)
    for both in (["schedule.steps=7", "schedule.epochs=2"], ["schedule.batch_size=4", "schedule.batch_tokens=90"]):
        with pytest.raises(UsageError, match="give exactly one of the two"):
            load_recipe(RECIPE, both)
    with pytest.raises(UsageError, match=r"microbatch_size is 4 and there is no schedule\.batch_size"):
        load_recipe("stage1_lait", ["schedule.microbatch_size=4"])


GROUPS = {
    "task": "finetune",
    "stage": "s",
    "output": "o",
    "model": {"preset": "tiny"},
    "schedule": {"batch_size": 8, "steps": 1},
}


@pytest.mark.parametrize(
    ("retrieval", "overrides"),
    [
        ({"candidates": 7}, []),
        ({"group_size": 3}, ["retrieval.candidates=7"]),
        ({"candidates": 3}, ["retrieval.group_size=7"]),
        ({"group_size": 3}, ["retrieval={candidates: 7}"]),
    ],
)
def test_a_renamed_key_works_by_its_old_name_and_says_so_once(
    retrieval: dict[str, int], overrides: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    tree = {**GROUPS, "data": {"sources": [{"regions": "r", "pairs": "p"}]}, "retrieval": retrieval}
    warn_renamed.cache_clear()
    for _ in range(2):
        assert build_recipe(copy.deepcopy(tree), overrides, "recipe").retrieval.group_size == 7
    assert [r.getMessage() for r in caplog.records] == [
        "retrieval.candidates is called retrieval.group_size now: the next version knows no other name"
    ]


@pytest.mark.parametrize(
    ("retrieval", "overrides", "where"),
    [
        ({"candidates": 7, "group_size": 7}, [], "recipe"),
        ({}, ["retrieval.candidates=7", "retrieval.group_size=7"], "the overrides"),
        ({}, ["retrieval={candidates: 7}", "retrieval.group_size=7"], "recipe"),
    ],
)
def test_a_renamed_key_by_both_of_its_names_is_refused(
    retrieval: dict[str, int], overrides: list[str], where: str
) -> None:
    tree = {**GROUPS, "data": {"sources": [{"regions": "r", "pairs": "p"}]}, "retrieval": retrieval}
    with pytest.raises(
        UsageError, match=f"^{where}: retrieval.candidates is called retrieval.group_size now, and both"
    ):
        build_recipe(tree, overrides, "recipe")
