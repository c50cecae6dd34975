"""A page as bytes to its elements: which charset, which base address, what its head says. The gate of selectolax.

Pages come from anybody: what is looked at is bounded in bytes and elements, and nothing here is recursive.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from urllib.parse import quote, urljoin, urlsplit

import idna
from selectolax.lexbor import LexborHTMLParser, LexborNode

Node = LexborNode

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.I)
_XML_CHARSET = re.compile(rb"\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{2,40})", re.I)
_HEAD_BYTES = 4096  # where a page says its charset; the standard asks for the first 1,024
_SAFE = "%/:=&?~#+!$,;'@()*[]"  # of an address, that stays as it is
HREF_LENGTH = 2_000  # characters of an address: servers refuse longer ones
_SAID = 2_000  # characters of what a head says of its page that are kept
_SITE = 100  # of a site's name
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)
_HOST = re.compile(r"(?:[^@/?#\[\]]*@)?([^/?#:@\[\]]+)(:\d{0,5})?(?=[/?#]|$)")
_PLAIN_HOST = re.compile(r"[\w.-]+", re.ASCII)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# As browsers read what calls itself so.
_READ_AS = {"iso-8859-1": "windows-1252", "latin-1": "windows-1252", "latin1": "windows-1252", "ascii": "windows-1252"}
_READ_AS |= {"us-ascii": "windows-1252", "gb2312": "gb18030", "gbk": "gb18030", "iso-8859-9": "windows-1254"}
_READ_AS |= {"shift_jis": "cp932", "shift-jis": "cp932", "sjis": "cp932", "ks_c_5601-1987": "cp949", "euc-kr": "cp949"}
_READ_AS |= {"x-sjis": "cp932", "windows-31j": "cp932", "x-gbk": "gb18030", "windows-874": "cp874", "tis-620": "cp874"}
_READ_AS |= {"utf-16": "utf-16-le", "iso-8859-8-i": "iso-8859-8", "big5": "big5hkscs"}
# What browsers know, by Python's names: what else Python knows is no charset of pages, and some of it is slow.
_CODECS = {"utf-8", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "cp866", "cp874"}
_CODECS |= {"gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "cp932", "cp949"}
_CODECS |= {f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)} | {f"cp125{n}" for n in range(9)}

_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
STYLE_LENGTH = 1_000  # characters of a style that are looked at
_PARTS = 2_000  # texts and ends of blocks of an element
# What stands in these is no text of a page; what stands in those goes on a line.
_UNSEEN = frozenset(("script", "style", "template", "noscript", "svg", "button", "select", "textarea", "iframe"))
_INLINE = frozenset(
    (
        *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i"),
        *("ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time"),
        *("tt", "u", "var", "wbr"),
    )
)

# The parser looks through all open elements at many tags, and through all attributes of a tag at each: its time grows
# with their squares.
_DEEPEST = 1_000  # elements in each other; browsers have 512
_TAGS = 200_000  # that are read of a page
_ATTRIBUTES = 5_000  # of one tag
_FEW, _SHORT, _GAP = 10_000, 200_000, 8_192  # tags, characters, and those without an end of a tag that cost little
_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(/?)([a-z][^\s/>]{0,40})((?:[^>\"'=]+|=\s*\"[^\"]*\"|=\s*'[^']*'|[\"'=])*+)", re.I | re.S
)
_VALUE = re.compile(r"=\s*(?:\"[^\"]*\"|'[^']*')")
# Tags at which the parser's time grows with the square of how many there are, and how many are let be.
_SLOW, _FEW_SLOW = re.compile(r"</?(?:option|optgroup|rp|rt|rtc|rb)\b[^>]*>", re.I), 2_000
# Elements that hold none of their kind: they end by themselves.
_ALONE = frozenset(
    (
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track"),
        *("wbr", "p", "li", "dt", "dd", "option", "tr", "td", "th", "tbody"),
    )
)


def decode(html: bytes, charset: str | None) -> str:
    """The text of a page: in the charset of its mark, in UTF-8 where all is, else as its header or its own words say.

    Headers and pages say wrong ones: the first that all its bytes are right in is taken, and none needs to be. What is
    right in UTF-8 is hardly ever meant otherwise.

    Args:
        charset: as the server said
    """
    for mark, encoding in _MARKS:
        if html.startswith(mark):
            return html[len(mark) :].decode(encoding, "replace")
    said = _META_CHARSET.search(html, 0, _HEAD_BYTES) or _XML_CHARSET.match(html)
    # Its own words could not be read if they were in UTF-16.
    claimed = [_known(charset), said and _known(said[1].decode("ascii", "replace").replace("utf-16", ""))]
    if (claimed[0] or "").startswith("utf-16") and b"\0" not in html[:200]:
        claimed[0] = None
    first = claimed[0] if claimed[0] in ("utf-16-le", "utf-16-be", "iso2022_jp") else None  # ASCII's bytes, too
    for name in (first, "utf-8", *claimed):
        try:
            if name:
                return html.decode(name, "strict")
        except UnicodeDecodeError as error:
            whole = html[: error.start]
            if name == "utf-8" and error.reason == "unexpected end of data" and not whole.isascii():
                return whole.decode(name)  # an archive has cut it there
        except UnicodeError:
            pass
    return html.decode(next(filter(None, claimed), "cp1252"), "replace")


def _known(name: str | None) -> str | None:
    """Python's name of a charset, None for what is no charset of pages."""
    name = (name or "").strip(" \t\"'").lower()
    try:
        found = codecs.lookup(_READ_AS.get(name, name)).name if name.isascii() and len(name) <= 40 else ""
    except (LookupError, ValueError):
        return None
    found = _READ_AS.get(found, found)
    return found if found in _CODECS else "cp1252" if found in ("iso8859-1", "ascii", "windows-1252") else None


def _bounded(text: str) -> str:
    """A page up to where it has too many tags, too many in each other, or a tag of too many attributes."""
    if text.count("<") > _FEW_SLOW and len(_SLOW.findall(text)) > _FEW_SLOW:
        text = _SLOW.sub(" ", text)
    if len(text) <= _SHORT and text.count("<") <= _FEW:
        ends = (text.find(">", at, at + _GAP) for at in range(0, len(text) - _GAP, _GAP))
        if all(end >= 0 for end in ends):
            return text
    opened, depth = Counter[str](), 0
    for count, tag in enumerate(_TAG.finditer(text)):
        closes, name, attributes = tag[1], (tag[2] or "").lower(), tag[3] or ""
        if count >= _TAGS or depth > _DEEPEST:
            return text[: tag.start()]
        if len(attributes) > _ATTRIBUTES and len(re.split(r"[\s/]+", _VALUE.sub(" ", attributes))) > _ATTRIBUTES:
            return text[: tag.start()]
        if not name or name in _ALONE:
            continue
        if not closes:
            opened[name] += 1
            depth += 1
        elif opened[name]:
            opened[name] -= 1
            depth -= 1
    return text


class Document:
    """A parsed page.

    Attributes:
        url: its address
        cut: whether it had too many tags or attributes, or was too deep, and some of it was left out
        title: of its head
        meta: what its head says of it, by name or property in lower case: the first of each
        named: name, or property, and content of all its meta tags
        site: what its site is called, "" where it does not say
        site_name: the first part of its host's name, www apart

    Raises:
        ValueError: its address is none.
    """

    def __init__(self, url: str, text: str) -> None:
        self.url = url
        urlsplit(url)
        bounded = _bounded(text)
        self.cut = len(bounded) < len(text)
        self._tree = LexborHTMLParser(bounded.replace("\0", "") if "\0" in bounded else bounded)
        self.meta: dict[str, str] = {}
        self.named: list[tuple[str, str]] = []
        for node in self._tree.css("meta"):
            said = node.attributes
            content = said.get("content") or ""
            for name in dict.fromkeys((said.get("property"), said.get("name"))):
                if content and name and (name := name.strip().lower()):
                    self.meta.setdefault(name, content.strip()[:_SAID])
                    self.named.append((name, content))
        title = self._tree.css_first("title")
        self.title = title.text().strip()[:_SAID] if title is not None else ""
        self.site = (self.meta.get("og:site_name") or self.meta.get("application-name") or "")[:_SITE]
        base = self._tree.css_first("base[href]")
        href = (base.attributes.get("href") or "").strip() if base is not None else ""
        self._place(url)
        if href and (absolute := self.absolute(href)):
            self._place(absolute)

    def _place(self, base: str) -> None:
        parts = urlsplit(base)
        self._base, self._scheme, self._origin = base, parts.scheme, f"{parts.scheme}://{parts.netloc}"
        self.host = parts.hostname or ""
        self.site_name = self.host.removeprefix("www.").partition(".")[0]

    def absolute(self, href: str) -> str:
        """An address as the page means it, without its fragment; "" for what is none of http."""
        href = href.strip()
        if not href or len(href) > HREF_LENGTH:
            return ""
        if "\n" in href or "\t" in href or "\r" in href:
            href = re.sub(r"[\t\r\n]", "", href)
        if "\\" in href:  # as browsers take them
            path, mark, query = href.partition("?")
            href = path.replace("\\", "/") + mark + query
        if href[:8].lower().startswith(("http://", "https://")):
            found = href
        elif href.startswith("//"):
            found = f"{self._scheme}:{href}"
        elif _SCHEME.match(href):  # data:, about:, javascript:
            return ""
        elif href.startswith("/") and "/." not in href:
            found = self._origin + href
        else:
            try:
                found = urljoin(self._base, href)
            except ValueError:
                return ""
        return plain_address(found.partition("#")[0])

    def all(self, selector: str) -> list[Node]:
        """The elements that a selector of CSS finds, in the page's order."""
        return self._tree.css(selector)

    def has_pictures(self) -> bool:
        """Whether it shows any."""
        return self._tree.css_first("img,amp-img") is not None

    def first(self, selector: str) -> Node | None:
        """The first of them."""
        return self._tree.css_first(selector)

    def prose(self, most: int) -> str:
        """The beginning of what its paragraphs say, else of all its text: enough to tell a language by."""
        found = ""
        for node in self._tree.css("p"):
            found += " " + node.text().strip()
            if len(found) > most:
                return found[:most]
        if len(found) < most // 2 and self._tree.body is not None:
            # The last first, so that none is taken out of what is gone.
            for node in reversed(self._tree.css("script,style,template,svg")):
                node.decompose()
            found += " " + self._tree.body.text(separator=" ")[:most]
        return f"{self.title} {found}"[:most]


def plain_address(url: str) -> str:
    """An absolute address as browsers ask for it, one for all ways to write it; "" where it has no host."""
    if not url.isascii() or " " in url:
        url = _escaped(url)
    start = url.find("://") + 3
    there = _HOST.match(url, start)
    if there is None:
        return ""
    # Nearly all are written so.
    if there[0] == there[1] and url[: there.end()].islower() and "/." not in url:
        return url
    scheme, host, port = url[: start - 3].lower(), there[1].lower(), there[2] or ""
    port = "" if port in ("", ":", ":80" if scheme == "http" else ":443") else port
    path, mark, query = url[there.end() :].partition("?")
    path = _without_dots(path) if "/." in path else path
    return f"{scheme}://{url[start : there.start(1)]}{host}{port}{path}{mark}{query}"


def _without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4."""
    parts = list[str]()
    first, *names = path.split("/")
    for name in names:
        if name == "..":
            del parts[-1:]
        elif name != ".":
            parts.append(name)
    return "/".join([first, *parts, *[""] * (names[-1] in (".", ".."))])


def _escaped(url: str) -> str:
    """An address as browsers send it: UTF-8 in percents, a host's name in IDNA; "" where it has no host."""
    start = url.find("://") + 3
    there = _HOST.match(url, start)
    if there is None:
        return ""
    host = there[1]
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            return ""
    if not _PLAIN_HOST.fullmatch(host):
        return ""
    before, behind = url[start : there.start(1)], url[there.end(1) :]
    before, behind = (quote(part, safe=_SAFE, errors="replace") for part in (before, behind))
    return f"{url[:start]}{before}{host}{behind}"


def above(node: Node, most: int) -> Iterator[Node]:
    """The elements around one, the nearest first."""
    parent = node.parent
    while parent is not None and most > 0 and parent.tag != "body":
        yield parent
        parent, most = parent.parent, most - 1


def element_beside(node: Node, back: bool) -> Node | None:
    """The element before or behind one; None where there is text between them, or nothing."""
    beside = node.prev if back else node.next
    for _ in range(8):
        if beside is None or beside.is_element_node or (beside.is_text_node and beside.text().strip()):
            break
        beside = beside.prev if back else beside.next
    return beside if beside is not None and beside.is_element_node else None


def text_of(node: Node, most: int = 2_000, back: bool = False) -> str:
    """The beginning of what an element shows, or its end, in one line."""
    parts, size = list[str](), 0
    for part in islice(_shown(node, back), _PARTS):
        parts.append(part)
        size += len(part.strip())
        if size > 2 * most:  # spaces among it
            break
    if back:
        parts.reverse()
    text = " ".join("".join(_joined(parts)).split())
    return text[-most:] if back else text[:most]


def _shown(node: Node, back: bool) -> Iterator[str]:
    """The texts below an element that a browser shows, in order or from the last one back; " " where a block ends."""
    todo: list[Node | str | None] = [node.last_child if back else node.first_child]
    while todo:
        here = todo.pop()
        if isinstance(here, str):
            yield here
        elif here is not None:
            todo.append(here.prev if back else here.next)
            if here.is_text_node:
                yield here.text()
            elif here.is_element_node:
                tag, said = here.tag, here.attributes
                if tag in _UNSEEN or is_hidden(said):
                    continue
                if tag not in _INLINE:
                    yield " "
                    todo.append(" ")
                todo.append(here.last_child if back else here.first_child)


def _joined(parts: list[str]) -> Iterator[str]:
    """Texts with a space between two of elements of their own, unless a word goes on from one to the other."""
    last = " "
    for part in parts:
        if part:
            goes_on = not (last.isalnum() or last in ".,;:!?)") or not (part[0].isupper() or part[0].isdigit())
            yield part if goes_on else f" {part}"
            last = part[-1]


def is_hidden(attributes: dict[str, str | None]) -> bool:
    """Whether an element's own attributes keep it from being shown."""
    style = attributes.get("style")
    return "hidden" in attributes or bool(style and _HIDDEN.search(style[:STYLE_LENGTH]))
