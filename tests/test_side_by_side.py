"""Which runs share a process; and that runs side by side end as one after the other, are stopped, and do not outlive
who started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.ladder import load_ladder
from imagebert.side_by_side import chains, train_side_by_side
from tests.corpora import write_corpus
from tests.test_ladder import tree, write

ROOT = Path(__file__).parents[1]


def test_runs_that_start_from_each_other_share_a_process() -> None:
    found = [[rung.run for rung in chain] for chain in chains(load_ladder("demo"))]
    assert found == [["stage1", "stage2", "finetune"], ["stage2_only"], ["mixed"]]


def two_chains() -> dict[str, object]:
    content = tree()
    content["runs"]["alone"] = {**content["runs"]["short"], "set": ["schedule.steps=4"]}
    content["rungs"].append({"name": "four steps", "run": "alone"})
    return content


def test_the_same_runs_as_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT}/kernels")
    write_corpus(tmp_path / "data")
    name, lines = write(tmp_path, two_chains()), []
    data, out = tmp_path / "data", tmp_path / "beside"
    assert train_side_by_side(name, load_ladder(name), out, data, 2, ["seed=3"], lines.append)
    assert {line.partition(":")[0] for line in lines} == {"long", "alone"}
    assert main(["ladder", name, "--data", str(data), "--out", str(tmp_path / "after"), "seed=3"]) == 0
    for run in ("short", "long", "alone"):
        beside, after = (
            [json.loads(line)["loss/total"] for line in (tmp_path / way / run / "log.jsonl").read_text().splitlines()]
            for way in ("beside", "after")
        )
        assert beside == after
        assert (out / run / "evaluation").is_dir() == (tmp_path / "after" / run / "evaluation").is_dir()


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT}/kernels")
    name, lines = write(tmp_path, tree()), []
    with pytest.raises(OSError, match="training failed: long with 2"):
        train_side_by_side(name, load_ladder(name), tmp_path / "out", tmp_path / "nowhere", 1, [], lines.append)
    assert any("nowhere" in line for line in lines)


PARENT = """
import sys
from pathlib import Path
from imagebert.ladder import load_ladder
from imagebert.side_by_side import train_side_by_side
name, out, data = sys.argv[1:]
say = lambda line: print(line, flush=True)
ended = train_side_by_side(name, load_ladder(name), Path(out), Path(data), 2, ["schedule.steps=100000"], say)
sys.exit(0 if ended else 75)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_ended_with_who_started_them(tmp_path: Path, number: signal.Signals, end: int) -> None:
    write_corpus(tmp_path / "data")
    name = write(tmp_path, two_chains())
    call = [sys.executable, "-c", PARENT, name, str(tmp_path / "out"), str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/kernels"}
    with subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        training = set()
        for line in parent.stdout:
            if "step " in line:
                training.add(line.partition(":")[0])
            if training == {"long", "alone"}:
                break
        parent.send_signal(number)
        parent.stdout.read()  # until the last one that could write has ended
        assert parent.wait() == end
    lengths = [(tmp_path / "out" / run / "log.jsonl").stat().st_size for run in ("short", "alone")]
    time.sleep(0.5)
    assert lengths == [(tmp_path / "out" / run / "log.jsonl").stat().st_size for run in ("short", "alone")]
    saved = [run for run in ("short", "alone") if any((tmp_path / "out" / run / "checkpoints").glob("step*"))]
    assert saved == (["short", "alone"] if number == signal.SIGTERM else [])
