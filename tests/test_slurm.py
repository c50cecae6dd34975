"""What slurm/*.sh would run, without Slurm: options, quoting, mistakes. tests/slurm/ runs them on a real cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "IMAGEBERT_"))}
    command = [str(ROOT / "slurm" / script), *arguments]
    return subprocess.run(command, env=plain | env, capture_output=True, text=True, check=False)


def planned(script: str, *arguments: str, **env: str) -> list[list[str]]:
    done = call(script, *arguments, "--dry-run", **env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_options_the_environment_and_defaults() -> None:
    by_option, by_environment = (
        planned("stage1.sh", *options, "--data", "/data", **env)[0]
        for options, env in (
            (["--nodes", "2-4", "--gpus=4", "--partition", "gpu", "--time=1:00:00"], {}),
            (
                [],
                {
                    "IMAGEBERT_NODES": "2-4",
                    "IMAGEBERT_GPUS": "4",
                    "IMAGEBERT_PARTITION": "gpu",
                    "IMAGEBERT_TIME": "1:00:00",
                },
            ),
        )
    )
    expected = ["--nodes=2-4", "--cpus-per-task=32", "--gpus-per-node=4", "--partition=gpu", "--time=1:00:00"]
    for command in (by_option, by_environment):
        assert command[:2] == ["sbatch", "--parsable"]
        assert set(expected) <= set(command)
    plain = planned("stage1.sh")[0]
    assert {"--nodes=1", "--cpus-per-task=64", "--gpus-per-node=8"} <= set(plain)


def test_a_job_checks_the_machines_then_trains() -> None:
    _, doctor, train = planned("stage1.sh", "--nodes", "2", "--gpus", "4", "schedule.steps=3")
    assert doctor[:4] == ["srun", "--export=ALL", "--kill-on-bad-exit=0", "--wait=10"]
    assert doctor[8:12] == ["imagebert", "doctor", "--quick", "stage1_lait"]
    assert train[8:11] == ["imagebert", "pretrain", "stage1_lait"]
    assert train[-1] == "schedule.steps=3"
    assert doctor[12:] == train[11:]


def test_paths_may_hold_anything() -> None:
    path = "/a disk/it's $HOME: #1"
    *_, train = planned("stage1.sh", "--no-check", "--data", path, "--run", "my run")
    assert f'data.sources.0.regions="{path}/lait/regions"' in train
    assert 'output="my run"' in train


def test_stores_are_copied_to_local_disks_first() -> None:
    *_, first, second, train = planned("stage2.sh", "--no-check", "--local", "/scratch", "--nodes", "3")
    assert first[6:] == [
        "--ntasks-per-node=1",
        "--wait=0",
        "--cpus-per-task=8",
        *["imagebert", "store", "stage", "data/cc/regions", "/scratch/cc-regions", "--as-fits"],
    ]
    assert "/scratch/sbu-regions" in second
    assert train.index('data.sources.1.regions="/scratch/sbu-regions"') > train.index(
        'data.sources.1.regions="data/sbu/regions"'
    )


def test_a_container_is_entered() -> None:
    options = ["--no-check", "--container", "img.sif", "--dataset", "coco", "--from", "/models/bert"]
    *_, train = planned("finetune.sh", *options)
    assert train[8:11] == ["apptainer", "exec", "--nv"]
    mounts = train[train.index("--bind") + 1].split(",")
    assert {"/models/bert:/models/bert", f"{os.getcwd()}/data:{os.getcwd()}/data"} < set(mounts)
    assert train[train.index("imagebert") :][:3] == ["imagebert", "finetune", "finetune_coco"]


def test_the_chain_waits_for_each_other() -> None:
    done = call("pipeline.sh", "--dry-run", "--nodes=2", "--dataset", "coco", "a=1", "stage1:b=2", "stage2:--nodes=4")
    assert done.returncode == 0, done.stderr
    jobs: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.endswith(":"):
            name = line[:-1]
        else:
            jobs.setdefault(name, []).append(line)
    assert list(jobs) == ["stage1", "stage2", "finetune", "evaluate"]
    submitted = {name: lines[0] for name, lines in jobs.items()}
    assert "--dependency" not in submitted["stage1"]
    for before, name in (("stage1", "stage2"), ("stage2", "finetune"), ("finetune", "evaluate")):
        assert f"--dependency=afterok:{before} " in submitted[name]
    assert jobs["stage1"][-1].endswith("a=1 b=2")
    assert "--nodes=4" in submitted["stage2"]
    assert jobs["finetune"][-1].endswith("a=1")
    evaluate, again = jobs["evaluate"][-2:]
    assert "runs/finetune_coco --regions data/coco/regions" in evaluate
    assert "--ntasks=16 " in evaluate
    assert "--ntasks=1 " in again
    assert "--folds 5" in again


def test_extraction_is_an_array_and_a_merge(tmp_path: Path) -> None:
    (tmp_path / "extractor.yaml").touch()
    options = [
        "--images",
        str(tmp_path),
        "--extractor",
        str(tmp_path / "extractor.yaml"),
        "--out",
        "store",
        "--parts",
        "3",
    ]
    array, part, merge, joined = planned("extract.sh", *options)
    assert "--array=0-2" in array
    assert part[-2:] == ["--part", "0/3"]
    assert "--dependency=afterok:ARRAY" in merge
    assert joined[joined.index("merge") :] == ["merge", "store-0", "store-1", "store-2", "store"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("stage1.sh", ["--nodse", "2"], "unknown option --nodse"),
        ("stage1.sh", ["--nodes", "two"], "--nodes two: give a number, or a range such as 2-4"),
        ("stage1.sh", ["--gpus", "4", "--tasks", "2"], "each GPU gets one process"),
        ("stage1.sh", ["--data"], "--data needs a value"),
        ("stage1.sh", ["steps"], "steps is neither an option nor key=value"),
        ("evaluate.sh", ["a.b=1"], "evaluate.sh takes no a.b=1"),
        ("extract.sh", ["--images", "/nowhere"], "give --images FOLDER"),
        ("pipeline.sh", ["--run", "x"], "pipeline.sh sets --run itself"),
    ],
)
def test_mistakes_are_named_at_once(script: str, arguments: list[str], message: str) -> None:
    done = call(script, *arguments, "--dry-run")
    assert done.returncode == 2
    assert message in done.stderr


def test_help_lists_the_options() -> None:
    done = call("stage1.sh", "--help")
    assert done.returncode == 0
    assert "--partition, --account, --qos, --time" in done.stdout
