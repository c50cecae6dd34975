"""What may become of a picture that is fetched: a closed list."""

from __future__ import annotations

from imagebert.lait.picture_head import Head

# What may become of a picture: all that `status` is in a shard's Parquet. Those that are True may end otherwise another
# time: a call that goes on with a killed one asks for them again.
KINDS = {
    "success": False,
    "bad_url": False,  # no http or https, a user's name in it, or none that can be read; redirects' too
    "blocked": False,  # by the caller's list of hosts
    "private_address": False,  # its host has none that is public
    "dns_failed": True,  # its host has no address
    "connection_failed": True,  # refused, or nobody there
    "tls_failed": True,  # a certificate, or no TLS at all
    "connection_lost": True,  # before the answer's header was whole
    "cut_off": True,  # in the body; or the picture's own end is missing
    "timed_out": True,
    "bad_http": True,  # what came is no answer, or its header is too long
    "http_status": True,  # any but 200, after redirects
    "too_many_redirects": False,
    "robots": False,  # robots.txt disallows it
    "robots_unreachable": True,  # robots.txt cannot be read, which disallows all
    "opted_out": False,  # X-Robots-Tag says no
    "bad_encoding": False,  # packed in a way that is not asked for, or badly
    "no_picture": False,  # its bytes are none
    "too_small": False,
    "too_narrow": False,
    "too_large": False,
    "host_given_up": True,  # its host failed time after time, or took all its time
}


class Failed(Exception):
    """A picture does not come.

    Args:
        kind: one of KINDS
    """

    def __init__(self, kind: str, why: str, status: int | None = None, head: Head | None = None) -> None:
        super().__init__(why)
        self.kind, self.why, self.status, self.head = kind, why, status, head


def check_size(head: Head, side: int, aspect: float) -> None:
    """Whether a picture may be as large as its first bytes say.

    Args:
        side: pixels that width and height both must exceed
        aspect: the longer side over the shorter, at most

    Raises:
        Failed: it is too small or too narrow.
    """
    least, most = sorted((head.width, head.height))
    if least <= side:
        raise Failed("too_small", f"it has {head.width} x {head.height} pixels", 200, head)
    if most > aspect * least:
        raise Failed("too_narrow", f"it has {head.width} x {head.height} pixels", 200, head)
