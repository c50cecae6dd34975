"""Pages that are made of the program say all of it; the site is built strictly and reads nothing from elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import generate
from imagebert import config, strict_yaml
from imagebert.batch import PackedBatch

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_every_key_has_a_meaning(kind: Any) -> None:
    said = generate.meanings(inspect.getsource(kind))
    assert set(said) == {field.name for field in dataclasses.fields(kind)}
    assert [name for name, meaning in said.items() if not re.match(r"\w", meaning)] == []
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")  # what dataclass puts there where nothing is said


def test_a_meaning_may_stand_above_and_behind() -> None:
    lines = "# one", "# two", "a: int = 1  # three", "b: str = '#'  # four", "# five", "c: int", "d: int"
    source = "\n    ".join(["class A:", *lines])
    assert generate.meanings(source) == {"a": "one two: three", "b": "four", "c": "five", "d": ""}


def test_fields_and_heads_are_the_sources() -> None:
    table = generate.fields("imagebert.batch", "PackedBatch")
    assert "| `region_scales` | `Tensor` | [R] float32; a feature is region_features * region_scales |" in table
    assert len(table.splitlines()) == 2 + len(PackedBatch._fields)
    assert "softmax_j(scale * q[i, n] . k[j, n])" in generate.head("imagebert_kernels.attention")


def test_every_key_of_a_recipe_is_in_the_table() -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", generate.keys(), re.M))
    for name in ("stage1_lait", "finetune_coco"):
        plain = strict_yaml.to_plain(config.load_recipe(name))
        assert set(keys_of(plain)) <= rows


def keys_of(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from keys_of(value[0], f"{prefix}{name}.N.")


def test_defaults_are_those_of_the_program() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| [^|]* \(`([^`]*)`\) \|", generate.keys(), re.M))
    assert yaml.safe_load(rows["data.max_regions"]) == config.DataConfig(sources=()).max_regions
    assert yaml.safe_load(rows["optimizer.betas"]) == list(config.OptimizerConfig().betas)
    assert float(rows["optimizer.epsilon"]) == config.OptimizerConfig().epsilon


def test_every_command_and_option_is_on_the_page() -> None:
    page = generate.commands()
    for command in commands_of(generate.parser()):
        part = page.partition(f"# {command.prog}\n")[2]
        assert part, command.prog
        part = re.split(r"^#", part, flags=re.M)[0]
        for action in command._actions:
            hidden = action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction)
            for option in [] if hidden else action.option_strings:
                assert re.search(rf"^\| `[^`]*{option}\b", part, re.M), f"{command.prog} {option}"


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield sub
                yield from commands_of(sub)


def test_what_does_not_exist_is_left_out() -> None:
    there, not_there = (f"<!-- if imagebert.{name} -->\n{name}\n<!-- end -->\n" for name in ("config", "nothing"))
    assert generate.only_what_exists(f"before\n{there}{not_there}behind\n") == "before\nconfig\nbehind\n"


def test_faults_quote_sentences_of_the_program() -> None:
    """Three words in a row of each error on the page stand in the sources."""
    files = [ROOT / "Makefile", *ROOT.glob("imagebert/**/*.py")]
    sources = " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in files)
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    quoted = [code for row in re.findall(r"^\| (.*?) \|", page, re.M) for code in re.findall(r"`([^`]+)`", row)]
    sentences = [code.split() for code in quoted if len(code.split()) > 3]
    assert len(sentences) > 15
    for words in sentences:
        runs = [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]
        assert any(run in sources for run in runs), " ".join(words)


def test_cells_say_their_columns() -> None:
    head, row = "<tr><th>a</th><th>b</th><th><code>c</code></th></tr>", "<tr><td>1</td><td>2</td><td>3</td></tr>"
    named = '<tr><td>1</td><td data-column="b">2</td><td data-column="c">3</td></tr>'
    assert generate.with_columns(f"<table>{head}{row}{row}</table>") == f"<table>{head}{named}{named}</table>"
    two = "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    assert generate.with_columns(two) == two


class Sources(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and given.get("rel") in ("canonical", "prev", "next"):
            return
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.found.append(given.get("src") or "")
        elif tag == "link":
            self.found.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_all_pages_are_built(site: Path) -> None:
    built = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in ROOT.glob("docs/*.md")} | {"commands", "keys", "first_steps", "changes"} <= built
    assert "packed_attention" in (site / "python.html").read_text(encoding="utf-8")


def test_nothing_is_read_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        sources = Sources()
        sources.feed(path.read_text(encoding="utf-8"))
        assert sources.found, path
        assert [source for source in sources.found if re.match(r"(https?:)?//", source)] == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path
