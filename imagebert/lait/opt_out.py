"""Whether a site says that a picture is not for this: by X-Robots-Tag, or by a page's meta tags of the same words.

As Google specifies the header: it may come several times, each holds rules between commas, and a name in front of a
rule says for which crawler it and those behind it are. A few rules have a value (`max-snippet: 20`), and the date of
`unavailable_after` has commas and colons of its own. What is not known is no rule, and stops no other. Sites write
semicolons for commas, versions behind names, and `robots` for all of them: they mean no, and are taken at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# That pictures are not to be learned from, or not to be found.
NO = ("noai", "noimageai", "noindex", "noimageindex", "none")

_VALUED = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
# What may stand behind a crawler's name; a name with anything else behind it is an unknown rule's.
_KNOWN = {*NO, "all", "index", "follow", "nofollow", "noarchive", "nocache", "nosnippet", "notranslate", "noodp"}
_KNOWN |= {"indexifembedded", *_VALUED}
_NAMED = re.compile(r"\s*([^\s:,;]+)\s*:\s*(.*)", re.DOTALL)
_WEEKDAY = re.compile(r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?", re.IGNORECASE)
_LONGEST = 10_000  # characters of all headers that are looked at; what is longer cannot be told, and says no
_TOO_LONG = f"more than {_LONGEST:,} characters"


def header_opt_out(values: Iterable[str], agent: str, now: datetime) -> str:
    """The word of an answer's X-Robots-Tag headers that says no, or "".

    Args:
        values: of all headers of that name, in their order
        agent: this crawler's name, without its version
        now: after the date of `unavailable_after`, that rule says no
    """
    values = list(values)
    if sum(map(len, values)) > _LONGEST:
        return _TOO_LONG
    for value in values:
        theirs = False  # whether the rules are another crawler's
        for rule in _rules(value):
            named = _NAMED.fullmatch(rule)
            if named is not None and named[1].lower() not in _VALUED:
                if re.split(r"[\s:]", named[2].lower(), maxsplit=1)[0] not in _KNOWN:
                    continue
                whose = named[1].lower().partition("/")[0]
                theirs, rule = whose not in (agent.lower(), "robots", "*"), named[2]
            if not theirs and (said := _says_no(rule, now)):
                return said
    return ""


def meta_opt_out(tags: Iterable[tuple[str, str]], agent: str, now: datetime) -> str:
    """The word of a page's meta tags that says no, or "".

    Args:
        tags: `name` and `content` of each; those named robots, or as `agent`, count
    """
    own = [content for name, content in tags if name.strip().lower() in ("robots", agent.lower())]
    if sum(map(len, own)) > _LONGEST:
        return _TOO_LONG
    return next((said for value in own for rule in _rules(value) if (said := _says_no(rule, now))), "")


def _rules(value: str) -> Iterator[str]:
    """What stands between commas; the comma behind a weekday is the date's."""
    parts = iter(re.split("[,;]", value))
    for part in parts:
        if _WEEKDAY.fullmatch(part.rpartition(":")[2].strip()):
            part = f"{part},{next(parts, '')}"
        yield part.strip()


def _says_no(rule: str, now: datetime) -> str:
    word = rule.lower()
    if word in NO:
        return word
    named = _NAMED.fullmatch(rule)
    if named is not None and named[1].lower() == "unavailable_after":
        until = _date(named[2].strip())
        if until is not None and until < now:
            return "unavailable_after"
    return ""


def _date(text: str) -> datetime | None:
    """As RFC 822 and 850 or ISO 8601 write it; None: it is none."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            found = read(text)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
