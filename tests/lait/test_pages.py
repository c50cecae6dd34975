"""Archives to pictures and sentences: against the truth of a made-up web, and pages that were made to do harm."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from imagebert.demo.web import DAMAGES, Page, damage_warc, make_web, some_subjects, write_warcs
from imagebert.errors import UsageError
from imagebert.lait.pages import SCHEMA, PageReader, PageSentence, key_of, read_archive
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import LaitRecipe, read_recipe
from imagebert.lait.warc import Response

Row = dict[str, Any]


def spoken(text: str) -> str:
    """A sentence without what two writers of it may differ in."""
    return "".join(character for character in text.lower() if character.isalnum())


@cache
def web(count: int, seed: int) -> list[Page]:
    """Pages about sentences with a capital and a full stop, one of them, or neither."""
    random, subjects = Random(seed), []
    for subject in some_subjects(count, seed):
        text = subject.sentence[: None if random.random() < 0.5 else -1]
        subjects.append(subject._replace(sentence=text if random.random() < 0.6 else text[:1].lower() + text[1:]))
    return make_web(subjects, count, seed)


def read(archive: Path, out: Path) -> tuple[list[Row], Counter[str]]:
    counts = read_archive(archive, out, read_recipe(), Ranker())
    return parquet.read_table(out).to_pylist(), +counts


@pytest.fixture(scope="module", params=[23, 47])
def crawl(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pages, the rows that their archive gives, and the counts."""
    folder = tmp_path_factory.mktemp("crawl")
    pages = web(350, request.param)
    (archive,) = write_warcs(pages, folder, 1)
    rows, counts = read(archive, folder / "some.parquet")
    return {page.url: page for page in pages}, rows, counts


# ------------------------------------------------------------------------------------------------------------ the truth


def test_dominant_pictures_are_found_and_described(crawl: Any) -> None:
    pages, rows, _ = crawl
    wanted = {
        (page.url, url) for page in pages.values() if page.english and not page.opted_out for url in page.pictures
    }
    found = {(row["page"], row["url"]) for row in rows}
    assert len(wanted) > 400
    assert len(found & wanted) >= 0.95 * len(found)  # precision
    assert len(found & wanted) >= 0.9 * len(wanted)  # recall
    right = {(page.url, url): text for page in pages.values() for url, text in page.pictures.items()}
    first = {(row["page"], row["url"]): row["sentence"] for row in rows if row["rank"] == 0}
    described = [place for place in found & wanted if right[place]]
    assert len(described) > 300
    assert sum(spoken(first[place]) == spoken(right[place]) for place in described) >= 0.8 * len(described)


def test_nothing_comes_of_pages_that_opt_out_or_speak_another_language(crawl: Any) -> None:
    pages, rows, counts = crawl
    assert sum(page.opted_out for page in pages.values()) >= 20
    assert sum(not page.english for page in pages.values()) >= 40
    assert [row["page"] for row in rows if pages[row["page"]].opted_out] == []
    assert [row["page"] for row in rows if not pages[row["page"]].english] == []
    assert counts["pages: opted out"] == sum(page.opted_out for page in pages.values())
    assert counts["pages: another language"] <= sum(not page.english for page in pages.values())


def test_all_that_comes_in_is_counted(crawl: Any) -> None:
    pages, rows, counts = crawl
    ends = ("opted out", "no picture", "another language", "no dominant picture", "used", "address is none")
    assert sum(counts[f"pages: {end}"] for end in ends) == counts["pages"] >= len(pages)
    assert counts["pages: used"] >= len({row["page"] for row in rows})
    shown = {(row["page"], row["url"]) for row in rows}
    assert counts["pictures: dominant"] == len(shown) + counts["pictures: no sentence"]
    assert counts["sentences: kept"] == len(rows)


def test_rows_are_whole_and_in_order(crawl: Any) -> None:
    _, rows, _ = crawl
    pictures: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        pictures[row["page"], row["url"]].append(row)
        assert row["key"] == hashlib.sha256(row["url"].encode()).hexdigest()[:16] == key_of(row["url"])
        assert row["dominance"] >= 0.5
        assert all(0 <= row[name] <= 1 for name in ("fit", "dominance", "name_overlap", "title_overlap"))
        assert len(row["sentence"].split()) >= 4
    for there in pictures.values():
        assert [row["rank"] for row in there] == list(range(len(there)))
        assert len(there) <= 6
        fits = [row["fit"] for row in there]
        assert fits == sorted(fits, reverse=True)
        assert len({spoken(row["sentence"]) for row in there}) == len(there)
    assert list(pictures) == list(dict.fromkeys((row["page"], row["url"]) for row in rows))


@pytest.mark.parametrize("way", DAMAGES)
def test_damage_costs_its_own_page(tmp_path: Path, way: str) -> None:
    pages = web(60, 51)
    (archive,) = write_warcs(pages, tmp_path, 1)
    whole, before = read(archive, tmp_path / "whole.parquet")
    at = damage_warc(archive, way, 3)
    rows, counts = read(archive, tmp_path / "damaged.parquet")
    if at < 0:
        assert (rows, counts) == (whole, before)
        return
    lost = {row["page"] for row in whole} - {row["page"] for row in rows}
    other = [row["page"] for row in rows if row not in whole]
    assert len({*other} | (lost if way != "cut" else set())) <= 1
    kept = [row for row in whole if row["page"] not in lost and row["page"] not in other]
    assert [row for row in rows if row["page"] not in other] == kept
    assert counts["damaged records"] + counts["cut records"] + counts["cut bodies"] >= 1
    assert before["damaged records"] + before["cut records"] + before["cut bodies"] == 0


# ------------------------------------------------------------------------------------------------------------ the bytes

_SCRIPT = """
import sys
from pathlib import Path
from imagebert.lait.pages import read_archive
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import read_recipe
print(sorted(read_archive(Path(sys.argv[1]), Path(sys.argv[2]), read_recipe(), Ranker()).items()))
"""


def test_the_same_archive_gives_the_same_bytes(tmp_path: Path) -> None:
    (archive,) = write_warcs(web(60, 51), tmp_path, 1)
    counts = [sorted(read_archive(archive, tmp_path / f"{n}", read_recipe(), Ranker()).items()) for n in range(2)]
    assert counts[0] == counts[1]
    for seed in ("1", "2"):
        command = [sys.executable, "-c", _SCRIPT, str(archive), str(tmp_path / f"seed {seed}")]
        folder = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([folder, f"{folder}/kernels"]),
        }
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == str(counts[0])
    first = (tmp_path / "0").read_bytes()
    assert all((tmp_path / name).read_bytes() == first for name in ("1", "seed 1", "seed 2"))
    assert parquet.read_schema(tmp_path / "0").equals(SCHEMA)


def test_an_archive_of_nothing_is_a_table_of_no_rows(tmp_path: Path) -> None:
    (archive,) = write_warcs([], tmp_path, 1)
    rows, counts = read(archive, tmp_path / "none.parquet")
    assert (rows, counts) == ([], {})
    assert parquet.read_schema(tmp_path / "none.parquet").equals(SCHEMA)
    with pytest.raises(UsageError, match=r"absent\.warc"):
        read(tmp_path / "absent.warc", tmp_path / "absent.parquet")
    assert not (tmp_path / "absent.parquet").exists()


# -------------------------------------------------------------------------------------------------------------- hostile

PROSE = (
    "<p>The mayor said that the work will take longer than planned, and nobody knows the reason for it. We tried "
    "the new software in the old town, but nothing has changed since then. It was the right decision.</p>"
)
RIGHT = "A brown dog is running on wet sand."
PICTURE = f'<figure><img src="/photos/brown-dog.jpg" width=800 height=600 alt="{RIGHT}"></figure>'
GOOD = f"{PROSE}<article>{PICTURE}</article>"
RANKER = Ranker()


def one(
    body: str | bytes, url: str = "http://example.org/a/page.html", cut: bool = False
) -> tuple[list[Any], Counter[str]]:
    data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    reader = PageReader(LaitRecipe(), RANKER)
    return reader.read(Response(url, "text/html", None, [], data, cut)), +reader.counts


def test_a_good_page_gives_its_picture() -> None:
    rows, counts = one(GOOD)
    assert {(row.url, row.pictures) for row in rows} == {("http://example.org/photos/brown-dog.jpg", 1)}
    assert rows[0].sentence == RIGHT
    assert isinstance(rows[0], PageSentence)
    assert PageSentence._fields == tuple(SCHEMA.names)
    assert counts == {
        "pages": 1,
        "pages: used": 1,
        "pictures": 1,
        "pictures: dominant": 1,
        "sentences: kept": len(rows),
    }


def test_a_page_of_100_mb_is_read_up_to_its_bound(tmp_path: Path) -> None:
    body = GOOD.encode() + b"<p>more text of the page</p>" * 3_600_000
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    lines = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/\r\n"
    lines += b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n" % (len(head) + len(body))
    small = b"\r\n\r\n" + lines.replace(b"%d" % (len(head) + len(body)), b"%d" % (len(head) + len(GOOD)))
    archive = tmp_path / "large.warc"
    archive.write_bytes(
        b"".join([lines, head, body, small.replace(b"org/", b"org/2"), head, GOOD.encode(), b"\r\n\r\n"])
    )
    rows, counts = read(archive, tmp_path / "large.parquet")
    assert counts["pages: cut"] == 1
    assert counts["pages: used"] == 2
    assert [row["sentence"] for row in rows if row["rank"] == 0] == [RIGHT, RIGHT]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<div>" * 10_000 + GOOD, {"pages: too many tags": 1, "pages: no picture": 1}),
        (GOOD + "<div>" * 200_000, {"pages: too many tags": 1, "pages: used": 1}),
        (GOOD + "<i " + " ".join(f"a{n}=b" for n in range(200_000)) + ">", {"pages: too many tags": 1}),
        (GOOD + "<img src=/x.jpg width=400 height=400>" * 50_000, {"pictures": 2}),
        (PROSE + "".join(f"<img src=/{n}.jpg alt='{RIGHT}' width=640>" for n in range(50_000)), {"pictures": 1000}),
        ("\0".join(GOOD), {"pages: used": 1}),
        (b"\0" * 1_000_000 + GOOD.encode(), {"pages: used": 1}),
        (f'<!DOCTYPE a [<!ENTITY b "&c;&c;">]>{GOOD}{"<p>&b;" * 30_000}', {"pages: used": 1}),
        (f"{PROSE}<img src=/x.jpg width=640 height=480 alt='" + f"{RIGHT} " * 30_000 + "'>", {"pages: used": 1}),
        (f"{PROSE}<div class='{'photo ' * 160_000}'>{PICTURE}</div>", {"pages: used": 1}),
        (f"{PROSE}<div style='{'display ' * 120_000}'>{PICTURE}</div>", {"pages: used": 1}),
        (f"{GOOD}<img src=/a.jpg srcset='{'/b.jpg 1x, ' * 100_000}'>", {"pictures": 2}),
        (f"{GOOD}<img src=/a.jpg srcset='/b.jpg {'9' * 1_000_000}w, /c.jpg .w, /d.jpg ..x, , ,'>", {"pictures": 2}),
        ("<meta property=og:image content=/a.jpg>" * 90_000 + GOOD, {"pages: used": 1}),
        ("<meta name=robots content=nothing>" * 90_000 + GOOD, {"pages: opted out": 1}),
        (GOOD.replace("brown", "\ud800\udfff\udc00"), {"pictures": 1}),
        (f"{GOOD}<img src='/{'a' * 1_000_000}.jpg' alt='{RIGHT}'>", {"pictures": 1}),
        (f"<base href='http://x/{'a' * 1_000_000}'><title>{RIGHT * 30_000}</title>{GOOD}", {"pages: used": 1}),
        (f"{GOOD}<a href='{'/a:b/c' * 100_000}'>{'<img src=/x.jpg?y>' * 900}</a>", {"pages: used": 1}),
        (f"{GOOD}<picture>{'<source srcset=/y.jpg>' * 3_000}{'<img src=/x.jpg>' * 900}", {"pages: used": 1}),
        (PROSE + PICTURE + "<i></i>" * 90_000, {"pages: used": 1}),
        (GOOD + "<!--" * 500_000, {"pages: used": 1}),
        (GOOD + "<svg><style><template><select>" * 2_000, {"pages: used": 1}),
        ("<plaintext>" + GOOD, {"pages: no picture": 1}),
        ("<frameset><frame src=x></frameset>" + GOOD, {"pages: no picture": 1}),
        (b"", {"pages: no picture": 1}),
        (bytes(range(256)) * 1_000, {"pages: no picture": 1}),
    ],
)  # fmt: skip
def test_a_page_made_to_do_harm_is_counted_and_the_next_one_read(body: str | bytes, expected: dict[str, int]) -> None:
    rows, counts = one(body)
    assert counts["pages"] == 1
    assert {name: counts[name] for name in expected} == expected
    if "pages: used" in expected:
        assert RIGHT[-20:] in rows[0].sentence + "."
        assert all(len(row.sentence) <= 300 for row in rows)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "javascript:alert(1)",
            "data:image/jpeg;base64,AA",
            "file:///etc/passwd",
            "http://[",
            "//[x",
            "https:///a.jpg",
        ),
        *(
            "http://",
            "//",
            "http://\u2100/a.jpg",
            "http://a b/c.jpg",
            "http://" + "\u00e4" * 300 + "/a.jpg",
            "ftp://a/b.jpg",
        ),
    ],
)
def test_addresses_that_are_none_are_no_pictures(url: str) -> None:
    rows, counts = one(f"{GOOD}<img src='{url}' width=700 height=700 alt='A cat sits on a mat in the house.'>")
    assert {row.url for row in rows} == {"http://example.org/photos/brown-dog.jpg"}
    assert counts["pictures"] == 1
    # Named by the head, the page's base, a link or a list.
    one(f"<meta property=og:image content='{url}'><base href='{url}'>{GOOD}")
    one(f"{GOOD}<a href='{url}.jpg'><img src=/x.jpg srcset='{url} 1x, {url} 2x' data-src='{url}'></a>")


@pytest.mark.parametrize("url", ["http://[", "http://\u2100.example/", "https://[::1/"])
def test_a_page_whose_address_is_none_costs_itself(url: str) -> None:
    assert one(GOOD, url) == ([], {"pages": 1, "pages: address is none": 1})


_TAGS = ["<div>", "<p>", "</p>", "<a href=/x.jpg>", "</a>", "<figure>", "<figcaption>", "<picture>", "</div>", "<li>"]
_PIECES = st.one_of(
    st.sampled_from(
        [*_TAGS, PROSE, PICTURE, RIGHT, "<!--", "-->", "<meta property=og:image content=", "<title>", "\0"]
    ),
    st.builds(
        "<img {}='{}' {}='{}'>".format,
        st.sampled_from(["src", "data-src", "srcset", "alt", "style", "class"]),
        st.text(max_size=20),
        st.sampled_from(["width", "height", "srcset", "title", "src"]),
        st.text("0123456789.,wx% ٣²-", max_size=9),
    ),
    st.text(max_size=20),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(_PIECES, max_size=25))
def test_any_page_is_read(pieces: list[str]) -> None:
    rows, counts = one(PROSE + "".join(pieces))
    assert counts["pages"] == 1
    assert len({row.url for row in rows}) <= counts["pictures: dominant"]
