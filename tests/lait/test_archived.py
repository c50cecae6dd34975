"""Pictures that archives hold, and the lists of those that are wanted."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from imagebert.errors import UsageError
from imagebert.lait import archived
from imagebert.lait.archived import take, take_pictures
from imagebert.lait.engine import Engine, check_step, read_step
from imagebert.lait.pages import key_of
from imagebert.lait.recipe import read_recipe
from imagebert.lait.wanted import write_wanted
from imagebert.lait.warc import Response
from tests.lait.made import candidate, candidates, photograph, saved

LIMITS = archived.Limits(200_000, 300, 3.0, ("b.example",))


@pytest.mark.parametrize("size", [1, 3, 10, 50, 51, 1000])
def test_each_address_is_wanted_once_in_lists_of_one_size(size: int, tmp_path: Path) -> None:
    rng = random.Random(size)
    rows = [candidate(f"http://a.example/{rng.randrange(60)}.jpg", f"Sentence {n}.") for n in range(150)]
    done = candidates(tmp_path / "candidates", rows[:70], [], rows[70:])
    expected = sorted({(row["key"], row["url"]) for row in rows})
    (tmp_path / "wanted").mkdir()
    (tmp_path / "wanted/00099.parquet").touch()  # of a call that wanted more
    lists = write_wanted(done, tmp_path / "wanted", size, 0.5)
    assert sorted((tmp_path / "wanted").glob("*.parquet")) == lists
    tables = [parquet.read_table(path).to_pylist() for path in lists]
    assert [(row["key"], row["url"]) for table in tables for row in table] == expected
    assert all(len(table) == size for table in tables[:-1])
    assert 1 <= len(tables[-1]) <= size


def test_nothing_is_wanted_of_nothing(tmp_path: Path) -> None:
    assert write_wanted(candidates(tmp_path / "candidates", []), tmp_path / "wanted", 10, 0.5) == []


def test_candidates_that_have_changed_are_named(tmp_path: Path) -> None:
    done = candidates(tmp_path / "candidates", [candidate("http://a.example/1.jpg", "A dog.")])
    path = done.files()[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UsageError, match=r"web-0.parquet has changed since it was written, or is gone: make the step"):
        write_wanted(done, tmp_path / "wanted", 10, 0.5)


def answer(name: str, body: bytes, robots: str = "", cut: bool = False) -> Response:
    robots_tags = [robots] if robots else []
    return Response(f"http://a.example/{name}", "image/jpeg", None, robots_tags, body, cut)


GOOD = saved(photograph(1))
ANSWERS = [
    answer("good", GOOD),
    answer("not-asked-for", GOOD),
    answer("small", saved(photograph(1, 300, 500))),
    answer("narrow", saved(photograph(1, 310, 1000))),
    answer("cut", GOOD[:-500]),
    answer("large", GOOD, cut=True),
    answer("text", b"<html>" * 100),
    answer("nothing", b""),
    answer("refused", GOOD, robots="noai"),
    answer("refused-for-others", saved(photograph(2)), robots="otherbot: noai"),
    answer("later-good", b"broken"),
    answer("later-good", saved(photograph(3))),
    answer("good", saved(photograph(4))),  # again: the first one stays
    answer("taken-back", GOOD),
    answer("taken-back", GOOD, robots="noai"),
    answer("refused-first", GOOD, robots="noai"),
    answer("refused-first", GOOD),
    answer("no-longer", GOOD, robots="unavailable_after: 2024-01-01"),
]
STATUS = {
    **dict.fromkeys(("good", "refused-for-others", "later-good"), "success"),
    "small": "too_small",
    "narrow": "too_narrow",
    "cut": "cut_off",
    "large": "too_large",
    "text": "no_picture",
    "nothing": "no_picture",
    **dict.fromkeys(("refused", "taken-back", "refused-first", "no-longer"), "opted_out"),
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive, as far as it is asked."""

    def responses(path: Path, kinds: Any, most: int, counts: Any) -> Iterator[Response]:
        assert (path.name, kinds, most) == ("web.warc.gz", ("image/",), LIMITS[0])
        yield from ANSWERS

    monkeypatch.setattr(archived, "responses", responses)
    (tmp_path / "web.warc.gz").touch()
    return tmp_path / "web.warc.gz"


def wanted(folder: Path) -> list[Path]:
    urls = [f"http://a.example/{name}" for name in [*STATUS, "in-no-archive"]]
    done = candidates(folder / "candidates", [candidate(url, f"Sentence {url}.") for url in urls])
    return write_wanted(done, folder / "wanted", 3, 0.5)


def test_what_becomes_of_each_picture(archive: Path, tmp_path: Path) -> None:
    counts = take(archive, wanted(tmp_path), LIMITS, tmp_path / "out")
    rows = {row["url"].rpartition("/")[2]: row for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == STATUS
    assert all(row["key"] == key_of(row["url"]) for row in rows.values())
    assert counts["success"] == 3
    assert (counts["not wanted"], counts["archived again"], counts["no_picture"]) == (1, 2, 2)
    bodies = {"good": GOOD, "refused-for-others": saved(photograph(2)), "later-good": saved(photograph(3))}
    with tarfile.open(tmp_path / "out.tar") as tar:
        for name, data in bodies.items():
            file = tar.extractfile(f"{rows[name]['key']}.jpg")
            assert file is not None
            assert file.read() == data
            assert (rows[name]["bytes"], rows[name]["width"], rows[name]["height"]) == (len(data), 400, 320)
        assert len(tar.getnames()) == 2 * len(bodies)
    assert {path.name for path in tmp_path.glob("*out*")} == {"out.tar", "out.parquet"}


def test_the_step_is_made_again_when_others_are_wanted(archive: Path, tmp_path: Path) -> None:
    urls = ["http://a.example/good", "http://a.example/small"]
    out, recipe = tmp_path / "pictures", read_recipe(overrides=[f"fetch.picture_bytes={LIMITS[0]}", "fetch.shard=1"])
    for number in (1, 2):
        candidates(tmp_path / "candidates", [candidate(url, f"Sentence {url}.") for url in urls[:number]])
        take_pictures(tmp_path / "candidates", [archive], out, recipe, Engine(), 0.5)
        rows = [row for path in read_step(out).files() for row in parquet.read_table(path).to_pylist()]
        assert {row["url"] for row in rows} == set(urls[:number])
        assert len(list((out / "wanted").glob("*.parquet"))) == number
        assert check_step(out) == 2
