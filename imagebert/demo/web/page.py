"""What is generated, and what is known of it: photographs and the pages that show them."""

from __future__ import annotations

from typing import NamedTuple


class Subject(NamedTuple):
    """A photograph and what it shows."""

    name: str  # unique: the stem of the names of its files
    sentence: str  # describes it, in English
    width: int  # pixels
    height: int


class Page(NamedTuple):
    """A page and the truth about its pictures."""

    url: str
    html: bytes  # as the server sends it, in its charset
    headers: tuple[tuple[str, str], ...]  # of HTTP: Content-Type and others
    kind: str  # "news", "shop", ...: one of KINDS
    english: bool  # its text is, whatever its lang attribute says
    opted_out: bool  # its robots meta tag or X-Robots-Tag header forbids to use its pictures; `pictures` has them still
    # The absolute URL of each dominant picture, and the sentence that is right for it, in the page's language; empty
    # where nothing on the page says what it shows.
    pictures: dict[str, str]
    # Every URL of an image that the page shows or names, and its subject; None for logos, icons, advertisements,
    # trackers, posters of videos, backgrounds and what is not there.
    images: dict[str, Subject | None]
