"""What a run must have in common with its checkpoints, and what a checkpoint keeps."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from imagebert.config import RunConfig, differences, rename_keys
from imagebert.data.corpus import Corpus
from imagebert.engine.checkpoints import newest_manifest
from imagebert.errors import UsageError
from imagebert.files import digest_of, file_digest
from imagebert.model.card import model_digest
from imagebert.model.initialization import find_model
from imagebert.strict_yaml import build, to_plain

# What a checkpoint of ours keeps beside weights and moments.
STATE: dict[str, type] = {
    **dict.fromkeys(("config", "data", "layout", "model", "processing"), dict),
    **dict.fromkeys(("started_from", "hard_negatives"), object),  # there, though it be None
    "seconds": float,
}


def identity_of(given: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """What a run must have in common with its checkpoints."""
    hard = given.retrieval.hard_negatives if given.task == "finetune" else None
    return {
        "config": to_plain(given),
        "data": corpus.digest(),
        "hard_negatives": hard and file_digest(Path(hard)),
        "started_from": started_from(given),
    }


def check_resumable(given: RunConfig, corpus: Corpus) -> None:
    """Whether what the run's folder holds, if anything, is of this run, by the newest checkpoint's manifest.

    Raises:
        UsageError: it is of another recipe or other data, or what a run starts from is damaged.
    """
    identity = identity_of(given, corpus)
    newest = newest_manifest(Path(given.output) / "checkpoints", STATE)
    if newest is not None:
        folder, manifest = newest
        check_same(manifest["state"], identity, folder)


def started_from(config: RunConfig) -> str | None:
    """The digest of what a run starts from, fused layers included; None: new weights."""
    origins = config.model.initialize_from, config.model.fused_from
    first, fused = (None if origin is None else model_digest(find_model(Path(origin))) for origin in origins)
    return first if fused is None else digest_of([first, fused])


def check_same(state: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    """Whether the state that a checkpoint keeps is of a run of this identity.

    Raises:
        UsageError: it is of another recipe, or other data.
    """
    before = rename_keys(state["config"], str(folder), quiet=True)
    with suppress(UsageError):  # keys that it had not yet are as they are by default
        before = to_plain(build(RunConfig, before, str(folder)))
    changed = differences(before, identity["config"]) + differences(state["data"], identity["data"], "data of ")
    for name in ("started_from", "hard_negatives"):
        if state[name] != identity[name]:
            changed.append(f"{name}: {str(state[name])[:16]} -> {str(identity[name])[:16]}")
    if changed:
        raise UsageError(
            f"{folder} was made by another recipe or other data ({'; '.join(changed)}): undo that, "
            "or give another output folder"
        )
