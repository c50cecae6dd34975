"""The pictures that a page shows, each with what tells a dominant one from a logo (paper, section 4, page collection).

What is looked at is what is published of such rankers (WebIma 2015; Vyas & Frasincar 2019; Jones et al. 2021): sizes,
place, elements around, words of classes, links, og:image. Each is a number; ranker.py weighs them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from imagebert.lait.document import Document, Node, above, element_beside

FEATURES = (
    "size_known",
    "log_area",
    "small",
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
    "is_jpeg",
    "is_gif_or_svg",
    "is_lazy",
    "has_srcset",
    "log_width_of_srcset",
    "links_to_picture",
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
_ANCESTORS = 7
_SMALL = 120  # pixels of a side, as a page says: what is shown so is no content
# Attributes that hold a lazy picture's address, the likeliest first.
_LAZY = "data-src data-original data-lazy-src data-lazy data-original-src data-full data-large-file data-hi-res-src "
_LAZY += "data-image data-url data-flickity-lazyload data-echo data-img-src data-actualsrc data-full-src data-zoom-image"
LAZY = tuple(_LAZY.split())
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
_GOOD_ADDRESS = re.compile(r"upload|photo|media|images?/|img/|large|full|original|\d{3,4}x\d{3,4}|gallery|content", re.I)
_BAD_ADDRESS = re.compile(
    r"logo|icon|avatar|gravatar|banner|[/._-]ads?[/._-]|advert|doubleclick|adserv|adsystem|sprite|pixel|track|beacon|spacer|"
    r"blank|placeholder|1x1|loading|spinner|emoji|smil|flag|badge|button|btn|thumb|[_-](?:xs|sm|small|tiny)\b|"
    r"\b(?:[1-9]\d?|1[0-4]\d)x(?:[1-9]\d?|1[0-4]\d)\b|stat(?:s|istic)|analytic|captcha|qr[_-]?code|paypal|visa|share|social|"
    r"facebook|twitter|author|profile|head(?:shot|er)|footer|\.svg\b|\.gif\b|\.ico\b",
    re.I,
)
_STYLE_SIZE = re.compile(r"(?:^|[;\s])(?:max-)?(width|height)\s*:\s*(\d{1,5})(?:\.\d+)?px", re.I)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_PICTURE = re.compile(r"\.(?:jpe?g|png|webp|avif)(?:$|\?)", re.I)
_JPEG = re.compile(r"\.jpe?g(?:$|\?)", re.I)
_CANDIDATE = re.compile(r"\s*([^\s,](?:[^\s]*[^\s,])?)(?:\s+([\d.]+)([wx]))?\s*(?:,|$)")


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
    attributes: dict[str, str | None]
    tags: list[str]
    signature: str
    href: str  # of the link around it
    srcset_width: float
    lazy: bool


def images_of(document: Document, most: int) -> list[PageImage]:
    """The pictures of a page in its order, each address once; no more than `most`."""
    seen: list[_Seen] = []
    for node in document.all("img,amp-img")[:most]:
        found = _look(document, node)
        if found is not None:
            seen.append(found)
    alike = Counter(entry.signature for entry in seen)
    linked = Counter(entry.signature for entry in seen if entry.href and not _PICTURE.search(entry.href))
    times = Counter(entry.url for entry in seen)
    page_pictures = {
        document.absolute(document.meta.get(name, "")) for name in ("og:image", "og:image:url", "twitter:image", "image")
    } - {""}
    names = {_stem(url) for url in page_pictures}
    images, urls = [], set[str]()
    for entry in seen:
        if entry.url in urls:
            continue
        urls.add(entry.url)
        group = alike[entry.signature], linked[entry.signature], times[entry.url]
        is_og = entry.url in page_pictures or _stem(entry.url) in names
        images.append(_measure(document, entry, len(images), len(seen), group, is_og))
    return images


def _look(document: Document, node: Node) -> _Seen | None:
    attributes = node.attributes
    url, width, lazy = _address(document, node, attributes)
    if not url:
        return None
    tags, words, href = [], [f"{attributes.get('class') or ''} {attributes.get('id') or ''}"], ""
    for parent in above(node, _ANCESTORS):
        tag = parent.tag or ""
        tags.append(tag)
        around = parent.attributes
        words.append(f"{around.get('class') or ''} {around.get('id') or ''}")
        if tag == "a" and not href and (href := document.absolute(around.get("href") or "")):
            url = href if _PICTURE.search(href) else url  # the picture itself, where this one is a small form of it
        if around.get("style") and _HIDDEN.search(around["style"] or ""):
            words.append("display:none")
    # What stands alike stands in elements and classes alike, numbers apart.
    signature = re.sub(r"\d+", "", "/".join(tags[:4]) + "|" + "|".join(words[:3]))
    return _Seen(node, url, {**attributes, "around": " | ".join(words)}, tags, signature, href, width, lazy)


def _address(document: Document, node: Node, attributes: dict[str, str | None]) -> tuple[str, float, bool]:
    """The address of the largest form of a picture, the width that a list of them says, and whether it comes lazily."""
    best, width = "", 0.0
    for name in _SRCSETS:
        if listed := attributes.get(name):
            best, width = _largest(listed, best, width)
    parent = node.parent
    if parent is not None and parent.tag == "picture":
        for source in parent.css("source"):
            said = source.attributes
            for name in _SRCSETS:
                if listed := said.get(name):
                    best, width = _largest(listed, best, width)
    lazy = next((found for name in LAZY if (found := attributes.get(name)) and not found.startswith("data:")), "")
    source = attributes.get("src") or ""
    if best and not best.startswith("data:") and (url := document.absolute(best)):
        return url, width, bool(lazy) or not source or source.startswith("data:")
    if lazy and (url := document.absolute(lazy)):
        return url, width, True
    return document.absolute(source), width, False


def _largest(listed: str, best: str, width: float) -> tuple[str, float]:
    """The largest of a srcset's candidates, or what was found before; of equal ones a JPEG, which all can read."""
    for found in _CANDIDATE.finditer(listed[:20_000]):
        size = float(found[2]) * (1 if found[3] == "w" else 640) if found[2] and found[2].count(".") < 2 else 640.0
        if size > width or (size == width and _JPEG.search(found[1]) and not _JPEG.search(best)):
            best, width = found[1], size
    return best, width


def _stem(url: str) -> str:
    """The name of a picture's file without sizes in it, so that its forms are known for one."""
    name = unquote(urlsplit(url).path.rpartition("/")[2]).rpartition(".")[0].lower()
    return re.sub(r"[-_]?\d{2,4}x\d{2,4}|[-_@](?:\d+x|\d+w|large|small|medium|full|thumb|orig(?:inal)?|scaled)$", "", name)


def _sizes(attributes: dict[str, str | None]) -> tuple[int, int]:
    found = {}
    for name in ("width", "height"):
        digits = re.match(r"\s*(\d{1,5})(?:\.\d+)?\s*(?:px)?\s*$", attributes.get(name) or "")
        found[name] = int(digits[1]) if digits else 0
    if (style := attributes.get("style")) and not all(found.values()):
        for name, value in _STYLE_SIZE.findall(style):
            found[name.lower()] = found[name.lower()] or int(value)
    return found["width"], found["height"]


def _measure(
    document: Document, entry: _Seen, place: int, count: int, group: tuple[int, int, int], is_og: bool
) -> PageImage:
    attributes, tags = entry.attributes, entry.tags
    width, height = _sizes(attributes)
    alt, around, url = (attributes.get("alt") or "").strip(), attributes["around"] or "", entry.url
    path = url.partition("?")[0].lower()
    host = url.split("/", 3)[2] if url.count("/") > 2 else url.partition("://")[2]
    figure = next((parent for parent in above(entry.node, 4) if parent.tag == "figure"), None)
    to_picture = bool(entry.href and _PICTURE.search(entry.href))
    alike, linked, times = group
    known = [side for side in (width, height) if side]
    values = (
        bool(known),
        math.log((width or height) * (height or width) + 1) if known else 0.0,
        any(side < _SMALL for side in known),
        abs(math.log(width / height)) if len(known) == 2 else 0.0,
        figure is not None,
        figure is not None and figure.css_first("figcaption") is not None,
        "article" in tags or "main" in tags,
        any(tag in ("nav", "header", "footer", "aside") for tag in tags),
        "li" in tags,
        "td" in tags,
        min(3, len(_GOOD_CLASS.findall(around))),
        min(3, len(_BAD_CLASS.findall(around))),
        bool(_GOOD_ADDRESS.search(path)),
        min(2, len(_BAD_ADDRESS.findall(url))),
        min(12, alt.count(" ") + 1 if alt else 0),
        not alt,
        is_og,
        path.endswith((".jpg", ".jpeg", ".webp")),
        path.endswith((".gif", ".svg", ".ico")),
        entry.lazy,
        entry.srcset_width > 0,
        math.log(entry.srcset_width + 1),
        to_picture,
        bool(entry.href) and not to_picture,
        bool(entry.href) and document.host not in entry.href,
        document.host.removeprefix("www.").split(".")[0] not in host,
        place / max(1, count - 1),
        place == 0,
        math.log(alike),
        linked / alike,
        "display:none" in around or bool(_HIDDEN.search(attributes.get("style") or "")) or "hidden" in attributes,
        times > 1,
        math.log(count),
        _by_paragraph(entry.node),
    )
    return PageImage(entry.node, url, width, height, alt, [float(value) for value in values])


def _by_paragraph(node: Node) -> bool:
    """Whether a paragraph stands beside it, or beside what it stands in."""
    return any(
        beside is not None and beside.tag == "p"
        for part in (node, *above(node, 2))
        for beside in (element_beside(part, back=True), element_beside(part, back=False))
    )
