"""Checkpoints on disk: published atomically with a manifest of digests, verified before they are loaded.

    checkpoints/step-00001000/   what DeepSpeed writes, and manifest.json: step, state, each file's size and SHA-256

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
        """Writes what holds after `step` steps, with `state` (plain data) in the manifest; then drops old ones.

        Raises:
            OSError: the disk is full or cannot be written; earlier checkpoints stay.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".step-{step:08d}.incomplete"
        main = distributed.rank() == 0
        try:
            with distributed.together():
                if main:
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
            with distributed.together():
                engine.save(temporary)
            with distributed.together():
                if main:
                    manifest = {"step": step, "state": state, "files": _digests(temporary)}
                    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
                    replace_folder(temporary, final)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"checkpoint {final} could not be written ({error}): free some space; the earlier ones are kept"
            ) from error
        if main:
            others = [folder for folder in self._complete() if folder != final]
            for old in others[: max(0, len(others) - self.keep + 1)]:
                shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose files are what its manifest says, and the state saved with it.

        A damaged one is named and put aside.
        """
        good = 0
        with distributed.together():
            if distributed.rank() == 0:
                for folder in reversed(self._complete()):
                    problem = _problem(folder)
                    if problem is None:
                        good = int(folder.name[5:])
                        break
                    log.warning("checkpoint %s is passed over: %s", folder, problem)
                    aside = folder.with_name(f".damaged-{folder.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    folder.rename(aside)
                if not good and any(self.folder.glob(".damaged-*")):
                    log.warning("no good checkpoint is left in %s: starting from step 0", self.folder)
        step = int(distributed.total([good])[0])
        if step == 0:
            return None
        folder = self.folder / f"step-{step:08d}"
        return folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["state"]

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_digest(p)} for p in files}


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
