"""What fetching pictures may cost, and how hosts are treated."""

from __future__ import annotations

from dataclasses import dataclass

from imagebert import __version__
from imagebert.errors import UsageError


@dataclass(frozen=True)
class FetchLimits:
    """Says what fetching may cost, and how hosts are treated.

    Attributes:
        seconds: for a picture in all, redirects and a second try included; waiting for its host's turn is not
        picture_bytes: of its body
        redirects: that are followed for a picture
        connections: at once, to all hosts
        per_host: requests at once to one host
        pause: seconds from the beginning of a request to a host to the next one's; robots.txt may ask for more
        side: pixels that width and height both must exceed
        aspect: the longer side over the shorter, at most
        retry_seconds: that a host which says 429 or 503 is waited for, once for a picture; if it wants more, not at all
        host_failures: requests of a host that fail one after the other, until the rest of its pictures is given up
        host_seconds: that the shard has for one host, from its first request
        user_agent: what is said of whoever asks; its name, up to the slash, is what robots.txt and X-Robots-Tag call it
        follow_robots: whether robots.txt is asked for and followed
        allow_private: whether addresses that are not public may be asked, as of an intranet
    """

    seconds: float = 20.0
    picture_bytes: int = 20 << 20
    redirects: int = 5
    connections: int = 256
    per_host: int = 2
    pause: float = 0.1
    side: int = 300
    aspect: float = 3.0
    retry_seconds: float = 5.0
    host_failures: int = 8
    host_seconds: float = 1800.0
    user_agent: str = f"imagebert/{__version__}"
    follow_robots: bool = True
    allow_private: bool = False

    def __post_init__(self) -> None:
        for name in ("seconds", "picture_bytes", "connections", "per_host", "aspect", "host_failures", "host_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}: give a number above 0")
        for name in ("redirects", "pause", "side", "retry_seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)!r}: give 0 or more")
        if not self.agent or not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise UsageError(f"user_agent is {self.user_agent!r}: give a name, as in a header of HTTP")

    @property
    def agent(self) -> str:
        """The name without its version."""
        return self.user_agent.partition("/")[0].partition(" ")[0]
