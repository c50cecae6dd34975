"""What a site's robots.txt says of a URL (RFC 9309). The gate of protego.

The text is anybody's: only its first half megabyte counts, and of its groups only those that may be for this crawler
reach the parser, which takes rules times names of its time.
"""

from __future__ import annotations

import re

from protego import Protego

ROBOTS_BYTES = 500 << 10  # that RFC 9309 wants to be read
LONGEST_PAUSE = 10.0  # seconds between requests that a site may ask for

_AGENT = re.compile(r"\s*user[- ]?agent\s*[:\s]\s*([^#]*)", re.IGNORECASE)


class Rules:
    """What a robots.txt says to one crawler.

    Args:
        data: its bytes; what is more than `ROBOTS_BYTES` is left aside, with the line that it cuts
        agent: the crawler's name, without its version
    """

    def __init__(self, data: bytes, agent: str) -> None:
        if len(data) > ROBOTS_BYTES:
            data = data[: data.rfind(b"\n", 0, ROBOTS_BYTES) + 1]
        lines = data.decode("utf-8-sig", "replace").splitlines()
        self._agent = agent.lower()
        self._parsed = Protego.parse("\n".join(self._own(line) for line in lines))

    def _own(self, line: str) -> str:
        """A line; all names that are not this crawler's are one name."""
        named = _AGENT.match(line)
        if named is None:
            return line
        name = named[1].strip().lower()
        name = name if name == "*" else name.replace("*", "").partition("/")[0].strip()
        return f"User-agent: {name}" if name in ("*", self._agent) else "User-agent: -"

    def allow(self, url: str) -> bool:
        """Whether the crawler may ask for a URL."""
        return self._parsed.can_fetch(url, self._agent)

    @property
    def pause(self) -> float:
        """Seconds from one request to the next that the site asks for, `LONGEST_PAUSE` at most; 0: it does not."""
        return min(self._parsed.crawl_delay(self._agent) or 0.0, LONGEST_PAUSE)
