"""Hard negatives on disk: for each image the captions, for each caption the images, that a model takes for matches."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagebert.config import UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.plan import HardNegatives


def write_hard_negatives(path: Path, mined: HardNegatives, corpus: Corpus) -> None:
    metadata = {"corpus": json.dumps(corpus.digest())}
    part = path.with_name(f".{path.name}.part")
    try:
        save_file({"captions": mined.captions, "images": mined.images}, part, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    os.replace(part, path)


def read_hard_negatives(path: Path, corpus: Corpus) -> HardNegatives:
    """What `imagebert mine` wrote for this very corpus.

    Raises:
        UsageError: no such file, or it was mined from other data.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            mined = HardNegatives(file.get_tensor("captions"), file.get_tensor("images"))
            origin = json.loads(file.metadata()["corpus"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read hard negatives from {path} ({error}): make them with `imagebert mine`") from None
    if origin != corpus.digest():
        raise UsageError(f"{path} was mined from other data than this run's: mine again")
    return mined
