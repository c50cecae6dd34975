from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagebert.config import RunConfig, UsageError, load_recipe
from imagebert.engine import engine
from imagebert.engine.engine import _forgiving, find_deepspeed_config, merge_deepspeed_config


def recipe(*overrides: str) -> RunConfig:
    return load_recipe("tests/recipe.yaml", overrides)


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("ds_configs").glob("*.json")))
def test_shipped_configurations_merge(name: str) -> None:
    merged = merge_deepspeed_config(recipe(f"engine.deepspeed={name}", "schedule.accumulation=4"), "bf16", 3)
    assert merged["zero_optimization"]["stage"] == int(name[4])
    assert merged["gradient_accumulation_steps"] == 4
    assert merged["train_batch_size"] == 12
    assert merged["gradient_clipping"] == 0.0  # ours, on the device
    assert merged["bf16"] == {"enabled": True, "check_grad_overflow": False}


@pytest.mark.parametrize(
    ("name", "gpus", "ranks", "overlaps"),
    [
        ("zero1", 0, 1, False),
        ("zero1", 0, 2, True),
        ("zero1", 8, 8, False),
        ("zero2", 8, 8, False),
        ("zero1", 8, 16, True),
        ("zero3", 8, 8, True),  # which fetches weights ahead by it
    ],
)
def test_what_is_not_worth_overlapping_is_not(
    name: str, gpus: int, ranks: int, overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    merged = merge_deepspeed_config(recipe(f"engine.deepspeed={name}"), "bf16", ranks)
    assert merged["zero_optimization"]["overlap_comm"] == overlaps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_cliping": 1.0}, "unknown key gradient_cliping"),
        ({"gradient_clipping": 1.0}, "belongs into the recipe, as optimizer.gradient_clipping"),
        ({"bf16": {"enabled": True}}, "belongs into the recipe, as engine.precision"),
    ],
)
def test_a_key_in_the_wrong_place_is_an_error(tmp_path: Path, content: dict[str, object], message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        merge_deepspeed_config(recipe(f"engine.deepspeed={path}"), "fp32", 1)


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 9999, '{"zero_optimization": 3}', '"text"'])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    (tmp_path / "ds.json").write_text(content)
    with pytest.raises(UsageError, match=r"ds\.json is n"):
        merge_deepspeed_config(recipe(f"engine.deepspeed={tmp_path / 'ds.json'}"), "fp32", 1)


def test_the_stage_is_a_number(tmp_path: Path) -> None:
    for stage in ('"1"', "4", "true", "[1]", "null"):
        (tmp_path / "ds.json").write_text(f'{{"zero_optimization": {{"stage": {stage}}}}}')
        with pytest.raises(UsageError, match=r"zero_optimization\.stage is .*: give 0 to 3"):
            merge_deepspeed_config(recipe(f"engine.deepspeed={tmp_path / 'ds.json'}"), "fp32", 1)
    (tmp_path / "ds.json").write_text("{}")
    assert merge_deepspeed_config(recipe(f"engine.deepspeed={tmp_path / 'ds.json'}"), "fp32", 1)


def test_configurations_are_found_in_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What set-up copies, wherever: `pip install --user` and `--target` have no folder share/ that could be found."""
    run = (
        "import sys, setuptools; from distutils.core import run_setup; step = run_setup('setup.py', stop_after='init')"
    )
    run += ".get_command_obj('build_py'); step.build_lib = sys.argv[1]; step.ensure_finalized(); step.run()"
    subprocess.run([sys.executable, "-c", run, str(tmp_path)], check=True, capture_output=True)
    monkeypatch.setattr(engine, "__file__", str(tmp_path / "imagebert/engine/engine.py"))
    names = sorted(path.stem for path in Path("ds_configs").glob("*.json"))
    assert "zero0" in names
    for name in names:
        assert find_deepspeed_config(name) == tmp_path / f"imagebert/ds_configs/{name}.json"


def test_lamb_does_not_shard() -> None:
    with pytest.raises(UsageError, match="LAMB needs the norm of whole tensors"):
        merge_deepspeed_config(recipe("optimizer.name=lamb", "engine.deepspeed=zero1"), "fp32", 1)


def test_unknown_configuration() -> None:
    with pytest.raises(
        UsageError, match="one of zero0, zero1, zero1_reduce_fp32, zero2, zero3, zero3_hierarchical, zero3_offload"
    ):
        find_deepspeed_config("zero9")


def test_monitors_go_into_the_runs_folder() -> None:
    merged = merge_deepspeed_config(recipe("logging.monitors=[csv, tensorboard, wandb]"), "fp32", 1)
    assert merged["csv_monitor"] == {"enabled": True, "output_path": "unset/monitor", "job_name": "test"}
    assert merged["tensorboard"]["enabled"]
    assert merged["wandb"]["project"] == "imagebert"


def test_a_monitor_on_a_full_disk_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    written: list[int] = []

    def write(events: list[int]) -> None:
        if events in ([2], [3]):
            raise OSError(errno.ENOSPC, "No space left on device")
        written.extend(events)

    forgiving = _forgiving(write, "run/monitor")
    for step in range(1, 5):
        forgiving([step])
    assert written == [1, 4]
    (message,) = caplog.messages
    assert "cannot write run/monitor" in message


def test_wandb_goes_on_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_recipe("tests/recipe.yaml", [f"output={tmp_path / 'run'}", "logging.monitors=[wandb]"])
    ids = []
    for kept in (True, True, False):
        monkeypatch.delenv("WANDB_RUN_ID", raising=False)
        monkeypatch.setenv("WANDB_RESUME", "never")
        if not kept:
            (tmp_path / "run/wandb_id").write_bytes(b"\xff")
        engine._go_on_at_wandb(config)
        ids.append(os.environ["WANDB_RUN_ID"])
        assert os.environ["WANDB_RESUME"] == "allow"
    assert ids[0] == ids[1] != ids[2]
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    engine._go_on_at_wandb(config)
    assert os.environ["WANDB_RUN_ID"] == "mine"
