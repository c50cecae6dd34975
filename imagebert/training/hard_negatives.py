"""Hard negatives on disk: for each image the captions, for each caption the images, that a model takes for matches."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagebert.config import UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.plan import HardNegatives
from imagebert.files import open_regular, parse_json, replacing


def write_hard_negatives(path: Path, mined: HardNegatives, corpus: Corpus) -> None:
    """Writes a safetensors file: captions [I, K] and images [N, K], with the corpus that they number and a digest.

    Raises:
        OSError: it cannot be written; what stood there is as it was.
    """
    origin = json.dumps(corpus.digest())
    # One entry: safetensors writes several in another order each time, and equal content is to be equal bytes.
    metadata = {"mined": json.dumps({"corpus": origin, "digest": _digest(mined, origin)})}
    try:
        with replacing(path) as part:
            save_file(mined._asdict(), part, metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from None


def check_hard_negatives(path: Path) -> int:
    """The captions in a file that `imagebert mine` wrote, which is whole.

    Raises:
        UsageError: no such file, or it is damaged.
        OSError: the disk fails.
    """
    mined, _ = _read(path)
    return len(mined.images)


def read_hard_negatives(path: Path, corpus: Corpus) -> HardNegatives:
    """What `imagebert mine` wrote for this very corpus.

    Raises:
        UsageError: no such file, it is damaged, or it was mined from other data.
        OSError: the disk fails.
    """
    mined, origin = _read(path)
    if parse_json(origin, f"the corpus of {path}") != corpus.digest():
        raise UsageError(f"{path} was mined from other data than this run's: mine again")
    keep = mined.captions.shape[1]
    shapes = [(corpus.images, keep), (len(corpus), keep)]
    within = [((n >= 0) & (n < end)).all() for n, end in zip(mined, (len(corpus), corpus.images), strict=True)]
    if keep == 0 or [n.shape for n in mined] != shapes or not all(within):
        raise UsageError(f"{path} numbers other images and captions than this run's: mine again")
    return mined


def _read(path: Path) -> tuple[HardNegatives, str]:
    """What a file holds, whole, and the corpus that it is of."""
    open_regular(path).close()
    try:
        with safe_open(path, framework="numpy") as file:
            mined_from = _parse((file.metadata() or {}).get("mined", "{}"), path)
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: (part.get_dtype(), len(part.get_shape())) for name, part in parts.items()}
            if kinds != {"captions": ("I64", 2), "images": ("I64", 2)} or "corpus" not in mined_from:
                raise UsageError(f"{path} holds no hard negatives: make them with `imagebert mine`")
            mined = HardNegatives(file.get_tensor("captions"), file.get_tensor("images"))
    except SafetensorError as error:
        raise UsageError(f"cannot read hard negatives from {path} ({error}): make them with `imagebert mine`") from None
    if _digest(mined, mined_from["corpus"]) != mined_from.get("digest"):
        raise UsageError(f"{path} has changed since it was written: mine again")
    return mined, mined_from["corpus"]


def _parse(metadata: str, path: Path) -> dict[str, str]:
    try:
        mined_from = parse_json(metadata, str(path))
    except UsageError as error:
        raise UsageError(f"{error}; mine again") from None
    if not isinstance(mined_from, dict) or not isinstance(mined_from.get("corpus", ""), str):
        raise UsageError(f"{path} holds no hard negatives: make them with `imagebert mine`")
    return mined_from


def _digest(mined: HardNegatives, origin: str) -> str:
    """SHA-256 of all that the file says."""
    shapes = json.dumps([mined.captions.shape, mined.images.shape, origin])
    return hashlib.sha256(b"".join([shapes.encode(), mined.captions.tobytes(), mined.images.tobytes()])).hexdigest()
