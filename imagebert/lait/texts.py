"""The texts of a page that may describe a picture, and the sentences in them (paper, section 4, sentence detection).

Each sentence knows where it is from. Its features are what a person would go by: the kind of place, how far it is,
whether it says what the file's name, the alternative text or the title say, whether other pictures have it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from imagebert.lait import images
from imagebert.lait.document import Document, Node, above, is_hidden, text_of
from imagebert.lait.images import PageImage
from imagebert.lait.sentences import clean, sentences

# Where a text stands.
SOURCES = ("alt", "title", "figcaption", "caption", "og", "page_title", "heading", "around")
FEATURES = (
    *(f"is_{source}" for source in SOURCES),
    "distance",
    "behind",
    "place",
    "words",
    "is_short",
    "is_whole",
    "overlap_with_name",
    "overlap_with_title",
    "overlap_with_alt",
    "shared_with_pictures",
    "named_twice",
    "log_pictures",
    "words_cut",
)
_LEVELS, _STEPS = 4, 2  # elements around a picture that are climbed, and elements beside each that are looked at
_BESIDE = 100  # nodes beside each that are passed, empty ones and spaces among them
_BLOCK = 1_200  # characters of a text around: what is longer is cut where it is far from the picture
_CAPTION = re.compile(
    r"caption|legend|desc|cutline|credit|subtitle|(?:image|photo|img|pic)[-_]?(?:text|title|info)", re.I
)
_ONE_OF = {source: tuple(float(source == other) for other in SOURCES) for source in SOURCES}
# Of a sentence that stands in several places, the one that says most of the picture counts.
_CLOSENESS = {
    source: place
    for place, source in enumerate(("figcaption", "caption", "alt", "title", "og", "heading", "around", "page_title"))
}
_IS_OG = images.FEATURES.index("is_og_image")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_SKIPPED = frozenset(
    (
        *("script", "style", "noscript", "template", "svg", "nav", "footer", "aside", "form", "button", "select"),
        *("iframe", "source", "br", "hr"),
    )
)
_WORD = re.compile(r"[a-z]{3,}")


class Text(NamedTuple):
    """A text of a page as it stands there."""

    source: str
    text: str
    distance: int = 0  # elements between it and the picture
    behind: bool = True  # or before it


class Candidate(NamedTuple):
    """A sentence that may describe a picture."""

    sentence: str
    source: str
    features: list[float]  # as FEATURES

    def overlap(self, what: str) -> float:
        """The share of the words of the picture's "name", or of the page's "title", that the sentence has."""
        return self.features[FEATURES.index(f"overlap_with_{what}")]


def texts_of(document: Document, image: PageImage, alone: bool) -> Iterator[Text]:
    """The texts that may describe a picture.

    Args:
        alone: whether it is the only dominant picture of its page, which what is said of the page is said of
    """
    attributes = image.node.attributes
    for name, source in (("alt", "alt"), ("title", "title"), ("aria-label", "title"), ("data-caption", "caption")):
        if text := attributes.get(name):
            yield Text(source, text)
    meta = document.meta
    if alone:
        for name in ("og:image:alt", "twitter:image:alt") if image.features[_IS_OG] else ():
            if name in meta:
                yield Text("caption", meta[name])
        for name in ("og:description", "description", "twitter:description"):
            if name in meta:
                yield Text("og", meta[name])
        for text in (meta.get("og:title", ""), document.title):
            if text:
                yield Text("page_title", text)
    yield from _around(image.node)


def _around(node: Node) -> Iterator[Text]:
    """What stands beside a picture, and beside what it stands in, until there is another picture."""
    part, distance = node, 0
    for parent in (*above(node, _LEVELS), None):
        if part.tag == "a" and (title := part.attributes.get("title")):
            yield Text("title", title, distance)
        if part.tag == "figure":
            caption = _caption_of(part)
            if caption is not None:
                yield Text("figcaption", text_of(caption), distance)
        for back in (False, True):
            yield from _beside(part, distance, back)
        if parent is None or (distance and len(parent.css("img")) > 12):
            return
        part, distance = parent, distance + 1


def _caption_of(figure: Node) -> Node | None:
    """A figure's own caption: figures in it have theirs."""
    for caption in figure.css("figcaption"):
        around = next((parent for parent in above(caption, _BESIDE) if parent.tag == "figure"), None)
        if around is not None and around.mem_id == figure.mem_id:
            return caption
    return None


def _beside(part: Node, distance: int, back: bool) -> Iterator[Text]:
    beside, steps, left = part.prev if back else part.next, 0, _BESIDE
    while beside is not None and steps < _STEPS and left > 0:
        left -= 1
        if beside.is_text_node:
            text = beside.text().strip()
            text = text[-_BLOCK:] if back else text[:_BLOCK]
        elif beside.tag in _SKIPPED or not beside.is_element_node:
            text = ""
        elif beside.tag in ("img", "amp-img") or beside.css_first("img,amp-img") is not None:
            return  # what stands there is of that one
        else:
            text = "" if is_hidden(beside.attributes) else text_of(beside, _BLOCK, back)
        if text:
            steps += 1
            kind = "around"
            if beside.tag in _HEADINGS:
                kind = "heading"
            elif beside.tag == "figcaption":
                kind = "figcaption"
            elif beside.is_element_node and _CAPTION.search(
                f"{beside.attributes.get('class') or ''} {beside.attributes.get('id') or ''}"
            ):
                kind = "caption"
            yield Text(kind, text, distance + steps - 1, not back)
        beside = beside.prev if back else beside.next


def candidates(
    document: Document, image: PageImage, alone: bool, others: Sequence[PageImage], most_around: int
) -> list[Candidate]:
    """The sentences that may describe a picture, each once, where it stands closest to it.

    Args:
        others: the page's other dominant pictures
        most_around: sentences of one text around it, those nearest to the picture
    """
    name = _words(unquote(urlsplit(image.url).path.rpartition("/")[2]).replace("-", " ").replace("_", " ").lower())
    title = _words(f"{document.title} {document.meta.get('og:title', '')}".lower())
    alt = _words(image.alt.lower())
    other_alts = "\n".join(other.alt for other in others).lower()
    found: dict[str, tuple[Text, int, str]] = {}
    twice = set[str]()
    for text in texts_of(document, image, alone):
        parts = sentences(clean(text.text, document.site))
        if text.source == "around" or len(parts) > 2 * most_around:
            parts = parts[:most_around] if text.behind else parts[::-1][:most_around]
        for place, sentence in enumerate(parts):
            key = sentence.lower().rstrip(".")
            if key in found:
                twice.add(key)
            if key not in found or _CLOSENESS[text.source] < _CLOSENESS[found[key][0].source]:
                found[key] = text, place, sentence
    result = []
    for key, (text, place, sentence) in found.items():
        words = _words(key)
        length = sentence.count(" ") + 1
        values = (
            *_ONE_OF[text.source],
            text.distance,
            text.behind,
            place,
            min(length, 40) / 10,
            length < 5,
            sentence[-1:] in ".!",
            _overlap(name, words),
            _overlap(title, words) if text.source != "page_title" else 0.0,  # it says of itself nothing
            _overlap(alt, words) if text.source != "alt" else 0.0,
            key in other_alts,
            key in twice,
            min(len(others), 20) / 10,
            len(text.text) > len(sentence) + 60,
        )
        result.append(Candidate(sentence, text.source, [float(value) for value in values]))
    return result


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text))


def _overlap(some: frozenset[str], words: frozenset[str]) -> float:
    """The share of some words that a sentence has."""
    return len(some & words) / len(some) if some else 0.0
