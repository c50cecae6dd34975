"""The page of runs that are made here by hand: what is whole is shown, what is damaged is named."""

from __future__ import annotations

import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from imagebert.config import load_recipe
from imagebert.errors import UsageError
from imagebert.files import write_digests, write_sealed
from imagebert.report.folder import differing, read_run
from imagebert.report.write import page_of, write_report
from imagebert.strict_yaml import to_yaml

RECALL = dict.fromkeys(("r1", "r5", "r10"), 10.0)
FIGURES = {"images": 20, "captions": 40, "folds": 1, "ir": RECALL, "tr": {**RECALL, "r1": 12.5}, "rsum": 62.5}


def make_run(folder: Path, *overrides: str, steps: int = 100, **more: float) -> Path:
    folder.mkdir(parents=True)
    config = load_recipe("demo_stage2", [f"output={folder}", f"schedule.steps={steps}", *overrides])
    (folder / "config.yaml").write_text(to_yaml(config))
    lines = [
        {
            "step": step,
            "loss/mlm": 2.0 / step,
            "loss/total": 3.0 / step,
            "learning_rate": 1e-4,
            "skipped_updates": 0.0,
            "damaged_records": 0.0,
            "gradient_norm": 1.5,
            "rate/pairs_per_second": 100.0 + step,
            "rate/tokens_per_second": 2000.0,
            "rate/share_waiting_for_data": 0.5 if step > 50 else 0.0,
            "time/seconds": 2.0 * step,
            "time/ranks": 1,
            **more,
        }
        for step in range(10, 101, 10)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def note(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluate(run: Path, name: str, **more: Any) -> Path:
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    (folder / "recall.json").write_text(json.dumps({**FIGURES, "chance": {"ir": RECALL, "tr": RECALL}, **more}))
    (folder / "evaluation.json").write_text(json.dumps({"split": "test"}))
    write_digests(folder, ["recall.json"])
    return folder


class Cells(HTMLParser):
    """The rows of all tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._in = tag in ("td", "th") or (self._in and tag in ("i", "span", "br"))

    def handle_data(self, data: str) -> None:
        if self._in and self.rows:
            self.rows[-1][-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        self._in &= tag not in ("td", "th")

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].startswith(name))


def plots(page: str) -> list[str]:
    return re.findall(r'aria-label="([^"]*)"', page)


def test_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "optimizer.learning_rate=0.25", **{"rate/share_of_matmul": 0.4})
    start = {"event": "start", "time": "2026-01-01T10:00:00+0000", "job": "7", "ranks": 4, "hosts": "node[1-2]"}
    note(
        folder,
        {**start, "attempt": 1, "step": 0, "of": 100, "version": "0.1.0", "commit": "abcdef0123456789"},
        {**start, "attempt": 2, "step": 40, "of": 100, "version": "0.1.0", "commit": "abcdef0123456789"},
        {"event": "end", "time": "2026-01-01T11:00:00+0000", "job": "7", "attempt": 2, "exit": 75, "why": "asked <b>"},
        {"event": "end", "job": "8", "attempt": 1, "exit": 2, "why": "no such store"},
    )
    evaluate(folder, "test-1", ir={**RECALL, "interval": {"r1": [5.25, 15.75]}})
    out = tmp_path / "page.html"
    write_report([read_run(folder)], out)
    page = out.read_text()
    cells = Cells(page)
    assert cells.row("steps") == ["steps", "100 of 100"]
    assert cells.row("state") == ["state", "failed"]
    assert cells.row("ranks") == ["ranks", "4 on node[1-2]"]
    assert cells.row("version") == ["version, commit", "0.1.0, abcdef012345"]
    assert cells.row("pairs a second") == ["pairs a second, median", "155"]
    assert cells.row("waiting for data") == ["waiting for data", "50.0 s, 25 %"]  # half of the last 100 of 200 seconds
    assert cells.row("share of the matmul") == ["share of the matmul rate (MFU), median", "40 %"]
    assert cells.row("optimizer.learning_rate") == ["optimizer.learning_rate", "0.001", "0.25"]
    assert cells.row("test-1")[1:] == ["10.05.2\N{EN DASH}15.8", "10.0", "10.0", "12.5", "10.0", "10.0", "62.5"]
    attempts = [row[-1] for row in cells.rows if row[0].startswith(("7, attempt", "8"))]
    assert attempts == ["killed, or its machine went away", "asked <b>", "no such store"]
    assert plots(page) == [
        *("weighted sum of the losses", "masked words (MLM)", "pairs a second", "tokens a second"),
        *("share of the matmul rate (MFU), %", "time spent waiting for data, %", "learning rate", "gradient norm"),
        "skipped updates",
    ]
    assert page.count('class="mark"') == 9  # where the second attempt went on, in each plot
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)


def test_two_runs_stand_in_every_plot_and_table(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a/run", "seed=1")
    two = make_run(tmp_path / "b/run", "seed=2", steps=300, **{"recall/ir_r1": 7.0, "recall/rsum": 70.0})
    evaluate(one, "test-1")
    evaluate(two, "test-2", rsum=99.5)
    page = page_of([read_run(one), read_run(two)])
    cells = Cells(page)
    assert cells.rows[0] == ["", str(one), str(two)]  # one name for both would tell nothing
    assert cells.row("steps") == ["steps", "100 of 100", "100 of 300"]
    assert cells.row("R-sum while training") == ["R-sum while training, last", "", "70.0"]
    at = cells.rows.index(["key", str(one), str(two)])
    assert cells.rows[at + 1 : at + 3] == [["schedule.steps", "100", "300"], ["seed", "1", "2"]]
    assert [row[-1] for row in cells.rows if "test-" in row[0]] == ["62.5", "99.5"]
    assert len([row for row in cells.rows if row[0] == "chance"]) == 1
    assert page.count("<polyline") == 2 * len(plots(page)) - 2  # one has no R@K
    assert "text finds image, %" in plots(page)


def test_a_run_that_only_begins_and_one_of_an_older_version(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "log.jsonl").unlink()
    note(folder, {"event": "start"})
    run = read_run(folder)
    assert (run.steps, run.state) == (0, "running, or killed before it could say why it ended")
    assert plots(page_of([run])) == []
    (folder / "jobs.jsonl").unlink()
    assert read_run(folder).state == "not finished"
    with pytest.raises(UsageError, match=r"is no run's folder: name one that has config\.yaml or log\.jsonl"):
        read_run(tmp_path)


def test_a_key_by_the_name_that_it_had_is_no_difference(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    file = folder / "config.yaml"
    before = read_run(folder).recipe
    assert "group_size: " in file.read_text()
    file.write_text(file.read_text().replace("group_size: ", "candidates: "))
    assert read_run(folder).recipe == before


DAMAGE = {
    "config.yaml": [b"\xff", b"[]", b"a: b"],
    "log.jsonl": [b"{}\n", b"\xff\n", b""],
    "jobs.jsonl": [b"\xff\n", b'{"event": "start", "step": [1], "of": "x"}\n{"event": "end", "exit": [], "why": {}}\n'],
    "evaluation/test-1/recall.json": [b"[]", b"{}", json.dumps({**FIGURES, "chance": FIGURES, "folds": []}).encode()],
    "evaluation/test-1/digests.json": [b"{}"],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, those in DAMAGE.items() for c in those])
def test_what_is_damaged_is_left_out_and_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = make_run(tmp_path / "run")
    note(folder, {"event": "start", "step": 0, "ranks": 1, "hosts": "a"}, {"event": "end", "exit": 0, "why": "x"})
    evaluate(folder, "test-1")
    (folder / name).write_bytes(content)
    if name.endswith("recall.json"):  # as an older version left it; with digests any change is told
        (folder / "evaluation/test-1/digests.json").unlink()
    run = read_run(folder)
    page_of([run])
    if name.startswith("evaluation"):
        assert run.evaluations == []
    # A folder of an unknown key is a recipe of another version; attempts are notes, not figures.
    if name != "jobs.jsonl" and content not in (b"", b"a: b"):
        (said,) = run.notes
        assert Path(name).name in said


def test_recipes_differ_in_keys_that_one_lacks() -> None:
    assert differing({"a": 1, "output": "x"}, {"a": 1, "b.0": None, "output": "y"}) == []
    assert differing({"a": 1}, {"a": 2, "b": 3}) == [("a", 1, 2), ("b", None, 3)]


@pytest.mark.parametrize("kept", [None, 0, 5, 10])
def test_a_log_without_the_line_of_the_newest_checkpoint_is_named(tmp_path: Path, kept: int | None) -> None:
    """What was lost at a whole line, with all behind it or the whole file, leaves no damaged line behind."""
    folder = make_run(tmp_path / "run")
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    checksum = zlib.crc32(lines[7].strip().encode())
    checkpoint = folder / "checkpoints/step-00000080"
    checkpoint.mkdir(parents=True)
    shard = {"file": "shard-00000.safetensors", "bytes": 8, "sha256": "", "pieces": []}
    manifest = {"version": 2, "step": 80, "state": {"log": checksum}, "counters": {"updates": 80, "skipped": 0}}
    write_sealed(checkpoint / "manifest.json", {**manifest, "shards": [shard]})
    log.unlink() if kept is None else log.write_text("".join(lines[:kept]))
    assert read_run(folder).notes == ([] if kept == 10 else ["log.jsonl is damaged: its good lines are shown"])
