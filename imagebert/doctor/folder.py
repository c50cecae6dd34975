"""Is the run's folder the same one on all hosts? A file that rank 0 writes and renames there, and all look for."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from imagebert import distributed

_PATIENCE = 10.0  # seconds: file servers' clients keep names for a while


def see_together(folder: Path) -> str:
    """What this rank sees of rank 0's file: seen, absent, or stale where the old name stays. Collective.

    Empty where there is nobody to tell, or where rank 0 cannot write, which it says elsewhere.
    """
    if distributed.world_size() == 1:
        return ""
    made, name = [], ""
    content = secrets.token_hex(16)
    if distributed.rank() == 0:
        with suppress(OSError):
            made = [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            # Names that nobody has looked for: that a name is not there is kept too.
            (folder / f".doctor-{content[:8]}").write_text(content)
            name = f".doctor-{content[:8]}"
    try:
        name, content = json.loads(distributed.gather(json.dumps([name, content]))[0])
        if not name:
            return ""
        old, new = folder / name, folder / f"{name}-renamed"
        seen = _becomes(lambda: _holds(old, content))
        distributed.total([1])  # all have looked
        if distributed.rank() == 0:
            with suppress(OSError):
                old.rename(new)
        distributed.total([1])
        seen = seen and _becomes(lambda: _holds(new, content))
        gone = not seen or _becomes(lambda: not _holds(old, content))
        distributed.total([1])
        return ("seen" if gone else "stale") if seen else "absent"
    finally:
        if distributed.rank() == 0 and name:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
                (folder / f"{name}-renamed").unlink(missing_ok=True)
                for place in made:
                    place.rmdir()


def _holds(path: Path, content: str) -> bool:
    try:
        return path.read_text() == content
    except OSError:
        return False


def _becomes(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + _PATIENCE
    while not (found := is_so()) and time.monotonic() < until:
        time.sleep(0.1)
    return found
