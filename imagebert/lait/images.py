"""The pictures that a page shows, each with what tells a dominant one from a logo (paper, section 4, page collection).

What is looked at is what is published of such rankers (WebIma 2015; Vyas & Frasincar 2019; Jones et al. 2021): sizes,
place, elements around, words of classes, links, og:image. Each is a number; ranker.py weighs them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from imagebert.lait.document import HREF_LENGTH, STYLE_LENGTH, Document, Node, above, element_beside, is_hidden

FEATURES = (
    "size_known",
    "log_area",
    "log_aspect",
    "is_figure",
    "has_figcaption",
    "in_article",
    "in_frame",
    "in_list",
    "in_table",
    "good_class",
    "bad_class",
    "good_address",
    "bad_address",
    "alt_words",
    "alt_missing",
    "is_og_image",
    "log_name",
    "words_of_name",
    "is_jpeg",
    "is_lazy",
    "has_srcset",
    "log_width_of_srcset",
    "links_to_picture",
    "links_to_file_page",
    "links_to_page",
    "links_away",
    "other_host",
    "order",
    "is_first",
    "log_alike",
    "alike_with_links",
    "hidden",
    "repeated",
    "log_images",
    "next_to_paragraph",
)
SMALLEST = 300  # pixels of a side, as a page says (paper, section 4)
_ANCESTORS = 7
_FRAMES = {"nav", "header", "footer", "aside"}
_NO_DIGITS = str.maketrans("", "", "0123456789")
# Attributes that hold a lazy picture's address, the likeliest first.
LAZY = (
    *("data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-full", "data-large-file"),
    *("data-hi-res-src", "data-image", "data-url", "data-flickity-lazyload", "data-echo", "data-img-src"),
    *("data-actualsrc", "data-full-src", "data-zoom-image"),
)
_LAZY = frozenset(LAZY)
_SRCSETS = ("srcset", "data-srcset", "data-lazy-srcset")

_GOOD_CLASS = re.compile(
    r"hero|lead|featur|main|primary|article|content|entry|post-?(?:image|img|photo|body|thumb)|story|photo|gallery|full|"
    r"large|product-?(?:image|img|photo)|wp-image|attachment|size-(?:full|large)|zoom|cover|body|figure|slide|infobox",
    re.I,
)
_BAD_CLASS = re.compile(
    r"logo|icon|avatar|gravatar|banner|\bads?\b|\bad-|-ads?\b|advert|sponsor|promo|sprite|thumb|related|recommend|share|"
    r"social|author|byline|profile|badge|pixel|track|spinner|loader|emoji|smil|flag|nav|menu|footer|header|sidebar|widget|"
    r"button|\bbtn|payment|rating|star|comment|teaser|more-|also|popular|trending|placeholder|spacer|signature|user",
    re.I,
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words of addresses for and against a picture. They are looked up, since a pattern of so many is slow.
_GOOD_ADDRESS = _set(
    "upload uploads photo photos media image images img large full original originals gallery galleries content"
)
_BAD_ADDRESS = _set(
    "logo logos icon icons favicon avatar avatars gravatar banner banners ad ads advert adverts doubleclick adserver "
    "adserv adsystem sprite sprites pixel pixels track tracker tracking beacon spacer blank placeholder loading loader "
    "spinner emoji emojis smiley smileys smilies smilie flag flags badge badges button buttons btn thumb thumbs "
    "thumbnail thumbnails mail email whatsapp pinterest linkedin instagram youtube rss print search xs sm small tiny "
    "stat stats statistics analytics captcha qr qrcode paypal visa mastercard share social facebook twitter author "
    "authors profile profiles headshot header footer user users arrow close menu star stars rating"
)
_ADDRESS_WORD = re.compile(r"[a-z]+")
_STYLE_SIZE = re.compile(r"(?:^|[;\s])(?:max-)?(width|height)\s*:\s*(\d{1,5})(?:\.\d+)?px", re.I)
_PICTURE = re.compile(r"^[^?]*\.(?:jpe?g|png|webp|avif)(?:$|\?)", re.I)
# A page about a picture, as MediaWiki names it.
_FILE_PAGE = re.compile(r"/[^/?]{1,20}:[^/?]+\.(?:jpe?g|png|webp|gif|svg|tiff?)(?:$|\?)", re.I)
_JPEG_NAME = re.compile(r"\.(?:jpe?g|webp)\b", re.I)
_DRAWN = re.compile(r"\.(?:gif|svg|ico)(?:$|\?)", re.I)
_NAME_WORD = re.compile(r"[^\W\d_]{3,}")
_JPEG = re.compile(r"\.jpe?g(?:$|\?)", re.I)
# Of a srcset: an address, which ends with a space or with commas, and its descriptors.
_CANDIDATE = re.compile(r"[\s,]*(\S+)([^,]*)", re.ASCII)
_DESCRIPTOR = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})([wx])\s*", re.ASCII)
_LISTED, _CLASS, _ALT = 20_000, 500, 2_000  # characters of such attributes that are looked at
_SOURCES = 20  # of a picture element that are looked at


class PageImage(NamedTuple):
    """A picture that a page shows."""

    node: Node
    url: str
    width: int  # pixels, as the page says; 0: it does not
    height: int
    alt: str
    features: list[float]  # as FEATURES


class _Seen(NamedTuple):
    """What is known of an element before it is compared with the others."""

    node: Node
    url: str
    sizes: tuple[int, int]
    alt: str
    tags: list[str]
    figure: Node | None
    good: int  # words of classes around it
    bad: int
    hidden: bool
    signature: str
    href: str  # of the link around it
    to_picture: bool  # which that link leads to
    srcset_width: float
    lazy: bool


def images_of(document: Document, most: int) -> list[PageImage]:
    """The pictures of a page in its order, each address once; no more than `most`.

    Those that a page says are smaller than the paper's 300 pixels, and lead to no larger form, are left out, and so is
    what is drawn (GIF, SVG).
    """
    nodes = document.all("img,amp-img")[:most]
    shared = _Shared()
    seen = [found for node in nodes if (found := _look(document, node, shared)) is not None]
    alike = Counter(entry.signature for entry in seen)
    linked = Counter(entry.signature for entry in seen if entry.href and not entry.to_picture)
    times = Counter(entry.url for entry in seen)
    page_pictures = {
        document.absolute(document.meta.get(name, ""))
        for name in ("og:image", "og:image:url", "twitter:image", "image")
    } - {""}
    stems = [stem for url in page_pictures if len(stem := _stem(url)) > 4]
    images, urls = list[PageImage](), set[str]()
    for entry in seen:
        if entry.url in urls:
            continue
        urls.add(entry.url)
        group = alike[entry.signature], linked[entry.signature], times[entry.url]
        is_og = entry.url in page_pictures or any(stem in entry.url for stem in stems)
        features = _measure(document, entry, len(images), len(seen), group, is_og, shared)
        images.append(PageImage(entry.node, entry.url, *entry.sizes, entry.alt, features))
    return images


def _look(document: Document, node: Node, shared: _Shared) -> _Seen | None:
    attributes = node.attributes
    sizes = _sizes(attributes)
    is_small = 0 < sizes[0] <= SMALLEST or 0 < sizes[1] <= SMALLEST
    if is_small and not any(parent.tag == "a" for parent in above(node, 3)):  # most are told here
        return None
    around = [shared.element(parent) for parent in above(node, _ANCESTORS)]
    href = next((element.href for element in around if element.href), "")
    to_picture = href != "" and _is_picture(href, _href(attributes.get("src")))
    if is_small and not to_picture:
        return None
    url, width, lazy = _address(document, node, attributes, shared)
    if to_picture and url:
        url = document.absolute(href) or url  # the picture itself, of which this one is a small form
    if not url or _DRAWN.search(url):
        return None
    good, bad = _class_words(*_named(attributes))
    classes = "|".join([(attributes.get("class") or "")[:_CLASS], *(element.classes for element in around[:2])])
    return _Seen(
        node=node,
        url=url,
        sizes=sizes,
        alt=(attributes.get("alt") or "")[:_ALT].strip(),
        tags=[element.tag for element in around],
        figure=next((element.node for element in around[:4] if element.tag == "figure"), None),
        good=good + sum([element.good for element in around]),
        bad=bad + sum([element.bad for element in around]),
        hidden=is_hidden(attributes) or any(element.hidden for element in around),
        signature=f"{'/'.join(element.tag for element in around[:4])} {classes.translate(_NO_DIGITS)}",
        href=href,
        to_picture=to_picture,
        srcset_width=width,
        lazy=lazy,
    )


def _href(said: str | None) -> str:
    """An address as an attribute says it; what is too long is none, and its beginning another's."""
    return (said or "").strip() if len(said or "") <= HREF_LENGTH else ""


def _named(attributes: dict[str, str | None]) -> tuple[str, str]:
    return (attributes.get("class") or "")[:_CLASS], (attributes.get("id") or "")[:100]


@lru_cache(1 << 14)  # a site has few
def _class_words(classes: str, name: str) -> tuple[int, int]:
    """How many words of an element's classes and name speak for and against a picture in it."""
    text = f"{classes} {name}"
    return len(_GOOD_CLASS.findall(text)), len(_BAD_CLASS.findall(text))


class _Element(NamedTuple):
    """What an element says of the pictures in it."""

    node: Node
    tag: str
    classes: str
    href: str  # of a link
    good: int
    bad: int
    hidden: bool


class _Shared:
    """What is found once for all pictures of an element that many may stand in."""

    def __init__(self) -> None:
        self._elements: dict[int, _Element] = {}
        self._sources: dict[int, tuple[str, float]] = {}
        self._captions: dict[int, bool] = {}

    def element(self, node: Node) -> _Element:
        """An element that pictures stand in."""
        found = self._elements.get(node.mem_id)
        if found is None:
            tag, said = node.tag or "", node.attributes
            classes, name = _named(said)
            href = _href(said.get("href")) if tag == "a" else ""
            words = _class_words(classes, name) if classes or name else (0, 0)
            found = _Element(node, tag, classes, href, *words, is_hidden(said))
            self._elements[node.mem_id] = found
        return found

    def sources(self, picture: Node) -> tuple[str, float]:
        """The largest of what the sources of a picture element list, and its width."""
        found = self._sources.get(picture.mem_id)
        if found is None:
            found = "", 0.0
            for other in picture.css("source")[:_SOURCES]:
                said = other.attributes
                for name in _SRCSETS:
                    if listed := said.get(name):
                        found = _largest(listed, *found)
            self._sources[picture.mem_id] = found
        return found

    def has_caption(self, figure: Node) -> bool:
        """Whether a figure has one."""
        found = self._captions.get(figure.mem_id)
        if found is None:
            found = self._captions[figure.mem_id] = figure.css_first("figcaption") is not None
        return found


def _address(
    document: Document, node: Node, attributes: dict[str, str | None], shared: _Shared
) -> tuple[str, float, bool]:
    """The address of the largest form of a picture, the width that a list of them says, and whether it comes lazily."""
    best, width = "", 0.0
    for name in _SRCSETS:
        if listed := attributes.get(name):
            best, width = _largest(listed, best, width)
    parent = node.parent
    if parent is not None and parent.tag == "picture":
        best, width = _larger(*shared.sources(parent), best, width)
    lazy = ""
    if not _LAZY.isdisjoint(attributes):
        lazy = next((found for name in LAZY if (found := attributes.get(name)) and not found.startswith("data:")), "")
    source = attributes.get("src") or ""
    if best and not best.startswith("data:") and (url := document.absolute(best)):
        return url, width, bool(lazy) or not source or source.startswith("data:")
    if lazy and (url := document.absolute(lazy)):
        return url, width, True
    return document.absolute(source), width, False


def _largest(listed: str, best: str, width: float) -> tuple[str, float]:
    """The largest of a srcset's candidates, or what was found before; of equal ones a JPEG, which all can read."""
    if len(listed) > _LISTED:  # its last one is cut
        listed = listed[:_LISTED].rpartition(", ")[0]
    at = 0
    while (found := _CANDIDATE.match(listed, at)) is not None:
        url, at, said = found[1], found.end(), found[2]
        if url.endswith(","):  # nothing is said of it
            url, at, said = url.rstrip(","), found.end(1), ""
        size = _DESCRIPTOR.fullmatch(said)
        pixels = float(size[1]) * (1 if size[2] == "w" else 640) if size else 640.0
        if url:
            best, width = _larger(url, pixels, best, width)
    return best, width


def _larger(url: str, size: float, best: str, width: float) -> tuple[str, float]:
    if size > width or (size == width and _JPEG.search(url) and not _JPEG.search(best)):
        return url, size
    return best, width


def _stem(url: str) -> str:
    """The name of a picture's file without sizes in it, so that its forms are known for one."""
    name = unquote(urlsplit(url).path.rpartition("/")[2]).rpartition(".")[0].lower()
    return re.sub(
        r"[-_]?\d{2,4}x\d{2,4}|[-_@](?:\d+x|\d+w|large|small|medium|full|thumb|orig(?:inal)?|scaled)$", "", name
    )


def _is_picture(href: str, url: str) -> bool:
    """Whether the link around a picture leads to a picture itself: by its name, or to what makes the picture too."""
    if _PICTURE.search(href):
        return _FILE_PAGE.search(href) is None
    maker = url.partition("?")[0].rpartition("/")[2]
    return "?" in url and href.partition("?")[0].rpartition("/")[2] == maker and _JPEG_NAME.search(href) is not None


def _sizes(attributes: dict[str, str | None]) -> tuple[int, int]:
    width, height = _pixels(attributes.get("width")), _pixels(attributes.get("height"))
    if (style := (attributes.get("style") or "")[:STYLE_LENGTH]) and not (width and height):
        found = {name.lower(): int(value) for name, value in _STYLE_SIZE.findall(style)}
        width, height = width or found.get("width", 0), height or found.get("height", 0)
    return width, height


def _pixels(text: str | None) -> int:
    """A size in pixels; 0 where it is none, such as a share."""
    if not text:
        return 0
    digits = text.strip().lower().removesuffix("px").partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 6 else 0


def _measure(
    document: Document,
    entry: _Seen,
    place: int,
    count: int,
    group: tuple[int, int, int],
    is_og: bool,
    shared: _Shared,
) -> list[float]:
    (width, height), tags, url, href = entry.sizes, entry.tags, entry.url, entry.href
    path = url.partition("?")[0]
    name = path.rstrip("/").rpartition("/")[2].rpartition(".")[0]
    host = url.split("/", 3)[2]
    address = _ADDRESS_WORD.findall(url.lower())
    to_file_page = bool(href) and ":" in href and _FILE_PAGE.search(href) is not None
    alike, linked, times = group
    words = entry.alt.count(" ") + 1 if entry.alt else 0
    is_known = width > 0 or height > 0
    values = (
        is_known,
        math.log((width or height) * (height or width) + 1) if is_known else 0.0,
        abs(math.log(width / height)) if width and height else 0.0,
        entry.figure is not None,
        entry.figure is not None and shared.has_caption(entry.figure),
        "article" in tags or "main" in tags,
        not _FRAMES.isdisjoint(tags),
        "li" in tags,
        "td" in tags,
        min(4, entry.good),
        min(4, entry.bad),
        not _GOOD_ADDRESS.isdisjoint(address),
        not _BAD_ADDRESS.isdisjoint(address),
        min(12, words),
        words == 0,
        is_og,
        math.log(len(name) + 1),
        min(8, len(_NAME_WORD.findall(name))),
        _JPEG_NAME.search(url) is not None,
        entry.lazy,
        entry.srcset_width > 0,
        math.log(entry.srcset_width + 1),
        entry.to_picture,
        to_file_page,
        bool(href) and not entry.to_picture and not to_file_page,
        "//" in href and document.host not in href,
        document.site_name not in host,
        place / max(1, count - 1),
        place == 0,
        math.log(alike),
        linked / alike,
        entry.hidden,
        times > 1,
        math.log(count),
        _by_paragraph(entry.node),
    )
    return [float(value) for value in values]


def _by_paragraph(node: Node) -> bool:
    """Whether a paragraph stands beside it, or beside what it stands in."""
    return any(
        beside is not None and beside.tag == "p"
        for part in (node, *above(node, 2))
        for beside in (element_beside(part, back=True), element_beside(part, back=False))
    )
