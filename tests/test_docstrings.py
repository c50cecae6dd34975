"""What is public is understood from `help()` alone: each docstring begins with a whole sentence, names each parameter
with its shape, says what is raised, and refers to nothing that stands elsewhere."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import BertConfig

import imagebert
import imagebert.auto
import imagebert.processing
import imagebert_kernels
from imagebert import api

# The first sentence is what the thing does: its first word is one of these.
VERBS = (
    *("Chooses", "Compares", "Computes", "Copies", "Counts", "Describes", "Draws", "Encodes", "Extracts", "Finds"),
    *("Fine-tunes", "Gives", "Holds", "Joins", "Lists", "Loads", "Looks", "Makes", "Names", "Offers", "Packs"),
    *("Pre-trains", "Projects", "Reads", "Replaces", "Returns", "Runs", "Says", "Scores", "Serves", "Shows"),
    *("Tokenises", "Trains", "Turns", "Uploads", "Writes"),
)
# Words that lead out of the docstring, to what a reader of `help()` does not see.
ELSEWHERE = re.compile(
    r"\bthe same( of\b| for\b|[.,;:)])|\b(as above|likewise|ditto|the others|head of this file)\b|`_[a-z]",
    re.IGNORECASE,
)
# An entry that begins so goes on a sentence of which the name is the beginning.
FRAGMENT = re.compile(r"(also|as|at|by|for|from|in|into|like|of|on|only|that|to|which|with)\b", re.IGNORECASE)
# Functions of the api that take something, and nothing that they would refuse.
NEVER_WRONG = {"doctor_on_paper", "ladder_tables"}
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example):$")


def public() -> dict[str, Any]:
    """What the package offers, with the types that functions return, and the methods of all these."""
    found: dict[str, Any] = {
        module.__name__: module for module in (imagebert, imagebert.auto, imagebert.processing, api, imagebert_kernels)
    }
    for module in (imagebert, api, imagebert_kernels):
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__ if name[0] != "_"}
    for name, value in vars(imagebert.processing).items():
        if name[0] != "_" and inspect.isroutine(value) and value.__module__ == "imagebert.processing":
            found[f"imagebert.processing.{name}"] = value
    for function in filter(inspect.isfunction, list(found.values())):
        new = [each for each in returned(function) if each not in found.values()]
        found |= {f"{each.__module__}.{each.__qualname__}": each for each in new}
    for each in filter(inspect.isclass, list(found.values())):
        found |= dict(methods(each))
    return found


def returned(function: Any) -> Iterator[Any]:
    """This package's classes in what a function is annotated to return, also those imported for that alone."""
    module = importlib.import_module(function.__module__)
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imagebert")
        for alias in node.names
    }
    for word in re.findall(r"\w+", str(function.__annotations__.get("return"))):
        there = getattr(importlib.import_module(imported[word][0]), imported[word][1]) if word in imported else None
        here = vars(module).get(word, there)
        if inspect.isclass(here) and here.__module__.startswith("imagebert"):
            yield here


def methods(of: Any) -> Iterator[tuple[str, Any]]:
    for base in of.__mro__:
        for name, value in vars(base).items() if base.__module__.startswith("imagebert") else ():
            plain = getattr(value, "__func__", value)
            if (name[0] != "_" or name == "__call__") and (inspect.isfunction(plain) or isinstance(plain, property)):
                yield f"{base.__module__}.{base.__qualname__}.{name}", plain


PUBLIC = public()


def sections(doc: str) -> dict[str, str]:
    """The text before the first section as "", then each section's by its name."""
    found, name = {"": ""}, ""
    for line in inspect.cleandoc(doc).splitlines():
        if begins := SECTION.match(line):
            name = begins[1]
            found[name] = ""
        else:
            found[name] += line + "\n"
    return found


def entries(section: str) -> dict[str, str]:
    """The entries of Args, Attributes or Raises: the text of each by its name."""
    parts = re.split(r"^(\w+):\s", textwrap.dedent(section), flags=re.MULTILINE)
    return dict(zip(parts[1::2], map(" ".join, map(str.split, parts[2::2])), strict=True))


def parameters(value: Any) -> dict[str, str]:
    """Annotations of what has to be documented: arguments of a function, arguments or fields of a class."""
    if getattr(value, "_is_protocol", False):
        return dict(value.__annotations__)
    # Of transformers' configurations, which are dataclasses too, the arguments count.
    if dataclasses.is_dataclass(value) and value is not imagebert.ImageBertConfig:
        return {field.name: str(field.type) for field in dataclasses.fields(value) if field.name[0] != "_"}
    if isinstance(value, ModuleType | property) or (inspect.isclass(value) and "__init__" not in vars(value)):
        return dict.fromkeys(getattr(value, "_fields", ()), "")
    signature = inspect.signature(value.__init__ if inspect.isclass(value) else value)
    of_bert = inspect.signature(BertConfig).parameters if value is imagebert.ImageBertConfig else ()
    own = {"tie_word_embeddings", "kwargs"}  # of both, and not as BERT has them
    return {
        name: str(parameter.annotation)
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls") and (name in own or name not in of_bert)
    }


def raised(value: Any) -> set[str]:
    """The errors that a function, or the making of a class, raises by itself."""
    if isinstance(value, ModuleType):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(value.fget if isinstance(value, property) else value)))
    if inspect.isclass(value):
        body = tree.body[0].body  # type: ignore[attr-defined]
        tree.body = [node for node in body if getattr(node, "name", "") in ("__init__", "__post_init__")]
    return {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }


def unfinished(doc: str) -> Iterator[str]:
    """What of a docstring's text, its sections left out, is no sentence, or leads elsewhere."""
    parts = sections(doc)
    if not parts[""].strip():
        yield "has no docstring"
        return
    paragraphs = [text for text in re.split(r"\n\s*\n", parts[""].strip("\n")) if not text.startswith(" ")]
    if not paragraphs[0].startswith(tuple(f"{verb} " for verb in VERBS)):
        yield f"begins with {paragraphs[0].split()[0]!r}, which is none of VERBS"
    if "\n" in paragraphs[0]:
        yield "has a first paragraph of more than one line"
    for text in paragraphs:
        if not text[0].isupper() or text[-1] != ".":
            yield f"{text!r} is no sentence"
    if lead := ELSEWHERE.search(doc):
        yield f"leads elsewhere: {lead[0]!r}"


def faults(value: Any) -> Iterator[str]:
    doc = value.__doc__ or ""
    yield from unfinished(doc)
    parts = sections(doc)
    documented = entries(parts.get("Args", "")) | entries(parts.get("Attributes", ""))
    errors = entries(parts.get("Raises", ""))
    returns = " ".join(parts.get("Returns", "Nothing.").split())
    for name, text in {**documented, **errors, "Returns": returns}.items():
        if not text[:1].isupper() or text[-1:] != "." or (name != "Returns" and FRAGMENT.match(text)):
            yield f"{name}: {text!r} is no whole phrase"
    for name, annotation in parameters(value).items():
        if name not in documented:
            yield f"does not say what {name} is"
        elif re.search(r"\b(Tensor,|Array\b)", annotation) and "[" not in documented[name]:
            yield f"does not say the shape of {name}"
    for name in documented.keys() - parameters(value).keys():
        yield f"says what {name} is, which it does not have"
    answer = value.__annotations__.get("return", "") if inspect.isfunction(value) else ""
    if "[Tensor" in str(answer) and not re.search(r"\[|scalar", parts.get("Returns", "")):
        yield "does not say the shape of what it returns"
    for error in raised(value) - errors.keys():
        yield f"does not say when it raises {error}"
    refuses = inspect.isfunction(value) and parameters(value) and value.__name__ not in NEVER_WRONG
    if refuses and "UsageError" not in errors and value is getattr(api, value.__name__, None):
        yield "does not say when it raises UsageError"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_stands_alone(name: str) -> None:
    assert list(faults(PUBLIC[name])) == []


def listed() -> Iterator[str]:
    """Names that docs/python.md lists, with their members."""
    page = (Path(__file__).parents[1] / "docs/python.md").read_text(encoding="utf-8")
    for name, options in re.findall(r"^::: (\S+)(?:\n +options: (.*))?", page, re.MULTILINE):
        yield name
        if members := re.search(r"members: \[(.*?)\]", options):
            yield from (f"{name}.{member}" for member in members[1].split(", "))


@pytest.mark.parametrize("name", listed())
def test_what_the_documentation_lists_begins_with_a_sentence(name: str) -> None:
    assert list(unfinished((PUBLIC.get(name) or pkgutil.resolve_name(name)).__doc__ or "")) == []


def test_all_of_the_front_door_is_looked_at() -> None:
    for name in (
        "api.evaluate",
        "api.Evaluated",
        "verify.Found",
        "doctor.compare.Findings.fit",
        "regions.extract.Extracted",
    ):
        assert f"imagebert.{name}" in PUBLIC
    assert "imagebert.model.modeling.ImageBertForPreTraining.forward" in PUBLIC
    assert "imagebert_kernels.packed_attention" in PUBLIC


def example(x: Any, texts: Any) -> None:
    raise ValueError(x, texts)


@pytest.mark.parametrize(
    ("doc", "fault"),
    [
        (None, "has no docstring"),
        ("The scores of pairs.", "none of VERBS"),
        ("Those that are read, of a table.", "none of VERBS"),
        ("Scores pairs", "is no sentence"),
        ("Scores pairs. Of each its logit\n\nand more.", "is no sentence"),
        ("Scores pairs, the same of images.", "leads elsewhere"),
        ("Scores pairs as `_score` does.", "leads elsewhere"),
        ("Scores pairs.\n\nArgs:\n    x: of a picture.", "is no whole phrase"),
        ("Scores pairs.\n\nArgs:\n    x: The score", "is no whole phrase"),
        ("Scores pairs.\n\nArgs:\n    x: The score.", "does not say what texts is"),
        ("Scores pairs.\n\nArgs:\n    y: The score.", "says what y is, which it does not have"),
        ("Scores pairs.", "does not say when it raises ValueError"),
    ],
)
def test_what_does_not_stand_alone_is_found(doc: str | None, fault: str) -> None:
    example.__doc__ = doc
    assert any(fault in found for found in faults(example))


def test_a_shape_that_is_missing_is_found() -> None:
    def project(x: Float[Tensor, "T H"]) -> Float[Tensor, "T H"]:  # type: ignore[name-defined]  # noqa: F821
        """Projects rows.

        Args:
            x: The rows.

        Returns:
            The rows.
        """

    assert list(faults(project)) == ["does not say the shape of x", "does not say the shape of what it returns"]
