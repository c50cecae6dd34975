"""Bytes to elements: charsets with wrong claims, addresses against urllib, and pages that were made to do harm."""

from __future__ import annotations

from urllib.parse import quote, urljoin, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebert.lait.document import Document, above, decode, element_beside, plain_address, text_of

PAGE = "http://www.example.org/news/2024/page.html?x=1"
WORDS = "Grüße – “quoted” naïve café €5"  # noqa: RUF001


def html(text: str, charset: str = "") -> str:
    return f"<html><head><meta charset='{charset}'></head><body><p>{text}</p></body></html>"


# ------------------------------------------------------------------------------------------------------------- charsets


@pytest.mark.parametrize(
    "header", [None, "utf-8", "iso-8859-1", "shift_jis", "utf-16", "nonsense", "base64", "idna", ""]
)
@pytest.mark.parametrize("own", ["utf-8", "windows-1252", "big5", "utf-16", "punycode", "nonsense", ""])
def test_what_is_utf_8_is_read_as_such_whatever_is_claimed(header: str | None, own: str) -> None:
    for text in (WORDS, "Grüße aus dem Café, 5 €"):  # the second is right in most charsets of one byte, too
        page = html(text, own)
        assert decode(page.encode(), header) == page


@pytest.mark.parametrize(
    ("text", "encoding", "claimed"),
    [
        (WORDS, "windows-1252", "iso-8859-1"),
        (WORDS, "windows-1252", "ISO_8859-1"),
        (WORDS, "windows-1252", "us-ascii"),
        (WORDS, "windows-1252", "latin1"),
        (WORDS, "windows-1252", "windows-1252"),
        ("Příliš žluťoučký kůň", "iso-8859-2", "iso-8859-2"),
        ("Příliš žluťoučký kůň", "windows-1250", "Windows-1250"),
        ("İstanbul ve çağ", "windows-1254", "iso-8859-9"),
        ("Привет, мир", "koi8-r", "koi8-r"),
        ("Привет, мир", "windows-1251", "cp1251"),
        ("שלום עולם", "iso-8859-8", "iso-8859-8-i"),
        ("日本語のページ、①", "cp932", "Shift_JIS"),
        ("日本語のページ", "cp932", "x-sjis"),
        ("日本語のページ", "euc_jp", "euc-jp"),
        ("日本語のページ", "iso2022_jp", "iso-2022-jp"),
        ("简体中文", "gb18030", "gb2312"),
        ("简体中文", "gb18030", "gbk"),
        ("繁體中文", "big5", "big5"),
        ("한국어 똠", "cp949", "euc-kr"),
        ("ภาษาไทย", "cp874", "windows-874"),
        ("any – text", "utf-16-le", "utf-16"),  # noqa: RUF001
        ("any – text", "utf-16-be", "utf-16be"),  # noqa: RUF001
    ],
)
@pytest.mark.parametrize("quotes", ["", '"', "'", " "])
def test_a_page_is_read_in_what_its_header_says_as_browsers_do(
    text: str, encoding: str, claimed: str, quotes: str
) -> None:
    page = html(text)
    assert decode(page.encode(encoding), f"{quotes}{claimed}{quotes}") == page


def test_its_own_words_are_believed_where_the_header_is_silent_or_wrong() -> None:
    for declared in (
        "<meta charset=windows-1251>",
        "<META CHARSET = 'Windows-1251' >",
        '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">',
        "<meta name=x content=y><!-- more --><meta\ncharset\n=\nwindows-1251>",
    ):
        page = f"<html>{declared}<p>Привет, мир"
        for header in (None, "utf-8", "nonsense", "unicode_escape", "rot13", "euc-jp"):
            assert decode(page.encode("windows-1251"), header) == page
    # The header counts first, where both are possible.
    assert decode(b"<meta charset=windows-1251>\xe4", "iso-8859-1")[-1] == "ä"


def test_a_page_that_is_cut_in_a_character_is_still_utf_8() -> None:
    data = "<p>A café in Zürich … on the “old” square".encode()
    for length in range(20, len(data) + 1):
        assert data.decode().startswith(decode(data[:length], "iso-8859-1"))
        assert len(decode(data[:length], "iso-8859-1").encode()) > length - 4


def test_an_xml_declaration_says_the_charset() -> None:
    page = '<?xml version="1.0" encoding="iso-8859-2"?>\n<html><p>Łódź'
    assert decode(page.encode("iso-8859-2"), None) == page


def test_a_mark_counts_before_all_claims() -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        data = ("\ufeff" + html(WORDS, "koi8-r")).encode(encoding)
        assert decode(data, "windows-1251") == html(WORDS, "koi8-r")
        assert decode(data + b"\xff", "windows-1251").startswith(html(WORDS, "koi8-r"))  # damaged


def test_what_is_in_no_claimed_charset_is_read_with_marks_in_place_of_wrong_bytes() -> None:
    assert decode(b"caf\xe9 \x81 \xff\xfe", None) == "café \ufffd ÿþ"
    assert decode(b"caf\xe9 \x81", "koi8-r")[:3] == "caf"
    assert decode(b"\xe6\x97\xa5\xff text", "utf-8") == "日\ufffd text"
    assert decode(b"\x82\xa0\xff text", "shift_jis")[0] == "あ"


def test_a_claim_of_utf_16_for_what_has_one_byte_a_letter_is_none() -> None:
    for page in (html("plain"), html(WORDS)):
        data = page.encode("windows-1252")
        assert decode(data + b" " * (len(data) % 2), "utf-16").rstrip() == page


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=20), st.sampled_from(["utf-16", "gb2312"])))
def test_any_bytes_are_a_text_that_the_parser_takes(data: bytes, charset: str | None) -> None:
    text = decode(data, charset)
    text.encode()  # no half characters
    Document(PAGE, text)


# ------------------------------------------------------------------------------------------------------------ addresses

HREFS = (
    *("a.jpg", "./a.jpg", "../a.jpg", "../../../../a.jpg", "/a.jpg", "/x/../a.jpg", "/./a.jpg", "a/b/../c.jpg"),
    *("?size=2", "a.jpg?b=c/d", "a.jpg?x=:y", "a.jpg#part", "//cdn.example.net/a.jpg", "//cdn.example.net:8080/a.jpg"),
    *("http://other.example/a.jpg", "https://other.example/a.jpg?q=1#z", "http://u:p@other.example/a.jpg", "a%20b.jpg"),
    *("/a/b;c=d/e.jpg", "x.jpg?a=1&b=2", "..a.jpg", "a..jpg", "/.hidden/a.jpg", "x/y:z.jpg", "/a:b.jpg", "#top"),
    *("http://[2001:db8::1]/a.jpg", "//[2001:db8::1]:80/a.jpg", "/", ".", "..", "./", "a//b.jpg", "/a//b.jpg"),
)
BASES = (PAGE, "https://example.org", "http://example.org/a/b/c/", "http://example.org:81/?x=/y/", "http://[::1]/a/b")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("href", HREFS)
def test_addresses_are_joined_as_urllib_joins_them(base: str, href: str) -> None:
    expected = urljoin(base, href).partition("#")[0]
    if "[" in expected:
        expected = ""  # an address by number: no picture of the web is there
    assert Document(base, "").absolute(href) == expected
    assert Document(base, "").absolute(f" \n{href[:2]}\t{href[2:]} ") == expected


@pytest.mark.parametrize(
    ("base", "where"),
    [
        ("/assets/", "http://www.example.org/assets/"),
        ("https://cdn.example.net/x/", "https://cdn.example.net/x/"),
        ("//cdn.example.net/x/", "http://cdn.example.net/x/"),
        ("up/", "http://www.example.org/news/2024/up/"),
        *((base, PAGE) for base in ("javascript:0", "data:,x", "http://[", "//", "", "  ", "file:///x/")),
    ],
)
def test_a_page_says_its_base_once(base: str, where: str) -> None:
    document = Document(PAGE, f"<base target=_top><base href='{base}'><base href='http://second.example/'>")
    assert document.absolute("a.jpg") == urljoin(where, "a.jpg")
    assert document.absolute("//h.example/a.jpg") == f"{urlsplit(where).scheme}://h.example/a.jpg"
    assert document.host == urlsplit(where).hostname


@pytest.mark.parametrize(
    "href",
    [
        *(
            "",
            "  ",
            "javascript:alert(1)",
            "JavaScript:x",
            "data:image/png;base64,AA",
            "about:blank",
            "file:///etc/passwd",
        ),
        *(
            "ftp://example.org/a.jpg",
            "mailto:a@example.org",
            "blob:http://x/y",
            "http://",
            "https:///a.jpg",
            "//",
            "///a",
        ),
        *("http://[::1", "http://]/a", "http://?x", "http://#x", "http://\u2100/a.jpg", "http://..\u00e4/a.jpg"),
        *("http://a b/c.jpg", "http://\u00e4" + "\u00e4" * 300 + "/a.jpg", "/" + "a" * 3000, "http:a.jpg"),
        *("http://ex\uff0fample.org/\u00e4", "http://a:port/\u00e4"),
    ],
)
def test_what_is_no_address_of_the_web_is_none(href: str) -> None:
    assert Document(PAGE, "").absolute(href) == ""


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("a b.jpg", "a%20b.jpg"),
        ("ü/ß.jpg?q=é", quote("ü/ß.jpg") + "?q=" + quote("é")),
        ("a%20b c.jpg", "a%20b%20c.jpg"),
        ("日本.jpg#x", quote("日本.jpg")),
        ("a\\b c\\d.jpg?x=\\", "a/b%20c/d.jpg?x=%5C"),
        ("photo 12:30.jpg", "photo%2012:30.jpg"),
    ],
)
def test_paths_are_in_percents(href: str, path: str) -> None:
    assert Document("http://example.org/", "").absolute(href) == f"http://example.org/{path}"


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("http://bücher.example/ä.jpg", "http://xn--bcher-kva.example/%C3%A4.jpg"),
        ("//bücher.example:8080?q=ä/b", "http://xn--bcher-kva.example:8080?q=%C3%A4/b"),
        ("HTTP://bücher.example", "http://xn--bcher-kva.example"),
        ("http://me@bücher.example/", "http://me@xn--bcher-kva.example/"),
        ("HTTPS://example.org/A.JPG", "https://example.org/A.JPG"),
    ],
)
def test_hosts_are_in_idna(href: str, expected: str) -> None:
    assert Document(PAGE, "").absolute(href) == expected


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"(https?:)?//[ -~é]{0,20}(/[ -~é]{0,9})?", fullmatch=True))
def test_any_text_is_an_address_with_a_host_or_none(href: str) -> None:
    for base in ("", "http://", "http://["):
        found = Document(PAGE, f"<base href='{base}'>").absolute(base + href)
        if found:
            assert urlsplit(found).scheme in ("http", "https")
            assert urlsplit(found).hostname
            assert " " not in found
            assert found.isascii()


def test_one_address_for_all_ways_to_write_it() -> None:
    document = Document("http://a.example/b/c", "")
    for href in (
        *(
            "HTTP://A.Example:80/dir/../uploads/x.jpg",
            "//A.EXAMPLE/uploads/./x.jpg",
            "/uploads/x.jpg",
            "../uploads/x.jpg",
        ),
        *("http://a.example:/uploads/x.jpg", "/dir/../../uploads/x.jpg", "http://a.example/uploads/x.jpg#a/../b"),
    ):
        assert document.absolute(href) == "http://a.example/uploads/x.jpg", href
    for href in (
        "http://a.example:8080/x",
        "https://a.example:80/x",
        "http://a.example/x?y=/../z",
        "http://a.example/x.y/z",
    ):
        assert document.absolute(href) == href
    assert plain_address("HTTP://a.example/x") == "http://a.example/x"  # as an archive may have it
    assert document.absolute("https://straße.de/") == "https://xn--strae-oqa.de/"  # another domain than strasse.de


def test_a_page_whose_address_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="IPv6"):
        Document("http://[", "")


# ----------------------------------------------------------------------------------------------------------------- head


def test_a_head_is_read_once_and_bounded() -> None:
    head = """<title> A title &amp; more </title><title>another</title><meta property="og:Title" content=" one ">
    <meta name=OG:TITLE content=two><meta name=robots content=noai><meta name=empty content><meta content=none>
    <meta name="x" property="y" content="z"><meta property=og:site_name content="The Site">"""
    document = Document(PAGE, head)
    assert document.title == "A title & more"
    assert document.meta == {"og:title": "one", "robots": "noai", "x": "z", "y": "z", "og:site_name": "The Site"}
    assert document.named[1:3] == [("og:title", "two"), ("robots", "noai")]
    assert document.site == "The Site"
    long = Document(PAGE, f"<title>{'a ' * 500_000}</title><meta name=application-name content='{'b ' * 500_000}'>")
    assert len(long.title) <= 2000
    assert len(long.meta["application-name"]) <= 2000
    assert len(long.site) <= 100


def test_a_language_is_told_by_paragraphs_and_else_by_all_but_code() -> None:
    prose = "<nav>Menu</nav><p>First words.</p>\n<p> Second ones. </p><script>var x</script>"
    assert Document(PAGE, f"<title>T</title>{prose}").prose(20) == " First words. Second"[:20]
    code = "<svg><style>a{}</style><title>no</title></svg><template><style>x</style></template><script>var y</script>"
    bare = Document(PAGE, f"<title>T</title><body><style>b{{}}</style>{code}<div>Words <b>here</b></div>{code}")
    assert bare.prose(100).split() == ["T", "Words", "here"]
    assert bare.prose(100).split() == ["T", "Words", "here"]
    assert Document(PAGE, "").prose(100).strip() == ""


def test_neighbours_of_an_element() -> None:
    document = Document(PAGE, "<main><div><p>a</p> <!-- x -->\n<img src=1>text<i>b</i></div></main>")
    (image,) = document.all("img")
    before = element_beside(image, back=True)
    assert before is not None
    assert before.tag == "p"
    assert element_beside(image, back=False) is None
    assert [node.tag for node in above(image, 9)] == ["div", "main"]
    assert [node.tag for node in above(image, 1)] == ["div"]
    assert text_of(document.all("div")[0], 3) == "a t"


# -------------------------------------------------------------------------------------------------------------- hostile

END = "<p>The end.</p><img src=/end.jpg>"


@pytest.mark.parametrize("tag", ["<option>", "</OPTION >", "<optgroup label=x>", "<rp>", "<rt>"])
def test_tags_that_are_slow_in_thousands_are_left_out(tag: str) -> None:
    """The parser's time grows with their square: 100,000 took a minute and a half."""
    name = tag.strip("</ >").split()[0].lower()
    few = Document(PAGE, f"<select>{'<option>x' * 50}</select>{END}")
    assert len(few.all("option")) == 50
    many = Document(PAGE, f"<select>{f'{tag}x' * 100_000}</select>{END}")
    assert (many.all(name), len(many.all("img"))) == ([], 1)


@pytest.mark.parametrize(
    "tag", ["<div>", "<b>", "<ul><li>", "<table><tr><td>", "<a href=x>", "<svg>", "<x-y a='>' b=\"</x-y>\">", "<font>"]
)
@pytest.mark.parametrize("times", [10_001, 200_000])
def test_nesting_is_cut_where_it_is_too_deep(tag: str, times: int) -> None:
    document = Document(PAGE, f"<title>T</title>{END}{tag * times}{END}")
    assert document.cut
    assert document.title == "T"
    assert len(document.all("img")) == 1
    deepest = document.all("*")[-1]
    assert sum(1 for _ in above(deepest, 10**6)) <= 4_100  # a table's rows have a body
    assert "The end." in document.prose(50)


def test_many_tags_that_end_are_no_depth() -> None:
    rows = "<tr><td><p>a<br><li>b<td>c" * 10_000
    for text in (
        "<div><b>word</b></div>" * 40_000,
        "<p>one<p>two<hr><img src=x>" * 40_000,
        f"<table>{rows}</table>",
        "<script>if (a<b) {}</script>" + "<!-- <div> -->" * 40_000,
    ):
        document = Document(PAGE, text + END)
        assert not document.cut
        assert document.all("img")[-1].attributes["src"] == "/end.jpg"


def test_a_page_of_too_many_tags_is_cut() -> None:
    document = Document(PAGE, "<i></i>" * 150_000 + END)
    assert document.cut
    assert 90_000 < len(document.all("i")) <= 100_000


@pytest.mark.parametrize(
    "text",
    [
        "<!--" * 300_000,
        "<!-- " + "<" * 300_000,
        "<" * 1_000_000,
        "</" * 500_000,
        "<a b='" * 100_000,
        '<a b="' + "<a b='" * 100_000,
        "<a " + "=" * 1_000_000,
        "<a " * 100_000,
        "<a " + " ".join(f"x{n}=y" for n in range(100_000)) + ">",
        "<a " + " ".join(f"x{n}='>'" for n in range(100_000)) + ">",
        "<a " + "/".join(f"x{n}" for n in range(100_000)),
        "<p title='" + "x" * 1_000_000 + "'>",
        "\0" * 1_000_000,
        "&amp;&lt;&CounterClockwiseContourIntegral;" * 30_000,
        '<!DOCTYPE x [<!ENTITY a "&b;&b;"><!ENTITY b "&c;&c;">]>' + "&a;" * 100_000,
        "<plaintext>" * 100,
        "<svg><style><template><script>" * 2_000,
        "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace") * 1_000,
    ],
)
def test_a_page_made_to_do_harm_is_a_page(text: str) -> None:
    document = Document(PAGE, "<p>First.</p>" + text)
    assert "First." in document.prose(1_000)
    assert document.prose(300_000)
    for node in document.all("*")[-3:]:
        text_of(node)
        assert node.attributes is not None
        list(above(node, 100))


def test_long_attributes_are_few() -> None:
    for text in (f"<p title='{'x y=z ' * 200_000}'>", f"<img src='data:,{'x' * 300_000}' alt=\"{'>' * 300_000}\">"):
        document = Document(PAGE, text + END)
        assert not document.cut
        assert document.all("img")[-1].attributes["src"] == "/end.jpg"


def test_nul_bytes_are_no_text() -> None:
    document = Document(PAGE, "<p\0>a\0b</p\0><i\0mg src='\0/x.jpg'>")
    assert document.prose(2).strip() == "a"
    assert "ab" in document.prose(10)
    assert document.all("img")[0].attributes["src"] == "/x.jpg"
