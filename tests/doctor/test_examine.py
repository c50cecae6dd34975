"""Several ranks, which tell each other what they found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.doctor.compare import Fault, Findings
from tests.forked import IMAGEBERT, free_port, start

RECIPE = "tests/recipe.yaml"
PYTHON = Path(sys.executable)


@pytest.mark.ranks
def test_ranks_tell_each_other(source: SourceConfig, recipe: list[str]) -> None:
    command = [PYTHON.parent / "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", PYTHON, "-m", "imagebert"]
    call = [*command, "doctor", "tests/recipe.yaml", *recipe]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes on 1 hosts" in done.stdout
    assert "\nfit to train" in done.stdout
    assert not list(Path(recipe[0].removeprefix("output=")).parent.glob("run*"))  # what was tried there is gone


def test_a_fault_is_a_line_that_a_script_finds(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Findings(
        2, [{"host": f"node{n}", "figure": "x" * 120} for n in range(40)], {}, [], [], [Fault("node7", "a\nb")]
    )
    monkeypatch.setattr("imagebert.doctor.examine.examine", lambda *_: found)
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert said.err == "imagebert: fault on node7: a b\n"
    # The table is as wide and as long as it needs.
    assert all(re.search(rf"node{n} +. x{{120}}", said.out) for n in range(40))
    monkeypatch.setattr("imagebert.doctor.examine.examine", lambda *_: found._replace(problems=["the call"]))
    assert main(["doctor"]) == 2
    said = capsys.readouterr()
    assert "problem: the call\nnot fit to train\n" in said.out


def test_a_job_that_was_fit_leaves_what_it_had(
    source: SourceConfig,
    recipe: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    store = tmp_path / "regions"
    shutil.copytree(source.regions, store)
    call = ["doctor", "--quick", RECIPE, *recipe, f"data.sources.0.regions={store}"]
    assert main(call) == 0
    assert not (tmp_path / "run").exists()  # a person's call has no later attempt
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(call) == 0
    store.rename(tmp_path / "unmounted")
    capsys.readouterr()
    assert main(call) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        f"imagebert: fault on node7: does not see {store}, which attempt 2 of job 12 had: is its disk mounted?"
    )
    assert "problem" not in said.out
    (tmp_path / "run/.fit.json").write_text("{")  # what cannot be read is nothing
    assert main(call) == 2


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("data.sources.0.regions={}/lost", 1, "imagebert: fault on n2: {}/lost is not there"),
        ("output={}/other/run", 2, "problem: {}/run is another folder on n2 than on n1: give --runs on a shared disk"),
    ],
)
def test_hosts_that_do_not_see_the_same(recipe: list[str], tmp_path: Path, change: str, code: int, said: str) -> None:
    """Two processes that take themselves for hosts; the second is called otherwise, as if it saw another disk."""
    layout = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    call = ["doctor", "--quick", RECIPE, *recipe]
    ranks = [
        start(
            IMAGEBERT,
            *call,
            *([change.format(tmp_path)] * rank),
            **layout,
            RANK=f"{rank}",
            SLURMD_NODENAME=f"n{rank + 1}",
        )
        for rank in range(2)
    ]
    texts = ["".join(process.communicate()) for process in ranks]
    assert [process.returncode for process in ranks] == [code, code], texts
    assert [sum(line.startswith(said.format(tmp_path)) for line in text.splitlines()) for text in texts] == [1, 0], (
        texts
    )
    assert [text.count("fault on") + text.count("problem: ") for text in texts] == [1, 0], texts
