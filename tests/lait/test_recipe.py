"""The shipped recipe says each default, with a word about it; what it does not know is refused."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagebert.errors import UsageError
from imagebert.files import digest_of
from imagebert.lait.recipe import SHIPPED, LaitRecipe, read_recipe

PARTS = asdict(LaitRecipe())
KEYS = [(part, key) for part, keys in PARTS.items() for key in keys]


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_shipped_file_says_every_default_and_nothing_else() -> None:
    there = yaml.safe_load(SHIPPED.read_text())
    assert [(part, key) for part, keys in there.items() for key in keys] == KEYS
    for part, key in KEYS:
        assert there[part][key] == plain(PARTS[part][key]), (part, key)
    assert read_recipe() == LaitRecipe()


def test_every_key_has_its_comment() -> None:
    lines = SHIPPED.read_text().splitlines()
    for part, key in KEYS:
        start = lines.index(f"{part}:")
        place = next(n for n in range(start, len(lines)) if lines[n].startswith(f"  {key}:"))
        while lines[place - 1].startswith("  ") and not lines[place - 1].lstrip().startswith("#"):
            place -= 1  # the keys of one comment stand below each other
        assert lines[place - 1].lstrip().startswith("# "), (part, key)


@pytest.mark.parametrize(("part", "key"), KEYS)
def test_every_key_can_be_set_and_is_told_from_what_is_like_it(part: str, key: str) -> None:
    value = PARTS[part][key]
    other: Any = [1, 2] if isinstance(value, tuple) else not value if isinstance(value, bool) else value
    other = other + 1 if type(value) is int else other / 2 if type(value) is float else other
    recipe = read_recipe(overrides=[f"{part}.{key}={yaml.safe_dump(other, default_flow_style=True).splitlines()[0]}"])
    assert plain(asdict(recipe)[part][key]) == other
    assert digest_of(asdict(getattr(recipe, part))) != digest_of(asdict(getattr(LaitRecipe(), part)))
    with pytest.raises(UsageError, match=f"unknown key {part}.{key}x; did you mean {key}"):
        read_recipe(overrides=[f"{part}.{key}x=1"])
    with pytest.raises(UsageError, match=f"{part}.{key} is "):
        read_recipe(overrides=[f"{part}.{key}={{a: 1}}"])


@pytest.mark.parametrize("key", [f"{part}.{key}" for part, key in KEYS if not isinstance(PARTS[part][key], bool)])
def test_every_number_has_a_range(key: str) -> None:
    part, _, name = key.partition(".")
    for value in ("[40, 4]", "[-1, 4]") if isinstance(PARTS[part][name], tuple) else ("-2", ".nan", "-.inf"):
        if value == "-2" or type(PARTS[part][name]) is not int:
            with pytest.raises(UsageError, match=rf"{key} is .*: give "):
                read_recipe(overrides=[f"{key}={value}"])


def test_a_range_is_told() -> None:
    for override, said in (
        ("fetch.shard=0", "fetch.shard is 0: give 1 or more"),
        ("pairs.relevance=9", "pairs.relevance is 9.0: give 0 to 1"),
        ("filter.hamming=17", "filter.hamming is 17: give -1 to 16"),
        ("sentences.words=[40,4]", "sentences.words is (40, 4): give two numbers in order, 1 or more"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            read_recipe(overrides=[override])


def test_a_file_may_say_less(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("pages:\n  pictures: 3\n")
    recipe = read_recipe(path)
    assert recipe.pages.pictures == 3
    assert recipe.sentences == LaitRecipe().sentences
    path.write_text("page:\n  pictures: 3\n")
    with pytest.raises(UsageError, match=r"own\.yaml: unknown key page; did you mean pages"):
        read_recipe(path)
    assert {field.name for field in fields(LaitRecipe)} == set(PARTS)


def test_a_digest_tells_recipes_apart_and_is_the_same_for_equal_ones() -> None:
    assert digest_of([asdict(LaitRecipe()), "x", [1]]) == digest_of([asdict(read_recipe()), "x", [1]])
    assert digest_of([asdict(LaitRecipe()), "x"]) != digest_of([asdict(LaitRecipe()), "y"])
