"""YAML and `key=value` overrides to a tree of dataclasses, strictly; and back.

A mistake is an error that names the key, the value and the cure: unknown keys are answered with the nearest right one,
numbers that YAML would read as text (`1e-4`) are read as numbers, a key given twice is refused. What YAML can do beyond
plain trees (tags, keys that are lists, dates, merges) nobody needs here and is refused or text; what aliases unfold to
is bounded, since a few bytes of them could become gigabytes.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from imagebert.errors import UsageError
from imagebert.files import read_text

Tree = TypeVar("Tree")
_INTEGERS = 1 << 63  # those of 64 bits are below
_LARGEST = 1 << 17  # bytes of a file: YAML takes a second for 30,000


def apply_overrides(tree: dict[str, Any], overrides: typing.Sequence[str]) -> dict[str, Any]:
    """Sets `a.b.0.c=value` in a plain tree, values read as YAML. Parts that are missing on the way are created."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is not key=value")
        node: Any = tree
        parts = key.split(".")
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            if isinstance(node, list):
                if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(node):
                    raise UsageError(f"{key}: {part!r} is not an index into a list of {len(node)}")
                index: Any = int(part)
            elif isinstance(node, dict):
                index = part
                if not last and node.get(part) is None:
                    node[part] = {}
            else:
                raise UsageError(f"{key}: {'.'.join(parts[:depth])} is a value and has no parts")
            if last:
                node[index] = parse_yaml(text, f"override {override!r}")
            else:
                node = node[index]
    return tree


def build(kind: type[Tree], tree: Any, where: str) -> Tree:
    """Turns plain data into the dataclass `kind`, checking every key and every type.

    Raises:
        UsageError: names the key, what was found and what was expected.
    """
    try:
        return _convert(kind, tree, "")
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def to_plain(config: Any) -> dict[str, Any]:
    """The tree as plain dictionaries, lists and scalars: what is written into runs and checkpoints."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def to_yaml(config: Any) -> str:
    """Writes a configuration as the YAML text that is read back to an equal one."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping, strictly."""
    tree = parse_yaml(read_text(path, _LARGEST), str(path))
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds {type(tree).__name__}, not a mapping of keys to values")
    return tree


def parse_yaml(text: str, where: str) -> Any:
    """The plain data in a YAML text: mappings with text for keys, lists, text, numbers, true, false and null.

    Raises:
        UsageError: it is no YAML, or holds or asks for more than that; `where` says which.
    """
    if len(text) > _LARGEST:
        raise UsageError(f"{where} has more than {_LARGEST:,} characters: no recipe has")
    try:
        return _written_out(yaml.load(text, Loader=_StrictLoader), [_VALUES], 0)  # a SafeLoader: plain data only
    except UsageError as error:
        raise UsageError(f"{where}, {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # what PyYAML raises on damaged bytes is no closed list
        raise UsageError(f"{where} is not valid YAML ({type(error).__name__}: {error})") from None


_DEEPEST = 32  # of mappings and lists in each other
_VALUES = 100_000  # more than so many bytes can hold without aliases


def _written_out(value: Any, left: list[int], depth: int) -> Any:
    """A copy in which nothing stands twice: what an alias (*name) stands for is written in its place."""
    left[0] -= 1
    if left[0] < 0:
        raise UsageError(f"its aliases (*name) unfold to more than {_VALUES:,} values: write out what is meant")
    if depth > _DEEPEST:
        raise UsageError(f"its aliases (*name) are nested deeper than {_DEEPEST}: write out what is meant")
    if isinstance(value, dict):
        return {key: _written_out(inner, left, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_written_out(inner, left, depth + 1) for inner in value]
    return value


class _StrictLoader(yaml.SafeLoader):
    """YAML as people expect it: 1e-4 is a number, a repeated key is an error, a date is text, all is a plain tree."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:  # an alias has none
            raise UsageError(f"line {line}: tags ({event.tag}) are not taken: leave it out, or quote the text")
        if self._depth >= _DEEPEST:
            raise UsageError(f"line {line}: it is nested deeper than {_DEEPEST}: no recipe is")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UsageError(f"line {line}: a key is a list or a mapping: keys are text")
            key = self.construct_object(key_node)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise UsageError(f"line {line}: key {key_node.value[:40]} is no text: correct it, or quote it")
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text: str = self.construct_scalar(node)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError(
                f"line {node.start_mark.line + 1}: {shown(text)} has a zero byte or half a character: correct it"
            )
        return text

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) <= 80:  # 64 bits in base 2; Python itself gives up at 4,300 digits
            number: int = self.construct_yaml_int(node)  # type: ignore[no-untyped-call]
            if abs(number) < _INTEGERS:
                return number
        raise UsageError(f"line {node.start_mark.line + 1}: {node.value[:20]}... has more digits than 64 bits hold")


_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_text)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_integer)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
# Dates, `<<` and `=` are text as all else is that is no number.
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in ("timestamp", "merge", "value")]
    for first, found in _StrictLoader.yaml_implicit_resolvers.items()
}


def shown(value: Any) -> str:
    """A value as a sentence can hold it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _convert(kind: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        return _convert(inner, value, key)
    if origin is Literal:
        if value in arguments:
            return value
        raise UsageError(f"{key} is {shown(value)}: give one of {', '.join(arguments)}{nearest(str(value), arguments)}")
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{key} is {shown(value)}: give a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise UsageError(f"{key} has {len(value)} values: give {len(arguments)}")
        inner_kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(_convert(k, v, f"{key}.{i}") for i, (k, v) in enumerate(zip(inner_kinds, value, strict=True)))
    if isinstance(value, int) and abs(value) >= _INTEGERS:
        raise UsageError(f"{key} is a number of {value.bit_length()} bits: give one of 64 at most")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key} is {value}: give a finite number")
    if origin is dict:
        if isinstance(value, dict):
            return value
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise UsageError(f"{key} is {shown(value)}: give {names.get(kind, 'a mapping')}")


def _convert_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"{key or 'the recipe'} is {shown(value)}: give a mapping of keys to values")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            raise UsageError(f"unknown key {prefix}{name}{nearest(str(name), fields) or _list(fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise UsageError(f"{prefix}{name} is missing and has no default")
    return kind(**{name: _convert(hints[name], v, prefix + name) for name, v in value.items()})


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _list(choices: typing.Iterable[str]) -> str:
    return f"; there are {', '.join(choices)}"
