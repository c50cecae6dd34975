"""slurm/ on a real cluster of three nodes: the whole chain, and each fault, which must cost time and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from transformers import BertConfig, BertModel

from imagebert.data.regions import RegionStore
from imagebert.engine.metrics import read_log
from imagebert.training.attempts import read_attempts
from tests.corpora import write_corpus
from tests.regions.test_extractor import description as extractor  # noqa: F401
from tests.slurm.cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
STEPS = 240
# A model and steps of milliseconds; two ranks, which lose each other after 20 s.
SMALL = [
    *("engine.precision=fp32", "schedule.batch_size=16", "schedule.epochs=null", "logging.every_steps=1"),
    *("model.hidden_dropout=0.0", "model.attention_dropout=0.0", "engine.timeout_minutes=0.33"),
]
LONG = [*SMALL, f"schedule.steps={STEPS}", "checkpoint.every_steps=20"]
TWO_NODES = ["--nodes", "2", "--gpus", "1", "--cpus", "1", "--time", "10"]
FIRST_TWO = "--sbatch=--exclude=node3"  # so that it is known who has what

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], check=False).returncode != 0,
    reason="a cluster on one machine needs root and namespaces",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=3) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with a space in its name: data of all stages, a BERT to start from, no runs yet."""
    folder = tmp_path_factory.mktemp("a user") / "their home"
    for number, name in enumerate(("lait", "cc", "sbu", "flickr30k")):
        (folder / "data" / name).mkdir(parents=True)
        source = write_corpus(folder / "data" / name, seed=number)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=45, **shape)).save_pretrained(folder / "bert")
    (folder / "bert/vocab.txt").write_bytes((Path(source.pairs) / "vocab.txt").read_bytes())
    return folder


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> list[float]:
    """The losses of stage 1 on two ranks that nothing happens to."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    sources = [f'data.sources.0.{kind}="{home}/data/lait/{kind}"' for kind in ("regions", "pairs")]
    command = [*launcher, "-m", "imagebert", "pretrain", "stage1_lait", "output=undisturbed", *sources, *LONG]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/kernels"}
    subprocess.run([*command, "model.initialize_from=bert"], cwd=home, env=env, check=True)
    return losses(home / "undisturbed")


def losses(run: Path) -> list[float]:
    return [line["loss/total"] for line in read_log(run / "log.jsonl")]


def submit(cluster: Cluster, home: Path, script: str, *arguments: str) -> str:
    done = cluster.call([ROOT / "slurm" / script, *arguments], home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Job:
    """Stage 1 on two nodes, and what happens to it."""

    def __init__(self, cluster: Cluster, home: Path, name: str, *arguments: str) -> None:
        self.cluster, self.run = cluster, home / "runs" / name
        call = [*TWO_NODES, "--run", f"runs/{name}", "--from", "bert", "--no-check", *LONG, *(arguments or [FIRST_TWO])]
        self.id = submit(cluster, home, "stage1.sh", *call)
        self.output = home / f"slurm-imagebert-stage1-{self.id}.out"

    def reach(self, step: int) -> None:
        wait_for(lambda: len(losses(self.run)) >= step, 90, f"step {step} of {self.run}: {self.text()}")

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def struck(self) -> None:
        """Now it happens to it: the seconds until it trains again are written down for docs/operations.md."""
        self.struck_at = time.monotonic()

    def ends_as(self, undisturbed: list[float], exactly: bool = True) -> None:
        wait_for(lambda: self.text().count("resuming from") > 0, 180, f"{self.run} to go on: {self.text()}")
        seconds = time.monotonic() - self.struck_at
        with (self.cluster.folder / "times.txt").open("a") as times:
            times.write(f"{self.run.name} {seconds:.0f}\n")
        state = self.cluster.wait_for_end(self.id, 240)
        assert state == "COMPLETED", self.text()
        curve = losses(self.run)
        assert curve == undisturbed if exactly else curve == pytest.approx(undisturbed, rel=1e-4)

    def attempts(self) -> int:
        return int(self.cluster.field(self.id, "Restarts")) + 1

    def rank(self, node: int) -> int:
        """The process that trains on a node."""
        return wait_for(lambda: self.cluster.processes(node, "imagebert pretrain stage1_lait"), 30, "a rank")[-1]


def test_the_whole_chain(cluster: Cluster, home: Path) -> None:
    """Stage 1 -> stage 2 -> fine-tuning -> evaluation, submitted by pipeline.sh, each checked by the doctor."""
    paths = ["--data", "data", "--runs", "runs", "--from", "bert", f"--local={cluster.folder}/local"]
    few = [*SMALL, "schedule.steps=12", "checkpoint.every_steps=6", "stage1:schedule.steps=15"]
    done = cluster.call([ROOT / "slurm/pipeline.sh", *TWO_NODES, *paths, *few, "evaluate:--split=train"], home)
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split() for line in done.stdout.splitlines())
    assert list(jobs) == ["stage1", "stage2", "finetune", "evaluate"]
    outputs = {name: home / f"slurm-imagebert-{name}-{job}.out" for name, job in jobs.items()}
    for name, job in jobs.items():
        assert cluster.wait_for_end(job, 180) == "COMPLETED", outputs[name].read_text()
    assert "fit to train" in outputs["stage1"].read_text()
    assert "1 of 1 shards are in" in outputs["stage2"].read_text()  # staged to the node's own disk
    runs = home / "runs"
    assert [len(losses(runs / name)) for name in ("stage1_lait", "stage2_cc_sbu", "finetune_flickr30k")] == [15, 12, 12]
    recipes = {name: (runs / name / "config.yaml").read_text() for name in ("stage2_cc_sbu", "finetune_flickr30k")}
    assert "initialize_from: runs/stage1_lait" in recipes["stage2_cc_sbu"]
    assert "initialize_from: runs/stage2_cc_sbu" in recipes["finetune_flickr30k"]
    figures = json.loads((runs / "finetune_flickr30k/recall-flickr30k-train.json").read_text())
    assert figures["images"] == 24
    (evaluation,) = (runs / "finetune_flickr30k/evaluation").iterdir()
    assert json.loads((evaluation / "digests.json").read_text())["ranks"] == 2  # both nodes scored


def test_stage_2_starts_from_a_stage_1_that_has_not_ended(cluster: Cluster, home: Path) -> None:
    first = [*TWO_NODES, "--from", "bert", "--run", "runs/unfinished", "--no-check"]
    job = submit(cluster, home, "stage1.sh", *first, *SMALL, "schedule.steps=100000", "checkpoint.every_steps=10")
    wait_for(lambda: list((home / "runs/unfinished/checkpoints").glob("step-*")), 90, "a checkpoint")
    cluster.call(["scancel", job], home)
    cluster.wait_for_end(job, 60)
    second = [*TWO_NODES, "--from", "runs/unfinished", "--run", "runs/second", "--no-check"]
    job = submit(cluster, home, "stage2.sh", *second, *SMALL, "schedule.steps=3")
    output = home / f"slurm-imagebert-stage2-{job}.out"
    assert cluster.wait_for_end(job, 120) == "COMPLETED", output.read_text()
    assert "steps is in runs/unfinished/model" in output.read_text()


def test_sbatch_itself(cluster: Cluster, home: Path) -> None:
    """Without the script's own way to submit: by a link to it, with GPUs as --gres, from a shell that has had a run."""
    (home / "code").mkdir()
    (home / "code/slurm").symlink_to(ROOT / "slurm")
    script = home.relative_to(home) / "code/slurm/stage1.sh"
    command = ["sbatch", "--parsable", "--nodes=2", "--gres=gpu:1", "--cpus-per-task=1", script]
    options = ["--from", "bert", "--run", "runs/direct", "--no-check", *SMALL, "schedule.steps=3"]
    job = cluster.call([*command, *options], home, MASTER_ADDR="localhost", MASTER_PORT="29500").stdout.strip()
    assert cluster.wait_for_end(job, 60) == "COMPLETED", (home / f"slurm-stage1.sh-{job}.out").read_text()
    assert len(losses(home / "runs/direct")) == 3


def test_photographs_to_a_store(cluster: Cluster, home: Path, extractor: Path) -> None:  # noqa: F811
    """A job array extracts two parts, a job behind it merges them."""
    (home / "photographs").mkdir()
    for number in range(5):
        Image.new("RGB", (128, 64), (40 * number, 0, 0)).save(home / "photographs" / f"{number}.jpg")
    paths = ["--images", "photographs", "--out", "extracted", "--extractor", str(extractor)]
    ids = submit(
        cluster, home, "extract.sh", *paths, "--gpus", "0", "--cpus", "1", "--time", "5", "--parts", "2"
    ).split()
    assert cluster.wait_for_end(ids[1], 120) == "COMPLETED"
    store = RegionStore(home / "extracted")
    assert [store.key(number) for number in range(len(store))] == [f"{number}.jpg" for number in range(5)]


def test_asked_to_stop_before_the_time_limit(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "usr1")
    job.reach(50)
    # What --signal=USR1@300 does: Slurm looks once a minute only, which is long for a test.
    job.struck()
    assert cluster.call(["scancel", "--signal=USR1", job.id], home).returncode == 0
    job.ends_as(undisturbed)
    assert job.attempts() == 2
    assert "ended with 75: requeued" in job.text()
    assert "steps done; the same command goes on from here" in job.text()


def test_preempted_by_a_job_of_a_higher_partition(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "preempted")
    job.reach(50)
    job.struck()
    urgent = cluster.call(
        ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 3"], home
    )
    assert urgent.returncode == 0
    job.ends_as(undisturbed)
    assert cluster.field(urgent.stdout.strip(), "JobState") == "COMPLETED"
    assert job.attempts() == 2
    assert "resuming from" in job.text()


def test_a_rank_is_killed(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "killed")
    job.reach(50)
    job.struck()
    os.kill(job.rank(2), signal.SIGKILL)
    job.ends_as(undisturbed)
    assert job.attempts() == 1  # the job has started its processes again
    assert "imagebert: rank 1 on node2 was ended by a signal: Killed" in job.text()
    assert "Traceback" not in job.text()  # of who lost the other one: it lies in a file
    assert list((job.run / "tracebacks").iterdir())


def test_a_rank_hangs(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "hung")
    job.reach(50)
    job.struck()
    os.kill(job.rank(2), signal.SIGSTOP)
    # The others wait in a collective; what ends them shows where.
    wait_for(lambda: "Timeout (0:00:2" in job.text() or "lost another rank" in job.text(), 60, "the others to notice")
    assert time.monotonic() - job.struck_at < 1.5 * 20 + 10
    job.ends_as(undisturbed)
    assert job.attempts() == 1


def test_a_nodes_network_is_cut(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "cut")
    job.reach(50)
    job.struck()
    cluster.cut(2)
    wait_for(lambda: job.attempts() == 2, 90, "the job to be requeued")
    cluster.heal(2)
    job.ends_as(undisturbed)
    cluster.wait_until_idle()


def test_a_node_is_switched_off_and_comes_back(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "off")
    job.reach(50)
    job.struck()
    cluster.kill(2)
    wait_for(lambda: job.attempts() == 2, 90, "the job to be requeued")
    cluster.start(2)
    job.ends_as(undisturbed)
    cluster.wait_until_idle()


def test_a_node_does_not_come_back(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    """--nodes 1-2, two ranks on each: the rest of the run is done by one; other sums, the same losses to 1e-4."""
    job = Job(cluster, home, "fewer", "--nodes", "1-2", "--gpus", "2", FIRST_TWO)
    job.reach(50)
    assert cluster.field(job.id, "NumNodes") == "2"
    job.struck()
    cluster.kill(2)
    try:
        job.ends_as(undisturbed, exactly=False)
        assert cluster.field(job.id, "NumNodes") == "1"
        assert "ranks 4 -> 2" in job.text()
    finally:
        cluster.start(2)
        cluster.wait_until_idle()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sbatch=--ntasks-per-node=2"], "a node has 1 GPUs and 2 tasks: leave --ntasks-per-node out"),
        (["--data", "nowhere"], "the store nowhere/lait/regions is not there"),
        (["--env", "nowhere"], "--env nowhere is not there, seen from node"),
        (["schedule.batch_size=1", "pretraining.negatives=0"], "batch_size 1 cannot be cut into 2 microbatches"),
        (["checkpoint.keep=1000000000"], "GiB are needed for checkpoints"),
    ],
    ids=["tasks", "store", "environment", "batch", "space"],
)
def test_what_cannot_work_ends_in_seconds(cluster: Cluster, home: Path, arguments: list[str], message: str) -> None:
    options = [*TWO_NODES, "--from", "bert", "--run", "runs/wrong", "--force", *SMALL, "schedule.steps=5", *arguments]
    job = submit(cluster, home, "stage1.sh", *options)
    output = home / f"slurm-imagebert-stage1-{job}.out"
    assert cluster.wait_for_end(job, 60) == "FAILED"
    assert cluster.field(job, "ExitCode") == "2:0"
    assert cluster.field(job, "Restarts") == "0"
    assert message in " ".join(output.read_text().split())


def test_three_failures_before_there_is_a_run_are_the_end_too(cluster: Cluster, home: Path) -> None:
    """imagebert cannot even start: an environment that breaks it."""
    broken = home / "broken env/bin"
    broken.mkdir(parents=True)
    (broken / "activate").write_text(f'PATH="{broken}:$PATH"\n')
    (broken / "imagebert").write_text("#!/bin/sh\nexit 3\n")
    (broken / "imagebert").chmod(0o755)
    options = [*TWO_NODES, "--from", "bert", "--run", "runs/never", "--force", "--no-check"]
    options += ["--env", str(broken.parent), *SMALL]
    job = submit(cluster, home, "stage1.sh", *options)
    assert cluster.wait_for_end(job, 90) == "FAILED"
    assert cluster.field(job, "Restarts") == "1"
    assert cluster.field(job, "ExitCode") == "3:0"


def test_three_failures_at_the_same_place_are_the_end(cluster: Cluster, home: Path) -> None:
    options = [*TWO_NODES, "--from", "bert", "--run", "runs/hopeless", "--no-check", *SMALL, "schedule.steps=50"]
    # The first steps are well, then the rate ruins the weights: again each time.
    hopeless = ["optimizer.learning_rate=1e30", "engine.max_skipped_steps=2", "checkpoint.every_steps=1000"]
    job = submit(cluster, home, "stage1.sh", *options, *hopeless)
    assert cluster.wait_for_end(job, 150) == "FAILED"
    text = (home / f"slurm-imagebert-stage1-{job}.out").read_text()
    assert cluster.field(job, "Restarts") == "1"
    assert "for the third time at the same checkpoint" in text
    assert read_attempts(home / "runs/hopeless")[-1]["exit"] == 1


def test_a_node_that_fails_twice_is_left_out(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    """The first time its processes start again; the second time the job goes to another node."""
    job = Job(cluster, home, "twice", "checkpoint.every_steps=100000")
    for number in (1, 2):
        wait_for(lambda n=number: job.text().count("2 ranks on node[1-2]") >= n, 90, f"start {number}: {job.text()}")
        job.reach(10)
        os.kill(job.rank(2), signal.SIGKILL)
    assert cluster.wait_for_end(job.id, 120) == "COMPLETED", job.text()
    assert job.attempts() == 2
    assert cluster.field(job.id, "ExcNodeList") == "node2"
    assert cluster.field(job.id, "NodeList") == "node[1,3]"
    assert losses(job.run)[-STEPS:] == undisturbed
    assert [line["event"] for line in read_attempts(job.run)].count("start") >= 2


def test_a_node_that_loses_its_data(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    """A machine's fault, not the call's: the job goes on elsewhere."""
    job = Job(cluster, home, "unmounted", "checkpoint.every_steps=20")
    job.reach(50)
    inside = ["nsenter", "-t", str(job.rank(2)), "-m"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "none", str(home / "data")], check=True)
    try:
        os.kill(job.rank(2), signal.SIGKILL)
        assert cluster.wait_for_end(job.id, 150) == "COMPLETED", job.text()
        assert "fault on node2" in job.text()
        assert cluster.field(job.id, "NodeList") == "node[1,3]"
        assert losses(job.run) == undisturbed
    finally:
        cluster.kill(2)
        cluster.start(2)
        cluster.wait_until_idle()


def test_the_controller_is_away_while_a_rank_dies(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    job = Job(cluster, home, "paused")
    job.reach(50)
    with cluster.paused():
        job.struck()
        os.kill(job.rank(2), signal.SIGKILL)
        time.sleep(45)
    job.ends_as(undisturbed)


def test_folders_that_are_not_shared_end_at_once(cluster: Cluster, home: Path) -> None:
    options = [*TWO_NODES, "--from", "bert", "--runs", f"{cluster.folder}/local", "--force", *SMALL, "schedule.steps=5"]
    job = submit(cluster, home, "stage1.sh", *options)
    assert cluster.wait_for_end(job, 60) == "FAILED"
    assert cluster.field(job, "ExitCode") == "2:0"
    assert "is another folder" in " ".join((home / f"slurm-imagebert-stage1-{job}.out").read_text().split())


def test_asked_to_stop_before_the_first_step(cluster: Cluster, home: Path) -> None:
    job = submit(
        cluster,
        home,
        "stage1.sh",
        *TWO_NODES,
        "--from",
        "bert",
        "--run",
        "runs/early",
        "--no-check",
        *SMALL,
        "schedule.steps=3",
    )
    output = home / f"slurm-imagebert-stage1-{job}.out"
    wait_for(lambda: output.exists() and "command: imagebert pretrain" in output.read_text(), 30, "its processes")
    cluster.call(["scancel", "--signal=USR1", job], home)
    assert cluster.wait_for_end(job, 90) == "COMPLETED"
    assert cluster.field(job, "Restarts") == "1"
    assert not (home / "runs/early/.slurm-failures").exists()


def test_a_chain_where_nothing_is_requeued(cluster: Cluster, home: Path, undisturbed: list[float]) -> None:
    options = [*TWO_NODES, "--from", "bert", "--run", "runs/linked", "--no-check", "--chain", "3", *LONG]
    jobs = submit(cluster, home, "stage1.sh", *options).split("?")
    assert len(jobs) == 3
    refused = cluster.call([ROOT / "slurm/stage1.sh", *options], home)
    assert refused.returncode == 2
    assert f"job {jobs[0]} writes runs/linked already: give --after {jobs[0]}" in refused.stderr
    run = home / "runs/linked"
    wait_for(lambda: (run / "log.jsonl").exists() and len(losses(run)) >= 50, 90, "step 50")
    cluster.call(["scancel", "--signal=USR1", jobs[0]], home)
    assert cluster.wait_for_end(jobs[0], 60) == "FAILED"
    assert cluster.field(jobs[0], "ExitCode") == "75:0"
    assert cluster.wait_for_end(jobs[1], 90) == "COMPLETED"
    assert losses(run) == undisturbed
    assert cluster.wait_for_end(jobs[2], 60) == "CANCELLED"


def test_runs_of_several_seeds(cluster: Cluster, home: Path) -> None:
    options = [
        "--nodes",
        "1",
        "--gpus",
        "1",
        "--cpus",
        "1",
        "--from",
        "bert",
        "--run",
        "runs/seeds",
        "--no-check",
        *SMALL,
    ]
    job = submit(cluster, home, "stage1.sh", *options, "--seeds", "3-4", "schedule.steps=3")
    for seed in (3, 4):
        assert cluster.wait_for_end(f"{job}_{seed}", 90) == "COMPLETED"
        assert f"seed: {seed}" in (home / f"runs/seeds-seed{seed}/config.yaml").read_text()
        assert (home / f"slurm-imagebert-stage1-{job}_{seed}.out").exists()


def test_an_evaluation_is_asked_to_stop(cluster: Cluster, home: Path) -> None:
    """Requeued, and a job's nodes share the mining."""
    model = home / "runs/finetune_flickr30k"
    if not (model / "model").is_dir():
        pytest.skip("the whole chain makes the model")
    options = [*TWO_NODES, "--from", str(model), "--data", "data"]
    job = submit(cluster, home, "evaluate.sh", *options, "--split", "train")
    output = home / f"slurm-imagebert-evaluate-{job}.out"
    wait_for(lambda: output.exists() and "command: imagebert evaluate" in output.read_text(), 30, "its processes")
    cluster.call(["scancel", "--signal=USR1", job], home)
    mining = submit(
        cluster, home, "mine.sh", *options, "--out", "runs/hard.safetensors", "--", "--pool", "8", "--keep", "2"
    )
    assert cluster.wait_for_end(job, 90) == "COMPLETED"
    assert cluster.field(job, "Restarts") == "1"
    assert cluster.wait_for_end(mining, 90) == "COMPLETED"
    assert (home / "runs/hard.safetensors").is_file()
