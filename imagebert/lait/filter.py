"""Step 3: pictures that were fetched to those that are kept, with their sentences (paper, section 4, image filter).

look     a task for each tar: size, shape, how likely natural, how likely unsafe, perceptual hash
choose   everything at once: of near duplicates one is kept, the one whose address sorts first; sentences are joined
keep     a task for each tar: the kept pictures once more in a tar, a row for each picture and sentence beside it

Tars are as img2dataset writes them: NNNNN.tar with KEY.jpg, NNNNN.parquet with a key and the address of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from imagebert.data.tars import BrokenTar, members
from imagebert.errors import UsageError
from imagebert.files import file_digest, open_regular, read_sealed, replacing, write_sealed
from imagebert.lait.engine import Done, Engine, Task, identity_of, read_step, run_step
from imagebert.lait.hashes import hash_of, near
from imagebert.lait.natural import WEIGHTS, Natural
from imagebert.lait.nsfw import open_nsfw
from imagebert.lait.recipe import FilterRecipe, LaitRecipe
from imagebert.lait.shards import add_file, open_tar
from imagebert.lait.tables import batches, database, files_of
from imagebert.pictures import DECODER, PictureLimits, UnreadableImage

SUFFIXES = ("jpg", "jpeg", "png", "webp")
_LIMITS = PictureLimits(100_000_000, 10, web=True)
_LOOKED, _CHOSEN = "looked", "chosen"  # folders beside the kept tars
CHOICE = "choice.json"  # in the second, what was chosen of how much
_SIDE = 512  # pixels to which a picture is shrunk before it is judged

_LOOKED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("problem", pa.string()),  # why it is not kept, "" where it may be
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("natural", pa.float32()),  # NaN: nothing judged it
        ("nsfw", pa.float32()),
        ("hash", pa.uint64()),
    ]
)
# A row for each picture and sentence; those of a near duplicate are the kept picture's.
KEPT_SCHEMA = pa.schema(
    [
        *(("key", pa.string()), ("url", pa.string()), ("sentence", pa.string()), ("source", pa.string())),
        *((name, pa.float32()) for name in ("fit", "dominance", "name_overlap", "title_overlap", "natural", "nsfw")),
        *((name, pa.int32()) for name in ("rank", "pictures", "width", "height", "pages")),
        ("page", pa.string()),  # the first of those on which it stands so
    ]
)


class _Picture(NamedTuple):
    key: str
    suffix: str
    offset: int
    size: int


def filter_pictures(
    candidates: Path,
    pictures: Path,
    out: Path,
    recipe: LaitRecipe,
    engine: Engine,
    nsfw: Path | None,
    memory_gib: float,
) -> Done:
    """Filters fetched pictures; see the head of this file.

    Args:
        nsfw: the description of an ONNX file that judges what is unsafe; None: the package's, where it is installed

    Raises:
        UsageError: a folder holds no tars, or a step before is not whole.
        OSError: the disk is full or fails, or a process was killed.
    """
    found = read_step(candidates, "imagebert lait pages")
    tars = sorted(pictures.glob("*.tar"))
    if not tars:
        raise UsageError(f"{pictures} has no .tar: fetch the pictures by `imagebert lait fetch`, or by img2dataset")
    judges = _judges(recipe.filter, nsfw)
    tasks = [Task(tar.stem, [identity_of(tar), identity_of(_rows_of(tar))], (tar, recipe.filter, nsfw)) for tar in tars]
    looked = run_step("look", out / _LOOKED, look, tasks, [asdict(recipe.filter), judges], engine)
    source = [looked.digest, found.digest, recipe.filter.hamming]
    if engine.workers.rank == 0 and not _is_chosen(out, source):
        counts = _choose(found, looked, out / _CHOSEN, recipe.filter.hamming, memory_gib)
        write_sealed(out / _CHOSEN / CHOICE, {"source": source, "counts": counts})
    engine.workers.barrier()
    tasks = [
        Task(tar.stem, [identity_of(tar), file_digest(path)], (tar, path))
        for tar in tars
        if (path := out / _CHOSEN / f"{tar.stem}.parquet").is_file()
    ]
    return run_step("keep", out, keep, tasks, source, engine)


def _judges(recipe: FilterRecipe, nsfw: Path | None) -> list[Any]:
    """What the judges are, as plain data."""
    judge = open_nsfw(nsfw) if recipe.nsfw < 1 else None
    return [file_digest(WEIGHTS) if recipe.natural > 0 else None, None if judge is None else judge.digest]


def _rows_of(tar: Path) -> Path:
    rows = tar.with_suffix(".parquet")
    if not rows.is_file():
        raise UsageError(f"{rows} is missing: it says which address each picture of {tar.name} has")
    return rows


# --------------------------------------------------------------------------------------------------------------- look


def look(tar: Path, recipe: FilterRecipe, nsfw: Path | None, out: Path) -> Counter[str]:
    """Looks at each picture of a tar, and writes what it is to OUT.parquet; what is wrong is counted."""
    natural = Natural() if recipe.natural > 0 else None
    unsafe = open_nsfw(nsfw) if recipe.nsfw < 1 else None
    counts = Counter[str]()
    urls = _urls(tar, counts)
    rows = []
    with open_regular(tar) as opened:
        for picture in _pictures(tar, counts):
            if picture.key not in urls:
                counts["pictures: no address"] += 1
                continue
            opened.seek(picture.offset)
            row = _look(opened.read(picture.size), recipe, natural, unsafe)
            counts["pictures"] += 1
            counts[f"pictures: {row['problem'] or 'good'}"] += 1
            rows.append({"key": picture.key, "url": urls[picture.key], **row})
    with replacing(out.with_suffix(".parquet")) as part:
        parquet.write_table(pa.Table.from_pylist(rows, _LOOKED_SCHEMA), part, compression="zstd")
    return counts


def _urls(tar: Path, counts: Counter[str]) -> dict[str, str]:
    table = parquet.read_table(_rows_of(tar), columns=["key", "url", "status"])
    for status in table["status"].to_pylist():
        if status != "success":
            counts["not fetched"] += 1
    return dict(zip(table["key"].to_pylist(), table["url"].to_pylist(), strict=True))


def _pictures(tar: Path, counts: Counter[str]) -> Iterator[_Picture]:
    try:
        with open_regular(tar) as opened:
            for member in members(opened, tar.stat().st_size):
                if member.suffix.lower() in SUFFIXES:
                    yield _Picture(member.key, member.suffix, member.offset, member.size)
    except BrokenTar:
        counts["damaged tars"] += 1


def _look(data: bytes, recipe: FilterRecipe, natural: Natural | None, unsafe: Any) -> dict[str, Any]:
    """What a picture is; the first thing that is wrong with it is its problem, and nothing more is measured then."""
    found: dict[str, Any] = {
        "problem": "",
        "width": 0,
        "height": 0,
        "natural": float("nan"),
        "nsfw": float("nan"),
        "hash": 0,
    }
    try:
        image = DECODER.picture(data, _LIMITS)
    except UnreadableImage:
        return {**found, "problem": "unreadable"}
    found["width"], found["height"] = image.size
    if min(image.size) <= recipe.side:
        return {**found, "problem": "small"}
    if max(image.size) > recipe.aspect * min(image.size):
        return {**found, "problem": "long"}
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image)
    if natural is not None:
        found["natural"] = natural.probability(pixels)
        if found["natural"] < recipe.natural:
            return {**found, "problem": "not natural"}
    if unsafe is not None:
        found["nsfw"] = unsafe.probability(pixels)
        if found["nsfw"] > recipe.nsfw:
            return {**found, "problem": "unsafe"}
    found["hash"] = hash_of(pixels)
    return found


# ------------------------------------------------------------------------------------------------------------- choose


def _is_chosen(out: Path, source: list[Any]) -> bool:
    try:
        return bool(read_sealed(out / _CHOSEN / CHOICE)["source"] == source)
    except UsageError:
        return False


def _choose(candidates: Done, looked: Done, folder: Path, hamming: int, memory_gib: float) -> dict[str, int]:
    """Writes the sentences of the pictures that are kept, NNNNN.parquet for each tar that keeps some; counts them."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.iterdir():
        stale.unlink()
    groups = _groups(looked, hamming)
    with database(folder, memory_gib) as connection:
        connection.register("groups", groups)
        columns = ", ".join(f"first(c.{name} ORDER BY c.fit DESC, c.page, c.url) AS {name}" for name in _OF_CANDIDATES)
        query = f"""
            SELECT g.tar, g.key, g.kept_url AS url, c.sentence, {columns}, any_value(g.natural) AS natural,
                any_value(g.nsfw) AS nsfw, any_value(g.width) AS width, any_value(g.height) AS height,
                count(DISTINCT c.page)::INTEGER AS pages
            FROM groups g JOIN {files_of(candidates.files())} c ON g.url = c.url
            GROUP BY g.tar, g.key, g.kept_url, c.sentence
            ORDER BY g.tar, g.key, fit DESC, c.sentence"""
        held: list[pa.RecordBatch] = []
        tar = -1
        for batch in batches(connection, query):
            numbers = batch.column("tar").to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for start, end in pairwise(starts):
                if start == end:
                    continue
                if numbers[start] != tar and held:
                    _write(folder / looked.names[tar], held)
                    held = []
                tar = int(numbers[start])
                held.append(batch.slice(start, end - start))
        if held:
            _write(folder / looked.names[tar], held)
        ((kept,),) = connection.execute(
            f"SELECT count(DISTINCT (g.tar, g.key)) FROM groups g JOIN {files_of(candidates.files())} c ON g.url = c.url"
        ).fetchall()
    groups_kept = len(groups.select(["tar", "key"]).group_by(["tar", "key"]).aggregate([]))
    return {
        "good pictures": len(groups),
        "good pictures: near duplicates of others": len(groups) - groups_kept,
        "good pictures: no sentence": groups_kept - kept,
        "good pictures: kept": kept,
    }


_OF_CANDIDATES = ("source", "fit", "dominance", "name_overlap", "title_overlap", "rank", "pictures", "page")


def _write(stem: Path, held: Sequence[pa.RecordBatch]) -> None:
    table = pa.Table.from_batches(held).select(KEPT_SCHEMA.names).cast(KEPT_SCHEMA)
    with replacing(stem.with_name(f"{stem.name}.parquet")) as part:
        parquet.write_table(table.combine_chunks(), part, compression="zstd")


def _groups(looked: Done, hamming: int) -> pa.Table:
    """A row for each good picture: its address, and tar, key and address of the picture that it is kept as."""
    tables = []
    for number, path in enumerate(looked.files()):
        table = parquet.read_table(path)
        table = table.filter(pa.compute.equal(table["problem"], ""))
        tables.append(table.append_column("tar", pa.array([number] * len(table), pa.int32())))
    found = pa.concat_tables(tables).sort_by([("url", "ascending"), ("tar", "ascending"), ("key", "ascending")])
    hashes = found["hash"].to_numpy()
    first = near(hashes, hamming) if hamming >= 0 else np.arange(len(hashes))
    kept = found.take(pa.array(first))
    return pa.table(
        {
            "url": found["url"],
            "tar": kept["tar"],
            "key": kept["key"],
            "kept_url": kept["url"],
            **{name: kept[name] for name in ("width", "height", "natural", "nsfw")},
        }
    )


# --------------------------------------------------------------------------------------------------------------- keep


def keep(tar: Path, chosen: Path, out: Path) -> Counter[str]:
    """Writes the pictures that have sentences into OUT.tar, and these into OUT.parquet."""
    table = parquet.read_table(chosen)
    keys = set(table["key"].to_pylist())
    counts = Counter({"pictures: kept": len(keys), "sentences": len(table)})
    with (
        replacing(out.with_name(f"{out.name}.tar")) as part,
        open_regular(tar) as opened,
        open_tar(part) as written,
    ):
        for picture in _pictures(tar, counts):
            if picture.key in keys:
                keys.remove(picture.key)  # of several of one key, which only others' tars have, the first
                opened.seek(picture.offset)
                add_file(written, f"{picture.key}.{picture.suffix}", opened.read(picture.size))
    if keys:
        raise OSError(f"{tar} has changed while it was filtered: make the call again")
    with replacing(out.with_name(f"{out.name}.parquet")) as part:
        parquet.write_table(table, part, compression="zstd")
    return counts
