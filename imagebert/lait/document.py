"""A page as bytes to its elements: which charset, which base address, what its head says. The gate of selectolax.

Pages come from anybody: what is looked at is bounded in bytes and elements, and nothing here is recursive.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from urllib.parse import quote, urljoin, urlsplit

from selectolax.lexbor import LexborHTMLParser, LexborNode

Node = LexborNode

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.I)
_HEAD_BYTES = 4096  # where a page says its charset; the standard asks for the first 1,024
_SAFE = "%/:=&?~#+!$,;'@()*[]"  # of an address, that stays as it is
_HREF_LENGTH = 2_000  # characters of an address: servers refuse longer ones
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# As browsers read what calls itself so.
_READ_AS = {"iso-8859-1": "windows-1252", "latin-1": "windows-1252", "latin1": "windows-1252", "ascii": "windows-1252"}
_READ_AS |= {"us-ascii": "windows-1252", "gb2312": "gb18030", "gbk": "gb18030", "iso-8859-9": "windows-1254"}
_READ_AS |= {"shift_jis": "cp932", "shift-jis": "cp932", "sjis": "cp932", "ks_c_5601-1987": "cp949", "euc-kr": "cp949"}


def decode(html: bytes, charset: str | None) -> str:
    """The text of a page: in the charset of its mark, of its header, of its own words, else in what fits.

    Headers and pages say wrong ones: the first that all its bytes are right in is taken, and none needs to be.

    Args:
        charset: as the server said
    """
    for mark, encoding in _MARKS:
        if html.startswith(mark):
            return html[len(mark) :].decode(encoding, "replace")
    said = _META_CHARSET.search(html, 0, _HEAD_BYTES)
    claimed = [charset, said[1].decode("ascii") if said else None]
    for name in (*claimed, "utf-8"):
        try:
            if name:
                return html.decode(_text_codec(name), "strict")
        except (LookupError, UnicodeError):  # unknown, or not in it
            pass
    return html.decode(next(filter(None, map(_known, claimed)), "windows-1252"), "replace")


def _text_codec(name: str) -> str:
    name = name.strip().lower()
    info = codecs.lookup(_READ_AS.get(name, name))
    if not info._is_text_encoding:  # base64 and the like
        raise LookupError(name)
    return info.name


def _known(name: str | None) -> str | None:
    try:
        return _text_codec(name) if name else None
    except LookupError:
        return None


class Document:
    """A parsed page.

    Attributes:
        url: its address
        title: of its head
        meta: what its head says of it, by name or property in lower case: the first of each
        named: name and content of its meta tags that are no properties, of all
        site: what its site is called, "" where it does not say
        site_name: the first part of its host's name, www apart
    """

    def __init__(self, url: str, text: str) -> None:
        self.url = url
        self._tree = LexborHTMLParser(text.replace("\0", "") if "\0" in text else text)
        self.meta: dict[str, str] = {}
        self.named: list[tuple[str, str]] = []
        for node in self._tree.css("meta"):
            said = node.attributes
            name, content = (said.get("property") or said.get("name") or "").strip().lower(), said.get("content") or ""
            if name and content:
                self.meta.setdefault(name, content.strip())
                self.named.append((name, content))
        title = self._tree.css_first("title")
        self.title = title.text().strip() if title is not None else ""
        self.site = self.meta.get("og:site_name") or self.meta.get("application-name") or ""
        base = self._tree.css_first("base[href]")
        href = (base.attributes.get("href") or "").strip() if base is not None else ""
        self._base = url
        self._base = self.absolute(href) or url if href else url
        parts = urlsplit(self._base)
        self._scheme, self._origin = parts.scheme, f"{parts.scheme}://{parts.netloc}"
        self.host = parts.hostname or ""
        self.site_name = self.host.removeprefix("www.").partition(".")[0]

    def absolute(self, href: str) -> str:
        """An address as the page means it, without its fragment; "" for what is none of http."""
        href = href.strip()
        if not href or len(href) > _HREF_LENGTH:
            return ""
        if "\n" in href or "\t" in href or "\r" in href:
            href = re.sub(r"[\t\r\n]", "", href)
        lowered = href[:8].lower()
        if lowered.startswith(("http://", "https://")):
            found = href
        elif href.startswith("//"):
            found = f"{urlsplit(self._base).scheme}:{href}"
        elif ":" in href.split("/", 1)[0].split("?", 1)[0]:  # data:, about:, javascript:
            return ""
        elif href.startswith("/") and ".." not in href:
            found = getattr(self, "_origin", "") + href or href
        else:
            try:
                found = urljoin(self._base, href)
            except ValueError:
                return ""
        found = found.partition("#")[0]
        return found if found.isascii() and " " not in found else _escaped(found)

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
            for node in self._tree.css("script,style,template,svg"):
                node.decompose()
            found += " " + self._tree.body.text(separator=" ")[:most]
        return f"{self.title} {found}"[:most]


def _escaped(url: str) -> str:
    """An address as browsers send it: UTF-8 in percents, a host's name in IDNA."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    return f"{scheme}://{host}{slash}{quote(path, safe=_SAFE, errors='replace')}"


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
        if beside is None or beside.is_element_node:
            return beside
        if beside.is_text_node and not beside.is_empty_text_node:
            return None
        beside = beside.prev if back else beside.next
    return None


def text_of(node: Node, most: int = 2_000) -> str:
    """What an element says, in one line."""
    return " ".join(node.text(separator=" ").split())[:most] if node is not None else ""
