"""Pages of the site that are made of the program, when it is built: MkDocs calls this file as a hook (mkdocs.yml).

    commands.md       the command line, of its parser
    keys.md           the keys of recipes, of config.py's dataclasses and the comments beside their fields
    first_steps.md    the notebook
    contributing.md, changes.md    what lies beside the README

So none of them can tell another story than the program. `imagebert.api` is on the page of Python where it exists.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from imagebert.cli import COMMANDS
from imagebert.cli.commands import Parser, build_parser
from imagebert.config import RunConfig

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/first_steps.ipynb"


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: adds the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "commands.md": commands(),
        "keys.md": keys(),
        "first_steps.md": notebook(NOTEBOOK.read_text(encoding="utf-8")),
        "contributing.md": beside_the_readme("CONTRIBUTING.md"),
        "changes.md": beside_the_readme("CHANGELOG.md"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs' event: what python.md asks for.

    <!-- if MODULE -->    up to <!-- end -->: only where there is such a module
    <!-- head MODULE -->  its docstring as it stands
    <!-- fields MODULE.CLASS -->    a table of the class's fields, of their types and the comments beside them
    """
    markdown = only_what_exists(markdown)
    markdown = re.sub(r"^<!-- head (\S+) -->$", lambda found: head(found[1]), markdown, flags=re.M)
    return re.sub(r"^<!-- fields (\S+)\.(\w+) -->$", lambda found: fields(*found.groups()), markdown, flags=re.M)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs' event: each cell of a table says its column, for phones, which show a row as lines (site.css)."""
    return re.sub(r"<table>.*?</table>", lambda table: with_columns(table[0]), html, flags=re.S)


def only_what_exists(markdown: str) -> str:
    """Without the parts between `<!-- if MODULE -->` and `<!-- end -->` whose module is not there."""

    def kept(found: re.Match[str]) -> str:
        return found[2] if importlib.util.find_spec(found[1]) else ""

    return re.sub(r"^<!-- if (\S+) -->\n(.*?)^<!-- end -->\n", kept, markdown, flags=re.M | re.S)


def with_columns(table: str) -> str:
    """Where there are more than two: of two the second needs no name."""
    columns = [re.sub("<.*?>", "", column) for column in re.findall(r"<th[^>]*>(.*?)</th>", table, re.S)]

    def named(row: re.Match[str]) -> str:
        names = iter(["", *columns[1:]] if len(columns) > 2 else [])
        return re.sub("<td", lambda cell: f'<td data-column="{name}"' if (name := next(names, "")) else cell[0], row[0])

    return re.sub(r"<tr>.*?</tr>", named, table, flags=re.S)


def beside_the_readme(name: str) -> str:
    """A document of the repository's root as a page: links into docs/ are to siblings."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


# ----------------------------------------------------------------------------------------------------------- commands


def parser() -> argparse.ArgumentParser:
    return build_parser(COMMANDS)


def commands() -> str:
    top = """\
# Command line

Written from the program's own parser; `imagebert COMMAND --help` says the same. What stands in brackets is the default,
and `key=value` changes a key of the recipe ([all keys](keys.md)). Every command ends with 0 when the work is done, 1
when it failed on this machine, 2 when the call was wrong, and 75 when it was stopped and the same call goes on.
"""
    return top + "".join(_command(parser(), 1))


def _command(command: argparse.ArgumentParser, level: int) -> Iterator[str]:
    if isinstance(command, Parser):
        command.complete()
    nested = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
    if level > 1:
        yield f"\n{'#' * level} {command.prog}\n\n{command.description or ''}\n"
        if not nested:
            yield f"\n```text\n{_usage(command)}\n```\n"
            rows = [row for action in command._actions if (row := _argument(command, action))]
            if any(meaning for _, meaning in rows):
                lines = [f"| `{_cell(name)}` | {_cell(meaning)} |" for name, meaning in rows]
                yield "\n".join(["", "| argument | meaning |", "|---|---|", *lines, ""])
    for action in nested:
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, summary in summaries.items():  # the others are former names
            sub = action.choices[name]
            sub.description = sub.description or summary
            yield from _command(sub, level + 1)


def _usage(command: argparse.ArgumentParser) -> str:
    """As --help has it, at one width whatever the terminal's."""
    formatter = argparse.HelpFormatter(command.prog, width=88)
    formatter.add_usage(None, command._actions, command._mutually_exclusive_groups, prefix="")
    first, *more = formatter.format_help().strip().splitlines()
    return "\n".join([first, *(f"    {line.strip()}" for line in more)])


def _argument(command: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str] | None:
    """An argument and its meaning; None: --help does not show it either."""
    if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
        return None
    value = ""
    if action.nargs != 0:
        choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
        value = str(action.metavar or choices)
    name = ", ".join(f"{option} {value}".strip() for option in action.option_strings) or value
    if action.help:
        meaning = _words(command._get_formatter()._expand_help(action))
    else:
        told = action.option_strings and action.nargs != 0 and action.default is not None
        meaning = f"({action.default})" if told else ""
    return name, meaning + ("; required" if action.option_strings and action.required else "")


# --------------------------------------------------------------------------------------------------------------- keys


def keys() -> str:
    top = """\
# Recipe keys

Written from `imagebert/config.py`. A recipe is a YAML file of these keys; what it leaves out has the default that
stands here, and an unknown key is refused. `imagebert recipes NAME` prints a recipe that ships, and `key=value` behind
a command changes one key: `schedule.steps=100`, `data.sources.0.weight=0.5`. How they work together is told in
[Recipes and runs](recipes.md).
"""
    return top + "".join(_section(RunConfig))


def _section(kind: Any, prefix: str = "", told_of: dict[Any, str] | None = None) -> Iterator[str]:
    """The table of a dataclass's keys, then those of the dataclasses in it, each told once."""
    told_of = {} if told_of is None else told_of
    yield f"\n## {prefix.rstrip('.') or 'The recipe'}\n\n{_words(inspect.getdoc(kind) or '')}\n"
    yield "\n| key | value (default) | meaning |\n|---|---|---|\n"
    below = []
    hints, comments = typing.get_type_hints(kind), meanings(inspect.getsource(kind))
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if inner := _dataclass_in(hint):
            listed = typing.get_origin(hint) is tuple
            if inner not in told_of:
                told_of[inner] = f"{name}.N" if listed else name
                below.append(inner)
            value = f"{'list of ' if listed else ''}keys: `{told_of[inner]}`"
        else:
            value = _kind(hint)
        yield f"| `{name}` | {_cell(value)}{_default(field)} | {_cell(comments[field.name])} |\n"
    for inner in below:
        yield from _section(inner, f"{told_of[inner]}.", told_of)


def meanings(source: str) -> dict[str, str]:
    """Of each field of a class its comment, be that above it, behind it, or both."""
    lines = textwrap.dedent(source).splitlines()
    found = {}
    for node in _fields(source):
        above = node.lineno - 1
        while lines[above - 1].lstrip().startswith("#"):
            above -= 1
        behind = lines[(node.end_lineno or 0) - 1].encode()[node.end_col_offset :].decode()
        parts = (
            " ".join(line.strip().lstrip("# ") for line in lines[above : node.lineno - 1]),
            behind.strip().lstrip("# "),
        )
        found[ast.unparse(node.target)] = ": ".join(part for part in parts if part)
    return found


def _fields(source: str) -> list[ast.AnnAssign]:
    [tree] = ast.parse(textwrap.dedent(source)).body
    return [node for node in typing.cast(ast.ClassDef, tree).body if isinstance(node, ast.AnnAssign)]


def _dataclass_in(hint: Any) -> Any:
    arguments = [hint, *typing.get_args(hint)]
    return next((kind for kind in arguments if dataclasses.is_dataclass(kind)), None)


def _kind(hint: Any) -> str:
    """What may be given, in words."""
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", types.NoneType: "`null`"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {_kind(arguments[0])}"
    if arguments:
        return " or ".join(map(_kind, arguments))
    return names[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return ""
    if field.default is dataclasses.MISSING:
        return ", required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f" (`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`)"


# ------------------------------------------------------------------------------------------------------------- Python


def _source(module: str) -> str:
    root = ROOT / "kernels" if module.startswith("imagebert_kernels.") else ROOT
    return (root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def head(module: str) -> str:
    """The docstring of a module, which has formulas and layouts."""
    return f"```text\n{ast.get_docstring(ast.parse(_source(module)))}\n```"


def fields(module: str, name: str) -> str:
    """The table of a class's fields."""
    source = _source(module)
    [node] = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
    told = meanings(text)
    rows = [(ast.unparse(field.target), ast.unparse(field.annotation)) for field in _fields(text)]
    lines = [f"| `{field}` | `{_cell(kind)}` | {_cell(told[field])} |" for field, kind in rows]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *lines])


# ----------------------------------------------------------------------------------------------------------- notebook


def notebook(text: str) -> str:
    """A notebook as a page: its text, and its code without what it prints."""
    cells = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        cells.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(cells) + "\n"


def _words(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Text that a table's cell shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")
