"""TSV of base64 (bottom-up-attention, LXMERT): one image a line, arrays as base64 of their raw bytes, no header.

bottom-up-attention: image_id, image_w, image_h, num_boxes, boxes, features
LXMERT: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features[, more]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, Item, check_files, share_of
from imagebert.data.readers.fields import decode_base64, record_from
from imagebert.data.records import RegionRecord
from imagebert.files import open_regular

LONGEST = 1 << 26  # bytes of a line: 100 boxes of 2,048 numbers are a million


class TsvReader:
    """Both layouts, told apart by their number of columns. Shares are runs of bytes, cut at the next line."""

    def __init__(self, sources: Sequence[Path]) -> None:
        self.files = [
            file for source in sources for file in (sorted(source.glob("*.tsv*")) if source.is_dir() else [source])
        ]
        if not self.files:
            raise UsageError(f"{sources[0]} holds no TSV file")
        check_files(self.files)

    def size(self, share: int, shares: int) -> int:
        return len(share_of(sum(file.stat().st_size for file in self.files), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        for file, offset, line, done in lines_of_share(self.files, share, shares):
            columns = line.split(b"\t", 10)  # what LXMERT's may have more stays in one
            key = columns[0].decode("utf-8", "replace") if len(columns) > 1 else ""
            yield Item(f"{file}, byte {offset}, image {key!r}", key, partial(_record, columns), done)


def lines_of_share(files: Sequence[Path], share: int, shares: int) -> Iterator[tuple[Path, int, bytes, int]]:
    """File, offset, line without its end, bytes read so far; a line belongs to the share that its first byte is in."""
    mine = share_of(sum(file.stat().st_size for file in files), share, shares)
    before = 0  # bytes of the files before this one
    for file in files:
        size = file.stat().st_size
        start, stop = max(mine.start - before, 0), min(mine.stop - before, size)
        if start < stop:
            with open_regular(file) as opened:
                if start > 0:  # to the next line's beginning, which may be here
                    opened.seek(start - 1)
                    opened.readline(LONGEST)
                while (offset := opened.tell()) < stop:
                    line = opened.readline(LONGEST)
                    if len(line) == LONGEST:
                        raise UsageError(f"{file}, byte {offset}: a line has more than {LONGEST} bytes: is it a TSV?")
                    content = line.rstrip(b"\r\n")
                    if content:
                        yield file, offset, content, before + opened.tell() - mine.start
        before += size


def _record(columns: list[bytes]) -> RegionRecord:
    if len(columns) == 6:
        _, width, height, number, boxes, features = columns
        more = {}
    elif len(columns) >= 10:
        _, height, width, classes, confidences, _, _, number, boxes, features = columns[:10]
        more = {
            "objects_id": decode_base64(classes, "<i8", "objects_id"),
            "objects_conf": decode_base64(confidences, "<f4", "objects_conf"),
        }
    else:
        raise BadRecord(f"it has {len(columns)} columns, not 6 (bottom-up-attention) or 10 and more (LXMERT)")
    try:
        sizes = {"image_w": int(width), "image_h": int(height), "num_boxes": int(number)}
    except ValueError:
        found = ", ".join(repr(text[:40]) for text in (width, height, number))
        raise BadRecord(f"width, height, boxes are {found}, not whole numbers") from None
    rows = sizes["num_boxes"]
    arrays = {
        "boxes": decode_base64(boxes, "<f4", "boxes", rows),
        "features": decode_base64(features, "<f4", "features", rows),
    }
    return record_from({**sizes, **more, **arrays})
