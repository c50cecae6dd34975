"""The made-up web: what is said to be true of a page is looked up in it by a parser that knows nothing of templates."""

from __future__ import annotations

import gzip
import html
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

import pytest
from fastwarc.warc import ArchiveIterator

from imagebert.demo.web import DAMAGES, KINDS, Page, Subject, damage_warc, make_web, members, some_subjects, write_warcs
from imagebert.errors import UsageError

SUBJECTS = some_subjects(400, 3)
PAGES = make_web(SUBJECTS, 300, 5)
JPEG = b"\xff\xd8\xff\xe0 no real one"


class Tag(NamedTuple):
    name: str
    attributes: dict[str, str]


class Tags(HTMLParser):
    """The tags of a page, of duplicated attributes the first."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Tag] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(Tag(tag, {name: value or "" for name, value in reversed(attrs)}))


@cache
def tags_of(page_html: bytes) -> list[Tag]:
    return Tags(decoded(page_html)).found


def decoded(page_html: bytes) -> str:
    try:
        return page_html.decode("utf-8-sig")
    except UnicodeDecodeError:
        return page_html.decode("windows-1252", "replace")


def candidates(srcset: str) -> list[tuple[str, str]]:
    """URLs of a srcset and their descriptors, by the standard: a URL has no space, and no comma behind it."""
    found, left = [], srcset.strip()
    while left:
        url, _, left = left.partition(" ")
        descriptor = ""
        if not url.endswith(","):
            descriptor, _, left = left.partition(",")
        found.append((url.rstrip(","), descriptor.strip()))
        left = left.strip()
    return found


def base_of(page: Page) -> str:
    return next((tag.attributes["href"] for tag in tags_of(page.html) if tag.name == "base"), page.url)


def resolved(base: str, url: str) -> str:
    """As browsers do: without what is around, without a fragment, percent-encoded."""
    return quote(urljoin(base, url.strip()).partition("#")[0], safe="%/:=&?~+!$,;'@()*[]")


def named(page: Page) -> set[str]:
    """Absolute URLs of all images that the page names."""
    written: list[str] = []
    for name, given in tags_of(page.html):
        if name in ("img", "amp-img", "source"):
            written += [given.get(key, "") for key in ("src", "data-src", "data-original", "data-lazy-src")]
            written += [url for key in ("srcset", "data-srcset") for url, _ in candidates(given.get(key, ""))]
        elif name == "meta" and given.get("property") == "og:image":
            written.append(given["content"])
        elif name == "a" and given.get("rel") == "lightbox":
            written.append(given["href"])
        written += [given["poster"]] if "poster" in given else []
    written = [url for url in written if url.strip() and not url.startswith(("data:", "about:"))]
    return {resolved(base_of(page), url) for url in written if not url.endswith(".mp4")}


def texts(page: Page) -> str:
    """All that the page says, in attributes too, without tags and in one line."""
    values = " ".join(value for tag in tags_of(page.html) for value in tag.attributes.values())
    plain = html.unescape(re.sub(r"<[^>]*>", "", decoded(page.html))) + values
    return " ".join(plain.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


# ---------------------------------------------------------------------------------------------------------------- pages


def test_a_seed_gives_its_web_and_another_another() -> None:
    assert make_web(SUBJECTS, 300, 5) == PAGES
    assert make_web(SUBJECTS, 300, 6) != PAGES
    assert some_subjects(400, 3) == SUBJECTS != some_subjects(400, 4)


def test_subjects_differ_and_are_sentences_of_ordinary_length() -> None:
    many = some_subjects(5000, 0)
    assert len({subject.sentence for subject in many}) == len({subject.name for subject in many}) == 5000
    assert all(6 <= len(subject.sentence.split()) <= 18 for subject in many)
    assert all(min(subject.width, subject.height) > 300 for subject in many)
    assert all(re.fullmatch(r"[A-Z][\w ,-]+\.", subject.sentence) for subject in many)


def test_there_are_all_kinds_languages_and_charsets() -> None:
    assert {page.kind for page in PAGES} == set(KINDS)
    assert len({page.url for page in PAGES}) == 300
    assert 0.1 < sum(not page.english for page in PAGES) / 300 < 0.35
    assert 0.05 < sum(page.opted_out for page in PAGES) / 300 < 0.25
    more = make_web(SUBJECTS, 700, 1)
    headers = {value.lower() for page in more for name, value in page.headers if name == "Content-Type"}
    metas = {found[1].decode().lower() for page in more for found in re.finditer(rb"charset=([\w-]+)", page.html)}
    said = {value.partition("charset=")[2] for value in headers} | metas
    assert {"", "iso-8859-1", "utf-8", "windows-1252"} <= said
    menus = [("windows-1251", "Главная"), ("shift_jis", "ホーム"), ("gb18030", "首页"), ("utf-8", "الرئيسية")]
    for charset, word in [*menus, ("iso-8859-1", "Über uns"), ("utf-8", "Météo"), ("utf-8", "Política")]:
        assert any(word.encode(charset) in page.html and not page.english for page in more), charset
    assert any(page.html.startswith(b"\xef\xbb\xbf") for page in more)
    assert 20_000 < sorted(len(page.html) for page in more)[350] < 60_000


def test_the_truth_is_in_the_page() -> None:
    for page in PAGES:
        found, said = named(page), texts(page)
        assert set(page.pictures) <= found, page.url
        assert set(page.pictures) <= set(page.images), page.url
        assert found - set(page.images) == set(), page.url
        for url, sentence in page.pictures.items():
            subject = page.images[url]
            assert subject is not None
            if page.english:
                assert sentence in ("", subject.sentence)
                assert sentence.rstrip(".") in said, page.url
            else:
                assert sentence not in ("", subject.sentence)
        assert len({page.images[url] for url in page.pictures}) == len(page.pictures), page.url


def test_the_url_is_that_of_the_largest_version() -> None:
    compared = {"widths": 0, "densities": 0, "links": 0}
    for page in PAGES:
        base = base_of(page)
        for _, given in tags_of(page.html):
            choices = candidates(given.get("srcset", given.get("data-srcset", "")))
            units = {descriptor[-1:] for _, descriptor in choices}
            if "w" in units and given.get("type") != "image/webp":
                *smaller, largest = sorted((int(width[:-1]), resolved(base, url)) for url, width in choices)
                assert largest[1] in page.pictures, page.url
                assert not {url for _, url in smaller} - {largest[1]} & set(page.pictures), page.url
                compared["widths"] += 1
            elif units == {"", "x"}:
                assert resolved(base, choices[1][0]) in page.pictures, page.url
                compared["densities"] += 1
            elif given.get("rel") == "lightbox":
                assert resolved(base, given["href"]) in page.pictures, page.url
                compared["links"] += 1
    assert min(compared.values()) > 10


def test_what_is_dominant_is_nowhere_said_to_be_small() -> None:
    """Sizes in attributes and styles; of a picture that leads to a larger one there are none."""
    measured = 0
    for page in PAGES:
        for name, given in tags_of(page.html):
            style = re.search(r"width:(\d+)px;height:(\d+)px", given.get("style", ""))
            sides = style.groups() if style else (given.get("width", ""), given.get("height", ""))
            written = [given[key] for key in ("src", "data-src", "data-original", "data-lazy-src") if given.get(key)]
            shown = {resolved(base_of(page), url) for url in written} & set(page.pictures)
            if name in ("img", "amp-img") and all(side.isdigit() for side in sides) and shown:
                assert min(int(side) for side in sides) > 300, page.url
                measured += 1
    assert measured > 100


def test_kinds_without_content_have_none_and_others_have() -> None:
    none = {"listing", "letter", "logos", "small", "video", "frames"}
    for page in PAGES:
        assert not page.pictures if page.kind in none else page.pictures or page.kind == "gallery", page.url
    assert any(not page.pictures for page in PAGES if page.kind == "gallery")
    assert all(any(page.images.values()) for page in PAGES if page.kind == "listing")


def test_what_robots_are_told_is_what_is_said() -> None:
    """By the words themselves, wherever they stand: a robot of another name, a comment and an article say nothing."""
    words = {"noai", "noimageai", "noindex", "none", "noimageindex"}
    for page in PAGES:
        said = [value for name, value in page.headers if name == "X-Robots-Tag"]
        tags = [tag.attributes for tag in tags_of(page.html) if tag.name == "meta"]
        said += [given["content"] for given in tags if given.get("name", "").lower() == "robots"]
        rules = {rule.strip().lower() for value in said for rule in value.split(",")}
        assert page.opted_out == bool(rules & words), (page.url, rules)
    assert sum(b"noai" in page.html.lower() and not page.opted_out for page in PAGES) > 3


def test_few_and_small_subjects_will_do() -> None:
    three = [Subject("a", "A dog runs on a beach.", 640, 480), *some_subjects(2, 1)]
    for page in make_web(three, 60, 2):
        assert len({page.images[url] for url in page.pictures}) == len(page.pictures) <= 3
    assert not any(page.pictures for page in make_web([Subject("a", "A small dog.", 300, 900)], 60, 2))
    for wrong in ([], [three[0], three[0]]):
        with pytest.raises(UsageError, match=r"give (some|each its own)"):
            make_web(wrong, 1, 0)
    with pytest.raises(UsageError, match="ask for fewer"):
        some_subjects(10**6, 0)


def test_a_picture_is_seen_on_several_pages_and_all_are_seen() -> None:
    seen: dict[str, set[str]] = {}
    for page in PAGES:
        for url in page.pictures:
            subject = page.images[url]
            assert subject is not None
            seen.setdefault(subject.name, set()).add(url)
    assert len(seen) == len(SUBJECTS)
    assert sum(len(urls) > 1 for urls in seen.values()) > 50
    shown = Counter(url for page in PAGES for url in page.pictures)
    assert max(shown.values()) > 1, "one URL on several pages"


# ---------------------------------------------------------------------------------------------------------------- WARCs


def read(path: Path) -> Iterator[tuple[Any, bytes]]:
    """Records as they come, HTTP parsed and unpacked."""
    with path.open("rb") as file:
        for record in ArchiveIterator(file, parse_http=False):
            if record.is_http and record.headers["WARC-Type"] == "response":
                # FastWARC 2.0.1 ends at a body that is packed and in chunks, without a word, if it is not frozen.
                record.freeze()
                record.parse_http(auto_decode="all")
            yield record, record.reader.read()


def fetched(path: Path) -> dict[str, tuple[tuple[tuple[str, str], ...], bytes]]:
    """What was answered with 200, by URL."""
    found = {}
    for record, body in read(path):
        if record.headers["WARC-Type"] == "response" and record.is_http and record.http_headers.status_code == 200:
            found[record.headers["WARC-Target-URI"]] = (tuple(record.http_headers), body)
    return found


def test_warcs_hold_what_was_written(tmp_path: Path) -> None:
    picture = next(url for page in PAGES for url in page.pictures)
    paths = write_warcs(PAGES, tmp_path / "web", 3, {picture: JPEG, "https://nobody.example/x.png": b"\x89PNG..."})
    assert [path.name for path in paths] == [f"web-{number:05d}.warc.gz" for number in range(3)]
    answers = [fetched(path) for path in paths]
    for number, page in enumerate(PAGES):
        headers, body = answers[number % 3][page.url]
        assert body == page.html
        assert set(page.headers) <= set(headers)
    assert sum(picture in answer for answer in answers) == 1
    assert next(answer[picture] for answer in answers if picture in answer)[1] == JPEG
    assert ("Content-Type", "image/png") in answers[0]["https://nobody.example/x.png"][0]
    again = write_warcs(PAGES, tmp_path / "again", 3, {picture: JPEG, "https://nobody.example/x.png": b"\x89PNG..."})
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    with pytest.raises(UsageError, match="at least"):
        write_warcs(PAGES, tmp_path, 0)


def test_warcs_have_what_crawls_have(tmp_path: Path) -> None:
    (path,) = write_warcs(PAGES, tmp_path, 1)
    records = list(read(path))
    assert records[0][0].headers["WARC-Type"] == "warcinfo"
    kinds = {record.headers["WARC-Type"] for record, _ in records}
    assert kinds == {"warcinfo", "request", "response", "metadata", "revisit"}
    answers = [record for record, _ in records if record.headers["WARC-Type"] == "response" and record.is_http]
    assert {200, 404, 503} <= {record.http_headers.status_code for record in answers}
    assert {record.http_headers.status_code for record in answers} & {301, 302, 307}
    types = {record.http_content_type for record in answers}
    assert {"text/html", "text/plain", "application/json", "application/pdf", "text/css"} <= types
    headers = {name for record in answers for name, _ in record.http_headers}
    assert {"Content-Encoding", "Transfer-Encoding", "X-Crawl-Content-Encoding", "Content-Length"} <= headers
    ids = [record.headers["WARC-Record-ID"] for record, _ in records]
    assert len(set(ids)) == len(ids) == len(members(path))
    for member in members(path):
        head, _, rest = gzip.decompress(member).partition(b"\r\n\r\n")
        assert rest[int(head.partition(b"\r\nContent-Length: ")[2]) :] == b"\r\n\r\n"
    with path.open("rb") as file:
        assert all(record.verify_block_digest() for record in ArchiveIterator(file, parse_http=False))


@pytest.mark.parametrize("way", DAMAGES)
def test_each_damage_is_what_it_says(way: str, tmp_path: Path) -> None:
    (path,) = write_warcs(PAGES[:60], tmp_path, 1)
    before, good = path.read_bytes(), members(path)
    at = damage_warc(path, way, 7)
    after = path.read_bytes()
    start = sum(map(len, good[:at])) if at >= 0 else 0
    assert after[:start] == before[:start]
    assert after != before
    behind = b"".join(good[at + 1 :])
    match way:
        case "whole" | "plain":
            assert at == -1
            assert (gzip.decompress(after) if way == "whole" else after) == gzip.decompress(before)
        case "cut":
            assert before.startswith(after)
            assert 0 < len(after) - start < len(good[at])
        case "flipped":
            assert [a for a, b in zip(before, after, strict=True) if a != b] == [good[at][len(good[at]) // 2]]
        case "garbage":
            assert after.endswith(good[at] + behind)
            assert len(after) == len(before) + 1000
        case "zeros":
            assert len(after) == len(before)
            assert after.endswith(bytes(len(good[at]) // 2) + behind)
        case _:
            record, whole = gzip.decompress(after[start : len(after) - len(behind)]), gzip.decompress(good[at])
            length, right = (
                int(re.findall(rb"\r\nContent-Length: (\d+)\r\n\r\n", part)[0]) for part in (record, whole)
            )
            assert length - right == (700 if way == "longer" else -700)
            assert record.partition(b"\r\n\r\n")[2] == whole.partition(b"\r\n\r\n")[2]


def test_damage_that_there_is_not_is_refused(tmp_path: Path) -> None:
    (path,) = write_warcs(PAGES[:3], tmp_path, 1)
    with pytest.raises(UsageError, match="one of cut, flipped"):
        damage_warc(path, "burnt")
