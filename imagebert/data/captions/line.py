"""One caption as it was found, names of a table's columns, and what all readers of captions need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.errors import UsageError

PATIENCE = 100  # lines or entries that are looked at before one decides for the source


class Line(NamedTuple):
    """One caption as it was found, and what its image may be called after."""

    where: str
    image: str  # file name, URL or id; "" where there is none
    text: str
    row: int
    id: int | str | None = None
    split: str = "train"
    relevance: float = math.nan
    url: str = ""  # of the image
    error: str = ""  # why it cannot be used
    status: str = ""  # of an image that could not be downloaded


@dataclass(frozen=True)
class Columns:
    """Names the columns of a table of captions.

    Attributes:
        image: The column of the image's name.
        caption: The column of the caption's text.
        split: The column of the split's name, which a table need not have.
        relevance: The column of the caption's score, which a table need not have.
        names: The names of all columns in their order, for a file without a header line. None reads the header line.
    """

    image: str = "image"
    caption: str = "caption"
    split: str = "split"
    relevance: str = "relevance"
    names: tuple[str, ...] | None = None

    def read(self, there: Iterable[str]) -> list[str]:
        """Lists those of the named columns that a table has, in the order in which they are read.

        Args:
            there: The names of the columns that the table has.
        """
        return [name for name in (self.image, self.caption, self.split, self.relevance) if name in set(there)]


class Found(NamedTuple):
    """A source of captions: what it is, for people, and its captions in its order."""

    what: str
    lines: Iterator[Line]


def suffix_of(path: Path) -> str:
    """In small letters, without that of a gzip."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def id_of(value: Any) -> int | str | None:
    """A number, also where it was written as text, or a name that an image has as its id; None where it has none."""
    if isinstance(value, str):
        # 007 and 7 are two ids.
        return int(value) if value.isascii() and value.isdigit() and value[:1] != "0" and len(value) < 20 else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_of(value: Any) -> str:
    """A text or number; "" for what is none, which is then refused."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def list_of(content: Any, name: str, path: Path) -> list[Any]:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, list):
        raise UsageError(f"{path} has no list of {name}: it is of another format: say which with `format`")
    return value
