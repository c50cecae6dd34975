"""Pictures to those that are kept: each with its problem, near duplicates as one, tars of others."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from imagebert.claims import Claims
from imagebert.errors import UsageError
from imagebert.files import read_sealed
from imagebert.lait import engine, filter
from imagebert.lait.engine import Done, Engine, check_step, read_step
from imagebert.lait.filter import filter_pictures
from imagebert.lait.pages import key_of
from imagebert.lait.recipe import read_recipe
from imagebert.lait.wanted import write_wanted
from tests.lait.made import candidate, candidates, photograph, saved, tar_of

NOT_JUDGED = ("filter.natural=0", "filter.nsfw=1")
URL = "http://a.example/{}.jpg"


def filtered(folder: Path, *overrides: str, engine: Engine | None = None) -> Done:
    recipe = read_recipe(overrides=[*NOT_JUDGED, *overrides])
    steps = folder / "candidates", folder / "pictures", folder / "kept"
    return filter_pictures(*steps, recipe, engine or Engine(), None, 0.5)


def rows_of(done: Done) -> list[dict[str, Any]]:
    return [row for path in done.files() for row in parquet.read_table(path).to_pylist()]


def sentences_of(done: Done) -> dict[str, list[str]]:
    """By the name of each kept picture."""
    found = defaultdict[str, list[str]](list)
    for row in rows_of(done):
        found[row["key"]].append(row["sentence"])
    return dict(found)


def pictures_of(done: Done) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in done.files(".tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name not in found
                found[member.name] = file.read()
    return found


def looked(folder: Path) -> dict[str, str]:
    """The problem of each picture."""
    rows = [row for path in read_step(folder / "kept/looked").files() for row in parquet.read_table(path).to_pylist()]
    return {row["key"]: row["problem"] for row in rows}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Judge:
    """Takes what is one colour for drawn, and what is red for unsafe."""

    digest = "judge"

    def __init__(self, unsafe: bool) -> None:
        self._unsafe = unsafe

    def probability(self, pixels: NDArray[np.uint8]) -> float:
        if self._unsafe:
            return float(pixels[..., 0].mean() > pixels[..., 1].mean() + 100)
        return float(pixels.std() > 5)


def test_each_problem_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter, "Natural", lambda: Judge(unsafe=False))
    monkeypatch.setattr(filter, "open_nsfw", lambda path: Judge(unsafe=True))
    (tmp_path / "weights").touch()
    monkeypatch.setattr(filter, "WEIGHTS", tmp_path / "weights")
    reds = np.asarray(photograph(9)).copy()
    reds[..., 0] = 255 - reds[..., 0] // 4
    reds[..., 1] //= 4
    truth = {
        "": [saved(photograph(0)), saved(photograph(1, 301, 301)), saved(photograph(2, 903, 301))],
        "small": [saved(photograph(3, 300, 400)), saved(photograph(3, 900, 300))],
        "long": [saved(photograph(4, 904, 301)), saved(photograph(4, 301, 1000))],
        "not natural": [saved(Image.new("RGB", (400, 400), "white"))],
        "unsafe": [saved(Image.fromarray(reds))],
        "unreadable": [b"no picture", saved(photograph(5))[:-3000], saved(photograph(5))[:300]],
    }
    expected, made = {}, []
    for problem, pictures in truth.items():
        for number, data in enumerate(pictures):
            key = f"{problem.replace(' ', '-') or 'good'}-{number}"
            expected[key] = problem
            made.append((key, URL.format(key), data))
    tar_of(tmp_path / "pictures", "00000", made, failed=[URL.format("gone")])
    candidates(tmp_path / "candidates", [candidate(url, f"A sentence of {key}.") for key, url, _ in made])
    on = ("filter.natural=0.5", "filter.nsfw=0.2")
    done = filtered(tmp_path, *on)
    assert looked(tmp_path) == expected
    good = {key for key, problem in expected.items() if not problem}
    assert sentences_of(done) == {key: [f"A sentence of {key}."] for key in good}
    assert pictures_of(done) == {f"{key}.jpg": data for key, _, data in made if key in good}
    counts = read_step(tmp_path / "kept/looked").counts
    assert counts.pop("not fetched: failed_to_download") == 1
    names = {f"pictures: {problem or 'good'}": len(pictures) for problem, pictures in truth.items()}
    assert counts == {"pictures": len(made), **names}
    assert done.counts == {"pictures: kept": 3, "sentences": 3}
    (measured,) = [row for row in rows_of(done) if row["key"] == "good-1"]
    assert (measured["width"], measured["height"], measured["natural"], measured["nsfw"]) == (301, 301, 1, 0)
    # What is switched off judges nothing, and what is kept says so.
    done = filtered(tmp_path, "filter.side=250", "filter.aspect=10")
    assert set(looked(tmp_path).values()) == {"", "unreadable"}
    assert all(np.isnan(row["natural"]) and np.isnan(row["nsfw"]) for row in rows_of(done))


def copies(number: int) -> list[bytes]:
    """A photograph as sites have it: as large, resized, compressed more."""
    return [
        saved(photograph(number)),
        saved(photograph(number).resize((600, 480), Image.Resampling.BICUBIC)),
        saved(photograph(number), 40),
        saved(photograph(number).resize((320, 310), Image.Resampling.BICUBIC), 60),
    ]


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """Ten photographs with some copies each, in three tars; copies have addresses and sentences of their own."""
    pictures = [(number, copy, data) for number in range(10) for copy, data in enumerate(copies(number)[: number % 5])]
    order = np.random.default_rng(0).permutation(len(pictures))
    tars: list[list[tuple[str, str, bytes]]] = [[], [], []]
    rows: list[list[dict[str, Any]]] = [[], []]
    for place, at in enumerate(order.tolist()):
        number, copy, data = pictures[at]
        url = URL.format(f"{copy}-{number}")
        row = candidate(url, f"Sentence {copy} of photograph {number}.", page=f"http://a.example/{place}")
        tars[place % 3].append((row["key"], url, data))
        rows[place % 2] += [row, candidate(url, f"Photograph {number}.", page=row["page"], fit=0.9, source="title")]
    for tar, made in enumerate(tars):
        tar_of(tmp_path / "pictures", f"{tar:05d}", made)
    candidates(tmp_path / "candidates", *rows)
    return tmp_path


def test_near_duplicates_are_one_with_the_sentences_of_all(crawl: Path) -> None:
    done = filtered(crawl)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(done):
        found[row["url"]].append(row)
    # Of each that address which sorts first, which is that of its first copy.
    numbers = [number for number in range(10) if number % 5]
    assert sorted(found) == sorted(URL.format(f"0-{number}") for number in numbers)
    for number in numbers:
        rows = found[URL.format(f"0-{number}")]
        own = [f"Sentence {copy} of photograph {number}." for copy in range(number % 5)]
        assert [row["sentence"] for row in rows] == [f"Photograph {number}.", *own]
        assert [row["pages"] for row in rows] == [number % 5, *[1] * len(own)]
        assert {row["source"] for row in rows[1:]} == {"alt"}
        assert (rows[0]["source"], rows[0]["fit"]) == ("title", np.float32(0.9))
        assert rows[0]["page"] == min(row["page"] for row in rows[1:])
        assert all((row["width"], row["height"]) == (400, 320) for row in rows)
    assert len(pictures_of(done)) == len(numbers)
    counts = read_sealed(crawl / "kept/chosen/choice.json")["counts"]
    assert counts == {
        "good pictures": 20,
        "good pictures: address seen before": 0,
        "good pictures: opted out in another archive": 0,
        "good pictures: near duplicates of others": 12,
        "good pictures: no sentence": 0,
        "good pictures: kept": 8,
    }
    assert done.counts == {"pictures: kept": 8, "sentences": 28}
    assert check_step(crawl / "kept") == 2 * len(done.names)
    done = filtered(crawl, "filter.hamming=-1")
    assert len(pictures_of(done)) == 20
    assert all(len(sentences) == 2 for sentences in sentences_of(done).values())


def test_of_a_sentence_on_several_pages_the_likeliest_stands(crawl: Path) -> None:
    """Where they are as likely, that of the page which sorts first, with all that belongs to it."""
    url, sentence = URL.format("0-1"), "The same sentence."
    told = [("z", 0.1, 0.1), ("b", 0.9, 0.2), ("a", 0.9, 0.3), ("a", 0.9, 0.4), ("0", 0.5, 0.5)]
    rows = [candidate(url, sentence, page, fit=fit, dominance=dominance) for page, fit, dominance in told]
    candidates(crawl / "candidates", rows[:2], rows[2:])
    for order in (rows, rows[::-1]):
        candidates(crawl / "candidates", order[:1], order[1:])
        (row,) = rows_of(filtered(crawl))
        assert (row["page"], row["pages"]) == ("a", 4)
        assert [row["fit"], row["dominance"]] == [np.float32(0.9), np.float32(0.3)]


def test_another_threshold_looks_again(crawl: Path) -> None:
    assert len(pictures_of(filtered(crawl))) == 8
    filtered(crawl, "filter.side=320")  # only those that were enlarged have more
    assert set(looked(crawl).values()) == {"", "small"}


def test_the_same_bytes_whatever_does_it(crawl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filtered(crawl)
    expected = files_of(crawl / "kept")
    (crawl / "kept").rename(crawl / "first")

    class Reversed(Claims):
        def pieces(self, things: Any) -> Iterator[Any]:
            return super().pieces(things[::-1])

    with monkeypatch.context() as patch:
        patch.setattr(engine, "Claims", Reversed)
        filtered(crawl)
    assert files_of(crawl / "kept") == expected
    (crawl / "kept").rename(crawl / "second")
    filtered(crawl, engine=Engine(processes=2))
    assert files_of(crawl / "kept") == expected


def test_a_new_tar_costs_itself(crawl: Path) -> None:
    filtered(crawl)
    before = {path: path.stat().st_ino for path in (crawl / "kept").rglob("*") if path.suffix == ".tar"}
    before |= {path: path.stat().st_ino for path in (crawl / "kept/looked").glob("*.parquet")}
    row = candidate(URL.format("new"), "A new sentence.")
    tar_of(crawl / "pictures", "00003", [(row["key"], row["url"], saved(photograph(77)))])
    filtered(crawl)
    assert {path: path.stat().st_ino for path in before} == before
    assert "00003" in read_step(crawl / "kept/looked").names
    assert "00003" not in read_step(crawl / "kept").names  # nobody says anything of it
    counts = read_sealed(crawl / "kept/chosen/choice.json")["counts"]
    assert counts["good pictures: no sentence"] == 1


def test_what_was_chosen_and_is_gone_is_chosen_again(crawl: Path) -> None:
    filtered(crawl)
    expected = files_of(crawl / "kept")
    chosen = sorted((crawl / "kept/chosen").glob("*.parquet"))
    chosen[0].unlink()
    chosen[1].write_bytes(chosen[1].read_bytes()[:-1])
    filtered(crawl)
    assert files_of(crawl / "kept") == expected


def test_tars_of_img2dataset(tmp_path: Path) -> None:
    """Keys of their own, in each tar from another number on; a list may have an address twice."""
    urls = [URL.format(number) for number in range(6)]
    made = [(f"{number // 3:05d}{number % 3:04d}", url, saved(photograph(number))) for number, url in enumerate(urls)]
    tar_of(tmp_path / "pictures", "00000", made[:3], failed=[URL.format(99)])
    tar_of(tmp_path / "pictures", "00001", [*made[3:], ("000010009", urls[0], saved(photograph(0), 50))])
    (tmp_path / "pictures/._00000.tar").write_bytes(b"of a Mac")
    candidates(tmp_path / "candidates", [candidate(url, f"Sentence of {url}.") for url in urls])
    for hamming in (-1, 3):
        done = filtered(tmp_path, f"filter.hamming={hamming}")
        assert sentences_of(done) == {key: [f"Sentence of {url}."] for key, url, _ in made}
        assert pictures_of(done) == {f"{key}.jpg": data for key, _, data in made}
        counts = read_sealed(tmp_path / "kept/chosen/choice.json")["counts"]
        assert counts["good pictures: address seen before"] == 1


def test_what_opted_out_in_another_archive_is_not_kept(tmp_path: Path) -> None:
    """A picture, or a page, that was archived before and says no now."""
    urls = [URL.format(name) for name in ("good", "picture says no", "page says no")]
    made = [(key_of(url), url, saved(photograph(number))) for number, url in enumerate(urls)]
    tar_of(tmp_path / "pictures", "00000", made)
    tar_of(tmp_path / "pictures", "00001", [], failed=[urls[1]], why="opted_out")
    rows = [candidate(url, f"Sentence of {url}.", page=f"http://a.example/{n}") for n, url in enumerate(urls)]
    candidates(tmp_path / "candidates", rows, opted_out=["http://a.example/2", "http://a.example/other"])
    assert sentences_of(filtered(tmp_path)) == {key_of(urls[0]): [f"Sentence of {urls[0]}."]}
    counts = read_sealed(tmp_path / "kept/chosen/choice.json")["counts"]
    assert counts["good pictures: opted out in another archive"] == 1
    assert counts["good pictures: no sentence"] == 1
    found = read_step(tmp_path / "candidates")
    wanted = [
        row["url"]
        for path in write_wanted(found, tmp_path / "w", 10, 0.5)
        for row in parquet.read_table(path).to_pylist()
    ]
    assert sorted(wanted) == sorted(urls[:2])


def test_two_pictures_of_one_name_cannot_be_told(tmp_path: Path) -> None:
    tar_of(tmp_path / "pictures", "00000", [("1", URL.format(1), saved(photograph(1)))], failed=[])
    table = parquet.read_table(tmp_path / "pictures/00000.parquet")
    parquet.write_table(pa.concat_tables([table, table]), tmp_path / "pictures/00000.parquet")
    candidates(tmp_path / "candidates", [candidate(URL.format(1), "A sentence.")])
    with pytest.raises(
        UsageError, match=r"00000.parquet has two pictures called 1, so it cannot be told which is which"
    ):
        filtered(tmp_path)


def test_an_address_with_other_bytes_in_another_tar_is_one_picture(tmp_path: Path) -> None:
    """As archives of two months have them, under one key."""
    row = candidate(URL.format("x"), "A sentence of it.")
    for number in range(2):
        tar_of(tmp_path / "pictures", f"{number}", [(row["key"], row["url"], saved(photograph(number)))])
    candidates(tmp_path / "candidates", [row])
    for hamming in (-1, 3):
        done = filtered(tmp_path, f"filter.hamming={hamming}")
        assert pictures_of(done) == {f"{row['key']}.jpg": saved(photograph(0))}


def test_two_pictures_of_one_name(tmp_path: Path) -> None:
    for number in range(2):
        tar_of(tmp_path / "pictures", f"{number}", [("0001", URL.format(number), saved(photograph(number)))])
    candidates(tmp_path / "candidates", [candidate(URL.format(number), "A sentence.") for number in range(2)])
    with pytest.raises(UsageError, match="two pictures are called 0001, in tars of one folder: fetch them again"):
        filtered(tmp_path)


def test_two_files_of_one_name_in_a_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "pictures", "0", [("0001", URL.format(1), saved(photograph(1)))])
    with tarfile.open(path, "a") as tar:
        for key, suffix in (("0001", "png"), ("0002", "jpg")):  # the second one has no address
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(saved(photograph(2)))
            tar.addfile(member, io.BytesIO(saved(photograph(2))))
    candidates(tmp_path / "candidates", [candidate(URL.format(1), "A sentence.")])
    assert pictures_of(filtered(tmp_path)) == {"0001.jpg": saved(photograph(1))}
    counts = read_step(tmp_path / "kept/looked").counts
    assert counts["pictures: name seen before"] == counts["pictures: no address"] == counts["pictures"] == 1


def test_a_damaged_tar_costs_what_is_behind(tmp_path: Path) -> None:
    made = [(f"{number}", URL.format(number), saved(photograph(number))) for number in range(4)]
    path = tar_of(tmp_path / "pictures", "0", made[:3])
    with tarfile.open(path) as tar:
        third = next(member.offset for member in tar if member.name == "2.jpg")
    path.write_bytes(path.read_bytes()[: third + 700])
    tar_of(tmp_path / "pictures", "1", made[3:])
    (tmp_path / "pictures/2.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "pictures/2.parquet").write_bytes((tmp_path / "pictures/1.parquet").read_bytes())
    candidates(tmp_path / "candidates", [candidate(url, f"Sentence of {key}.") for key, url, _ in made])
    done = filtered(tmp_path)
    assert set(sentences_of(done)) == {"0", "1", "3"}
    assert read_step(tmp_path / "kept/looked").counts["damaged tars"] == 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    candidates(tmp_path / "candidates", [candidate(URL.format(1), "A sentence.")])
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UsageError, match=r"pictures has no .tar: fetch the pictures by `imagebert lait fetch`"):
        filtered(tmp_path)
    path = tar_of(tmp_path / "pictures", "0", [("1", URL.format(1), saved(photograph(1)))])
    rows = path.with_suffix(".parquet")
    rows.write_bytes(rows.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"0.parquet does not say which address each picture has \(.*\): fetch"):
        filtered(tmp_path)
    rows.unlink()
    with pytest.raises(UsageError, match=r"0.parquet is missing: it says which address each picture of 0.tar has"):
        filtered(tmp_path)
    (tmp_path / "pictures/wanted").mkdir()  # so this program has begun to fetch them
    with pytest.raises(UsageError, match=r"pictures has no step.json: imagebert lait fetch has not ended well"):
        filtered(tmp_path)
    (tmp_path / "candidates/step.json").unlink()
    with pytest.raises(UsageError, match=r"candidates has no step.json: imagebert lait pages has not ended well"):
        filtered(tmp_path)


def test_nothing_left_is_a_sentence(tmp_path: Path) -> None:
    tar_of(tmp_path / "pictures", "00000", [("a", URL.format("a"), b"none")], failed=[URL.format("gone")])
    candidates(tmp_path / "candidates", [candidate(URL.format("a"), "A dog runs over the grass.")])
    with pytest.raises(
        UsageError, match="can be kept: not fetched: failed_to_download 1, unreadable 1; `imagebert lait"
    ):
        filtered(tmp_path)


def test_pictures_of_another_crawl_are_told(tmp_path: Path) -> None:
    tar_of(tmp_path / "pictures", "00000", [("a", URL.format("a"), saved(photograph(1)))])
    candidates(tmp_path / "candidates", [candidate(URL.format("b"), "A dog runs over the grass.")])
    with pytest.raises(UsageError, match=r"has no sentence for a picture of .*: are both of one crawl"):
        filtered(tmp_path)
