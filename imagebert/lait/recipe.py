"""Every threshold of the LAIT builder as one tree of dataclasses, and the YAML that ships with it (lait.yaml).

The paper (section 4, Qi et al. 2020) states one number, the 300 pixels; all others are choices of ours, and lait.yaml
says of each where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagebert.strict_yaml import apply_overrides, build, read_yaml

AGENT = "imagebert"  # as robots.txt, X-Robots-Tag and meta tags may name it
SHIPPED = Path(__file__).with_name("lait.yaml")


@dataclass(frozen=True)
class PagesRecipe:
    """Says which pages are read, and which of their pictures are dominant."""

    language: str = "en"
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


def read_recipe(path: Path = SHIPPED, overrides: Sequence[str] = ()) -> LaitRecipe:
    """Reads a recipe, with `key=value` in place of what it says.

    Raises:
        UsageError: It has an unknown key or a value of a wrong type, which is named.
    """
    return build(LaitRecipe, apply_overrides(read_yaml(path), overrides), str(path))
