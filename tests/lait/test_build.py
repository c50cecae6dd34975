"""From archives to a run of stage 1, by the commands that docs/lait.md gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from imagebert import api
from imagebert.cli import main
from imagebert.data.folder import lock_of
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import SPECIALS
from imagebert.demo.web import Page
from imagebert.engine.metrics import read_log
from imagebert.errors import UsageError
from imagebert.lait.build import archives_of
from imagebert.lait.engine import read_step
from imagebert.lait.pages import key_of
from imagebert.lock import lock
from tests.disks import small_disk
from tests.forked import IMAGEBERT, finish, start, start_ranks
from tests.lait.made import SETTINGS, write_crawl
from tests.test_meeting import DETECTOR

BUILD = [*SETTINGS, "--archived", "--processes", "1"]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Page]]:
    folder = tmp_path_factory.mktemp("web")
    return folder, write_crawl(folder, pages=70, files=3)


@pytest.fixture(scope="module")
def built(web: tuple[Path, list[Page]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    assert main(["lait", "build", str(web[0]), str(out), *BUILD, "--json", str(out.parent / "counts.json")]) == 0
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pairs_are_the_pages_own(web: tuple[Path, list[Page]], built: Path) -> None:
    """Pictures that pages show, with what a page says of them; nothing of pages that forbid it."""
    counts = json.loads((built.parent / "counts.json").read_text())
    rows = parquet.read_table(built / "pairs.parquet").to_pylist()
    assert counts["pairs"] == len(rows) > 25
    of_url = defaultdict(list)
    for page in web[1]:
        for url in page.images:
            of_url[url].append(page)
    for row in rows:
        assert row["key"] == key_of(row["url"])
        assert not all(page.opted_out or not page.english for page in of_url[row["url"]])
        assert row["page"] in {page.url for page in web[1]}
        assert 0.3 <= row["relevance"] <= 1
    true = {url: sentence for page in web[1] for url, sentence in page.pictures.items()}
    right = [row["caption"].strip(" .").lower() == true.get(row["url"], "").strip(" .").lower() for row in rows]
    assert np.mean(right) > 0.6
    kept = set[str]()
    for path in read_step(built / "kept").files(".tar"):
        with tarfile.open(path) as tar:
            kept |= {name.split(".")[0] for name in tar.getnames()}
    assert {row["key"] for row in rows} <= kept


def test_another_number_of_processes_or_ranks_builds_the_same(
    web: tuple[Path, list[Page]], built: Path, tmp_path: Path
) -> None:
    assert main(["lait", "build", str(web[0]), str(tmp_path / "two"), *BUILD[:-1], "2"]) == 0
    assert files_of(tmp_path / "two").keys() == files_of(built).keys()
    same = [name for name in files_of(built) if not name.endswith((".json",))]
    # Notes and choices say when a file that was given was written.
    two, one = files_of(tmp_path / "two"), files_of(built)
    assert [name for name in same if two[name] != one[name]] == []
    before = files_of(built)
    assert main(["lait", "build", str(web[0]), str(built), *BUILD]) == 0
    assert files_of(built) == before


@pytest.mark.ranks
def test_ranks_build_the_same(web: tuple[Path, list[Page]], built: Path, tmp_path: Path) -> None:
    ranks = start_ranks(3, IMAGEBERT, "lait", "build", web[0], tmp_path / "out", *BUILD)
    finish(ranks)
    assert "sentences: below the threshold" in ranks[0].communicate()[0]
    assert ranks[1].communicate()[0] == ranks[2].communicate()[0] == ""
    for name in ("pairs.parquet", *(str(path.relative_to(built)) for path in built.rglob("*.tar"))):
        assert (tmp_path / "out" / name).read_bytes() == (built / name).read_bytes()


def test_killed_between_any_two_steps_it_goes_on(web: tuple[Path, list[Page]], built: Path, tmp_path: Path) -> None:
    """At some of its writes; what stands there in the end is what an undisturbed call leaves, and nothing else."""
    out = tmp_path / "out"
    code = f"import sys; from tests.lait.work import killed_at; killed_at(int(sys.argv.pop(1))); {IMAGEBERT}"
    for number in (3, 25, 31, 40, 60, 80):
        call = start(code, number, "lait", "build", web[0], out, *BUILD)
        assert call.wait() in (-9, 0), call.communicate()
    finish([start(IMAGEBERT, "lait", "build", web[0], out, *BUILD)])
    found, expected = files_of(out), files_of(built)
    assert found.keys() == expected.keys()
    assert [n for n in expected if not n.endswith(".json") and found[n] != expected[n]] == []


def test_what_comes_of_it_is_trained_on(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`extract`, `pairs`, `verify` and `pretrain stage1_lait` take it as it is."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lait_detector.py").write_text(DETECTOR)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    network = "{module: 'lait_detector:Network', arguments: {outputs: %d}, input: {height: 32, width: 32}}"
    (tmp_path / "extractor.yaml").write_text(
        f"name: tiny\ndetector: {{network: {network % 2}, classes: {tmp_path / 'classes.txt'}, layout: boxes_scores}}\n"
        f"backbone: {network % 1}\n"
    )
    rows = parquet.read_table(built / "pairs.parquet").to_pylist()
    words = sorted({word for row in rows for word in re.findall(r"\w+|[^\w\s]", row["caption"].lower())})
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
    regions, pairs, run = (str(tmp_path / name) for name in ("regions", "pairs", "run"))
    assert main(["extract", str(built / "kept"), regions, "--extractor", str(tmp_path / "extractor.yaml")]) == 0
    table = [str(built / "pairs.parquet"), pairs, "--vocab", str(tmp_path / "vocab.txt"), "--regions", regions]
    assert main(["pairs", *table]) == 0
    store = PairStore(pairs)
    assert len(store) == len(rows)
    said = {store.images[image].decode(): number for number, image in enumerate(store.pair_image.tolist())}
    for row in rows:
        assert store.relevance[said[row["key"]]] == np.float32(row["relevance"])
        assert store.text(said[row["key"]]) == row["caption"]
    assert {store.images[image].decode() for image in range(len(store.images))} <= {
        RegionStore(regions).key(number) for number in range(len(RegionStore(regions)))
    }
    assert main(["verify", str(built), "--json", str(tmp_path / "verified.json")]) == 0
    found = json.loads((tmp_path / "verified.json").read_text())
    assert found["damaged"] == 0
    threshold = float(np.median([row["relevance"] for row in rows]))
    small = ["model.initialize_from=null", "model.preset=tiny", "engine.precision=fp32", "engine.step=eager"]
    small += ["schedule.batch_tokens=null", "schedule.microbatch_tokens=null", "schedule.batch_size=8"]
    small += ["schedule.epochs=null", "schedule.steps=3", "logging.every_steps=1", "logging.monitors=[]"]
    sources = [f"data.sources.0.{name}={path}" for name, path in (("regions", regions), ("pairs", pairs))]
    sources += [f"data.sources.0.min_relevance={threshold}"]
    assert main(["pretrain", "stage1_lait", f"output={run}", *sources, *small]) == 0
    losses = [line["loss/total"] for line in read_log(Path(run) / "log.jsonl")]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


def test_damage_anywhere_in_a_build_is_named(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pattern in (
        "candidates/*.parquet",
        "pictures/*.tar",
        "kept/*.tar",
        "kept/looked/*.parquet",
        "kept/chosen/*.parquet",
        "pictures/wanted/*.parquet",
        "scored/*.parquet",
    ):
        path = sorted(built.glob(pattern))[0]
        data = path.read_bytes()
        path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
        assert main(["verify", str(built)]) == 1
        path.write_bytes(data)
        assert f"{path} has changed since it was written" in capsys.readouterr().err
    assert main(["verify", str(built)]) == 0


def test_steps_of_other_builds_are_not_taken_for_one(
    built: Path, web: tuple[Path, list[Page]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step that was made anew, and one behind it that was not."""
    out = tmp_path / "out"
    shutil.copytree(built, out)
    candidates, pictures, kept = (str(out / name) for name in ("candidates", "pictures", "kept"))
    settings = [*SETTINGS, "pages.sentences=1", "--processes", "1"]
    assert main(["lait", "pages", str(web[0]), candidates, *settings]) == 0
    said = f"{out}/pictures was made from another candidates than lies there now: make it again"
    for call in (["verify", str(out)], ["lait", "report", str(out)], ["lait", "plan", "--like", str(out)]):
        capsys.readouterr()
        assert main(call) != 0
        assert said in capsys.readouterr().err
    assert main(["lait", "fetch", candidates, pictures, "--archived", str(web[0]), *settings]) == 0
    assert main(["lait", "filter", candidates, pictures, kept, *settings]) == 0
    assert main(["lait", "score", kept, str(out / "scored"), "--processes", "1"]) == 0
    assert main(["verify", str(out)]) == 1
    assert f"{out}/pairs.parquet was made from another scored" in capsys.readouterr().err


def test_the_report_has_the_counts(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lait", "report", str(built), "--pictures", "7", "--json", str(built.parent / "report.json")]) == 0
    assert re.search(rf"{built}/report.html: 6 steps, \d pictures", capsys.readouterr().out)
    page = (built / "report.html").read_text()
    steps = json.loads((built.parent / "report.json").read_text())
    assert list(steps) == ["candidates", "pictures", "kept/looked", "kept", "scored", "pairs"]
    for counts in steps.values():
        for name, count in counts.items():
            assert not count or re.search(rf">{re.escape(name)}<.*?>{count:,}<", page, re.DOTALL), name
    rows = parquet.read_table(built / "pairs.parquet").to_pylist()
    assert steps["pairs"]["pairs"] == len(rows)
    assert sum(row["caption"] in page for row in rows) >= 3
    assert page.count("data:image/jpeg;base64,") >= 5
    assert "http-equiv" not in page
    assert re.findall(r'(?:src|href)="https?://[^"]*\.(?:js|css)', page) == []
    (built / "report.html").unlink()


def test_a_plan_takes_a_builds_own_shares(built: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    json_file = tmp_path / "plan.json"
    assert main(["lait", "plan", "--pages", "1000000", "--like", str(built), "--json", str(json_file)]) == 0
    found = json.loads(json_file.read_text())
    rates, figures = found["rates"], found["figures"]
    pages = read_step(built / "candidates").counts
    assert rates["english"] == pages["pages: used"] / pages["pages"]
    wanted = sum(parquet.read_metadata(path).num_rows for path in (built / "pictures/wanted").glob("*.parquet"))
    took = read_step(built / "pictures").counts["success"]
    assert rates["fetched"] == took / wanted <= 1
    assert rates["kept"] == read_step(built / "kept").counts["pictures: kept"] / took
    pairs = json.loads((built / "pairs.json").read_text())["counts"]
    assert rates["related"] == pairs["pairs"] / pairs["pictures"]
    assert figures["pairs"] == pytest.approx(
        1e6 * rates["english"] * rates["pictures"] * rates["fetched"] * rates["kept"] * rates["related"]
    )
    said = capsys.readouterr().out
    assert "core hours" in said
    assert rates["picture_bytes"] == sum(path.stat().st_size for path in (built / "pictures").glob("*.tar")) / took
    own = {name for name, source in found["sources"].items() if source == f"measured in {built}"}
    assert own >= {"english", "pictures", "kept", "related", "picture_bytes", "candidate_bytes"}
    assert own.isdisjoint({"pages_per_core", "looked_per_core", "scored_per_gpu"})
    assert found["sources"].keys() == rates.keys()
    assert "a goal, not measured on a GPU yet" in said
    with pytest.raises(UsageError, match=r"candidates has no step.json: imagebert lait build has not ended well"):
        api.lait_plan(1000, like=tmp_path)
    with pytest.raises(UsageError, match="give positive numbers"):
        api.lait_plan(0)


def test_archives_are_each_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.warc.gz", "deep/a.warc.gz", "b.WARC", "c.txt", ".part.warc.gz"):
        path = tmp_path / "crawl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    found = archives_of([Path("crawl"), tmp_path / "crawl/a.warc.gz", Path("crawl/deep")])
    assert {path for _, path in found} == {
        tmp_path / "crawl" / name for name in ("a.warc.gz", "b.WARC", "deep/a.warc.gz")
    }
    assert len({name for name, _ in found}) == 3
    assert [name for name, _ in found] == sorted(name for name, _ in found)
    assert [path for _, path in archives_of([Path("crawl/c.txt")])] == [tmp_path / "crawl/c.txt"]  # as it was named
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "crawl").rename(tmp_path / "elsewhere/crawl")
    moved = archives_of([tmp_path / "elsewhere/crawl"])
    assert [name for name, _ in moved] == [name for name, _ in found]
    (tmp_path / "links").mkdir()
    (tmp_path / "links/to").symlink_to(tmp_path / "elsewhere/crawl")
    (tmp_path / "links/back").symlink_to(tmp_path / "links")
    assert len(archives_of([tmp_path / "links"])) == 3
    (tmp_path / "links" / os.fsdecode(b"caf\xe9.warc.gz")).touch()
    with pytest.raises(
        UsageError, match=r"the name of the archive 'caf\\udce9.warc.gz' is no text: give it one in UTF-8"
    ):
        archives_of([tmp_path / "links"])
    for wrong, said in (
        (tmp_path / "gone", "is neither a WARC file nor a folder"),
        (tmp_path / "none", "no .warc and"),
    ):
        (tmp_path / "none").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=said):
            archives_of([wrong])


def test_one_build_at_a_time(web: tuple[Path, list[Page]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with lock(lock_of(out), out):
        assert main(["lait", "build", str(web[0]), str(out), *BUILD]) == 2
    assert "another process" in capfd.readouterr().err
    assert list(out.iterdir()) == [lock_of(out)] or list(out.iterdir()) == []


def test_what_is_wrong_is_told_before_any_work(web: tuple[Path, list[Page]], tmp_path: Path) -> None:
    for options, said in (
        (api.LaitOptions(overrides={"filter.sid": 200}), r"unknown key filter.sid; did you mean"),
        (api.LaitOptions(overrides=["filter.side=wide"]), r"filter.side"),
        (api.LaitOptions(recipe=tmp_path / "none.yaml"), r"none.yaml"),
        (api.LaitOptions(processes=0), "by a process at least, and within half a GiB of memory"),
        (api.LaitOptions(memory_gib=0.1), "by a process at least, and within half a GiB of memory"),
        (api.LaitOptions(memory_gib=1e30), "by a process at least, and within half a GiB of memory"),
    ):
        with pytest.raises(UsageError, match=said):
            api.lait_build(web[0], tmp_path / "out", options)
    with pytest.raises(UsageError, match="give model and extractor, or neither"):
        api.lait_build(web[0], tmp_path / "out", model="run")
    assert not (tmp_path / "out/candidates").exists()


def test_a_full_disk_is_a_sentence(web: tuple[Path, list[Page]], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        call = start(IMAGEBERT, "lait", "build", web[0], disk / "out", *BUILD)
        _, said = call.communicate()
        assert call.returncode == 1
        (line,) = [line for line in said.splitlines() if line.startswith("imagebert: ") and "No space" in line]
        assert str(disk) in line
        assert "Traceback" not in said
        assert os.listdir(disk / "out")
