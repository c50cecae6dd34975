"""RUN/.fit.json: what an attempt had when it was found fit, so that what a later one misses is its machines' fault."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from imagebert.config import UsageError
from imagebert.files import read_json, write_json
from imagebert.launch import find_job

_NAME = ".fit.json"


def write_record(folder: Path, data: Mapping[str, str]) -> None:
    """Leaves the digests of what was seen; a disk that does not take it costs a later attempt this knowledge only."""
    job, attempt = find_job(os.environ)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _NAME, {"job": job, "attempt": attempt + 1, "data": dict(data)})


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_record` left; None: nothing that can be read."""
    with suppress(UsageError, OSError):
        found = read_json(folder / _NAME, 1 << 20)
        if isinstance(found, dict) and isinstance(found.get("data"), dict) and isinstance(found.get("attempt"), int):
            return found
    return None


def missing(record: Mapping[str, Any], data: Mapping[str, str]) -> list[str]:
    """The paths that were seen then, are still asked for, and are not seen now (which have no digest)."""
    return [path for path, digest in record["data"].items() if digest and data.get(path) == ""]
