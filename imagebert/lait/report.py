"""A page of a build: what came in, what went out at each step and why, with pictures and their sentences.

One file, of HTML without anything from elsewhere. Pictures that were taken for unsafe are counted and not shown.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from imagebert.data.tars import BrokenTar, members
from imagebert.errors import UsageError
from imagebert.files import check_writable, open_regular, read_sealed, write_bytes
from imagebert.lait.engine import STEP, Done, check_result, read_step
from imagebert.lait.filter import SUFFIXES
from imagebert.lait.whole import CHOICE, CHOSEN, TABLE, check_build, check_table
from imagebert.pages.page import render
from imagebert.pictures import DECODER, LOCAL, UnreadableImage

MOST = 200  # pictures of a kind
_PIXELS = 320
# What a folder of a build holds, in order, and what its step does.
STEPS = {
    "candidates": "pages to pictures and sentences",
    "pictures": "pictures fetched",
    "kept/looked": "pictures looked at",
    "kept": "pictures kept",
    "scored": "sentences scored",
}
_SHOWN_PROBLEMS = ("small", "long", "not natural")


class Reported(NamedTuple):
    """Describes the page that was written.

    Attributes:
        page: The HTML file.
        pictures: The number of pictures with sentences that it shows.
        steps: The counts of each step that is whole.
    """

    page: Path
    pictures: int
    steps: Mapping[str, Mapping[str, int]]


def write_report(out: Path, page: Path, count: int) -> Reported:
    """Writes the page of a build.

    Args:
        out: the folder of the build, some steps of which are whole
        count: pictures to show, spread evenly over those kept

    Raises:
        UsageError: no step is whole, the count is none of 1 to 200, or the page cannot be written.
        OSError: the disk is full or fails.
    """
    if not 1 <= count <= MOST:
        raise UsageError(f"a report with {count} pictures was asked for: give 1 to {MOST}")
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{page} is to be a page: give it a name that ends in .html")
    check_writable(page)
    check_build(out)
    found = {name: read_step(out / name) for name in STEPS if (out / name / STEP).is_file()}
    if not found:
        raise UsageError(f"{out} has no step of a build that is whole: give the folder that `imagebert lait` wrote")
    steps = {name: step.counts for name, step in found.items()}
    choice = out / "kept" / CHOSEN / CHOICE
    if "kept" in found and choice.is_file():
        steps["kept"] = {**read_sealed(choice)["counts"], **steps["kept"]}
    table = out / "pairs.json"
    if table.is_file():
        steps["pairs"] = read_sealed(table)["counts"]
    shown = list(_kept(found, out, count)) if "kept" in found else []
    refused = list(_refused(found, out)) if "kept/looked" in found else []
    what = {**STEPS, "pairs": "the best sentence of each picture"}
    html = render(
        "imagebert.lait",
        "report.html.j2",
        name=out.resolve().name,
        steps=[(name, what[name], _rows(counts)) for name, counts in steps.items()],
        shown=shown,
        refused=refused,
    )
    write_bytes(page, html.encode("utf-8", "replace"))
    return Reported(page, len(shown), steps)


def _rows(counts: Mapping[str, int]) -> list[tuple[str, int, float | None]]:
    """Names, counts and, of parts of another count, their share of it."""
    rows = []
    for name, count in counts.items():
        if not count:
            continue
        whole = counts.get(name.partition(":")[0])
        rows.append((name, count, count / whole if ":" in name and whole else None))
    return rows


def _kept(found: Mapping[str, Done], out: Path, count: int) -> Iterator[dict[str, Any]]:
    """Kept pictures with their sentences, the chosen one first."""
    step = found.get("scored", found["kept"])
    notes = [read_sealed(path.with_suffix(".json")) for path in found["kept"].files()]
    ends = np.cumsum([0, *(note["counts"]["pictures: kept"] for note in notes)])
    if not ends[-1]:
        return
    chosen = _chosen(out)
    places = np.unique(np.linspace(0, ends[-1] - 1, min(count, ends[-1])).round().astype(np.int64))
    for number in np.unique(np.searchsorted(ends, places, side="right") - 1).tolist():
        check_result(step.files()[number])
        table = parquet.read_table(step.files()[number])
        here = places[(places >= ends[number]) & (places < ends[number + 1])] - ends[number]
        wanted = set(table["key"].unique().take(pa.array(here)).to_pylist())
        table = table.filter(pa.compute.is_in(table["key"], pa.array(sorted(wanted))))
        sentences: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            sentences.setdefault(row["key"], []).append(row)
        tar = found["kept"].folder / f"{step.names[number]}.tar"
        for key, data in _pictures(tar, wanted):
            rows = sorted(sentences[key], key=lambda row: -row.get("relevance", row["fit"]))
            yield {"key": key, "data": data, "rows": rows, "chosen": chosen.get(key), "url": rows[0]["url"]}


def _chosen(out: Path) -> dict[str, str]:
    table = out / TABLE
    if not table.is_file():
        return {}
    check_table(out)
    rows = parquet.read_table(table, columns=["key", "caption"])
    return dict(zip(rows["key"].to_pylist(), rows["caption"].to_pylist(), strict=True))


def _refused(found: Mapping[str, Done], out: Path) -> Iterator[dict[str, Any]]:
    """Some pictures for each reason, from the first tars that have any."""
    left = dict.fromkeys(_SHOWN_PROBLEMS, 8)
    for name, path in zip(found["kept/looked"].names, found["kept/looked"].files(), strict=True):
        check_result(path)
        table = parquet.read_table(path, columns=["key", "problem", "natural", "width", "height"])
        wanted = {}
        for row in table.to_pylist():
            if left.get(row["problem"], 0) > 0:
                left[row["problem"]] -= 1
                wanted[row["key"]] = row
        tar = out / "pictures" / f"{name}.tar"
        if wanted and tar.is_file():
            for key, data in _pictures(tar, set(wanted)):
                yield {**wanted[key], "data": data}
        if not any(left.values()):
            return


def _pictures(tar: Path, keys: set[str]) -> Iterator[tuple[str, str]]:
    """Thumbnails of a tar's pictures, as base64; of one that cannot be read ""."""
    left = set(keys)
    with open_regular(tar) as opened, suppress(BrokenTar):  # which its step has counted
        for member in members(opened, tar.stat().st_size):
            if member.key in left and member.suffix.lower() in SUFFIXES:
                left.remove(member.key)
                opened.seek(member.offset)
                try:
                    data = base64.b64encode(DECODER.thumbnail(opened.read(member.size), _PIXELS, LOCAL)).decode("ascii")
                except UnreadableImage:
                    data = ""
                yield member.key, data
