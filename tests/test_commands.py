"""Every command that a document, the Makefile or the head of a file prints is one that its program accepts.

Collected are lines of code blocks, code within sentences, recipes of the Makefile, and heads: a file's first comment or
a module's docstring. Nothing is run: the program's own parser reads the words. A word in capitals stands for anything.
Code within a sentence may leave out what a command needs, but what it gives must be right: it is `brief`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import itertools
import re
import shlex
import string
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imagebert import cli
from imagebert.api.retrieval import DATASETS
from imagebert.cli import data, train
from imagebert.cli.commands import Parser, build_parser
from imagebert.config import RunConfig, UsageError, load_recipe
from imagebert.data.readers.source import FORMATS
from imagebert.ladder import load_ladder

ROOT = Path(__file__).parents[1]
PAGES = ["*.md", "docs/*.md"]
COMMENTED = ["imagebert/recipes/*.yaml", "imagebert/ladders/*.yaml", "slurm/*.sh", "benchmarks/gpu_suite.sh"]
# The group is what stays when environment, launcher and folder are taken off.
BEGINS = re.compile(
    r"(?:[A-Z_]+=\S* )*(?:(?:srun|mpirun|torchrun|deepspeed) (?:.*?\s)??)?(?:\S+/bin/)?"
    r"((?:imagebert [a-z]|python -m [a-z]|make [a-z]|sh \w+/\w|(?:sbatch (?:-\S+ )*)?slurm/(?!env/)\w).*)"
)
STANDS_FOR_ANYTHING = re.compile(r"[A-Z][A-Z0-9_]*(/[A-Z]+)?")
WITHOUT_ARGPARSE = {"performance": 0, "length_mixes": 3}  # how many words they take
SBATCH_OPTIONS = {"--nodes", "--gpus-per-node", "--cpus-per-task", "--array"}
SLURM_RECIPES = {"stage1": "stage1_lait", "stage2": "stage2_cc_sbu", "finetune": "finetune_coco"}


class Command(NamedTuple):
    source: str
    text: str
    brief: bool = False


class Wrong(Exception):
    pass


class Parsed(Exception):
    """Leaves a benchmark's main() once its arguments are read."""


def in_lines(source: str, text: str, head: bool = False, all_lines: bool = False) -> Iterator[Command]:
    """Commands of a code block, or of a head, where sentences stand between them."""
    variables: dict[str, str] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        pieces = re.split(r"\s{2,}|; " + (r"|, (?:or )?" if head else ""), re.sub(r"(^|\s)#.*", "", line).strip())
        for number, piece in enumerate(string.Template(piece).safe_substitute(variables) for piece in pieces):
            if found := BEGINS.fullmatch(piece):
                only_named = head and len(found[1].split()) == 2  # benchmarks/train.py lists `imagebert pretrain`
                shortened = re.search(r"\||\.\.\.", re.sub(r"\[.*?\]", "", piece))
                yield Command(source, found[1], bool(only_named or shortened))
            elif assigned := re.match(r"([A-Z]+)=", piece):
                variables[assigned[1]] = shlex.split(piece)[0][assigned.end() :]
            elif all_lines and piece and number == 0:
                yield Command(source, piece)


def in_sentences(source: str, text: str) -> Iterator[Command]:
    for paragraph in re.split(r"\n\s*\n", text):
        for code in re.findall(r"`([^`]+)`", paragraph):
            if found := BEGINS.fullmatch(" ".join(code.replace(r"\|", "|").split())):
                yield Command(source, found[1], brief=True)


def in_page(source: str, text: str) -> Iterator[Command]:
    """A block without a language holds commands and nothing else."""
    blocks = re.compile(r"^```(.*)\n((?:.*\n)*?)```", re.M)
    for language, block in blocks.findall(text):
        yield from () if language else in_lines(source, block, all_lines=True)
    yield from in_sentences(source, blocks.sub("", text))


def in_head(source: str, text: str) -> Iterator[Command]:
    yield from in_lines(source, text, head=True)
    yield from in_sentences(source, text)


def collect() -> list[Command]:
    def files(*patterns: str) -> Iterator[tuple[str, str]]:
        for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")

    found: list[Command] = []
    for source, text in files(*PAGES):
        found += in_page(source, text)
    for source, text in files(*COMMENTED):
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        found += in_head(source, "\n".join(line.lstrip("#") for line in comment))
    for source, text in files("benchmarks/*.py"):
        found += in_head(source, ast.get_docstring(ast.parse(text)) or "")
    for source, text in files("Makefile"):
        recipes = re.findall(r"^\t@?(.*)", text.replace("$(BIN)", ".venv/bin"), re.M)
        found += in_lines(source, "\n".join(recipes))
        found += in_sentences(source, "\n\n".join(re.findall(r"#.*", text)))
    return sorted(set(found))


def variants(text: str) -> Iterator[tuple[str, ...]]:
    """The calls that a text stands for: one for each of a|b, optional parts given, no `...`."""
    text = re.sub(r"(?<=\s)\[(?:key=value)?(.*?)\]", r"\1", re.sub(r"\s*\|\s*", "|", text))
    yield from itertools.product(*(word.split("|") for word in shlex.split(text) if word != "..."))


def loosen(parser: argparse.ArgumentParser, brief: bool, instead: Callable[..., int] | None = None) -> None:
    """Capitals pass for any type and choice; a brief command needs nothing, not even options' values.

    `instead` is called in place of the parser's command, with that in front.
    """
    if isinstance(parser, Parser):
        parser.complete()
    if instead and "command" in parser._defaults:
        declared = parser._defaults["command"]
        parser.set_defaults(command=declared._replace(run=partial(instead, declared), ranks="all", header=False))
    for group in parser._mutually_exclusive_groups:
        group.required &= not brief
    for action in parser._actions:
        action.required &= not brief
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                loosen(sub, brief, instead)
            continue
        action.type, action.choices = partial(_convert, action.type or str, action.choices), None
        if brief and isinstance(action, argparse._StoreAction) and action.option_strings and action.nargs is None:
            action.nargs = "?"


def _convert(to: Any, choices: Any, text: Any) -> Any:
    if STANDS_FOR_ANYTHING.fullmatch(str(text)):
        return text
    if choices and to(text) not in choices:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(map(str, choices))}")
    return to(text)


def check_names(command: Callable[..., int], parsed: argparse.Namespace) -> int:
    """In place of an imagebert command: what it would look up by name exists, and a recipe takes the overrides."""
    given = {k: v for k, v in vars(parsed).items() if isinstance(v, str) and not STANDS_FOR_ANYTHING.fullmatch(v)}
    if "recipe" in given and not (command is train.plan and given["recipe"] == "evaluate"):
        task = read_recipe(given["recipe"], parsed.overrides).task
        if task != given.get("task", task):
            raise UsageError(f"{given['recipe']} is a recipe to {task}")
    if "name" in given:
        (load_ladder if command is train.ladder else load_recipe)(given["name"])
    for key, known in (("format", {*FORMATS, "auto", "formats"}), ("dataset", set(DATASETS))):
        if command is not data.pairs and given.get(key) not in {None, *known}:
            raise UsageError(f"no {key} {given[key]}")
    return 0


def read_recipe(name: str, overrides: list[str]) -> RunConfig:
    """A recipe by name, or one that a page has its reader write: a block with title="NAME"."""
    for path in ROOT.glob("docs/*.md"):
        if written := re.search(
            rf'^```yaml title="{re.escape(name)}"\n(.*?)^```', path.read_text("utf-8"), re.M | re.S
        ):
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / name).write_text(written[1], encoding="utf-8")
                return load_recipe(f"{folder}/{name}", overrides)
    return load_recipe(name, overrides)


def check_imagebert(words: list[str], brief: bool) -> None:
    parser = build_parser(cli.COMMANDS)
    loosen(parser, brief, check_names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", lambda _: parser)
        patch.setattr("imagebert.host.give_way", lambda: None)
        if cli.main(words[1:]):
            raise Wrong


def check_python(words: list[str], brief: bool) -> None:
    module, arguments = words[2], words[3:]
    name = module.removeprefix("benchmarks.")
    if STANDS_FOR_ANYTHING.fullmatch(name):
        return
    if module == "pytest":
        paths = [word.split("::")[0] for word in arguments if "/" in word]
        _are_in([path for path in paths if not (ROOT / path).exists()], set())
        return
    _are_in([module], {f"benchmarks.{path.stem}" for path in ROOT.glob("benchmarks/*.py")})
    if name in WITHOUT_ARGPARSE:
        _are_in([len(arguments)], {WITHOUT_ARGPARSE[name]})
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *_: Any) -> None:
        loosen(parser, brief)
        parse(parser, arguments)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        importlib.import_module(module).main()


def check_make(words: list[str], _: bool) -> None:
    _are_in(words[1:], set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)))


def check_slurm(words: list[str], whole: bool) -> None:
    if "--" in words:  # what the script hands on, between what it puts there itself
        cut = words.index("--")
        script = next(Path(word).stem for word in words if word.startswith("slurm/"))
        handed = {"mine": ["mine", "MODEL"], "lait": ["lait", "build", "CRAWL"]}.get(script, [script])
        given = ["OUT", *words[cut + 1 :]] if script == "lait" else [*words[cut + 1 :], "OUT"]
        check_imagebert(["imagebert", *handed, *given], whole)
        words = words[:cut]
    at = next(number for number, word in enumerate(words) if word.startswith("slurm/"))
    _are_in([words[at]], {f"slurm/{path.name}" for path in ROOT.glob("slurm/*.sh")})
    before, behind = ([w.partition("=")[0] for w in part if w[:2] == "--"] for part in (words[:at], words[at:]))
    _are_in(before, SBATCH_OPTIONS)
    _are_in(behind, slurm_options(ROOT / words[at]))
    if overrides := [word for word in words[at:] if re.match(r"[a-z_.0-9]+=", word)]:
        _are_in([Path(words[at]).stem], set(SLURM_RECIPES))
        load_recipe(SLURM_RECIPES[Path(words[at]).stem], overrides)


@cache
def slurm_options(script: Path) -> set[str]:
    """Those that start a line of --help, and those that the script itself compares with."""
    told = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    listed = [line.split("  ")[0] for line in told.splitlines() if line.startswith("--")]
    own = re.findall(r"(?:== |^ *)(--[a-z]+)(?:\)| \]\])", script.read_text(encoding="utf-8"), re.M)
    return {*re.findall(r"--[a-z-]+", " ".join(listed)), *own}


def check_sh(words: list[str], _: bool) -> None:
    _are_in(words[1:2], {"benchmarks/gpu_suite.sh"})
    [parts] = re.findall(r"^PARTS='(.*)'", (ROOT / words[1]).read_text(encoding="utf-8"), re.M)
    _are_in(words[2:], {*parts.split(), "prepare", "PARTS"})


def _are_in(words: list[Any], known: set[Any]) -> None:
    if unknown := set(words) - known:
        raise Wrong(f"{unknown} not in {known}")


def kind(command: Command) -> str:
    return re.sub(r"^(sbatch|slurm/\S+)", "slurm", command.text).split()[0]


CHECKS = {
    "imagebert": check_imagebert,
    "python": check_python,
    "make": check_make,
    "slurm": check_slurm,
    "sh": check_sh,
}


def check(command: Command) -> None:
    if kind(command) not in CHECKS:
        raise Wrong(f"{command.source}: {command.text}: no command of this project; give such a block a language")
    for words in variants(command.text):
        errors = io.StringIO()
        try:
            with redirect_stderr(errors):
                CHECKS[kind(command)](list(words), command.brief)
        except (Wrong, SystemExit, UsageError) as error:
            raise Wrong(f"{command.source}: {shlex.join(words)}: {error} {errors.getvalue()}") from None


COMMANDS = collect()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.source}: {command.text}")
def test_a_printed_command_is_accepted(command: Command) -> None:
    check(command)


def test_commands_are_found_everywhere() -> None:
    kinds = Counter(kind(command) for command in COMMANDS)
    for name, least in {"imagebert": 80, "python": 50, "slurm": 20, "make": 10, "sh": 4}.items():
        assert kinds[name] >= least, kinds
    sources = {command.source for command in COMMANDS}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "benchmarks/gpu_suite.sh"} <= sources
    for folder, least in {"docs": 10, "imagebert/recipes": 12, "imagebert/ladders": 5, "slurm": 7}.items():
        assert sum(Path(source).parent == Path(folder) for source in sources) >= least, sources


@pytest.mark.parametrize(
    "line",
    [
        "imagebert pretrian RECIPE",
        "imagebert pretrain stage1_liat",
        "imagebert finetune stage1_lait",
        "imagebert finetune",
        "imagebert pretrain stage1_lait schedule.setps=3",
        "srun imagebert evaluate MODEL --dataset cocoa",
        "imagebert store inspect|verfy",
        "imagebert export RUN [--jsno FILE]      the newest checkpoint",
        "torchrun --nproc-per-node 8 -m imagebert plan --gpu h300",
        "imagebert ladder table4",
        "imagbert demo",
        ".venv/bin/python -m benchmarks.train --against visualbert",
        "python -m benchmarks.trian",
        "python -m benchmarks.performance --json FILE",
        "python -m pytest tests/feed/test_plans.py",
        "make benhc    # what needs no GPU",
        "slurm/stage3.sh",
        "sbatch --ndoes=4 slurm/stage1.sh",
        "slurm/stage1.sh --dataset coco",
        "slurm/stage1.sh schedule.setps=3",
        "OUT=results sh benchmarks/gpu_suite.sh bsae",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    [command] = in_page("made up", f"Text.\n\n```\n{line}\n```\n")
    with pytest.raises(Wrong):
        check(command)


def test_a_wrong_option_is_found_in_a_sentence_and_in_a_head() -> None:
    [named, wrong] = in_sentences("made up", "`imagebert pairs --image-key` and\n`imagebert pairs\n--image-kye`")
    check(named)
    [_, whole] = in_head("made up", " Cost: 3 hours. Command:  imagebert demo --seed 1, or slurm/stage1.sh --form RUN")
    for command in (wrong, whole):
        with pytest.raises(Wrong):
            check(command)
