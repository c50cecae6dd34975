"""Rules of X-Robots-Tag as Google documents them, and the words that say no to learning from pictures."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from imagebert.lait.opt_out import NO, header_opt_out, meta_opt_out

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([], ""),
        ([""], ""),
        (["all"], ""),
        (["nofollow, nosnippet"], ""),
        (["max-snippet: 20, max-image-preview:large, max-video-preview: -1"], ""),
        *(([word], word) for word in NO),
        (["NoAI"], "noai"),
        (["max-image-preview:large, noai"], "noai"),
        (["max-image-preview:large,noimageai"], "noimageai"),
        (["nofollow ,  noindex\t"], "noindex"),
        (["all", "nofollow", "none"], "none"),
        (["otherbot: noindex, nofollow"], ""),
        (["otherbot: noindex", "googlebot: none"], ""),
        (["otherbot: noindex", "noai"], "noai"),
        (["imagebert: noindex"], "noindex"),
        (["ImageBERT : nofollow, noai"], "noai"),
        (["*: noai"], "noai"),
        # Two headers that a proxy has joined.
        (["otherbot: noindex, imagebert: noai"], "noai"),
        (["imagebert: nofollow, otherbot: noai"], ""),
        (["otherbot: max-snippet: 2, noai"], ""),
        # What is like a rule is none.
        (["noaix, no ai, indexnone"], ""),
        (["my noai"], ""),
        # Each way to write a date, before and after.
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], "unavailable_after"),
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"], "unavailable_after"),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 UTC"], "unavailable_after"),
        (["unavailable_after: 2010-06-25T15:00:00+00:00"], "unavailable_after"),
        (["unavailable_after: 2010-06-25"], "unavailable_after"),
        (["unavailable_after: Tue, 25 Jun 2030 15:00:00 GMT"], ""),
        (["unavailable_after: 2030-06-25"], ""),
        (["unavailable_after: Tue, 25 Jun 2030 15:00:00 GMT, noai"], "noai"),
        (["unavailable_after: soon, noindex"], "noindex"),
        (["unavailable_after: 99 Foo 99999999999 25:61:61"], ""),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 GMT"], ""),
        (["imagebert: unavailable_after: 25 Jun 2010 15:00:00 GMT"], "unavailable_after"),
        ([",,:,: ,::", "noai"], "noai"),
        # As sites write it.
        (["noai; noimageai"], "noai"),
        (["index; noimageai"], "noimageai"),
        (["imagebert/0.1: noai"], "noai"),
        (["max-age: 3600, noai"], "noai"),
        (["otherbot/2.0: noai"], ""),
        (["robots: noai"], "noai"),
    ],
)
def test_a_header_says_no_or_does_not(values: list[str], word: str) -> None:
    assert header_opt_out(values, "imagebert", NOW) == word


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ([("description", "noai"), ("viewport", "none")], ""),
        ([("robots", "index, follow")], ""),
        ([("robots", "max-image-preview:large, noimageai")], "noimageai"),
        ([(" Robots ", "noai")], "noai"),
        ([("otherbot", "noindex")], ""),
        ([("imagebert", "noindex")], "noindex"),
        ([("robots", "unavailable_after: 2010-06-25")], "unavailable_after"),
    ],
)
def test_a_pages_meta_tags_say_no_or_do_not(tags: list[tuple[str, str]], word: str) -> None:
    assert meta_opt_out(tags, "imagebert", NOW) == word


def test_more_than_any_server_sends_is_not_read() -> None:
    too_long = "more than 10,000 characters"
    assert header_opt_out(["x," * 10_000_000, "noai"], "imagebert", NOW) == too_long
    assert meta_opt_out([("robots", "x," * 10_000_000)], "imagebert", NOW) == too_long
