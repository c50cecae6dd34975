"""Types of arguments, and options that several commands share."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from imagebert.errors import UsageError

if TYPE_CHECKING:
    from imagebert.api import StoreOptions

FEATURES = ["int8", "float16", "float32"]


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="also write the figures here")


def add_overwrite(parser: ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace OUT when the new store is whole")


def add_target(parser: ArgumentParser, features: str | None) -> None:
    """What all commands ask for that write a region store."""
    parser.add_argument(
        "--features",
        choices=FEATURES,
        default=features,
        help="how features are stored (%(default)s)" if features else "how features are stored (as they are)",
    )
    parser.add_argument("--shard-gib", type=positive, default=4, metavar="N", help="size of a shard (%(default)s)")
    add_overwrite(parser)


def store_options(parsed: Namespace) -> StoreOptions:
    """What `add_target` was told."""
    from imagebert import api

    return api.StoreOptions(features=parsed.features, shard_gib=parsed.shard_gib, overwrite=parsed.overwrite)


def add_data(parser: ArgumentParser, split: str) -> None:
    """Which corpus a model is asked about, and what of it is fed."""
    parser.add_argument("--regions", metavar="STORE", help="region store")
    parser.add_argument("--pairs", metavar="STORE", help="pair store")
    parser.add_argument("--split", default=split, help="split of the pair store (%(default)s)")
    parser.add_argument("--max-regions", type=positive, metavar="N", help="regions fed per image (the run's, or 100)")
    parser.add_argument("--max-words", type=positive, metavar="N", help="word pieces per caption (the run's, or 41)")
    parser.add_argument("--no-whole-image", action="store_true", help="leave the whole-image region out")


def positive(text: str) -> int:
    """An argument that is a whole number from 1 up; argparse names the argument in its own error."""
    value = int(text)
    if not 0 < value < 1 << 48:
        raise ArgumentTypeError(f"{value} is not positive" if value < 1 else f"{text[:40]} is too large")
    return value


def preview(text: str) -> int:
    """How many pictures a page of regions shows: a browser holds no more of them."""
    value = positive(text)
    if value > 200:
        raise ArgumentTypeError(f"{value} pictures are more than a page shows: give 1 to 200")
    return value


def numbers(text: str) -> list[int]:
    """Comma-separated."""
    return [positive(word) for word in text.split(",")]


def finite(text: str) -> float:
    """A positive number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text[:40]} is no positive number")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise ArgumentTypeError(f"{text[:40]} is not between 0 and 2^63")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise ArgumentTypeError(f"{text[:40]} is not between 0 and 65535")
    return value


def amount(text: str) -> int:
    """A whole number, or one with k, M or G behind it."""
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 0)
    return positive(str(round(finite(text[:-1]) * scale))) if scale else positive(text)


def part(text: str) -> tuple[int, int]:
    """K/N with K from 0 to N-1."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ArgumentTypeError(f"{text} is not K/N with K from 0 to N-1, such as 0/4")
    return int(part), int(parts)


def name_and_value(text: str, option: str, form: str = "NAME=VALUE") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text}: give {form}")
    return name, value
