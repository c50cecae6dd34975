"""Names of an earlier version: each works for one version more, and says its new name."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def warn_renamed(old: str, new: str) -> None:
    """Says once in a process that something has another name now."""
    log.warning("%s is called %s now: the next version knows no other name", old, new, extra={"by_rank_0": True})
