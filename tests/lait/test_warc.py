"""Web archives as crawlers write them, and damaged ones: what comes is compared with what was put in."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagebert.demo.web import DAMAGES, damage_warc, make_web, members, some_subjects, write_warcs
from imagebert.errors import UsageError
from imagebert.lait.warc import Response, responses

PAGES = make_web(some_subjects(60, 31), 40, 31)
HTML = ("text/html",)
BODY = b"<html><body>" + b"".join(b"<p>Paragraph %d of a page.</p>\n" % n for n in range(400)) + b"</body></html>"
TROUBLE = {"damaged records", "cut records", "cut bodies"}


def read(path: Path, most: int = 1 << 22) -> tuple[list[Response], Counter[str]]:
    counts = Counter[str]()
    return list(responses(path, HTML, most, counts)), +counts


def trouble(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in TROUBLE if counts[name]}


def block(body: bytes, *headers: str, status: str = "200 OK", kind: str = "text/html") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers, "", ""]).encode() + body


def record(
    content: bytes, url: str = "http://example.org/", kind: str = "response", length: int | None = None, head: str = ""
) -> bytes:
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", *head.splitlines()]
    lines.append("Content-Type: application/http; msgtype=response")
    lines += [] if "WARC-Date" in head else ["WARC-Date: 2024-05-06T07:08:09Z"]
    lines.append(f"Content-Length: {len(content) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + content + b"\r\n\r\n"


def archive(folder: Path, records: Sequence[bytes], packed: bool = True) -> Path:
    path = folder / "some.warc.gz"
    path.write_bytes(b"".join(gzip.compress(each, mtime=0) if packed else each for each in records))
    return path


def chunked(body: bytes, size: int = 1000, extension: bytes = b"") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%X%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n\r\n"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


# ---------------------------------------------------------------------------------------------------------------- whole


def test_all_pages_come_as_they_were_sent_in_their_order(tmp_path: Path) -> None:
    (path,) = write_warcs(PAGES, tmp_path, 1)
    found, counts = read(path)
    known = {page.url: page for page in PAGES}
    pages = [answer for answer in found if answer.url in known]
    assert [answer.url for answer in pages] == [page.url for page in PAGES]
    for answer in pages:
        page = known[answer.url]
        assert answer.body == page.html
        assert not answer.cut
        assert answer.robots == [value for name, value in page.headers if name.lower() == "x-robots-tag"]
    assert trouble(counts) == {}
    # All that is no page is counted: by what its record says, read here without the reader.
    blocks = [gzip.decompress(member).partition(b"\r\n\r\n") for member in members(path)]
    responses_there = [rest for head, _, rest in blocks if b"\r\nWARC-Type: response\r\n" in head]
    assert counts["not http"] == sum(not rest.startswith(b"HTTP/") for rest in responses_there)
    assert counts["not 200"] == sum(bool(re.match(rb"HTTP/1.1 [345]", rest)) for rest in responses_there)
    assert len(found) + counts.total() == len(responses_there)


def test_what_is_read_of_a_body_is_bounded_and_more_is_said(tmp_path: Path) -> None:
    path = archive(tmp_path, [record(block(BODY)), record(block(BODY[:99]))])
    found, counts = read(path, 100)
    assert [(answer.body, answer.cut) for answer in found] == [(BODY[:100], True), (BODY[:99], False)]
    assert trouble(counts) == {}
    assert not read(path, len(BODY))[0][0].cut


def test_a_type_is_told_without_its_case_and_a_charset_from_it(tmp_path: Path) -> None:
    kinds = ["Text/HTML; Charset=ISO-8859-2", "text/html", 'text/html;charset="utf-8"', "text/plain", "image/png"]
    path = archive(tmp_path, [record(block(BODY, kind=kind)) for kind in kinds] + [record(b"HTTP/1.1 200 OK\r\n\r\nx")])
    found, counts = read(path)
    assert [(answer.kind, (answer.charset or "").lower()) for answer in found] == [
        ("text/html", "iso-8859-2"),
        ("text/html", ""),
        ("text/html", "utf-8"),
    ]
    assert counts == {"another type": 3}


def test_records_of_other_types_are_passed_over(tmp_path: Path) -> None:
    kinds = ("warcinfo", "request", "metadata", "revisit", "resource", "conversion", "continuation", "unheard")
    path = archive(tmp_path, [record(block(BODY), kind=kind) for kind in kinds] + [record(block(BODY))])
    found, counts = read(path)
    assert [answer.body for answer in found] == [BODY]
    assert not counts


@pytest.mark.parametrize("packed", [True, False])
def test_a_head_that_is_none_costs_its_own_record(tmp_path: Path, packed: bool) -> None:
    heads = [b"", b"\0" * 100, b"\r\n\r\n", b"HTTP", b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe: \xff\r\n" * 50, BODY]
    good = record(block(BODY), "http://example.org/good")
    path = archive(tmp_path, [part for head in heads for part in (record(head), good)], packed)
    found, counts = read(path)
    assert [answer.body for answer in found if answer.url.endswith("good")] == [BODY] * len(heads)
    assert len(found) + counts["not http"] + counts["not 200"] + counts["another type"] == 2 * len(heads)


def test_addresses_that_are_none_of_the_web_are_passed_over(tmp_path: Path) -> None:
    urls = ["dns:example.org", "ftp://example.org/", "file:///etc/passwd", "<http://example.org/a>", "HTTP://EXAMPLE/"]
    found, counts = read(archive(tmp_path, [record(block(BODY), url) for url in urls]))
    assert [answer.url for answer in found] == ["http://example.org/a", "HTTP://EXAMPLE/"]
    assert counts == {"not http": 3}


def test_all_headers_of_a_name_come(tmp_path: Path) -> None:
    content = block(BODY, "X-Robots-Tag: noai", "x-robots-tag: otherbot: none", "X-ROBOTS-TAG:")
    (answer,), _ = read(archive(tmp_path, [record(content)]))
    assert answer.robots == ["noai", "otherbot: none", ""]


# --------------------------------------------------------------------------------------------------------------- bodies

GZIP, DEFLATE, CHUNKED = "Content-Encoding: gzip", "Content-Encoding: deflate", "Transfer-Encoding: chunked"
WAYS: dict[str, tuple[bytes, list[str]]] = {
    "plain": (BODY, [f"Content-Length: {len(BODY)}"]),
    "gzip": (gzip.compress(BODY), [GZIP]),
    "GZIP": (gzip.compress(BODY), ["content-encoding: X-GZip"]),
    "chunked": (chunked(BODY), [CHUNKED]),
    "chunked, of one byte": (chunked(BODY, 1), ["transfer-encoding: Chunked"]),
    "chunked, with extensions": (chunked(BODY, 100, b" ;name=value"), [CHUNKED]),
    "gzip and chunked": (chunked(gzip.compress(BODY), 17), [GZIP, CHUNKED]),
    "deflate": (zlib.compress(BODY), [DEFLATE]),
    "deflate without a head": (raw_deflate(BODY), [DEFLATE]),
    "deflate and chunked": (chunked(zlib.compress(BODY)), [CHUNKED, DEFLATE]),
    "unpacked, which the length of the packed is kept of": (BODY, [GZIP, "Content-Length: 1234"]),
    "unpacked, deflate": (b"\n " + BODY, [DEFLATE]),
    "unpacked, brotli": (BODY, ["Content-Encoding: br"]),
    "unpacked, zstd, in another charset": ("\ufeffgrüße".encode() + BODY, ["Content-Encoding: zstd"]),
    "unpacked, and joined": (BODY, [GZIP, CHUNKED]),
    "identity": (BODY, ["Content-Encoding: identity"]),
    "UTF-16 that says gzip": (("\ufeff" + BODY.decode()).encode("utf-16-le"), ["Content-Encoding: br"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_bodies_come_unpacked_whatever_their_headers_say(tmp_path: Path, way: str) -> None:
    sent, headers = WAYS[way]
    path = archive(tmp_path, [record(block(sent, *headers))])
    (answer,), counts = read(path)
    expected = sent if way.startswith(("unpacked", "UTF-16")) else BODY
    assert answer.body == expected
    assert not counts
    (answer,), counts = read(path, 100)
    assert answer.body == expected[:100][: len(answer.body)]
    assert answer.cut


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br"])
def test_what_cannot_be_unpacked_is_counted(tmp_path: Path, encoding: str) -> None:
    # As brotli is: bytes of all values, a bracket among them.
    packed = b"\x1b\x2f\x01\x00<" + bytes(range(256)) * 4
    found, counts = read(archive(tmp_path, [record(block(packed, f"Content-Encoding: {encoding}"))]))
    assert (found, counts) == ([], {"packed in another way": 1})


@pytest.mark.parametrize("way", ["plain", "gzip", "chunked", "gzip and chunked", "deflate", "deflate without a head"])
def test_a_body_that_ends_early_comes_as_far_as_it_goes_and_is_counted(tmp_path: Path, way: str) -> None:
    sent, headers = WAYS[way]
    for length in sorted({len(sent) // 4, len(sent) // 2, len(sent) - 9, *range(200, 230)}):
        (answer,), counts = read(archive(tmp_path, [record(block(sent[:length], *headers))]))
        assert BODY.startswith(answer.body), (way, length)
        assert len(answer.body) >= min(length - length // 10 - 40, len(BODY) - 400), (way, length)
        assert counts == {"cut bodies": 1}, (way, length)


@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_a_packed_body_comes_up_to_its_damage(tmp_path: Path, way: str) -> None:
    lines = b"".join(b"%d %d\n" % (n, n * n * 7919 % 100003) for n in range(9000))
    sent = gzip.compress(lines) if way == "gzip" else zlib.compress(lines)
    damaged = sent[: len(sent) // 2] + b"\xff" * 100 + sent[len(sent) // 2 + 100 :]
    (answer,), counts = read(archive(tmp_path, [record(block(damaged, f"Content-Encoding: {way}"))]))
    assert answer.body[:40_000] == lines[:40_000]
    assert counts == {"cut bodies": 1}


@pytest.mark.parametrize("size", ["-5", "-9", "0x10", "1_0", "+3", "FFFFFFFFFF", "99999999", "zz", "", " 5"])
def test_sizes_of_chunks_that_lie_end_the_body(tmp_path: Path, size: str) -> None:
    sent = b"5\r\n<html\r\n" + size.encode() + b"\r\n" + BODY
    (answer,), _ = read(archive(tmp_path, [record(block(sent, CHUNKED))]))
    assert answer.body.startswith((b"<html", b"5\r\n<html"))
    assert len(answer.body) <= len(sent)
    (answer,), _ = read(archive(tmp_path, [record(block(size.encode() + b"\r\n" + BODY, CHUNKED))]))
    assert answer.body.endswith(BODY)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_unpacked_up_to_the_bound(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    bomb = pack(pack(b"\0" * (1 << 27)) if pack is zlib.compress else b"<p>" * (1 << 24))
    encoding = GZIP if pack is gzip.compress else DEFLATE
    (answer,), counts = read(archive(tmp_path, [record(block(bomb, encoding))]), 50_000)
    assert answer.cut or len(answer.body) < 50_000
    assert len(answer.body) <= 50_000
    assert not counts


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300), st.sampled_from([[], [GZIP], [DEFLATE], [CHUNKED], [GZIP, CHUNKED], ["Content-Length: x"]])
)
def test_any_bytes_are_an_answer_and_the_next_one_comes(tmp_path: Path, body: bytes, headers: list[str]) -> None:
    for packed in (True, False):
        path = archive(tmp_path, [record(block(body, *headers)), record(block(BODY), "http://example.org/2")], packed)
        found, _ = read(path)
        assert found[-1].body == BODY
        assert len(found) == 2


# -------------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", DAMAGES)
def test_damage_costs_its_own_record_and_is_counted(tmp_path: Path, way: str, seed: int) -> None:
    (path,) = write_warcs(PAGES, tmp_path, 1)
    whole, before = read(path)
    there = [gzip.decompress(member) for member in members(path)]
    at = damage_warc(path, way, seed)
    found, counts = read(path)
    if at < 0:  # nothing was lost
        assert (found, counts) == (whole, before)
        return
    hurt = re.search(rb"WARC-Target-URI: (\S+)", there[at])
    assert hurt is not None
    url = hurt[1].decode()
    kept = [answer for answer in whole if answer.url != url]
    if way == "cut":  # nothing is behind it
        before_it = b"".join(there[:at])
        kept = [answer for answer in kept if f"WARC-Target-URI: {answer.url}\r\n".encode() in before_it]
    assert [answer for answer in found if answer.url != url] == kept
    right = {answer.url: answer for answer in whole}[url]
    hurt_ones = [answer for answer in found if answer.url == url]
    assert len(hurt_ones) <= 1
    if way in ("garbage", "longer"):
        assert hurt_ones == [right]
    for answer in hurt_ones:
        assert right.body.startswith(answer.body)
    records = {"cut": "cut records", "shorter": "cut bodies"}.get(way, "damaged records")
    assert trouble(counts)[records] == 1
    assert set(trouble(counts)) <= ({"cut records", "cut bodies"} if way == "cut" else {records})


@pytest.mark.parametrize("more", [1, 4, 5, 6, 8, 11, 300, 3000])
@pytest.mark.parametrize("packed", [True, False])
def test_a_record_that_says_it_is_longer_gives_back_the_next_one(tmp_path: Path, more: int, packed: bool) -> None:
    content = block(BODY)
    parts = [record(content, length=len(content) + more)]
    parts += [record(content, f"http://example.org/{n}", "response") for n in range(5)]
    found, counts = read(archive(tmp_path, parts, packed))
    assert [answer.url.rpartition("/")[2] for answer in found] == ["", "0", "1", "2", "3", "4"]
    assert {answer.body for answer in found} <= {BODY, BODY + b"\r", BODY + b"\r\n\r\n"}
    assert counts == ({} if more < 5 else {"damaged records": 1})


def test_several_damages_are_counted_each(tmp_path: Path) -> None:
    parts = [gzip.compress(record(block(BODY), f"http://example.org/{n}"), mtime=0) for n in range(12)]
    for at in (2, 3, 7):
        parts[at] = parts[at][:150] + b"\0" * (len(parts[at]) - 150)
    parts[9] = b"no member" + parts[9]
    path = tmp_path / "some.warc.gz"
    path.write_bytes(b"".join([*parts, b"behind all"]))
    found, counts = read(path)
    assert [int(answer.url[-2:].lstrip("/")) for answer in found] == [0, 1, 4, 5, 6, 8, 9, 10, 11]
    assert counts == {"damaged records": 5}


@pytest.mark.parametrize("packed", [True, False])
def test_an_archive_that_ends_in_any_place_says_so(tmp_path: Path, packed: bool) -> None:
    path = archive(
        tmp_path,
        [record(block(BODY), f"http://example.org/{n}", kind) for n, kind in enumerate(["response"] * 2)],
        packed,
    )
    data = path.read_bytes()
    half = len(data) // 2
    for length in (half + 1, half + 100, half + 400, len(data) - 20):
        path.write_bytes(data[:length])
        found, counts = read(path)
        assert found[0].body == BODY
        assert counts["cut records"] + counts["damaged records"] == 1, length


@pytest.mark.parametrize(
    "content",
    [b"no archive\n" * 1000, b"\0" * 5000, b"\x1f\x8b\x08" * 5000, gzip.compress(b"no archive\n" * 1000, mtime=0)],
    ids=["text", "zeros", "marks", "packed text"],
)
def test_what_is_no_archive_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.warc.gz"
    path.write_bytes(content)
    found, counts = read(path)
    assert found == []
    assert counts["damaged records"] + counts["cut records"] == counts.total() == 1


def test_an_empty_archive_holds_nothing_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.warc.gz"
    path.write_bytes(b"")
    assert read(path) == ([], {})
    with pytest.raises(UsageError, match="absent"):
        read(tmp_path / "absent.warc.gz")
