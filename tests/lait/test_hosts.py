"""Hosts that are blocked: what a list may hold, and who is below whom."""

from __future__ import annotations

import pytest

from imagebert.errors import UsageError
from imagebert.lait.hosts import hosts_of, is_blocked


def test_a_list_of_hosts() -> None:
    lines = [
        "Example.ORG  # who asked us to",
        "",
        "# a comment",
        "*.b.example",
        "stra\u00dfe.de",
        "127.0.0.1",
        "::1",
        "x.example.",
    ]
    assert hosts_of(lines) == ("127.0.0.1", "::1", "b.example", "example.org", "x.example", "xn--strae-oqa.de")


@pytest.mark.parametrize("line", ["http://a.example/", "a.example:80", "a.example,b.example", "a example", "*", "a..b"])
def test_what_is_no_host_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="is no name of a host to block"):
        hosts_of(["b.example", line])


def test_a_host_stands_for_those_below() -> None:
    blocked = hosts_of(["b.example", "127.0.0.1"])
    assert [is_blocked(host, blocked) for host in ("b.example", "A.B.example.", "127.0.0.1")] == [True] * 3
    assert not any(is_blocked(host, blocked) for host in ("example", "ab.example", "b.example.org", ""))
