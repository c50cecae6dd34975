"""Every threshold of the LAIT builder as one tree of dataclasses, and the YAML that ships with it (lait.yaml).

The paper (section 4, Qi et al. 2020) states one number, the 300 pixels; all others are choices of ours, and lait.yaml
says of each where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagebert.errors import UsageError
from imagebert.strict_yaml import apply_overrides, build, read_yaml

AGENT = "imagebert"  # as robots.txt, X-Robots-Tag and meta tags may name it
SHIPPED = Path(__file__).with_name("lait.yaml")


@dataclass(frozen=True)
class PagesRecipe:
    """Says which pages are read, and which of their pictures are dominant."""

    language_score: float = 0.5
    page_bytes: int = 4 << 20
    images: int = 1000
    dominance: float = 0.5
    pictures: int = 20
    sentences: int = 6
    around: int = 3


@dataclass(frozen=True)
class SentencesRecipe:
    """Says which sentences are kept."""

    words: tuple[int, int] = (4, 40)
    characters: tuple[int, int] = (15, 300)
    unknown_words: float = 0.3
    letters: float = 0.6
    capitals: float = 0.6
    repetition: float = 0.34
    commas: float = 0.34
    stop_words: int = 1
    language_score: float = 0.4


@dataclass(frozen=True)
class FetchRecipe:
    """Says how pictures are fetched, and what one may cost; FetchLimits says what the keys mean."""

    shard: int = 10_000
    seconds: float = 20.0
    picture_bytes: int = 20 << 20
    redirects: int = 5
    connections: int = 256
    per_host: int = 2
    pause: float = 0.1
    retry_seconds: float = 5.0
    host_failures: int = 8
    host_seconds: float = 1800.0
    follow_robots: bool = True
    allow_private: bool = False


@dataclass(frozen=True)
class FilterRecipe:
    """Says which pictures are kept, once they are there."""

    side: int = 300
    aspect: float = 3.0
    natural: float = 0.5
    nsfw: float = 0.2
    hamming: int = 3


@dataclass(frozen=True)
class PairsRecipe:
    """Says which pairs are kept, once each has its relevance."""

    relevance: float = 0.5
    sharing: int = 10
    long: int = 8


@dataclass(frozen=True)
class LaitRecipe:
    """Holds every threshold of `imagebert lait`."""

    pages: PagesRecipe = field(default_factory=PagesRecipe)
    sentences: SentencesRecipe = field(default_factory=SentencesRecipe)
    fetch: FetchRecipe = field(default_factory=FetchRecipe)
    filter: FilterRecipe = field(default_factory=FilterRecipe)
    pairs: PairsRecipe = field(default_factory=PairsRecipe)


_ALL = math.inf
# What each number may be. Keys of two numbers have a least and a most, in order.
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("pages.language_score", "pages.dominance"), (0, 1)),
    **dict.fromkeys(("pages.images", "pages.pictures", "pages.sentences", "pages.around"), (1, _ALL)),
    "pages.page_bytes": (1_000, _ALL),
    **dict.fromkeys(("sentences.words", "sentences.characters"), (1, _ALL)),
    **{
        f"sentences.{name}": (0, 1) for name in ("unknown_words", "letters", "capitals", "repetition", "language_score")
    },
    **dict.fromkeys(("sentences.commas", "sentences.stop_words"), (0, _ALL)),
    **{f"fetch.{name}": (1, _ALL) for name in ("shard", "picture_bytes", "connections", "per_host", "host_failures")},
    **dict.fromkeys(("fetch.seconds", "fetch.host_seconds"), (0.001, 1e9)),
    **dict.fromkeys(("fetch.pause", "fetch.retry_seconds"), (0, 1e9)),
    "fetch.redirects": (0, 100),
    "filter.side": (0, _ALL),
    "filter.aspect": (1, _ALL),
    **dict.fromkeys(("filter.natural", "filter.nsfw", "pairs.relevance"), (0, 1)),
    "filter.hamming": (-1, 16),
    "pairs.sharing": (0, _ALL),
    "pairs.long": (1, _ALL),
}


def read_recipe(path: Path = SHIPPED, overrides: Sequence[str] = ()) -> LaitRecipe:
    """Reads a recipe, with `key=value` in place of what it says.

    Raises:
        UsageError: It has an unknown key, or a value of a wrong type or out of its range, which is named.
    """
    recipe = build(LaitRecipe, apply_overrides(read_yaml(path), overrides), str(path))
    for key, (least, most) in RANGES.items():
        part, _, name = key.partition(".")
        value = getattr(getattr(recipe, part), name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not (least <= numbers[0] <= numbers[-1] <= most):
            pair = "two numbers in order, " * (len(numbers) > 1)
            given = f"{least:,} or more" if most == _ALL else f"{least:,} to {most:,}"
            raise UsageError(f"{key} is {value!r}: give {pair}{given}")
    return recipe
