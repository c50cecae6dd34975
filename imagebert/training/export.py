"""The model of a run's newest checkpoint, as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from imagebert.engine.checkpoints import find_newest
from imagebert.engine.shards import Shards
from imagebert.log import track
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining
from imagebert.model_folder import Processing, write_model
from imagebert.training.identity import STATE


def training_of(state: dict[str, Any], steps: int) -> dict[str, Any]:
    """How a model was trained, for its folder, from what a checkpoint keeps."""
    kept = ("data", "started_from", "hard_negatives", "seconds")
    return {"recipe": state["config"], "steps": steps, **{name: state[name] for name in kept}}


def export_run(run_folder: Path, out: Path) -> int:
    """Writes the model of a run's newest good checkpoint, which may still be training, to `out`; returns its steps.

    Nothing but the checkpoint is needed: its data need not be there.

    Raises:
        UsageError: the folder holds no run or no checkpoint.
    """
    folder, manifest = find_newest(run_folder / "checkpoints", STATE)
    state = manifest["state"]
    shards = Shards(folder, manifest["shards"])
    kind = ImageBertForPreTraining if state["config"]["task"] == "pretrain" else ImageBertForImageTextRetrieval
    model = kind(ImageBertConfig(**state["model"]))
    weights = {name: torch.empty(parameter.shape) for name, parameter in model.named_parameters()}
    for name, weight in track(weights.items(), "Reading the checkpoint", "tensors"):
        shards.read(name, "weight", 0, weight.view(-1))
    steps = int(manifest["step"])
    write_model(model, weights, Processing(**state["processing"]), training_of(state, steps), out, wait=True)
    return steps
