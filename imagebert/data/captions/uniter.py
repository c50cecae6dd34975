"""UNITER's txt_db: an LMDB of texts, each a dictionary by msgpack in a frame of lz4. The gate of lz4.

prepro.py puts word pieces into the source's own record: `input_ids` and `img_fname` beside `sentence` (NLVR2), `sent`
(referring expressions), `raw` (Karpathy's Flickr30k) or `caption` (COCO's own). Word pieces alone are no text: their
vocabulary may be another, and what was lower-cased is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack

from imagebert.data.captions.line import PATIENCE, Found, Line, id_of
from imagebert.data.environments import Entry, Reader
from imagebert.errors import UsageError

_TEXTS = ("raw", "caption", "sentence", "sent")
_BYTES = 1 << 20  # of a record: a caption of any use has less


def uniter(path: Path) -> Found:
    """Raises: UsageError: it is no txt_db, or it holds no text; or lz4 is missing."""
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError as error:
        raise UsageError(
            f"{path} is an LMDB, and UNITER's txt_db are packed by lz4 ({error}): pip install 'imagebert[data]'"
        ) from None

    environment = Reader(path)

    def record_of(entry: Entry) -> dict[str, Any] | str:
        """A text's dictionary, or why there is none."""
        try:
            packed = environment.read(entry) if entry.size <= _BYTES else b""
            data = LZ4FrameDecompressor().decompress(packed, max_length=_BYTES)
            # Lists are made in the length that they say before they are read.
            found = msgpack.unpackb(data, raw=False, strict_map_key=False, max_array_len=4096, max_map_len=4096)
        except Exception as error:  # lz4's and msgpack's errors have no common base
            return f"it is no msgpack packed by lz4 ({type(error).__name__}: {error})"[:300]
        return found if isinstance(found, dict) else f"it holds {type(found).__name__}, not a dictionary"

    first = [record for record in map(record_of, islice(environment.entries(), PATIENCE)) if isinstance(record, dict)]
    if not first:
        raise UsageError(f"{path} is an LMDB, and none of its first values is msgpack packed by lz4: it is no txt_db")
    text = next((name for name in _TEXTS for record in first if isinstance(record.get(name), str)), "")
    if not text:
        raise UsageError(
            f"{path} holds word pieces and no text, its records have {', '.join(map(str, first[0]))[:200]}: give the "
            "captions' own JSON"
        )
    if not any(isinstance(record.get("img_fname"), str) for record in first):
        raise UsageError(f"{path} has texts of several images each, as NLVR2's, or of none: they are no captions")
    return Found(f"UNITER's txt_db, {text} of {len(environment):,} texts", _uniter(environment, record_of, text))


def _uniter(environment: Reader, record_of: Callable[[Entry], dict[str, Any] | str], text: str) -> Iterator[Line]:
    row = 0
    for entry in environment.entries():
        found = record_of(entry)
        line = Line(f"{environment.path}, key {entry.key[:80].decode('utf-8', 'replace')!r}", "", "", row)
        row += 1
        if isinstance(found, str):
            yield line._replace(error=found)
            continue
        image, caption = found.get("img_fname"), found.get(text)
        split = {"restval": "train"}.get(str(found.get("split")), str(found.get("split") or "train"))
        line = line._replace(id=id_of(found.get("image_id")), split=split)
        if not isinstance(image, str):
            several = isinstance(image, list | tuple)
            yield line._replace(error="it is of several images, as NLVR2's are" if several else "it has no img_fname")
        elif not isinstance(caption, str):
            yield line._replace(image=image, error=f"it has no text in {text}")
        else:
            yield line._replace(image=image, text=caption)
    error = f"its texts are lost, {row:,} of {len(environment):,} were found"
    for number, problem in enumerate(environment.damaged, row):
        yield Line(problem, "", "", number, error=error)
