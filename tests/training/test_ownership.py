"""Two runs with one folder: one trains, as if the other were not, and the other says whose it is."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from imagebert import lock as module
from imagebert.cli import main
from imagebert.config import SourceConfig, UsageError, load_recipe
from imagebert.lock import TakenOver
from imagebert.training.run import run
from tests.forked import IMAGEBERT, Forked, start, start_ranks
from tests.training.test_run import RECIPE, losses


@pytest.fixture(autouse=True)
def _in_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def begun(settings: list[str], ranks: int, **env: str) -> list[Forked]:
    return start_ranks(ranks, IMAGEBERT, "pretrain", RECIPE, *settings, **env)


def ends(processes: list[Forked]) -> list[tuple[int | None, str]]:
    texts = ["".join(process.communicate()) for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


def reach(processes: list[Forked], folder: Path, steps: int) -> None:
    while len(losses(folder)) < steps and all(process.poll() is None for process in processes):
        time.sleep(0.02)


def give_to_a_younger_attempt(path: Path) -> None:
    content = json.loads(path.read_text())
    content |= {"host": "elsewhere", "attempt": content["attempt"] + 1, "token": "0" * 16}
    new = path.with_name("new")
    new.write_text(json.dumps(content).ljust(511) + "\n")
    new.replace(path)


@pytest.mark.ranks
def test_a_run_that_is_started_twice(recipe: list[str], tmp_path: Path) -> None:
    """The second, on two ranks, ends with 2 and changes nothing."""
    settings = [*recipe, "schedule.steps=40", "checkpoint.every_steps=20"]
    first = begun(settings, 1)
    reach(first, tmp_path / "run", 5)
    first[0].send_signal(signal.SIGSTOP)  # it would be over before the second is there
    (code, text), (_, other) = ends(begun([*recipe, "seed=7"], 2))
    assert code == 2, text
    assert f"another process is writing {tmp_path}/run: process {first[0].pid} on " in text
    assert "or give another output folder" in text
    assert "lost another rank" in other
    first[0].send_signal(signal.SIGCONT)
    ((code, text),) = ends(first)
    assert code == 0, text
    run(load_recipe(RECIPE, [*settings, f"output={tmp_path / 'whole'}"]))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    name = "model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "seed: 0" in (tmp_path / "run/config.yaml").read_text()
    assert not (tmp_path / "run/.lock").exists()


@pytest.mark.ranks
def test_all_ranks_of_an_older_attempt_end_with_2_before_they_save(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = begun([*recipe, "schedule.steps=100000", "checkpoint.every_steps=30"], 2, SLURM_JOB_ID="77")
    reach(older, tmp_path / "run", 5)
    give_to_a_younger_attempt(tmp_path / "run/.lock")
    for rank, (code, text) in enumerate(ends(older)):
        assert code == 2, text
        says = "over, process .* on elsewhere" if rank == 0 else "over, which rank 0 names"
        assert re.search(f"another process has taken {tmp_path}/run {says}", text), text
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert (tmp_path / "run/.lock").exists()  # the younger one's
    # One that is younger still goes on at once, and an older one does not begin.
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(UsageError, match="a younger attempt of this job"):
        run(load_recipe(RECIPE, recipe))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    begin = time.monotonic()
    assert run(load_recipe(RECIPE, [*recipe, "schedule.steps=3"])).finished
    assert time.monotonic() - begin < module.WATCH


def test_what_a_beat_has_seen_ends_a_run_between_its_saves(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)

    def take() -> None:
        while len(losses(tmp_path / "run")) < 5:
            time.sleep(0.02)
        give_to_a_younger_attempt(tmp_path / "run/.lock")

    taker = threading.Thread(target=take)
    taker.start()
    with pytest.raises(TakenOver, match=r"over, process .* on elsewhere"):
        run(load_recipe(RECIPE, [*recipe, "schedule.steps=100000", "checkpoint.every_steps=100000"]))
    taker.join()
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_killed_run_leaves_a_lock_that_does_not_matter(recipe: list[str], tmp_path: Path) -> None:
    process = start(IMAGEBERT, "pretrain", RECIPE, *recipe, "schedule.steps=100000")
    reach([process], tmp_path / "run", 1)
    process.kill()
    process.wait()
    assert (tmp_path / "run/.lock").exists()
    begin = time.monotonic()
    assert run(load_recipe(RECIPE, [*recipe, "schedule.steps=3"])).finished
    assert time.monotonic() - begin < module.WATCH
    assert not (tmp_path / "run/.lock").exists()


def test_a_call_that_is_wrong_leaves_no_folder(recipe: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(load_recipe(RECIPE, [*recipe, f"data.sources.0.regions={tmp_path / 'nowhere'}"]))
    assert list(tmp_path.iterdir()) == []


def test_two_evaluations_of_one_folder(
    source: SourceConfig, recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scores, the other says whose it is; one of another folder of the same model does not mind."""
    run(load_recipe(RECIPE, [*recipe, "schedule.steps=2"]))
    data = ["--regions", source.regions, "--pairs", source.pairs, "--split", "train"]
    command = ["evaluate", str(tmp_path / "run"), *data, "--out", str(tmp_path / "out")]
    first = start(IMAGEBERT, *command)
    while not list(tmp_path.glob("out/tiles/*")) and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    assert (tmp_path / "out/tiles").exists(), "it was over before the second"
    assert main(command) == 2
    assert f"another process is writing {tmp_path}/out: process {first.pid} on" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), *data, "--images", "9", "--out", str(tmp_path / "other")]) == 0
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert (tmp_path / "out/recall.json").exists()
    assert list(tmp_path.glob("o*/.lock")) == []
