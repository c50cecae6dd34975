"""What slurm/*.sh would run, without Slurm: options, quoting, mistakes. tests/slurm/ runs them on a real cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.corpora import write_corpus

ROOT = Path(__file__).parents[1]


def call(script: str, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "IMAGEBERT_"))}
    command = [str(ROOT / "slurm" / script), *arguments]
    return subprocess.run(command, cwd=cwd, env=plain | env, capture_output=True, text=True, check=False)


def planned(script: str, *arguments: str, **env: str) -> list[list[str]]:
    """Of data that are not there: without looking."""
    done = call(script, "--force", "--dry-run", *arguments, **env)
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
    assert doctor[8:13] == ["imagebert", "doctor", "--quick", "--task=pretrain", "stage1_lait"]
    assert train[8:11] == ["imagebert", "pretrain", "stage1_lait"]
    assert train[-1] == "schedule.steps=3"
    assert doctor[13:] == train[11:]


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
        *["imagebert", "store", "localise", "data/cc/regions", "/scratch/cc-regions", "--as-fits"],
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


def test_a_container_sees_where_links_lead(tmp_path: Path) -> None:
    (tmp_path / "lustre/regions").mkdir(parents=True)
    (tmp_path / "data/lait").mkdir(parents=True)
    (tmp_path / "data/lait/regions").symlink_to(tmp_path / "lustre/regions")
    *_, train = planned("stage1.sh", "--no-check", "--container", "img.sif", "--data", str(tmp_path / "data"))
    mounts = train[train.index("--bind") + 1].split(",")
    assert f"{tmp_path}/lustre/regions:{tmp_path}/lustre/regions" in mounts


def test_the_chain_waits_for_each_other() -> None:
    done = call(
        "pipeline.sh", "--dry-run", "--force", "--nodes=2", "--dataset", "coco", "a=1", "stage1:b=2", "stage2:--nodes=4"
    )
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
        ("extract.sh", ["--images", "/nowhere"], "give --images FOLDER|TAR,"),
        ("pipeline.sh", ["--run", "x"], "pipeline.sh takes no --run"),
        ("pipeline.sh", ["--from-stage", "stage3"], "--from-stage stage3: there are stage1 stage2 finetune evaluate"),
        ("stage1.sh", ["--gres", "disk:1"], "--gres disk:1: give GPUs"),
        ("stage1.sh", ["--seeds", "a"], "--seeds a: give a range such as 0-4"),
        ("stage1.sh", ["--time", "tomorrow"], "--time tomorrow: give minutes"),
        ("stage1.sh", ["--", "auto"], "imagebert-stage1 takes nothing behind --"),
        ("import.sh", ["--out", "x"], "give --out STORE, and behind --"),
        ("lait.sh", ["--crawl", "/nowhere", "--out", "x"], "give --crawl FOLDER|WARC and --out FOLDER"),
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


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("90", "90"), ("90:00", "90"), ("1:30:00", "90"), ("00:00:10", "1"), ("0:30", "1")),
        *(("1-0", "1440"), ("2-01:30", "2970"), ("1-00:00:01", "1441"), ("08:09:00", "489")),
        *(("UNLIMITED", ""), ("", ""), ("1h", "")),
    ],
)
def test_slurms_ways_to_write_a_time(text: str, minutes: str) -> None:
    script = 'source "$IMAGEBERT_HOME/slurm/common.sh"; minutes_of "$1"'
    command = ["bash", "-c", script, "bash", text]
    done = subprocess.run(command, env=os.environ | {"IMAGEBERT_HOME": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (minutes, "")


def test_the_notice_fits_the_time() -> None:
    short, long = (planned("stage1.sh", "--time", time)[0] for time in ("8", "1-0"))
    assert "--signal=USR1@120" in short
    assert not any(word.startswith("--signal") for word in long)  # the script's own


def test_gpus_as_a_cluster_calls_them() -> None:
    command, doctor, _ = planned("stage1.sh", "--gres", "gpu:h100:4", "--cpus", "2")
    assert "--gres=gpu:h100:4" in command
    assert not any(word.startswith("--gpus-per-node") for word in command)
    assert {"--ntasks-per-node=4", "--cpus-per-task=2"} <= set(doctor)


def test_options_for_srun() -> None:
    _, doctor, train = planned("stage1.sh", "--srun=--mpi=pmix", "--srun", "--label", "--bind", "cores")
    for command in (doctor, train):
        assert {"--mpi=pmix", "--label", "--cpu-bind=cores"} <= set(command[: command.index("imagebert")])


def test_seeds_are_an_array_of_runs() -> None:
    command, *_, train = planned("finetune.sh", "--seeds", "3-5", "--run", "runs/x")
    assert {"--array=3-5", "--output=slurm-%x-%A_%a.out"} <= set(command)
    assert {'output="runs/x-seed3"', "seed=3"} <= set(train)


def test_a_linked_script_and_folder(tmp_path: Path) -> None:
    (tmp_path / "pretrain").symlink_to(ROOT / "slurm/stage1.sh")
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    for script in ("pretrain", "slurm/pipeline.sh"):
        command = [str(tmp_path / script), "--dry-run", "--force"]
        assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


def test_data_jobs(tmp_path: Path) -> None:
    command, step = planned("import.sh", "--nodes", "2", "--tasks", "3", "--out", "s", "--", "auto", "a b", "--strict")
    assert "--gpus-per-node=0" in command
    assert "--ntasks=6" in step
    assert step[step.index("imagebert") :] == ["imagebert", "import", "auto", "a b", "--strict", "s"]
    _, step = planned("pairs.sh", "--out", "p", "--", "c.tsv", "--vocab", "bert")
    assert step[step.index("imagebert") :] == ["imagebert", "pairs", "c.tsv", "--vocab", "bert", "p"]
    lait = ["--nodes", "2", "--tasks", "3", "--cpus", "4", "--crawl", str(tmp_path), "--out", "my lait"]
    command, step = planned("lait.sh", *lait, "filter.side=200", "--", "--archived", "pairs.sharing=5")
    assert {"--gpus-per-node=0", "--nodes=2", "--cpus-per-task=12"} <= set(command)
    assert {"--ntasks=6", "--ntasks-per-node=3", "--cpus-per-task=4"} <= set(step)
    build = ["lait", "build", str(tmp_path), "my lait", "--processes", "4", "--archived", "pairs.sharing=5"]
    assert step[step.index("imagebert") + 1 :] == [*build, "filter.side=200"]
    _, step = planned("mine.sh", "--dataset", "coco", "--from", "m", "--out", "h", "--gpus", "2", "--", "--pool", "9")
    assert "--ntasks=2" in step
    mine = ["mine", "m", "h", "--regions", "data/coco/regions", "--pairs", "data/coco/pairs", "--pool", "9"]
    assert step[step.index("imagebert") + 1 :] == mine
    array, one, table, all_seeds = planned("ladder.sh", "--ladder", "mrfr", "--seeds", "0-2", "a=1")
    assert "--array=0-2" in array
    ladder = ["ladder", "mrfr", "--data", "data", "--out", "runs/mrfr", "--seeds", "3"]
    assert one[one.index("ladder") :] == [*ladder, "--seed", "0", "a=1"]
    assert "--dependency=afterok:ARRAY" in table
    assert all_seeds[all_seeds.index("ladder") :] == [*ladder, "a=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for name in ("lait", "cc", "sbu", "flickr30k"):
        (folder / "data" / name).mkdir(parents=True)
        write_corpus(folder / "data" / name)
    (folder / "bert").mkdir()
    (folder / "bert/config.json").touch()
    return folder


def test_a_call_that_can_work(home: Path) -> None:
    assert call("pipeline.sh", "--dry-run", "--from", "bert", cwd=home).stderr == ""


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("pipeline.sh", ["finetune:schedule.bach_size=4"], "finetune: "),
        ("pipeline.sh", ["stage2:--data=nowhere"], "stage2: there is no store at nowhere/cc/regions: make it"),
        ("stage1.sh", ["--from", "nobert"], "--from nobert is neither a model folder nor a run"),
        ("stage1.sh", ["--from", "bert", "--recipe", "stage3"], "no recipe 'stage3'"),
        (
            "stage1.sh",
            ["--from", "bert", "schedule.batch_size=7"],
            "7 cannot be cut into 8 microbatches (ranks x accumulation)",
        ),
        ("stage1.sh", ["--from", "bert", "--setup", "nowhere"], "there is no --setup nowhere"),
        ("stage1.sh", ["--from", "bert", "--env", "nowhere"], "--env nowhere is no virtual environment"),
        ("stage1.sh", ["--from", "bert", "--local", "disk"], "--local disk: give a node's own disk"),
        ("stage1.sh", ["--from", "bert", "--container", "./image.sif"], "there is no --container ./image.sif"),
        (
            "finetune.sh",
            ["--from", "bert", "--recipe", "stage1_lait"],
            "is a recipe to pretrain, and this job is to finetune",
        ),
    ],
)
def test_what_cannot_work_is_not_submitted(home: Path, script: str, arguments: list[str], message: str) -> None:
    done = call(script, "--dry-run", *arguments, cwd=home)
    assert done.returncode == 2
    assert message in done.stderr
    assert "submitted" in done.stderr
    if script != "pipeline.sh":
        assert call(script, "--dry-run", *arguments, "--force", cwd=home).returncode == 0


def test_a_chain_begins_where_it_was_left(home: Path) -> None:
    model = home / "begun/stage1_lait/model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    done = call("pipeline.sh", "--dry-run", "--runs", "begun", "--from", "bert", cwd=home)
    assert done.stderr == "imagebert: stage1 is done: begun/stage1_lait has its model\n"
    assert done.stdout.startswith("stage2:\n")
    assert "--dependency" not in done.stdout.split("finetune:")[0]
    done = call("pipeline.sh", "--dry-run", "--from-stage", "finetune", "--from", "bert", cwd=home)
    assert [line for line in done.stdout.splitlines() if line.endswith(":")] == ["finetune:", "evaluate:"]
    assert 'model.initialize_from=\\"bert\\"' in done.stdout


def test_all_scripts_find_home_alike() -> None:
    scripts = [path for path in sorted((ROOT / "slurm").glob("*.sh")) if path.name not in ("common.sh", "pipeline.sh")]
    heads = {path.read_text().partition("for IMAGEBERT_HOME in")[2].partition("\n}\n")[0] for path in scripts}
    assert len(scripts) == 10
    assert len(heads) == 1
