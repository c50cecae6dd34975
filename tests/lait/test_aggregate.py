"""Scored sentences to pairs, against counting one by one; and within the memory that it is given."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from imagebert.errors import UsageError
from imagebert.files import file_digest, read_sealed
from imagebert.lait.aggregate import write_pairs_table
from imagebert.lait.engine import Task, run_step
from imagebert.lait.recipe import PairsRecipe
from tests.disks import small_disk
from tests.lait.made import scored, scored_row, table_step

PICTURES = 2_000_000  # of the large table
ROOT = Path(__file__).parents[2]
WORDS = ["Dog", "dog", "cat,", "CAT", "on", "in", "1999", "2001", "house.", "élan", "Élan!", "(a)", "a", "it's"]


def by_counting(rows: list[dict[str, Any]], recipe: PairsRecipe) -> tuple[dict[str, tuple[str, float]], dict[str, int]]:
    """The sentence of each picture, and the counts."""
    threshold = np.float32(recipe.relevance)
    good = [row for row in rows if np.float32(row["relevance"]) >= threshold]
    pictures_with = defaultdict[tuple[str, ...], set[str]](set)
    for row in good:
        pictures_with[plain(row["sentence"])].add(row["key"])
    best: dict[str, tuple[float, str]] = {}
    for row in good:
        if len(pictures_with[plain(row["sentence"])]) <= recipe.sharing:
            found = (-float(np.float32(row["relevance"])), row["sentence"])
            best[row["key"]] = min(best.get(row["key"], found), found)
    keys, able = {row["key"] for row in rows}, {row["key"] for row in good}
    counts = {
        "sentences": len(rows),
        "sentences: below the threshold": len(rows) - len(good),
        "pictures": len(keys),
        "pictures: no sentence above the threshold": len(keys) - len(able),
        "pictures: only sentences that too many share": len(able) - len(best),
        "pairs": len(best),
    }
    return {key: (sentence, -relevance) for key, (relevance, sentence) in best.items()}, counts


def plain(sentence: str) -> tuple[str, ...]:
    """What is left without digits, case and signs."""
    return tuple(re.sub(r"[^a-zé]", " ", sentence.lower()).split())


def pairs_of(path: Path) -> dict[str, tuple[str, float]]:
    rows = parquet.read_table(path).to_pylist()
    keys = [row["key"] for row in rows]
    assert keys == sorted(set(keys))
    assert all(row["status"] == "success" and row["error_message"] is None for row in rows)
    return {row["key"]: (row["caption"], row["relevance"]) for row in rows}


@pytest.mark.parametrize("seed", range(30))
def test_pairs_are_those_of_counting(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(rng.choice([3, 40, 200])):
        key = f"{rng.randrange(rng.choice([4, 60])):016x}"
        sentence = " ".join(rng.choices(WORDS, k=rng.randrange(1, 4)))
        relevance = rng.choice([0.1, 0.3, 0.5, 0.5000001, 0.7, 0.7, 0.9, 1.0])
        rows[key, sentence] = scored_row(key, sentence, relevance, page=f"http://{rng.random()}")
    keys = sorted({key for key, _ in rows})
    tars: list[list[dict[str, Any]]] = [[], [], []]
    for row in sorted(rows.values(), key=lambda row: str(row["key"])):  # all of a picture are in one tar
        tars[keys.index(row["key"]) % 3].append(row)
    scored(tmp_path / "scored", *tars)
    recipe = PairsRecipe(relevance=rng.choice([0.0, 0.3, 0.5, 0.7, 1.0]), sharing=rng.choice([0, 1, 3, 10]))
    counts = write_pairs_table(tmp_path / "scored", tmp_path / "pairs.parquet", recipe, 0.5)
    pairs, expected = by_counting(list(rows.values()), recipe)
    assert pairs_of(tmp_path / "pairs.parquet") == pairs
    assert counts == expected
    before = (tmp_path / "pairs.parquet").read_bytes(), (tmp_path / "pairs.json").read_bytes()
    scored(tmp_path / "scored", *(tar[::-1] for tar in tars[::-1]))
    write_pairs_table(tmp_path / "scored", tmp_path / "again/pairs.parquet", recipe, 0.5)
    assert (tmp_path / "again/pairs.parquet").read_bytes() == before[0]


def test_what_each_rule_does(tmp_path: Path) -> None:
    shared = ["A photo of the day.", "a photo of the day", "A PHOTO of the day 12!", "A photo of the day, 2019"]
    rows = [scored_row(f"{number}", sentence, 0.9) for number, sentence in enumerate(shared)]
    rows += [scored_row("0", "A dog.", 0.6), scored_row("1", "A cat.", 0.4)]
    rows += [scored_row("4", "B is as good.", 0.8), scored_row("4", "A is as good.", 0.8), scored_row("5", "Low.", 0.2)]
    scored(tmp_path / "scored", sorted(rows, key=lambda row: str(row["key"])))
    out = tmp_path / "pairs.parquet"
    counts = write_pairs_table(tmp_path / "scored", out, PairsRecipe(relevance=0.5, sharing=3), 0.5)
    assert {key: sentence for key, (sentence, _) in pairs_of(out).items()} == {"0": "A dog.", "4": "A is as good."}
    assert list(counts.values()) == [9, 2, 6, 1, 3, 2]
    content = read_sealed(tmp_path / "pairs.json")
    assert content["counts"] == counts
    assert content["sha256"] == file_digest(out)
    assert content["recipe"] == {"relevance": 0.5, "sharing": 3, "long": 8}
    write_pairs_table(tmp_path / "scored", out, PairsRecipe(relevance=0.5, sharing=4), 0.5)
    assert pairs_of(out)["3"] == (shared[3], float(np.float32(0.9)))
    row = parquet.read_table(out).to_pylist()[0]
    assert (row["url"], row["page"], row["source"], row["width"], row["height"]) == (
        *("http://a.example/0.jpg", "http://a.example/", "alt"),
        *(400, 320),
    )


def test_a_template_that_a_shop_fills_describes_no_picture(tmp_path: Path) -> None:
    """Long sentences that differ in a word are one for the rule that drops what too many share."""
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)})
    template = "buy the best {} for your home and garden today with delivery in three days from our friendly shop"
    filled = [template.format(word) for word in rng.sample(words, 60)]
    short = [f"a man in a {word} hat" for word in rng.sample(words, 60)]
    alone = [" ".join(rng.choices(words, k=14)) for _ in range(60)]
    few = [f"{alone[0]} {word}" for word in rng.sample(words, 10)]  # no more than may share a sentence
    sentences = [*filled, *short, *alone[1:], *few]
    rows = [scored_row(f"{n:016x}", sentence, 0.9) for n, sentence in enumerate(sentences)]
    scored(tmp_path / "scored", rows)
    out = tmp_path / "pairs.parquet"
    write_pairs_table(tmp_path / "scored", out, PairsRecipe(), 0.5)
    left = {sentence for sentence, _ in pairs_of(out).values()}
    assert left - set(filled) == set(sentences) - set(filled)
    # Two of them have 14 of 20 runs in common (brute force); each has 57 others to be found equal with.
    assert {shared_runs(filled[0], other) for other in filled[1:]} == {14 / 20}
    assert len(left & set(filled)) <= 6
    write_pairs_table(tmp_path / "scored", out, PairsRecipe(long=1000), 0.5)
    assert len(pairs_of(out)) == len(sentences)


def shared_runs(some: str, other: str) -> float:
    """The share of the runs of three words of two sentences that both have."""
    both = [set(zip(text, text[1:], text[2:], strict=False)) for text in (some.split(), other.split())]
    return len(both[0] & both[1]) / len(both[0] | both[1])


@pytest.mark.parametrize("name", ["it's", "a[1]", "what?", "*", 'a "b"', "ü {1,2}"])
def test_folders_may_be_called_anything(name: str, tmp_path: Path) -> None:
    scored(tmp_path / name / name, [scored_row("1", "A dog.", 0.9)])
    scored(tmp_path / "it1s/other", [scored_row("2", "A cat.", 0.9)])  # what a pattern would find
    write_pairs_table(tmp_path / name / name, tmp_path / name / "pairs.parquet", PairsRecipe(), 0.5)
    assert list(pairs_of(tmp_path / name / "pairs.parquet")) == ["1"]
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted([name, "pairs.json", "pairs.parquet"])


def test_a_pattern_is_no_pattern(tmp_path: Path) -> None:
    scored(tmp_path / "a", [scored_row("2", "A cat.", 0.9)])
    scored(tmp_path / "[ab]", [scored_row("1", "A dog.", 0.9)])
    write_pairs_table(tmp_path / "[ab]", tmp_path / "pairs.parquet", PairsRecipe(), 0.5)
    assert list(pairs_of(tmp_path / "pairs.parquet")) == ["1"]


def test_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    scored(tmp_path / "scored", [])
    counts = write_pairs_table(tmp_path / "scored", tmp_path / "pairs.parquet", PairsRecipe(), 0.5)
    assert set(counts.values()) == {0}
    assert pairs_of(tmp_path / "pairs.parquet") == {}


def test_what_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pairs.csv is to be a table of pairs: give it a name that ends in .parquet"):
        write_pairs_table(tmp_path / "scored", tmp_path / "pairs.csv", PairsRecipe(), 0.5)
    with pytest.raises(UsageError, match=r"scored has no step.json: imagebert lait score has not ended well there"):
        write_pairs_table(tmp_path / "scored", tmp_path / "pairs.parquet", PairsRecipe(), 0.5)
    scored(tmp_path / "scored", [scored_row("1", "A dog.", 0.9)])
    with pytest.raises(UsageError, match=r"scored is the folder of a step"):
        write_pairs_table(tmp_path / "scored", tmp_path / "scored/00000.parquet", PairsRecipe(), 0.5)
    table = tmp_path / "scored/00000.parquet"
    whole = table.read_bytes()
    for damaged in (whole[:-20], b"no table"):
        table.write_bytes(damaged)
        with pytest.raises((UsageError, OSError), match=r"00000.parquet"):
            write_pairs_table(tmp_path / "scored", tmp_path / "pairs.parquet", PairsRecipe(), 0.5)
    table_step(tmp_path / "scored", "score", pa.schema([("key", pa.string())]), {"00000": [{"key": "1"}]})
    with pytest.raises(UsageError, match=r"the tables do not fit together .*: make the step before again"):
        write_pairs_table(tmp_path / "scored", tmp_path / "pairs.parquet", PairsRecipe(), 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored"]


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [scored_row(f"{n:016x}", f"A dog {rng.bytes(30).hex()}.", 0.9) for n in range(3000)]
    scored(tmp_path / "scored", rows)
    with small_disk(tmp_path / "disk", "40k") as disk:
        with pytest.raises(OSError, match=r"No space left|full"):
            write_pairs_table(tmp_path / "scored", disk / "pairs.parquet", PairsRecipe(), 0.5)
        assert list(disk.iterdir()) == []


MEASURED = """
import resource, sys
from pathlib import Path
from imagebert.lait.aggregate import write_pairs_table
from imagebert.lait.engine import Task, run_step
from imagebert.lait.recipe import PairsRecipe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(write_pairs_table(Path(sys.argv[1]), Path(sys.argv[2]), PairsRecipe(), float(sys.argv[3])))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def write_large(first: int, pictures: int, out: Path) -> dict[str, int]:
    """Five sentences a picture, of ten words each; a tenth of them is one sentence. Made by the database itself."""
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    drawn = "list_extract($1, 1 + (hash({}, {}) % 60)::INTEGER)"
    pairs = [drawn.format("number", place) + " || " + drawn.format(place, "number") for place in range(10)]
    words = " || ' ' || ".join(pairs)
    floats = ", ".join(f"0.5::FLOAT AS {name}" for name in ("fit", "dominance", "name_overlap", "title_overlap"))
    connection = duckdb.connect(config={"threads": 2})
    connection.execute(
        f"""COPY (
            SELECT printf('%016x', number // 5) AS key, 'http://example.org/' || number // 5 || '.jpg' AS url,
                CASE WHEN hash(number) % 10 = 0 THEN 'bada deda' ELSE {words} END AS sentence, 'alt' AS source,
                {floats}, 0::FLOAT AS natural, 0::FLOAT AS nsfw, 0::INTEGER AS rank, 1::INTEGER AS pictures,
                400::INTEGER AS width, 320::INTEGER AS height, 1::INTEGER AS pages,
                'http://example.org/' || number AS page, 0::FLOAT AS match,
                ((hash(number, 'relevance') % 1000) / 1000)::FLOAT AS relevance
            FROM range({5 * first}, {5 * (first + pictures)}) AS numbers(number)
        ) TO '{out}.parquet' (FORMAT parquet, COMPRESSION zstd)""",
        [syllables],
    )
    return {}


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Ten million sentences in half a GiB; where there is more, they take three."""
    tasks = [Task(f"{tar:05d}", tar, (tar * PICTURES // 4, PICTURES // 4)) for tar in range(4)]
    run_step("score", tmp_path / "scored", write_large, tasks, None)
    call = [sys.executable, "-c", MEASURED, str(tmp_path / "scored"), str(tmp_path / "pairs.parquet"), "0.5"]
    done = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True)
    counts, mib = done.stdout.splitlines()
    assert f"'sentences': {5 * PICTURES}" in counts
    (pairs,) = re.findall(r"'pairs': (\d+)", counts)
    assert 0.9 < int(pairs) / PICTURES < 1
    # Half a GiB of the database, and what is written at once.
    assert int(mib) < 900
    assert not [path.name for path in tmp_path.iterdir() if "overflow" in path.name]
