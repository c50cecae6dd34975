"""robots.txt as RFC 9309 has it, and as somebody writes it who wants a crawler to stop."""

from __future__ import annotations

import pytest

from imagebert.lait.robots import LONGEST_PAUSE, ROBOTS_BYTES, Rules

TEXT = b"""\xef\xbb\xbf# ours
User-agent: ImageBERT/0.1
Disallow: /private/
Allow: /private/open/
Disallow: /*.gif$
Crawl-delay: 2

user-agent: otherbot
Disallow: /

User-agent: *
Disallow: /all/
"""


@pytest.mark.parametrize(
    ("path", "own", "another"),
    [
        ("/a.jpg", True, True),
        ("/private/a.jpg", False, True),
        ("/private/open/a.jpg", True, True),
        ("/a.gif", False, True),
        ("/a.gif?b", True, True),
        ("/all/a.jpg", True, False),
        ("/%70rivate/a.jpg", False, True),
    ],
)
def test_the_most_specific_rule_of_ones_own_group_counts(path: str, own: bool, another: bool) -> None:
    url = f"https://a.test{path}"
    assert Rules(TEXT, "imagebert").allow(url) is own
    assert Rules(TEXT, "yetanother").allow(url) is another
    assert not Rules(TEXT, "otherbot").allow(url)


def test_a_group_may_be_for_several_and_a_name_may_come_twice() -> None:
    text = (
        b"User-agent: a\nUser-agent: imagebert\nDisallow: /1\n\nUser-agent: b\nDisallow: /\n\nUser-agent: imagebert\n"
    )
    rules = Rules(text + b"Disallow: /2\n", "imagebert")
    assert [rules.allow(f"http://a.test/{n}") for n in (1, 2, 3)] == [False, False, True]


@pytest.mark.parametrize(
    "text", [b"", b"\0\xff\xfe", b"<html>404</html>", b"Disallow: /", b"User-agent: *\nDisallow:\n"]
)
def test_what_says_nothing_allows_all(text: bytes) -> None:
    assert Rules(text, "imagebert").allow("http://a.test/1.jpg")


@pytest.mark.parametrize(
    ("said", "pause"), [(b"2", 2.0), (b"0.5", 0.5), (b"1e9", LONGEST_PAUSE), (b"nan", 0.0), (b"-1", 0.0), (b"x", 0.0)]
)
def test_a_pause_is_bounded(said: bytes, pause: float) -> None:
    assert Rules(b"User-agent: *\nCrawl-delay: " + said, "imagebert").pause == pause


def test_only_the_first_half_megabyte_counts() -> None:
    text = b"User-agent: *\n" + b"# %s\n" % (b"x" * 100) * 6000 + b"Disallow: /\n"
    assert len(text) > ROBOTS_BYTES
    assert Rules(text, "imagebert").allow("http://a.test/")
    # A line that is cut is no shorter rule.
    rule = b"Disallow: /" + b"y" * 100 + b"\n"
    text = b"User-agent: *\n" + rule * (1 + ROBOTS_BYTES // len(rule))
    assert Rules(text, "imagebert").allow("http://a.test/" + "y" * 99)


@pytest.mark.parametrize(
    "text",
    [
        b"".join(b"User-agent: bot%d\n" % n for n in range(12_000)) + b"Disallow: /x\n" * 12_000,
        b"User-agent: *\n" + b"Disallow: /" + b"*a" * 200_000 + b"\n",
        b"User-agent: *\n" + b"Disallow: *a*b*c\n" * 25_000,
        b"User-agent" + b" " * 400_000,
        b"User-agent: *\n" * 30_000,
    ],
    ids=["names_times_rules", "long_rule", "many_rules", "spaces", "one_name"],
)
def test_no_text_takes_longer_than_a_moment(text: bytes) -> None:
    """Names times rules would be minutes and gigabytes."""
    rules = Rules(text, "imagebert")
    rules.allow("http://a.test/" + "a" * 4000)
