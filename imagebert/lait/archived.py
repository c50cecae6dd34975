"""Step 2 without a network: pictures of the candidates that the archives themselves hold, as a crawl of all files does.

A task is one archive; a picture that several archives hold comes once from each, and filtering keeps one of equal ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

from imagebert.lait.build import archives_of
from imagebert.lait.document import plain_address
from imagebert.lait.engine import Done, Engine, Task, begun_in, identity_of, read_step, run_step
from imagebert.lait.failures import Failed, check_size
from imagebert.lait.hosts import is_blocked
from imagebert.lait.opt_out import header_opt_out
from imagebert.lait.pages import key_of
from imagebert.lait.picture_head import NoPicture, ends, read_head
from imagebert.lait.recipe import AGENT, LaitRecipe
from imagebert.lait.shards import Row, write_shard
from imagebert.lait.wanted import listed
from imagebert.lait.warc import responses


class Limits(NamedTuple):
    """What is taken of an archive's pictures."""

    picture_bytes: int
    side: int
    aspect: float
    blocked: tuple[str, ...]  # hosts


def take_pictures(
    candidates: Path,
    crawl: Sequence[Path],
    out: Path,
    recipe: LaitRecipe,
    engine: Engine,
    memory_gib: float,
    blocked: Sequence[str] = (),
) -> Done:
    """Takes the pictures of all candidates from archives into tars.

    Args:
        blocked: hosts whose pictures are not taken

    Raises:
        UsageError: the step before is not whole, or there is no archive.
        OSError: the disk is full or fails.
    """
    found = read_step(candidates, "imagebert lait pages", "pages")
    archives = archives_of(list(crawl))
    limits = Limits(recipe.fetch.picture_bytes, recipe.filter.side, recipe.filter.aspect, tuple(blocked))
    begun_in("take", out)
    with listed(found, out, recipe.fetch.shard, engine, memory_gib) as lists:
        tasks = [Task(name, identity_of(archive), (archive, lists, limits)) for name, archive in archives]
        return run_step("take", out, take, tasks, [found.digest, limits], engine, [found])


def take(archive: Path, lists: Sequence[Path], limits: Limits, out: Path) -> Counter[str]:
    """Takes what one archive holds of the wanted pictures into OUT.tar and OUT.parquet.

    Of a picture that was archived several times the first counts; where any of them says no, it is not taken.
    """
    now = datetime.now(UTC)
    wanted = _keys(lists)
    counts, rows, places = Counter[str](), dict[str, Row](), dict[str, int]()
    with TemporaryFile(dir=out.parent) as bodies:  # an archive may hold more than there is memory
        for answer in responses(archive, ("image/",), limits.picture_bytes, counts):
            key = key_of(plain_address(answer.url))
            place = int(np.searchsorted(wanted, np.uint64(int(key, 16))))
            if place == len(wanted) or wanted[place] != int(key, 16):
                counts["not wanted"] += 1
                continue
            said = header_opt_out(answer.robots, AGENT, now)
            if not said and (key in places or (key in rows and rows[key].status == "opted_out")):
                counts["archived again"] += 1
                continue
            try:
                if said:
                    raise Failed("opted_out", f"X-Robots-Tag says {said}", 200)
                if is_blocked(urlsplit(answer.url).hostname or "", limits.blocked):
                    raise Failed("blocked", "its host is blocked")
                rows[key] = _row(key, answer.url, answer.kind, answer.body, answer.cut, limits)
                places[key] = bodies.tell()
                bodies.write(answer.body)
            except Failed as failed:
                rows[key] = Row(key, answer.url, failed.kind, failed.status, error_message=failed.why)

        def body(row: Row) -> bytes:
            bodies.seek(places[row.key])
            return bodies.read(row.bytes or 0)

        ordered = [rows[key] for key in sorted(rows)]
        write_shard(out.with_name(f"{out.name}.tar"), ordered, body)
    return counts + Counter(row.status for row in ordered)


def _keys(lists: Sequence[Path]) -> NDArray[np.uint64]:
    """Of all wanted pictures, sorted: 8 bytes each, since there are millions."""
    parts = [
        np.array([int(key, 16) for key in parquet.read_table(path, columns=["key"])["key"].to_pylist()], np.uint64)
        for path in lists
    ]
    return np.sort(np.concatenate([np.empty(0, np.uint64), *parts]))


def _row(key: str, url: str, kind: str, body: bytes, cut: bool, limits: Limits) -> Row:
    try:
        head = read_head(body)
    except NoPicture as error:
        raise Failed("no_picture", str(error), 200) from None
    if head is None:
        raise Failed("no_picture", "its bytes do not say how large it is", 200)
    check_size(head, limits.side, limits.aspect)
    if cut:
        raise Failed("too_large", f"it has more than {len(body):,} bytes", 200, head)
    if not ends(body, head.suffix):
        raise Failed("cut_off", "the picture's own end is missing", 200, head)
    digest = hashlib.sha256(body).hexdigest()
    return Row(key, url, "success", 200, head.width, head.height, len(body), digest, kind, head.suffix)
