"""Checkpoints on disk: published atomically with a manifest of digests, verified before they are loaded.

    checkpoints/step-00001000/   what DeepSpeed writes, and manifest.json: step, and each file's size and SHA-256

A folder that has its final name is complete: it is written under another name, its files are made durable, then it is
renamed. One that was damaged later is passed over with a message, for the newest good one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from imagebert import distributed
from imagebert.data.folder import file_digest, replace_folder
from imagebert.engine.engine import Engine

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. Collective: all ranks make the same calls."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, engine: Engine, step: int, state: dict[str, Any]) -> None:
        """Writes the state after `step` steps, then removes all but the newest `keep`.

        Raises:
            OSError: the disk is full or cannot be written; earlier checkpoints stay.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".step-{step:08d}.incomplete"
        main = distributed.rank() == 0
        try:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            distributed.barrier()
            engine.save(temporary, {**state, "step": step})
            distributed.barrier()
            if main:
                files = {
                    str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": file_digest(p)}
                    for p in sorted(temporary.rglob("*"))
                    if p.is_file()
                }
                manifest = json.dumps({"step": step, "files": files}, indent=2)
                (temporary / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
                replace_folder(temporary, final)
                for old in self._complete()[: -self.keep]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"checkpoint {final} could not be written ({error}): free some space; the earlier ones are kept"
            ) from error
        distributed.barrier()

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are what its manifest says; damaged ones are named and passed over."""
        for folder in reversed(self._complete()):
            problem = _problem(folder) if distributed.rank() == 0 else None
            (bad,) = distributed.total([problem is not None])
            if not bad:
                return folder
            log.warning("checkpoint %s is passed over: %s", folder, problem or "damaged, says rank 0")
        return None

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))


def _problem(folder: Path) -> str | None:
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return "its manifest.json is missing or damaged"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
            return f"{name} has changed since it was written"
    return None
