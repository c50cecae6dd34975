"""A page while it is written: its tags, its pictures in all the ways that pages show them, and the truth of each."""

from __future__ import annotations

import html
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from imagebert.demo.web.page import Subject
from imagebert.demo.web.site import Site
from imagebert.demo.web.tongues import ENGLISH
from imagebert.demo.web.words import BOILERPLATE, SHARED, SHOUTS, credit, no_description, paragraphs, with_noise

SHORTEST = 300  # pixels: both sides of a dominant picture are longer
_EMPTY = {"img", "source", "meta", "link", "br", "hr", "input", "frame"}
_BARE = re.compile(r"[\w./:-]+")
_BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

Attributes = Sequence[tuple[str, str | None]]


class Told(NamedTuple):
    """What a page says of a photograph and where, as plain text; empty where it says nothing."""

    clean: str  # the sentence that is right
    alt: str | None = ""
    title: str = ""
    caption: str = ""
    before: str = ""  # paragraphs
    after: str = ""


class Draft:
    """A page while it is written.

    Args:
        draw: gives so many subjects that differ from all that it gave for this page, or fewer; where the second
            argument is true, any that other pages may show, too
    """

    def __init__(self, site: Site, random: Random, url: str, draw: Callable[[int, bool], list[Subject]]) -> None:
        self.site, self.random, self.url, self._draw = site, random, url, draw
        self.images: dict[str, Subject | None] = {}
        self.pictures: dict[str, str] = {}
        self.english = site.tongue is ENGLISH
        self.heading = self.topic = self.prose("headline")
        self.beside = random.choice(["before", "after"])  # where paragraphs about pictures are
        self.title = ""  # where it is another than the heading
        self.described = ""  # og:description
        self.lead: tuple[Subject, str] | None = None  # and its URL
        self.base = url if random.random() < 0.9 else f"{site.scheme}://{site.host}/assets/pages/"

    def subjects(self, count: int) -> list[Subject]:
        """Photographs to show, so many or fewer; the first call gives one at least."""
        return self._draw(count, False)

    def others(self, count: int) -> list[Subject]:
        """Photographs of other pages, so many or fewer."""
        return self._draw(count, True)

    # ------------------------------------------------------------------------------------------------------------ text

    def prose(self, name: str = "prose") -> str:
        """A sentence in the page's language that is about no picture."""
        return self.site.tongue.grammar.sentence(self.random, name)

    def text(self, plain: str) -> str:
        """Plain text as HTML; in English with the quotation marks of a typesetter, where the charset has them."""
        if self.english and self.site.charset in ("utf-8", "iso-8859-1", "windows-1252") and self.site.layout % 2:
            plain = re.sub(r'"([^"]*)"', "\N{LEFT DOUBLE QUOTATION MARK}\\1\N{RIGHT DOUBLE QUOTATION MARK}", plain)
            plain = plain.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
        return html.escape(plain, quote=False)

    def rich(self, plain: str) -> str:
        """The same with what editors leave in it: entities, a link, a word in italics."""
        words = html.escape(plain, quote=self.random.random() < 0.5).split(" ")
        at = self.random.randrange(len(words))
        match self.random.randrange(8):
            case 0:
                words[at] = f"<a href=/tag/{self.random.randrange(999)}>{words[at]}</a>"
            case 1:
                words[at] = f"<em>{words[at]}</em>"
            case 2:
                return words[0] + "&nbsp;" * (len(words) > 1) + " ".join(words[1:])
            case 3:
                words[at] += "<br>" if self.random.random() < 0.3 else "\n   "
        return " ".join(words)

    def paragraphs(self, count: int) -> list[str]:
        """Paragraphs that are about no picture, as HTML."""
        tongue = self.site.tongue
        texts = paragraphs(self.random, tongue.grammar, count, tongue.between)
        if self.english and self.random.random() < 0.1:  # someone is quoted in another language
            texts = [*texts, f"<q lang=fr>Nous avons changé les horaires</q> {texts[0]}"[:400]][-count:]
            return [self.tag("p", inner=text if text.startswith("<q") else self.text(text)) for text in texts]
        return [self.tag("p", inner=self.text(text)) for text in texts]

    # ------------------------------------------------------------------------------------------------------------ tags

    def tag(self, element: str, role: str = "", attributes: Attributes = (), inner: str = "") -> str:
        """An element as this site writes it; `role` becomes a class."""
        given = [(name, value) for name, value in attributes if value is not None]
        if role:
            given.insert(0, ("class", self.site.named(role)))
        name = element.upper() if self.site.upper else element
        written = "".join(f" {self._attribute(*pair)}" for pair in given)
        if element in _EMPTY:
            return f"<{name}{written}{' /' if self.site.quote and self.site.layout < 3 else ''}>"
        return f"<{name}{written}>{inner}</{name}>"

    def _attribute(self, name: str, value: str) -> str:
        name, quote = name.upper() if self.site.upper else name, self.site.quote
        if not quote and _BARE.fullmatch(value):
            return f"{name}={value}"
        quote = quote or '"'
        value = value.replace("<", "&lt;").replace(quote, "&quot;" if quote == '"' else "&#39;")
        return f"{name}={quote}{re.sub('&(?!(?:lt|quot|amp|#39|nbsp);)', self._ampersand(), value)}{quote}"

    def _ampersand(self) -> str:
        return ["&amp;", "&amp;", "&", "&#38;"][self.site.addressing % 4]

    def box(self, role: str, *inner: str, element: str = "div") -> str:
        """A container, now and then in one that means nothing."""
        made = self.tag(element, role, inner="\n".join(filter(None, inner)))
        return self.tag("div", "quiet", inner=made) if self.random.random() < 0.2 else made

    # -------------------------------------------------------------------------------------------------------- addresses

    def reference(self, url: str, strict: bool = False) -> str:
        """A URL as the page writes it; `strict` where spaces would end it."""
        random, (scheme, host, path, query, _) = self.random, urlsplit(url)
        base = urlsplit(self.base)
        forms = [form for form in self.site.references if host == base.netloc or form in ("absolute", "protocol")]
        form = random.choice(forms or ["absolute"])
        if scheme != base.scheme and form != "absolute":
            form = "absolute"
        end = f"?{query}" if query else ""
        match form:
            case "absolute":
                written = url
            case "protocol":
                written = url.removeprefix(f"{scheme}:")
            case "root":
                written = path + end
            case _:
                written = posixpath.relpath(path, posixpath.dirname(base.path) or "/") + end
        if strict:
            return written
        if self.site.charset == "utf-8" and self.site.declared != "wrong":
            written = written.replace("%C3%BC", unquote("%C3%BC"))
        if random.random() < 0.5:
            written = written.replace("%20", " ")
        return random.choice([f" {written}", f"{written}\n", f"{written}#photo"]) if random.random() < 0.04 else written

    def name_image(self, url: str, subject: Subject | None = None) -> str:
        """Notes a URL of an image that the page names."""
        self.images.setdefault(url, subject)
        return url

    def version(self, subject: Subject, width: int, ending: str = "jpg") -> str:
        """The URL of a photograph as wide as this, which is noted."""
        width = min(width, subject.width)
        size = (width, round(width * subject.height / subject.width))
        return self.name_image(self.site.address(subject.name, size, width == subject.width, ending), subject)

    # ----------------------------------------------------------------------------------------------- what is said of it

    def tell(self, subject: Subject, places: Iterable[str] = ("alt", "caption", "title", "before", "after")) -> Told:
        """Decides where the page says what a photograph shows; fills the other places with what pages have there."""
        random, english = self.random, self.english
        clean = subject.sentence if english else self.site.tongue.grammar.sentence(random, "sentence")
        clean = clean if english or clean not in self.pictures.values() else f"{clean} {len(self.pictures)}"
        chance = random.random()
        if chance < 0.08 and english:  # nothing is said of it, or what is said of others, too
            said = random.choice(SHARED if chance < 0.04 else SHOUTS)
            return Told("", said, caption=random.choice(["", credit(random)]))
        place = random.choice([way for way in places if way not in ("before", "after") or way == self.beside])
        alt = random.choice([None, "", no_description(random), no_description(random), self.topic])
        title = random.choice(["", "", "", no_description(random)])
        captions = ["", "", credit(random), random.choice(BOILERPLATE), self.prose() if chance > 0.94 else ""]
        caption = random.choice(captions)
        match place:
            case "alt":
                alt = random.choice(
                    [clean, clean, clean.rstrip("."), f"<p>{clean}</p>", f"{clean} - {self.site.title}"]
                )
            case "title":
                title = clean
            case "caption":
                caption = with_noise(random, clean) if english else clean
                alt = clean if random.random() < 0.25 else alt
            case "og":
                self.described = clean
            case "headline":
                self.title = clean.rstrip(".")
                self.heading = self.title if random.random() < 0.7 else self.heading
                alt = random.choice(["", None, self.heading])
        text = clean if random.random() < 0.6 else f"{clean}{self.site.tongue.between}{self.prose()}"
        return Told(clean, alt, title, caption, text * (place == "before"), text * (place == "after"))

    # --------------------------------------------------------------------------------------------------------- pictures

    def photo(self, subject: Subject, told: Told, mode: str = "", role: str = "photo") -> str:
        """A dominant picture: its tag in one of the ways to show one; those that are too small are shown and not noted.

        The URL of its largest version is the truth; of versions that are as large as each other, that of the JPEG.
        """
        mode = mode or self.random.choice(self.site.modes)
        least = math.ceil((SHORTEST + 20) * max(1, subject.width / subject.height))
        shown = min(subject.width, self.random.choice([least, 640, 760, 1024, subject.width]))
        shown = max(shown, min(least, subject.width))
        written, url = getattr(self, f"_{mode}")(subject, told, shown, role)
        if min(subject.width, subject.height) > SHORTEST:
            self.pictures[url] = told.clean
            self.lead = self.lead or (subject, url)
        return written

    def img(self, source: Attributes, told: Told, size: tuple[int, int] | None, role: str, element: str = "img") -> str:
        """An img, with its attributes in any order."""
        random = self.random
        given = [*source, ("alt", told.alt), ("title", told.title or None)]
        given += [("class", self.site.named(role))] if role else []
        if size and self.site.sizes == "attributes":
            given += [("width", str(size[0])), ("height", str(size[1]))]
        elif size and self.site.sizes == "style":
            given.append(("style", f"width:{size[0]}px;height:{size[1]}px"))
        elif size and self.site.sizes == "percent":
            given.append(("width", "100%"))
        given += random.sample([("border", "0"), ("decoding", "async"), ("itemprop", "image"), ("data-id", "17")], 1)
        random.shuffle(given)
        if random.random() < 0.03:  # the first of two counts
            given.append(("src" if any(name == "src" for name, _ in given) else "border", "/pixel/second.gif"))
            self.name_image(f"{self.site.scheme}://{self.site.host}/pixel/second.gif")
        return self.tag(element, "", given)

    def _size(self, subject: Subject, width: int) -> tuple[int, int]:
        return width, round(width * subject.height / subject.width)

    def _plain(self, subject: Subject, told: Told, shown: int, role: str) -> tuple[str, str]:
        url = self.version(subject, shown)
        return self.img([("src", self.reference(url))], told, self._size(subject, shown), role), url

    def _linked(self, subject: Subject, told: Told, shown: int, role: str) -> tuple[str, str]:
        """A smaller version that leads to the file of the largest."""
        small = self.version(subject, self.random.choice([150, 240, shown]))
        largest = self.version(subject, subject.width)
        image = self.img([("src", self.reference(small))], told, None, role)
        return self.tag("a", "", [("href", self.reference(largest)), ("rel", "lightbox")], image), largest

    def candidates(self, subject: Subject, ending: str = "jpg") -> tuple[str, str]:
        """A srcset, and the URL of its largest."""
        widths = sorted({width for width in (320, 480, 768, 1024) if width < subject.width} | {subject.width})
        urls = [self.version(subject, width, ending) for width in widths]
        pairs = [f"{self.reference(url, strict=True)} {width}w" for url, width in zip(urls, widths, strict=True)]
        self.random.shuffle(pairs)
        return self.random.choice([", ", ",\n    "]).join(pairs), urls[-1]

    def _srcset(self, subject: Subject, told: Told, shown: int, role: str) -> tuple[str, str]:
        small = self.version(subject, min(480, subject.width))
        if self.random.random() < 0.3:  # by density; the picture is the denser one
            near, url = self.version(subject, shown), self.version(subject, subject.width)
            choices = f"{self.reference(near, strict=True)}, {self.reference(url, strict=True)} 2x"
            small, sizes = near, None
        else:
            choices, url = self.candidates(subject)
            sizes = "(max-width: 600px) 100vw, 50vw"
        source = [("src", self.reference(small)), ("srcset", choices), ("sizes", sizes)]
        return self.img(source, told, self._size(subject, shown), role), url

    def _picture(self, subject: Subject, told: Told, shown: int, role: str) -> tuple[str, str]:
        if self.random.random() < 0.5:
            webp, _ = self.candidates(subject, "webp")
            jpeg, url = self.candidates(subject)
            sources = self.tag("source", "", [("type", "image/webp"), ("srcset", webp), ("sizes", "100vw")])
            source = [("src", self.reference(self.version(subject, 480))), ("srcset", jpeg), ("sizes", "100vw")]
        else:
            url, middle = self.version(subject, subject.width), self.version(subject, max(shown * 3 // 4, 320))
            sources = self.tag("source", "", [("media", "(min-width: 1024px)"), ("srcset", self.reference(url, True))])
            sources += self.tag(
                "source", "", [("media", "(min-width: 600px)"), ("srcset", self.reference(middle, True))]
            )
            source = [("src", self.reference(self.version(subject, 320)))]
        return self.tag("picture", inner=sources + self.img(source, told, None, role)), url

    def _lazy(self, subject: Subject, told: Told, shown: int, role: str) -> tuple[str, str]:
        """A placeholder, and the picture in an attribute that a script reads, or for those without scripts only."""
        random = self.random
        blank: str | None = random.choice([_BLANK, None, "", "spacer"])
        if blank == "spacer":
            blank = self.reference(self.name_image(self.site.furniture("placeholder.png")))
        size = self._size(subject, shown)
        way = random.choice(["data-src", "data-original", "data-lazy-src", "data-src", "data-srcset", "noscript"])
        url = "" if way == "data-srcset" else self.version(subject, shown)
        if way == "noscript":
            first = self.img([("src", blank)], Told("", ""), None, role)
        elif way == "data-srcset":
            choices, url = self.candidates(subject)
            return self.img([("src", blank), (way, choices), ("loading", "lazy")], told, size, role), url
        else:
            first = self.img([("src", blank), (way, self.reference(url)), ("loading", "lazy")], told, size, role)
            if random.random() < 0.6:
                return first, url
        return first + self.tag("noscript", inner=self.img([("src", self.reference(url))], told, size, role)), url

    def _amp(self, subject: Subject, told: Told, shown: int, role: str) -> tuple[str, str]:
        choices, url = self.candidates(subject)
        width, height = self._size(subject, shown)
        given: list[tuple[str, str | None]] = [
            ("src", self.reference(self.version(subject, shown))),
            ("srcset", choices),
        ]
        given += [("width", str(width)), ("height", str(height)), ("layout", "responsive"), ("alt", told.alt)]
        given.append(("title", told.title or None))
        return self.tag("amp-img", role, given, ""), url

    def captioned(self, picture: str, told: Told) -> str:
        """A picture with its caption and the paragraphs before and behind that are about it, as this site has them."""
        caption = self.rich(told.caption) if told.caption else ""
        before, after = (self.tag("p", inner=self.text(text)) if text else "" for text in (told.before, told.after))
        return "\n".join(filter(None, [before, self._framed(picture, caption), after]))

    def _framed(self, picture: str, caption: str) -> str:
        layout = self.site.layout
        if not caption:
            return self.tag(["figure", "div", "p", "div", "td", "span", "figure", "p"][layout], "lead", inner=picture)
        match layout:
            case 0:
                return self.box("lead", picture, self.tag("figcaption", "caption", inner=caption), element="figure")
            case 1:
                return self.box("lead", picture, self.tag("p", "caption", inner=caption))
            case 2:
                return self.box("lead", picture, self.tag("div", "caption", inner=self.tag("span", inner=caption)))
            case 3:
                return f'<div class="wp-caption aligncenter">{picture}<p class="wp-caption-text">{caption}</p></div>'
            case 4:
                cells = (
                    self.tag("tr", inner=self.tag("td", inner=part)) for part in (picture, f"<small>{caption}</small>")
                )
                return self.tag("table", "lead", [("border", "0")], "\n".join(cells))
            case 5:
                return self.tag("dl", "lead", inner=self.tag("dt", inner=picture) + self.tag("dd", inner=caption))
            case 6:
                return self.box("lead", self.tag("figcaption", "caption", inner=caption), picture, element="figure")
            case _:
                return self.tag("p", inner=f"{picture}<br>\n{self.tag('em', inner=caption)}")

    # ----------------------------------------------------------------------------------------------- what is no content

    def thumbnail(self, subject: Subject, width: int = 0, target: str = "") -> str:
        """A small version that leads to another page."""
        width = width or self.random.choice([80, 120, 150, 180, 240, 300])
        size = self._size(subject, width)
        told = Told("", self.random.choice([self.prose("headline"), "", no_description(self.random)]))
        image = self.img([("src", self.reference(self.version(subject, width)))], told, size, "thumb")
        return self.tag("a", "", [("href", target or f"/{self.random.randrange(10**6)}.html")], image)

    def icon(self, name: str, size: tuple[int, int] = (24, 24), alt: str | None = "", host: str = "") -> str:
        """A logo, an icon, an advertisement, a tracker: what is no photograph, or nothing to this page."""
        url = host + name if host else self.site.furniture(name)
        self.name_image(url)
        sides = [("width", str(size[0])), ("height", str(size[1]))] if self.random.random() < 0.7 else []
        return self.tag("img", "", [("src", self.reference(url)), ("alt", alt), *sides])
