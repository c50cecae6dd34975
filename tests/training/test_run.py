"""Real runs of seconds: any way of cutting the work gives the same losses, and a stop at any place changes nothing."""

from __future__ import annotations

import copy
import errno
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partialmethod
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from transformers import AutoConfig

import imagebert.training.run as run_module
from imagebert.cli import main
from imagebert.config import SourceConfig, UsageError, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.engine.metrics import read_log
from imagebert.feed.packer import Packer
from imagebert.feed.plan import fit_microbatches
from imagebert.files import read_sealed, write_sealed
from imagebert.model import PRESETS, ImageBertForImageTextRetrieval, ImageBertForPreTraining
from imagebert.model_folder import open_model
from imagebert.retrieval.evaluation import make_scorer
from imagebert.retrieval.mining import mine
from imagebert.training.assemble import choose_step, make_plan
from imagebert.training.attempts import read_attempts
from imagebert.training.export import export_run
from imagebert.training.hard_negatives import read_hard_negatives, write_hard_negatives
from imagebert.training.identity import check_same, identity_of
from imagebert.training.run import Limits, run
from tests.corpora import WORDS, change_last_feature, write_corpus
from tests.disks import enlarge, make_read_only, small_disk
from tests.forked import IMAGEBERT, free_port, start
from tests.training.probe import probe
from tests.training.sweep import Training, train_all

PYTHON = sys.executable
RECIPE = "tests/recipe.yaml"
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/kernels"}

# ZeRO-3 down to the parameters that it would leave whole for being small, none kept for its next use.
SHARDED = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 1}
SHARDED |= {"stage3_max_reuse_distance": 1, "stage3_prefetch_bucket_size": 0}


def losses(folder: Path, name: str = "loss/total") -> list[float]:
    return [line[name] for line in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="session")
def plain(source: SourceConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of tests/recipe.yaml as it stands: one rank, no ZeRO, no accumulation, no stop."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    data = [f"data.sources.0.{kind}={getattr(source, kind)}" for kind in ("regions", "pairs")]
    assert run(load_recipe(RECIPE, [f"output={folder}", *data])).finished
    return folder


class Sweep:
    """Runs of that recipe, each cut another way: ZeRO 0 to 3, accumulation 1 and 4, on one and on two ranks.

    One is trained when a test first asks for it, together with all others that this test asks for.
    """

    def __init__(self, source: SourceConfig, folder: Path) -> None:
        self._source, self._folder = source, folder
        sharded = folder / "sharded.json"
        sharded.write_text(json.dumps({"zero_optimization": SHARDED}))
        self._cuts: dict[str, tuple[int, list[str]]] = {}
        for ranks in (1, 2):
            for stage, accumulation in itertools.product((0, 1, 2, 3), (1, 4)):
                settings = [f"engine.deepspeed=zero{stage}", f"schedule.accumulation={accumulation}"]
                self._cuts[f"z{stage}-a{accumulation}-r{ranks}"] = (ranks, settings)
            self._cuts[f"offload-r{ranks}"] = (ranks, ["engine.deepspeed=zero3_offload"])
            settings = [f"engine.deepspeed={sharded}", "model.gradient_checkpointing=true"]
            self._cuts[f"sharded-r{ranks}"] = (ranks, settings)
        self._trained: set[str] = set()

    def folders(self, *names: str) -> dict[str, Path]:
        """Of these runs, or of all."""
        asked = names or tuple(self._cuts)
        for ranks in (1, 2):
            left = [name for name in asked if self._cuts[name][0] == ranks and name not in self._trained]
            if left:
                train_all(ranks, self._folder, self._source, [Training(name, self._cuts[name][1]) for name in left])
                self._trained.update(left)
        return {name: self._folder / name for name in asked}


@pytest.fixture(scope="session")
def sweep(source: SourceConfig, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(source, tmp_path_factory.mktemp("sweep"))


@pytest.mark.ranks
@pytest.mark.slow
def test_losses_do_not_depend_on_zero_ranks_or_accumulation(plain: Path, sweep: Sweep) -> None:
    reference = losses(plain)
    assert len(reference) == 12
    words = losses(plain, "loss/mlm")  # the others differ more between batches than they fall in 12 steps
    assert sum(words[6:]) < 0.96 * sum(words[:6])
    for name, folder in sweep.folders().items():
        assert losses(folder) == pytest.approx(reference, rel=1e-4), name


@pytest.mark.ranks
@pytest.mark.slow
def test_gradient_norms_do_not_either(plain: Path, sweep: Sweep) -> None:
    reference = losses(plain, "gradient_norm")
    assert min(reference) > 0.1
    for name, folder in sweep.folders().items():
        assert losses(folder, "gradient_norm") == pytest.approx(reference, rel=1e-3), name


@pytest.mark.ranks
@pytest.mark.slow
def test_every_run_exports_the_same_model(plain: Path, sweep: Sweep) -> None:
    reference = ImageBertForPreTraining.from_pretrained(plain / "model").state_dict()
    for name, folder in sweep.folders("z1-a4-r2", "z2-a1-r2", "z3-a1-r2", "offload-r1").items():
        weights = ImageBertForPreTraining.from_pretrained(folder / "model").state_dict()
        for key, value in reference.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-3, msg=f"{name}: {key}")


@pytest.mark.parametrize("zero", ["zero0", "zero2"])
def test_resumed_equals_uninterrupted_bit_for_bit(recipe: list[str], tmp_path: Path, zero: str) -> None:
    overrides = [*recipe, "model.hidden_dropout=0.1", "model.attention_dropout=0.1", f"engine.deepspeed={zero}"]
    whole = run(load_recipe(RECIPE, [*overrides, f"output={tmp_path / 'whole'}"]))
    assert whole.finished
    first = run(load_recipe(RECIPE, overrides), stop_at=6)
    assert first == (6, False)
    assert run(load_recipe(RECIPE, overrides)).finished
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    a, b = (ImageBertForPreTraining.from_pretrained(tmp_path / n / "model").state_dict() for n in ("run", "whole"))
    assert all(torch.equal(a[key], b[key]) for key in b)
    assert run(load_recipe(RECIPE, overrides)).finished  # a finished run stays finished


def test_a_run_leaves_no_model_behind(recipe: list[str]) -> None:
    """Else the rungs of a ladder, or the runs of a notebook, fill the memory of a GPU one after the other."""

    def models() -> int:
        return sum(type(thing) is ImageBertForPreTraining for thing in gc.get_objects())

    before = models()
    gc.disable()  # what a collection by chance frees is no merit
    try:
        assert run(load_recipe(RECIPE, [*recipe, "schedule.steps=1"])).finished
        assert models() <= before
    finally:
        gc.enable()


def test_killed_run_goes_on(recipe: list[str], tmp_path: Path) -> None:
    """SIGKILL between checkpoints: what was done since the last one is done again, alike."""
    settings = [*recipe, "schedule.steps=60", "checkpoint.every_steps=7"]
    process = start(IMAGEBERT, "pretrain", RECIPE, *settings)
    while len(losses(tmp_path / "run")) < 12 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    run(load_recipe(RECIPE, settings))
    run(load_recipe(RECIPE, [*settings, f"output={tmp_path / 'whole'}"]))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_ctrl_c_leaves_a_checkpoint(recipe: list[str], tmp_path: Path) -> None:
    process = start(IMAGEBERT, "pretrain", RECIPE, *recipe, "schedule.steps=100000")
    while len(losses(tmp_path / "run")) < 3 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the same command goes on from here" in out
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step-*")
    assert int(checkpoint.name[5:]) == len(losses(tmp_path / "run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_before_the_first_step_is_no_failure(recipe: list[str], tmp_path: Path, number: signal.Signals) -> None:
    """The signal comes while the model is made; the same call then goes on."""
    code = (
        "import os, sys, imagebert.training.run as run; from imagebert.cli import main\n"
        f"run.make_model = lambda *_: os.kill(os.getpid(), {int(number)})\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = start(code, "pretrain", RECIPE, *recipe)
    out, err = process.communicate()
    assert (process.returncode, "stopped before the first step" in out) == (75, True), err
    assert "Traceback" not in err
    assert "command: imagebert pretrain tests/recipe.yaml" in err


def test_data_that_an_earlier_attempt_had_is_missed_for_a_fault_of_the_machine(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    lost = [*recipe[:1], f"data.sources.0.regions={tmp_path / 'lost'}", *recipe[2:]]
    assert main(["pretrain", RECIPE, *lost]) == 2  # nobody ever had it
    assert main(["pretrain", RECIPE, *recipe, "--stop-at", "1"]) == 75
    capsys.readouterr()
    assert main(["pretrain", RECIPE, *lost]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"imagebert: fault on node7: {tmp_path / 'lost'} is not")


@pytest.mark.ranks
def test_a_rank_that_loses_another_says_so_last(recipe: list[str], source: SourceConfig, tmp_path: Path) -> None:
    """Rank 1 ends in the middle of a step; rank 0's traceback lies in a file, its last line is a sentence."""
    code = (
        "import os, sys, imagebert.training.loop as loop; from imagebert.cli import main\n"
        "before = loop.Engine.set_learning_rate\n"
        "def die(self, rate):\n"
        "    before(self, rate)\n"
        "    die.calls = getattr(die, 'calls', 0) + 1\n"
        "    if die.calls == 3 and os.environ['RANK'] == '1':\n"
        "        os._exit(9)\n"
        "loop.Engine.set_learning_rate = die\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    layout = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "SLURMD_NODENAME": f"node{rank}"} for rank in range(2)]
    ranks = [start(code, "pretrain", RECIPE, *recipe, **layout, **names) for names in own]
    said = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 9]
    last = said[0].splitlines()[-1]
    assert last.startswith("imagebert: cause: rank 0 on node0: lost another rank ("), said[0]
    (file,) = (tmp_path / "run/tracebacks").iterdir()
    assert last.endswith(str(file))
    assert "in backward" in file.read_text() or "in total" in file.read_text()
    assert "Traceback" not in said[0]
    assert said[0].count("optimizer: ") == 1
    assert said[1] == ""  # what all ranks find rank 0 says
    assert read_attempts(tmp_path / "run")[-1]["why"].startswith("lost another rank")
    assert read_attempts(tmp_path / "run")[0]["hosts"] == "node[0-1]"


def test_another_recipe_does_not_resume(recipe: list[str]) -> None:
    run(load_recipe(RECIPE, recipe), stop_at=2)
    with pytest.raises(UsageError, match=r"made by another recipe.*optimizer.learning_rate: 0.001 -> 0.002"):
        run(load_recipe(RECIPE, [*recipe, "optimizer.learning_rate=2e-3"]))
    run(load_recipe(RECIPE, [*recipe, "logging.every_steps=2"]), stop_at=3)


def test_the_same_data_elsewhere_resumes_and_other_data_does_not(
    recipe: list[str], source: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths may change, also to relative ones; captions of equal lengths and features of equal counts may not."""
    plain = [*recipe, "schedule.steps=4", "engine.deterministic=true"]
    run(load_recipe(RECIPE, plain))
    expected = read_log(tmp_path / "run/log.jsonl")[-1]["loss/total"]
    halves = [*recipe, "schedule.steps=4", f"output={tmp_path / 'halves'}", "engine.deterministic=true"]
    run(load_recipe(RECIPE, halves), stop_at=2)
    for name in ("regions", "pairs"):
        shutil.copytree(getattr(source, name), tmp_path / "copy" / name)
    monkeypatch.chdir(tmp_path)
    recipe_path = str(Path(__file__).parents[1] / "recipe.yaml")
    moved = [*halves, "data.sources.0.regions=copy/regions", "data.sources.0.pairs=copy/pairs"]
    shutil.copytree(tmp_path / "halves", tmp_path / "kept")
    assert run(load_recipe(recipe_path, moved)).finished
    assert read_log(tmp_path / "halves/log.jsonl")[-1]["loss/total"] == expected
    shutil.rmtree(tmp_path / "halves")
    (tmp_path / "kept").rename(tmp_path / "halves")
    change_last_feature(tmp_path / "copy/regions", "image003.jpg", b"\x05", checksum=True)
    with pytest.raises(UsageError, match=r"other data \(data of regions.0: \w+ -> \w+\)"):
        run(load_recipe(recipe_path, moved))
    shutil.rmtree(tmp_path / "copy")
    store = PairStore(source.pairs)
    captions = [Caption(store.images[i].decode(), store.text(p)) for p, i in enumerate(store.pair_image.tolist())]
    words = captions[0].text.split()
    captions[0] = captions[0]._replace(text=" ".join([*words[1:], WORDS[7]]))
    write_pairs(tmp_path / "copy/pairs", captions, store.tokenizer())
    with pytest.raises(UsageError, match=r"other data \(data of pairs.0: \w+ -> \w+\)"):
        run(load_recipe(recipe_path, [*halves, "data.sources.0.pairs=copy/pairs"]))


def test_another_vocabulary_of_equal_size_is_no_start(recipe: list[str], source: SourceConfig, tmp_path: Path) -> None:
    run(load_recipe(RECIPE, [*recipe, "schedule.steps=1"]))
    start = [*recipe, "model.preset=null", f"model.initialize_from={tmp_path / 'run'}", f"output={tmp_path / 'second'}"]
    run(load_recipe(RECIPE, [*start, "schedule.steps=1"]))
    vocabulary = tmp_path / "run/model/vocab.txt"
    pieces = vocabulary.read_text().split("\n")
    pieces[10], pieces[11] = pieces[11], pieces[10]
    right = vocabulary.read_text()
    vocabulary.write_text("\n".join(pieces))
    with pytest.raises(UsageError, match=r"not the vocabulary that the pairs were tokenised with \(piece 10 differs\)"):
        run(load_recipe(RECIPE, [*start, "schedule.steps=1", f"output={tmp_path / 'third'}"]))
    # A shape that cannot be: a key has been damaged, so that its default counts.
    config = tmp_path / "run/model/config.json"
    shape = config.read_text()
    config.write_text(shape.replace('"num_attention_heads"', '"num_attentiom_heads"'))
    with pytest.raises(UsageError, match=r"its config.json makes no model \(hidden_size .* is no multiple of"):
        run(load_recipe(RECIPE, [*start, "schedule.steps=1", f"output={tmp_path / 'third'}"]))
    config.write_text(shape)
    # Equal pieces, and texts that become others of them.
    vocabulary.write_text(right)
    (tmp_path / "run/model/tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(
        UsageError, match=r"tokenised with \(do_lower_case is false, not true\): tokenise them with the vocabulary"
    ):
        run(load_recipe(RECIPE, [*start, "schedule.steps=1", f"output={tmp_path / 'third'}"]))


def test_a_run_that_starts_over_exports_anew(recipe: list[str], tmp_path: Path) -> None:
    run(load_recipe(RECIPE, [*recipe, "schedule.steps=3"]))
    first = (tmp_path / "run/model/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints")
    run(load_recipe(RECIPE, [*recipe, "schedule.steps=4"]))
    assert (tmp_path / "run/model/model.safetensors").read_bytes() != first


def test_weights_that_are_not_finite_are_never_saved(recipe: list[str], tmp_path: Path) -> None:
    settings = [*recipe, "schedule.steps=20", "checkpoint.every_steps=2", "checkpoint.keep=1"]
    run(load_recipe(RECIPE, settings), stop_at=2)
    manifest = tmp_path / "run/checkpoints/step-00000002/manifest.json"
    content = read_sealed(manifest)
    content["state"]["config"]["optimizer"]["learning_rate"] = 1e30
    write_sealed(manifest, {key: value for key, value in content.items() if key != "digest"})
    wild = [*settings, "optimizer.learning_rate=1e30", "logging.every_steps=50"]
    with pytest.raises(FloatingPointError, match="not finite in 10 steps in a row, up to step 13: nothing was saved"):
        run(load_recipe(RECIPE, wild))
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(
    ("rate", "steps", "message"),
    [
        (
            "1e30",
            6,
            "not finite in the last 5 steps, up to 6: they moved nothing, and neither a checkpoint nor a model",
        ),
        ("1e39", 1, r"weights or moments are not finite: they were not saved in .*checkpoints"),
    ],
)
def test_a_run_does_not_finish_with_a_model_that_is_spoilt(
    recipe: list[str], tmp_path: Path, rate: str, steps: int, message: str
) -> None:
    """Its last step was skipped; or its weights are no numbers, which no step has met yet."""
    wild = [*recipe, f"optimizer.learning_rate={rate}", f"schedule.steps={steps}", "schedule.warmup=0"]
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=message):
            run(load_recipe(RECIPE, [*wild, "checkpoint.every_steps=100"]))
        assert not (tmp_path / "run/model").exists()
        assert list((tmp_path / "run/checkpoints").glob("step-*")) == []


@pytest.mark.ranks
@pytest.mark.slow
def test_a_bad_batch_is_left_out_on_all_ranks_and_written_down(source: SourceConfig, tmp_path: Path) -> None:
    """One image has a feature that is not a number: the steps that it is in move nothing, whatever the ranks."""
    spoilt = write_corpus(tmp_path / "spoilt", images=8, captions=2, feature_type="float32")
    change_last_feature(Path(spoilt.regions), "image003.jpg", np.float32("nan").tobytes(), checksum=True)
    names = [f"z{zero}-r{ranks}" for zero in (0, 1, 3) for ranks in (1, 2)]
    for ranks in (1, 2):
        few = ["schedule.batch_size=4", "pretraining.negatives=0"]
        trainings = (Training(f"z{zero}-r{ranks}", [f"engine.deepspeed=zero{zero}", *few]) for zero in (0, 1, 3))
        train_all(ranks, tmp_path, spoilt, trainings)
    reference = read_log(tmp_path / "z0-r1/log.jsonl")
    bad = [int(line["step"]) for line in reference if "loss/total" not in line]
    assert 2 <= len(bad) == reference[-1]["skipped_updates"] <= 12
    for name in names:
        lines = read_log(tmp_path / name / "log.jsonl")
        assert [int(line["step"]) for line in lines if "loss/total" not in line] == bad, name
        good = [[line["loss/total"] for line in log if "loss/total" in line] for log in (lines, reference)]
        assert good[0] == pytest.approx(good[1], rel=1e-4), name
        dumps = [json.loads(p.read_text()) for p in sorted((tmp_path / name / "skipped").iterdir())]
        assert [dump["step"] for dump in dumps] == bad
        assert all(any(key == "image003.jpg" for key, *_ in dump["pairs"]) for dump in dumps)


@pytest.mark.ranks
def test_pairs_of_a_damaged_record_are_left_out_on_any_ranks(source: SourceConfig, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(Path(source.regions).parent, damaged)
    change_last_feature(damaged / "regions", "image005.jpg", b"\x7f", checksum=False)
    broken = SourceConfig(regions=str(damaged / "regions"), pairs=source.pairs)
    for ranks in (1, 2):
        finetune = Training(f"finetune-r{ranks}", ["task=finetune", "schedule.batch_size=8"])
        train_all(ranks, tmp_path, broken, [Training(f"r{ranks}", []), finetune])
    for name in ("", "finetune-"):
        one, two = (read_log(tmp_path / f"{name}r{ranks}/log.jsonl") for ranks in (1, 2))
        assert [line["loss/total"] for line in two] == pytest.approx([line["loss/total"] for line in one], rel=1e-4)
        assert one[-1]["damaged_records"] == 1
    with pytest.raises(UsageError, match=r"record 'image005.jpg' of .* is damaged"):
        run(
            load_recipe(
                RECIPE,
                [
                    f"output={tmp_path}/strict",
                    f"data.sources.0.regions={broken.regions}",
                    f"data.sources.0.pairs={broken.pairs}",
                    "data.max_damaged_records=0",
                ],
            )
        )


def test_a_running_runs_newest_checkpoint_becomes_a_model(recipe: list[str], tmp_path: Path) -> None:
    settings = [*recipe, "checkpoint.every_steps=5", "schedule.steps=10"]
    run(load_recipe(RECIPE, settings))
    assert export_run(tmp_path / "run", tmp_path / "exported") == 10
    ours, theirs = (
        ImageBertForPreTraining.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "exported", tmp_path / "run/model")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    (shard,) = (tmp_path / "run/checkpoints/step-00000010").glob("*.safetensors")
    shard.write_bytes(b"damaged")
    assert export_run(tmp_path / "run", tmp_path / "before") == 5
    with pytest.raises(UsageError, match="no complete checkpoint"):
        shutil.rmtree(tmp_path / "run/checkpoints")
        export_run(tmp_path / "run", tmp_path / "none")


@pytest.mark.parametrize("zero", ["zero0", "zero1", "zero3"])
def test_bf16_exports_its_float32_masters(recipe: list[str], tmp_path: Path, zero: str) -> None:
    run(load_recipe(RECIPE, [*recipe, "engine.precision=bf16", f"engine.deepspeed={zero}", "schedule.steps=3"]))
    manifest = json.loads((tmp_path / "run/checkpoints/step-00000003/manifest.json").read_text())
    assert manifest["counters"]["updates"] == 3  # DeepSpeed takes one of its own where it does not shard
    weights = ImageBertForPreTraining.from_pretrained(tmp_path / "run/model").state_dict()
    rounded = [torch.equal(w, w.bfloat16().float()) for w in weights.values() if w.dim() == 2]
    assert not any(rounded)


@pytest.mark.ranks
@pytest.mark.slow
def test_saved_by_any_ranks_and_stage_and_resumed_by_any_other(
    source: SourceConfig, plain: Path, tmp_path: Path
) -> None:
    """All 16 crossings of ZeRO stages, each between other numbers of ranks; IMAGEBERT_ELASTIC=all: all 144."""
    ranks, stages = (1, 2, 4), (0, 1, 2, 3)
    crossings = [(n, s, m, t) for n in ranks for s in stages for m in ranks for t in stages]
    if os.environ.get("IMAGEBERT_ELASTIC") != "all":
        # Each pair of stages once, each pair of rank counts at least once.
        crossings = [(n, s, m, t) for n, s, m, t in crossings if (4 * s + t) % 9 == 3 * ranks.index(n) + ranks.index(m)]
    assert {(s, t) for _, s, _, t in crossings} == {(s, t) for s in stages for t in stages}
    for n in ranks:
        saved = sorted({s for by, s, _, _ in crossings if by == n})
        train_all(n, tmp_path, source, [Training(f"z{s}-r{n}", [f"engine.deepspeed=zero{s}"], 4) for s in saved])
    names = {crossing: "from-z{1}-r{0}-to-z{3}-r{2}".format(*crossing) for crossing in crossings}
    for (n, s, _, _), name in names.items():
        shutil.copytree(tmp_path / f"z{s}-r{n}", tmp_path / name)
    for m in ranks:
        resumed = [(name, t) for (_, _, by, t), name in names.items() if by == m]
        train_all(m, tmp_path, source, [Training(name, [f"engine.deepspeed=zero{t}"], 8) for name, t in resumed])
    reference = losses(plain)[:8]
    for crossing, name in names.items():
        curve = losses(tmp_path / name)
        assert curve == pytest.approx(reference, rel=1e-4), name
        if crossing[:2] == crossing[2:] == (1, 0):
            assert curve == reference


@pytest.mark.ranks
def test_gradients_are_exchanged_once_a_step(source: SourceConfig, tmp_path: Path) -> None:
    """Accumulation sends no more without ZeRO and with ZeRO-1; ZeRO-2 keeps no whole gradient, so it sends each."""
    cuts = [(stage, accumulation) for stage in (0, 1, 2) for accumulation in (1, 4)]
    recipes = [[f"engine.deepspeed=zero{stage}", f"schedule.accumulation={n}"] for stage, n in cuts]
    measured = probe(2, source, tmp_path / "out.json", recipes)
    sent = {cut: found["exchanged"] for cut, found in zip(cuts, measured, strict=True)}
    assert sent[0, 4] == sent[0, 1]
    assert sent[1, 4] == sent[1, 1]
    assert sent[2, 4] > 2 * sent[2, 1]


@pytest.mark.ranks
@pytest.mark.slow
def test_ways_to_exchange_gradients_and_weights(source: SourceConfig, plain: Path, tmp_path: Path) -> None:
    """ZeRO-3 with a copy of the weights in each node (ZeRO++), and gradients summed in another type."""
    hierarchical = {"zero_optimization": {**SHARDED, "zero_hpz_partition_size": 2}}
    sixteen = {"zero_optimization": {"stage": 1}, "communication_data_type": "bf16"}
    trainings = []
    for name, content in (("hierarchical", hierarchical), ("sixteen", sixteen)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        trainings.append(Training(name, [f"engine.deepspeed={tmp_path / name}.json"]))
    for name, zero in (("low", "zero1"), ("high", "zero1_reduce_fp32")):
        trainings.append(Training(name, ["engine.precision=bf16", f"engine.deepspeed={zero}"]))
    train_all(4, tmp_path, source, trainings)
    reference = losses(plain)
    assert losses(tmp_path / "hierarchical") == pytest.approx(reference, rel=1e-4)
    for name in ("sixteen", "low", "high"):
        assert losses(tmp_path / name) == pytest.approx(reference, rel=1e-2)
    assert losses(tmp_path / "sixteen") != losses(tmp_path / "hierarchical")
    assert losses(tmp_path / "low") != losses(tmp_path / "high")


@pytest.mark.ranks
def test_clocks_that_disagree_change_nothing(source: SourceConfig, sweep: Sweep, tmp_path: Path) -> None:
    skewed = Training("skewed", ["engine.deepspeed=zero1", "checkpoint.every_steps=5"])
    train_all(2, tmp_path, source, [skewed], SKEWED_RANK="1")
    assert losses(tmp_path / "skewed") == losses(sweep.folders("z1-a1-r2")["z1-a1-r2"])


def test_a_disk_that_is_full_or_read_only(recipe: list[str], tmp_path: Path) -> None:
    """Checkpoints go to a disk of their own: too small, then read-only. The first that fails ends the run."""
    settings = [*recipe, "checkpoint.every_steps=5", "model.preset=small"]
    for size, read_only in (("100k", False), ("1g", True)):
        with small_disk(tmp_path / "run/checkpoints", size) as disk:
            if read_only:
                make_read_only(disk)
            with pytest.raises(OSError, match=r"the first checkpoint could not be written in .*: free some space"):
                run(load_recipe(RECIPE, settings))
            assert 5 <= len(losses(tmp_path / "run")) <= 10
            assert read_attempts(tmp_path / "run")[-1]["exit"] == 1
            assert list(disk.iterdir()) == []
    assert run(load_recipe(RECIPE, settings)).finished


def test_a_run_whose_whole_folder_fills(recipe: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It trains to its end, saying once of each file that it cannot be written; with room it goes on."""
    settings = [*recipe, "schedule.steps=20", "checkpoint.every_steps=20", "logging.monitors=[csv, tensorboard]"]
    with small_disk(tmp_path / "run", "40k") as disk:
        with pytest.raises(OSError, match=r"the first checkpoint could not be written in .*: free some space"):
            run(load_recipe(RECIPE, settings))
        assert 1 <= len(losses(disk)) < 20
        told = [line for line in caplog.messages if "No space left on device" in line]
        for name, times in (("log.jsonl", 1), ("monitor", 2)):
            assert sum(f"cannot write {disk / name} (" in line for line in told) == times
        assert not (disk / "model").exists()
        with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1000)):
                pass
        with pytest.raises(OSError, match=r"/run/.*No space left on device"):
            run(load_recipe(RECIPE, settings))
        enlarge(disk, "1g")
        assert run(load_recipe(RECIPE, settings)).finished
        assert [line["step"] for line in read_log(disk / "log.jsonl")] == list(range(1, 21))


@pytest.mark.parametrize(
    ("problem", "kind"), [(errno.ENOSPC, OSError), (errno.EDQUOT, OSError), (errno.EROFS, UsageError)]
)
def test_a_recipe_that_cannot_be_written(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch, problem: int, kind: type[Exception]
) -> None:
    """A full disk may be over when the job is requeued; what is not ours to write stays so."""

    def fail(path: Path, data: bytes) -> None:
        raise OSError(problem, "writing failed")

    monkeypatch.setattr(run_module, "write_bytes", fail)
    with pytest.raises(kind, match=rf"cannot write .*/run.*{os.strerror(problem)}"):
        run(load_recipe(RECIPE, recipe))


def test_a_checkpoint_folder_that_cannot_be_read_is_an_error_before_anything_is_changed(
    recipe: list[str], tmp_path: Path
) -> None:
    run(load_recipe(RECIPE, recipe), stop_at=2)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("log.jsonl", "config.yaml")}
    (tmp_path / "run/checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "run/checkpoints").write_text("a file in its place")
    with pytest.raises(UsageError, match=r"cannot read .*run/checkpoints"):
        run(load_recipe(RECIPE, [*recipe, "logging.every_steps=2"]))
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_fewer_ranks_accumulate_more(recipe: list[str], plain: Path, tmp_path: Path) -> None:
    config = load_recipe(RECIPE, [*recipe, "schedule.microbatch_size=5"])
    assert [fit_microbatches(config, ranks).schedule.accumulation for ranks in (1, 2, 4)] == [4, 2, 1]
    tokens = load_recipe(RECIPE, [*recipe, "schedule.batch_tokens=400", "schedule.microbatch_tokens=100"])
    assert [fit_microbatches(tokens, ranks).schedule.accumulation for ranks in (1, 2, 4)] == [4, 2, 1]
    run(load_recipe(RECIPE, recipe), stop_at=5)
    run(load_recipe(RECIPE, [*recipe, "schedule.microbatch_size=5"]))
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), rel=1e-4)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_alike(
    recipe: list[str], plain: Path, tmp_path: Path
) -> None:
    settings = [*recipe, "checkpoint.every_steps=5"]
    run(load_recipe(RECIPE, settings), stop_at=10)
    newest = tmp_path / "run/checkpoints/step-00000010"
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    run(load_recipe(RECIPE, settings))
    assert losses(tmp_path / "run") == losses(plain)


MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]


@pytest.mark.ranks
@pytest.mark.parametrize(
    "launcher",
    [
        [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "imagebert"],
        [PYTHON, "-m", "deepspeed.launcher.runner", "--num_gpus=2", "--master_port={port}", "--module", "imagebert"],
        [*MPIRUN, PYTHON, "-m", "imagebert"],
    ],
    ids=["torchrun", "deepspeed", "mpirun"],
)
def test_launchers(recipe: list[str], plain: Path, tmp_path: Path, launcher: list[str]) -> None:
    launcher = [word.format(port=free_port()) for word in launcher]
    command = [*launcher, "pretrain", RECIPE, *recipe, "engine.deepspeed=zero1"]
    path = f"{Path(PYTHON).parent}:{os.environ['PATH']}"
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | {"PATH": path}, check=True, timeout=240)
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), rel=1e-4)


def test_stages_then_finetuning_with_mined_negatives(
    recipe: list[str], source: SourceConfig, plain: Path, tmp_path: Path
) -> None:
    """Stage 2 starts from stage 1's weights; fine-tuning from those, with all three losses and hard negatives."""
    second = tmp_path / "second"
    stage2 = ["model.preset=null", f"model.initialize_from={plain}", "stage=second", f"output={second}"]
    run(load_recipe(RECIPE, [*recipe, *stage2, "schedule.steps=4"]))
    assert losses(second)[0] < losses(plain)[0]

    corpus = Corpus([source])
    limits = Limits(max_regions=100, max_words=41, whole_image=True)
    scorer = make_scorer(open_model(second), corpus, corpus, limits, torch.device("cpu"))
    write_hard_negatives(tmp_path / "hard", mine(scorer, corpus, 8, 2, 0), corpus)
    assert read_hard_negatives(tmp_path / "hard", corpus).captions.shape == (24, 2)
    finetune = [
        *recipe,
        "task=finetune",
        "model.preset=null",
        f"model.initialize_from={second}",
        "schedule.batch_size=6",
        "retrieval.multiclass=0.5",
        "retrieval.triplet=0.5",
        f"retrieval.hard_negatives={tmp_path / 'hard'}",
    ]
    for accumulation in (1, 3):
        settings = [f"output={tmp_path / str(accumulation)}", f"schedule.accumulation={accumulation}"]
        assert run(load_recipe(RECIPE, [*finetune, *settings])).finished
    lines = read_log(tmp_path / "1/log.jsonl")
    assert {"loss/binary", "loss/multiclass", "loss/triplet", "loss/total"} <= lines[0].keys()
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "3"), rel=1e-4)
    ImageBertForImageTextRetrieval.from_pretrained(tmp_path / "1/model")
    shutil.copy(tmp_path / "1/model/model.safetensors", tmp_path / "not-hard")
    with pytest.raises(UsageError, match="imagebert mine"):
        run(load_recipe(RECIPE, [*finetune, f"retrieval.hard_negatives={tmp_path / 'not-hard'}", "output=unset"]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.pooler=true", "model.global_image_token=true", "optimizer.name=lamb"],
        ["engine.precision=bf16", "engine.deepspeed=zero2"],
        ["engine.precision=bf16", "model.gradient_checkpointing=true", "schedule.accumulation=2"],
        ["data.whole_image=false", "pretraining.negatives_from=corpus", "schedule.steps=null", "schedule.epochs=2"],
        ["logging.monitors=[csv, tensorboard]"],
    ],
)
def test_options_train_too(recipe: list[str], tmp_path: Path, overrides: list[str]) -> None:
    assert run(load_recipe(RECIPE, [*recipe, "schedule.steps=20", *overrides])).finished
    curve = losses(tmp_path / "run")
    assert sum(curve[-3:]) < sum(curve[:3])
    config = AutoConfig.for_model("bert")  # transformers still knows its own
    assert config.model_type == "bert"
    if "logging" in overrides[0]:
        assert list((tmp_path / "run/monitor").rglob("*.csv"))
        assert list((tmp_path / "run/monitor").rglob("events.out.tfevents*"))


@pytest.mark.parametrize("zero", [{"stage": 0}, SHARDED], ids=["whole", "sharded"])
def test_kernels_and_reference_train_alike(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: dict[str, int]
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", (2, 128, 4))
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
    few = [*recipe, "schedule.steps=3", "schedule.batch_size=4", f"engine.deepspeed={tmp_path / 'zero.json'}"]
    for kernels in ("reference", "triton"):  # Triton's interpreter
        run(load_recipe(RECIPE, [*few, f"output={tmp_path / kernels}", f"engine.kernels={kernels}"]))
    assert losses(tmp_path / "triton") == pytest.approx(losses(tmp_path / "reference"), rel=1e-5)
    assert losses(tmp_path / "triton") != losses(tmp_path / "reference")


@pytest.mark.slow
def test_a_compiled_step_of_one_shape_gives_the_same_losses(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", (2, 32, 1))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    inductor = torch.nn.Module.compile  # a minute of C++ on a CPU; the graph is the same without
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(inductor, backend="aot_eager"))
    few = [*recipe, "schedule.steps=2", "schedule.batch_size=4", "schedule.accumulation=2", "engine.kernels=triton"]
    for step in ("eager", "compiled"):
        run(load_recipe(RECIPE, [*few, f"output={tmp_path / step}", f"engine.step={step}"]))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def test_how_data_comes_changes_nothing(recipe: list[str], tmp_path: Path) -> None:
    ways = {
        "plain": ["data.workers=1", "data.read_ahead=false", "data.verify_records=false", "data.prefetch_steps=1"],
        "dali": ["data.feeder=dali", "data.workers=3", "data.prefetch_steps=4"],
    }
    for name, overrides in ways.items():
        few = ["schedule.steps=4", "schedule.batch_size=null", "schedule.batch_tokens=200", "logging.every_steps=1"]
        run(load_recipe(RECIPE, [*recipe, *few, *overrides, f"output={tmp_path / name}"]))
    assert losses(tmp_path / "plain") == losses(tmp_path / "dali")
    assert len(losses(tmp_path / "plain")) == 4


@pytest.mark.parametrize("step", ["compiled", "graphed"])
def test_a_step_that_this_machine_cannot_run_is_named(recipe: list[str], step: str) -> None:
    with pytest.raises(UsageError, match=f"engine.step {step} needs a GPU"):
        run(load_recipe(RECIPE, [*recipe, f"engine.step={step}"]))


@pytest.mark.parametrize(
    ("gpu", "overrides", "step", "reason"),
    [
        (False, [], "eager", "there is no GPU"),
        (True, [], "graphed", "all microbatches can have one shape"),
        (True, ["engine.kernels=reference"], "eager", "the reference is chosen"),
        (True, ["engine.deepspeed=zero3"], "eager", "neither a compiled nor a graphed step follows ZeRO-3"),
        (True, ["schedule.accumulation=2"], "compiled", "a graph's replay would write over gradients"),
        (True, ["model.global_image_token=true"], "compiled", "a graph marks no whole images"),
    ],
)
def test_the_step_that_a_run_can_have(
    recipe: list[str],
    gpu: bool,
    overrides: list[str],
    step: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with caplog.at_level("INFO"):
        chosen = choose_step(load_recipe(RECIPE, [*recipe, "engine.step=auto", *overrides]))
    assert chosen.engine.step == step
    assert f"engine.step auto: {step}, since {reason}" in caplog.text
    assert choose_step(chosen) is chosen


@pytest.mark.parametrize("unit", ["batch_size=16", "batch_tokens=170"])
def test_weighted_sources_train_and_go_on(
    recipe: list[str], source: SourceConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, unit: str
) -> None:
    """72 captions half as often, and twice as often 15 of 20 with scores: epochs of 66 pairs, which steps follow."""
    texts = (Caption(f"image{i:03d}.jpg", WORDS[i], "train", [i / 10, np.nan][i >= 16]) for i in range(20))
    write_pairs(tmp_path / "scored", texts, PairStore(source.pairs).tokenizer())
    one = {"regions": source.regions, "pairs": source.pairs, "weight": 0.5}
    two = {"regions": source.regions, "pairs": str(tmp_path / "scored"), "weight": 2, "sampling": "relevance"}
    given = [*recipe, f"schedule.{unit}", "schedule.steps=null", "schedule.epochs=1"]
    given.append(f"data.sources={json.dumps([one, {**two, 'min_relevance': 0.1}])}")
    config = load_recipe(RECIPE, given)
    with caplog.at_level("INFO"):
        corpus = Corpus(config.data.sources)
        plan = make_plan(config, corpus, Packer(corpus, Limits.of(config.data)))
    assert (
        f"an epoch has on average 36 from 72 captions of {source.pairs}, 30 from 15 captions of {tmp_path}/scored"
        in (caplog.text)
    )
    assert plan.steps(1) == round(66 / plan.pairs)
    assert run(load_recipe(RECIPE, [*given, f"output={tmp_path / 'whole'}"])) == (plan.steps(1), True)
    for stop_at in (2, 3, None):
        run(config, stop_at=stop_at)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for override, change in (
        ("data.sources.0.weight=0.6", r"data.sources.0.weight: 0.5 -> 0.6"),
        ("data.sources.1.sampling=uniform", r"data.sources.1.sampling: relevance -> uniform"),
        ("data.sources.1.min_relevance=0.2", r"min_relevance: 0.1 -> 0.2.*data of captions: 87 -> 86"),
    ):
        with pytest.raises(UsageError, match=change):
            run(load_recipe(RECIPE, [*given, override]))
    with pytest.raises(UsageError, match=r"4 of 20 captions have no relevance to be sampled by"):
        run(load_recipe(RECIPE, [*given, "data.sources.1.min_relevance=null", "output=unset"]))


def test_a_run_of_before_there_were_weights_goes_on(recipe: list[str], tmp_path: Path) -> None:
    config = load_recipe(RECIPE, recipe)
    identity = identity_of(config, Corpus(config.data.sources))
    (then,) = identity["config"]["data"]["sources"]
    for key in ("weight", "sampling", "min_relevance"):
        then = {name: value for name, value in then.items() if name != key}
    before = {**identity, "config": {**identity["config"], "data": {**identity["config"]["data"], "sources": [then]}}}
    assert set(then) == {"regions", "pairs", "split"}
    check_same(before, identity, tmp_path)


def test_a_run_of_before_a_key_was_renamed_goes_on(recipe: list[str], tmp_path: Path) -> None:
    config = load_recipe(RECIPE, [*recipe, "task=finetune", "retrieval.group_size=3"])
    identity = identity_of(config, Corpus(config.data.sources))
    before = copy.deepcopy(identity)
    before["config"]["retrieval"]["candidates"] = before["config"]["retrieval"].pop("group_size")
    check_same(before, identity, tmp_path)
    before["config"]["retrieval"]["candidates"] = 4
    with pytest.raises(UsageError, match=r"\(retrieval.group_size: 4 -> 3\)"):
        check_same(before, identity, tmp_path)


def test_negatives_are_mined_from_the_captions_that_are_trained_on(
    recipe: list[str], source: SourceConfig, tmp_path: Path
) -> None:
    texts = (Caption(f"image{i:03d}.jpg", WORDS[i], "train", i / 10) for i in range(20))
    write_pairs(tmp_path / "scored", texts, PairStore(source.pairs).tokenizer())
    data = [*recipe, f"data.sources.0.pairs={tmp_path / 'scored'}", "data.sources.0.min_relevance=0.5"]
    run(load_recipe(RECIPE, [*data, "schedule.steps=1"]))
    mined = ["mine", str(tmp_path / "run"), str(tmp_path / "hard"), "--pool", "4", "--keep", "1"]
    mined += ["--regions", source.regions, "--pairs", str(tmp_path / "scored")]
    finetune = [*data, "task=finetune", f"retrieval.hard_negatives={tmp_path / 'hard'}", "schedule.steps=1"]
    finetune += [f"output={tmp_path / 'second'}", "schedule.batch_size=6"]
    assert main([*mined]) == 0
    with pytest.raises(UsageError, match="mined from other data than this run's"):
        run(load_recipe(RECIPE, finetune))
    assert main([*mined, "--min-relevance", "0.5"]) == 0
    assert run(load_recipe(RECIPE, finetune)).finished


def test_rates_follow_the_pairs_that_tokens_are(recipe: list[str]) -> None:
    """72 captions; the mean pairs of a step of 200 tokens, counted over an epoch of steps."""
    tokens = ["schedule.batch_tokens=200", "optimizer.learning_rate_batch=4", "schedule.steps=2"]
    config = load_recipe(RECIPE, [*recipe, *tokens, "schedule.warmup=0", "schedule.decay=constant"])
    corpus = Corpus(config.data.sources)
    plan = make_plan(config, corpus, Packer(corpus, Limits.of(config.data)))
    counted = np.mean([len(plan.global_batch(step).images) for step in range(400)])
    assert plan.pairs == pytest.approx(counted, rel=0.01)
    run(config)
    line = read_log(Path(config.output) / "log.jsonl")[-1]
    assert line["learning_rate"] == pytest.approx(1e-3 * (plan.pairs / 4) ** 0.5)


@pytest.mark.parametrize(("kernels", "steps"), [("reference", 200), pytest.param("triton", 40, marks=pytest.mark.slow)])
def test_golden_curve_of_200_steps(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str, steps: int
) -> None:
    """The same curve with plain PyTorch and, as far as its interpreter's minutes go, all kernels: a small model."""
    monkeypatch.setitem(PRESETS, "tiny", (2, 32, 1))
    settings = [
        "schedule.steps=200",
        "schedule.batch_size=3",
        "checkpoint.every_steps=200",
        f"engine.kernels={kernels}",
    ]
    run(load_recipe(RECIPE, [*recipe, *settings]), stop_at=steps)
    assert_golden(tmp_path / "run", "pretrain_200_steps.txt", 1e-3, steps)


def assert_golden(folder: Path, name: str, tolerance: float, steps: int | None = None) -> None:
    got = losses(folder)
    expected = [float(line.split()[1]) for line in (ROOT / "tests/golden" / name).read_text().splitlines()[:steps]]
    assert got == pytest.approx(expected, rel=tolerance), "\n".join(f"{i + 1} {x!r}" for i, x in enumerate(got))


def test_golden_losses(recipe: list[str], tmp_path: Path) -> None:
    """A refactoring leaves these lines alone; a change of numerics moves them in a commit of its own."""
    run(load_recipe(RECIPE, [*recipe, "schedule.steps=8"]))
    assert_golden(tmp_path / "run", "pretrain_tiny.txt", 1e-5)


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_dual_head_learns_the_same_however_a_step_is_cut(recipe: list[str], tmp_path: Path, task: str) -> None:
    """Its loss contrasts pairs with each other, yet not with those that happen to be in a microbatch."""
    dual = ["model.dual_size=8", "schedule.steps=6", "schedule.batch_size=8", "logging.every_steps=1"]
    if task == "pretrain":
        dual += ["pretraining.dual=1", "pretraining.contrast=4"]
    else:
        dual += ["task=finetune", "retrieval.dual=1", "retrieval.contrast=4"]
    found = []
    for accumulation in (1, 2):
        run_folder = tmp_path / str(accumulation)
        given = [*recipe, *dual, f"output={run_folder}", f"schedule.accumulation={accumulation}"]
        run(load_recipe(RECIPE, given))
        found.append([line["loss/dual"] for line in read_log(run_folder / "log.jsonl")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][0] > 0
