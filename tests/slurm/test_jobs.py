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
from tests.lait.made import SETTINGS, write_crawl
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.skipif(
        os.geteuid() != 0 or subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], check=False).returncode,
        reason="a cluster on one machine needs root and namespaces",
    ),
]


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

    def goes_on(self, sign: str = "resuming from") -> None:
        """It trains again."""
        wait_for(lambda: sign in self.text(), 180, f"{self.run} to go on: {self.text()}")
        seconds = time.monotonic() - self.struck_at
        with (self.cluster.folder / "times.txt").open("a") as times:
            times.write(f"{self.run.name} {seconds:.0f}\n")

    def ends_as(self, undisturbed: list[float], exactly: bool = True) -> None:
        self.goes_on()
        state = self.cluster.wait_for_end(self.id, 240)
        assert state == "COMPLETED", self.text()
        curve = losses(self.run)
        assert curve == undisturbed if exactly else curve == pytest.approx(undisturbed, rel=1e-4)

    def attempts(self) -> int:
        return int(self.cluster.field(self.id, "Restarts")) + 1

    def rank(self, node: int) -> int:
        """The process that trains on a node."""
        return wait_for(lambda: self.cluster.processes(node, "imagebert pretrain stage1_lait"), 30, "a rank")[-1]


class Chain:
    """Stage 1 -> stage 2 -> fine-tuning -> evaluation, as pipeline.sh submits it; the recipes, only smaller."""

    RUNS = ("stage1_lait", "stage2_cc_sbu", "finetune_flickr30k")

    def __init__(self, cluster: Cluster, home: Path, name: str) -> None:
        self.cluster, self.home, self.runs = cluster, home, home / name
        paths = ["--data", "data", "--runs", name, "--from", "bert", f"--local={cluster.folder}/local"]
        size = ["engine.precision=fp32", "schedule.batch_size=16", "schedule.epochs=null", "schedule.steps=100"]
        size += ["checkpoint.every_steps=20", "logging.every_steps=1", "engine.timeout_minutes=0.33"]
        size += ["stage1:schedule.steps=150", "evaluate:--split=train"]
        done = cluster.call([ROOT / "slurm/pipeline.sh", *TWO_NODES, *paths, *size], home)
        assert done.returncode == 0, done.stderr
        self.jobs = dict(line.split() for line in done.stdout.splitlines())
        assert list(self.jobs) == ["stage1", "stage2", "finetune", "evaluate"]

    def text(self, job: str) -> str:
        output = self.home / f"slurm-imagebert-{job}-{self.jobs[job]}.out"
        return output.read_text() if output.exists() else ""

    def reach(self, number: int, step: int) -> None:
        log, job = self.runs / self.RUNS[number] / "log.jsonl", list(self.jobs)[number]
        wait_for(
            lambda: log.exists() and len(losses(log.parent)) >= step, 180, f"step {step} of {job}: {self.text(job)}"
        )

    def kill_a_rank(self, number: int, node: str) -> None:
        """On a node of the job, whichever those are."""
        script = ("imagebert pretrain stage1_lait", "imagebert pretrain stage2_cc_sbu", "imagebert finetune")[number]
        os.kill(wait_for(lambda: self.cluster.processes(int(node[4:]), script), 30, "a rank")[-1], signal.SIGKILL)

    def preempt(self) -> None:
        """Takes all nodes for a job of a higher partition."""
        urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 3"]
        job = self.cluster.call(urgent, self.home).stdout.strip()
        assert self.cluster.wait_for_end(job, 90) == "COMPLETED"

    def ends(self, job: str) -> None:
        assert self.cluster.wait_for_end(self.jobs[job], 300) == "COMPLETED", self.text(job)

    def curves(self) -> list[list[float]]:
        return [losses(self.runs / run) for run in self.RUNS]

    def recall(self) -> dict[str, object]:
        figures = json.loads((self.runs / self.RUNS[-1] / "recall-flickr30k-train.json").read_text())
        return {name: figure for name, figure in figures.items() if not name.startswith("seconds")}


@pytest.fixture(scope="module")
def chain(cluster: Cluster, home: Path) -> Chain:
    """One that nothing happens to."""
    chain = Chain(cluster, home, "runs")
    for job in chain.jobs:
        chain.ends(job)
    return chain


def test_the_whole_chain(chain: Chain) -> None:
    """Each job is checked by the doctor, copies its stores to the nodes' own disks, starts from the one before."""
    assert "fit to train" in chain.text("stage1")
    assert "1 of 1 shards are in" in chain.text("stage2")
    assert [len(curve) for curve in chain.curves()] == [150, 100, 100]
    recipes = [(chain.runs / run / "config.yaml").read_text() for run in chain.RUNS]
    assert "initialize_from: runs/stage1_lait" in recipes[1]
    assert "initialize_from: runs/stage2_cc_sbu" in recipes[2]
    assert all(list((chain.runs / run).glob("monitor/*/events.out.tfevents.*")) for run in chain.RUNS)
    assert chain.recall()["images"] == 24
    (evaluation,) = (chain.runs / "finetune_flickr30k/evaluation").iterdir()
    assert json.loads((evaluation / "digests.json").read_text())["ranks"] == 2  # both nodes scored


def test_the_whole_chain_through_all_faults(cluster: Cluster, home: Path, chain: Chain) -> None:
    """Without a hand it ends with the losses and R@K of the one that nothing happened to."""
    disturbed = Chain(cluster, home, "disturbed")
    disturbed.reach(0, 50)
    disturbed.kill_a_rank(0, "node2")
    disturbed.reach(0, 100)
    disturbed.preempt()
    disturbed.ends("stage1")
    assert cluster.field(disturbed.jobs["stage1"], "Restarts") == "1"

    disturbed.reach(1, 50)
    inside = ["nsenter", "-t", str(cluster.processes(2, "slurmd")[0]), "-m"]
    # From here on node2 has no data: each job that meets it goes on elsewhere.
    subprocess.run([*inside, "mount", "-t", "tmpfs", "none", str(home / "data")], check=True)
    try:
        disturbed.kill_a_rank(1, "node2")
        disturbed.ends("stage2")
        assert cluster.field(disturbed.jobs["stage2"], "NodeList") == "node[1,3]"

        disturbed.reach(2, 50)
        with cluster.paused():
            disturbed.kill_a_rank(2, "node1")
            time.sleep(20)
        disturbed.ends("finetune")

        wait_for(lambda: "command: imagebert evaluate" in disturbed.text("evaluate"), 120, "the evaluation")
        disturbed.preempt()
        disturbed.ends("evaluate")
        assert int(cluster.field(disturbed.jobs["evaluate"], "Restarts")) >= 1
    finally:
        cluster.kill(2)
        cluster.start(2)
        cluster.wait_until_idle()
    assert disturbed.curves() == chain.curves()
    assert disturbed.recall() == chain.recall()


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


def test_web_archives_to_pairs(cluster: Cluster, home: Path) -> None:
    """Two nodes with two ranks each share the archives; asked to stop it is requeued, and a table comes of it."""
    write_crawl(home / "crawl", pages=40, files=8)
    options = ["--nodes", "2", "--tasks", "2", "--cpus", "1", "--time", "5", "--crawl", "crawl", *SETTINGS]
    job = submit(cluster, home, "lait.sh", *options, "--out", "lait", "--", "--archived")
    output = home / f"slurm-imagebert-lait-{job}.out"
    wait_for(lambda: output.exists() and "command: imagebert lait" in output.read_text(), 60, "its processes")
    cluster.call(["scancel", "--signal=USR1", job], home)
    assert cluster.wait_for_end(job, 180) == "COMPLETED", output.read_text()
    assert cluster.field(job, "Restarts") == "1"
    program = ROOT / ".venv/bin/imagebert"
    alone = [program, "lait", "build", "crawl", "alone", "--archived", *SETTINGS]
    done = cluster.call(alone, home, PYTHONPATH=f"{ROOT}:{ROOT}/kernels")
    assert done.returncode == 0, done.stderr
    assert (home / "lait/pairs.parquet").read_bytes() == (home / "alone/pairs.parquet").read_bytes()


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
        job.struck()
        os.kill(job.rank(2), signal.SIGKILL)
    job.goes_on("2 ranks on node[1,3]")
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
        job.struck()
        os.kill(job.rank(2), signal.SIGKILL)
        job.goes_on()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune:schedule.bach_size=4"], "finetune_flickr30k.yaml: unknown key schedule.bach_size; did you mean"),
        (["stage2:--recipe=stage2_cc_sub"], "stage2: no recipe 'stage2_cc_sub'"),
        (["--data", "nowhere"], "stage1: there is no store at nowhere/lait/regions"),
        (["--from", "nobert"], "stage1: --from nobert is neither a model folder nor a run"),
        (["--setup", "nowhere"], "finetune: there is no --setup nowhere"),
        (["--container", "image.sif"], "stage1: --container image.sif: this cluster has neither pyxis nor apptainer"),
        (["finetune:--recipe=stage1_lait"], "is a recipe to pretrain, and this job is to finetune"),
        (["--partition", "night"], "stage1: sbatch: error: invalid partition specified: night"),
        (["stage1:--nodes=9"], "stage1: allocation failure: Requested node configuration is not available"),
    ],
    ids=["key", "recipe", "store", "start", "setup", "container", "task", "partition", "nodes"],
)
def test_what_is_seen_where_it_is_submitted(cluster: Cluster, home: Path, arguments: list[str], message: str) -> None:
    for dry in ([], ["--dry-run"]):
        options = [*TWO_NODES, "--data", "data", "--runs", "refused", "--from", "bert", *LONG, *arguments, *dry]
        done = cluster.call([ROOT / "slurm/pipeline.sh", *options], home)
        assert done.returncode == 2
        assert message in done.stderr
        assert "no job of the chain is submitted" in done.stderr
    assert "refused" not in cluster.call(["squeue", "--format=%k"], home).stdout
    assert not (home / "refused").exists()


def test_copies_on_a_nodes_own_disk(cluster: Cluster, home: Path) -> None:
    """Two jobs that make the same one at once, one with another store of that name, and one that finds them there."""
    write_corpus(home / "other/lait", seed=9)
    one = ["--nodes", "1", "--gpus", "1", "--cpus", "1", "--from", "bert", "--sbatch=--nodelist=node1"]
    one += ["--no-check", f"--local={cluster.folder}/local/stores", *SMALL, "schedule.steps=3"]
    curves = []
    for wave in (["data", "data"], ["other"], ["data"]):
        names = [f"runs/local{len(curves)}{number}" for number in range(len(wave))]
        ids = [
            submit(cluster, home, "stage1.sh", *one, "--data", data, "--run", name)
            for data, name in zip(wave, names, strict=True)
        ]
        for job in ids:
            output = home / f"slurm-imagebert-stage1-{job}.out"
            assert cluster.wait_for_end(job, 90) == "COMPLETED", output.read_text()
        curves.append([losses(home / name) for name in names])
    assert curves[0][0] == curves[0][1] == curves[2][0]
    assert curves[1][0] != curves[0][0]


def test_a_disk_of_its_own_that_cannot_be_written(cluster: Cluster, home: Path) -> None:
    options = [*TWO_NODES, "--from", "bert", "--run", "runs/local", "--local=/proc/local", "--force", *LONG]
    job = submit(cluster, home, "stage1.sh", *options)
    assert cluster.wait_for_end(job, 60) == "FAILED"
    assert cluster.field(job, "ExitCode") == "2:0"
    assert "/proc/local" in (home / f"slurm-imagebert-stage1-{job}.out").read_text()


def test_ranks_of_a_bare_srun(cluster: Cluster, home: Path, chain: Chain) -> None:
    """Without our scripts, and without MPI: ranks share the work, and one file is written."""
    program = ROOT / ".venv/bin/imagebert"
    program = program if program.exists() else Path(sys.executable).with_name("imagebert")
    srun = ["srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=1", "--time=5", program]
    data = ["--regions", "data/flickr30k/regions", "--pairs", "data/flickr30k/pairs", "--pool", "8", "--keep", "2"]
    done = cluster.call([*srun, "mine", chain.runs / "finetune_flickr30k", "shared.safetensors", *data], home)
    assert done.returncode == 0, done.stderr
    alone = [program, "mine", chain.runs / "finetune_flickr30k", "alone.safetensors", *data]
    assert cluster.call(alone, home).returncode == 0
    assert (home / "shared.safetensors").read_bytes() == (home / "alone.safetensors").read_bytes()

    assert cluster.call([program, "store", "split", "data/lait/regions", "half", "--parts", "2"], home).returncode == 0
    done = cluster.call([*srun, "store", "merge", "half-0", "half-1", "merged"], home)
    assert done.returncode == 0, done.stderr
    assert RegionStore(home / "merged").content == RegionStore(home / "data/lait/regions").content


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


def test_an_evaluation_is_asked_to_stop(cluster: Cluster, home: Path, chain: Chain) -> None:
    """Requeued, and a job's nodes share the mining."""
    options = [*TWO_NODES, "--from", str(chain.runs / "finetune_flickr30k"), "--data", "data"]
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
