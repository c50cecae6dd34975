"""Candidates, pictures in tars and scored sentences, made row by row: what the steps of LAIT hand to each other."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from imagebert.demo.web import Page, make_web, some_subjects, write_warcs
from imagebert.lait import pages
from imagebert.lait.engine import Done, Engine, Task, run_step
from imagebert.lait.filter import KEPT_SCHEMA
from imagebert.lait.pages import key_of
from imagebert.lait.score import SCORED_SCHEMA


@cache
def photograph(seed: int, width: int = 400, height: int = 320) -> Image.Image:
    """Noise with as much detail at each scale, as photographs have; the same one in any size."""
    rng = np.random.default_rng(seed)
    side = 128
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(3, side, side))) / frequency
    planes = np.fft.irfft2(spectrum)
    low, high = planes.min(axis=(1, 2), keepdims=True), planes.max(axis=(1, 2), keepdims=True)
    pixels = (255 * (planes - low) / (high - low)).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def table_step(
    folder: Path,
    step: str,
    schema: pa.Schema,
    files: Mapping[str, Sequence[Mapping[str, Any]]],
    opted_out: Sequence[str] | None = None,
) -> Done:
    """A step that is whole, whose results are these rows, and beside each file these pages that opted out."""
    tasks = [
        Task(name, [list(map(str, row.values())) for row in rows], (rows, schema, opted_out))
        for name, rows in files.items()
    ]
    return run_step(step, folder, _write, tasks, opted_out, Engine())


def _write(
    rows: Sequence[Mapping[str, Any]], schema: pa.Schema, opted_out: Sequence[str] | None, out: Path
) -> dict[str, int]:
    if opted_out is not None:
        table = pa.table({"page": pa.array(opted_out, pa.string())})
        parquet.write_table(table, out.with_name(f"{out.name}{pages.OPTED_OUT}"))
    parquet.write_table(pa.Table.from_pylist(list(rows), schema), out.with_name(f"{out.name}.parquet"))
    return {"rows": len(rows)}


def candidate(url: str, sentence: str, page: str = "http://a.example/1", **more: Any) -> dict[str, Any]:
    """A row as `lait pages` writes it."""
    row = {"key": key_of(url), "url": url, "page": page, "sentence": sentence, "source": "alt", "fit": 0.5, "rank": 0}
    return {**row, "dominance": 0.75, "pictures": 1, "name_overlap": 0.25, "title_overlap": 0.5, **more}


def candidates(folder: Path, *files: Sequence[Mapping[str, Any]], opted_out: Sequence[str] = ()) -> Done:
    named = {f"web-{number}": rows for number, rows in enumerate(files)}
    return table_step(folder, "pages", pages.SCHEMA, named, opted_out)


def scored_row(key: str, sentence: str, relevance: float, **more: Any) -> dict[str, Any]:
    """A row as `lait score` writes it."""
    row = {"key": key, "url": f"http://a.example/{key}.jpg", "sentence": sentence, "source": "alt", "fit": 0.5}
    row |= dict.fromkeys(("dominance", "name_overlap", "title_overlap", "natural", "nsfw"), 0.5)
    row |= {"rank": 0, "pictures": 1, "width": 400, "height": 320, "pages": 1, "page": "http://a.example/"}
    return {**row, "match": float("nan"), "relevance": relevance, **more}


def scored(folder: Path, *files: Sequence[Mapping[str, Any]]) -> Done:
    return table_step(folder, "score", SCORED_SCHEMA, {f"{number:05d}": rows for number, rows in enumerate(files)})


def tar_of(
    folder: Path,
    name: str,
    pictures: Sequence[tuple[str, str, bytes]],
    failed: Sequence[str] = (),
    why: str = "failed_to_download",
) -> Path:
    """A tar as img2dataset writes it, with its Parquet and its statistics.

    Args:
        pictures: key, address and bytes of each
        failed: addresses of which there is none
        why: their status
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for key, url, data in pictures:
            for suffix, content in (("jpg", data), ("txt", b"a caption"), ("json", json.dumps({"url": url}).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    rows = [{"url": url, "key": key, "status": "success", "error_message": None} for key, url, _ in pictures]
    rows += [{"url": u, "key": f"f{n}", "status": why, "error_message": "no"} for n, u in enumerate(failed)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / f"{name}_stats.json").write_text('{"count": 3}')
    return folder / f"{name}.tar"


def kept(folder: Path, *files: Sequence[Mapping[str, Any]]) -> Done:
    """A step as `lait filter` leaves it, without its tars."""
    return table_step(folder, "keep", KEPT_SCHEMA, {f"{number:05d}": rows for number, rows in enumerate(files)})


# Pictures here are noise, which nothing has to judge.
SETTINGS = ("filter.natural=0", "filter.nsfw=1", "pairs.relevance=0.3")


def write_crawl(folder: Path, pages: int, files: int, seed: int = 0) -> list[Page]:
    """Archives of a made-up web that hold its pictures too; each subject's versions are one photograph."""
    subjects = [subject._replace(width=640, height=480) for subject in some_subjects(pages, seed)]
    made = make_web(subjects, pages, seed)
    data = {subject.name: saved(photograph(1000 + n, 640, 480), 50) for n, subject in enumerate(subjects)}
    shown = {url: data[subject.name] for page in made for url, subject in page.images.items() if subject is not None}
    write_warcs(made, folder, files, shown)
    return made
