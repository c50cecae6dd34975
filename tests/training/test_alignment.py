"""Vectors of images and texts first, layers that see both behind them: runs of seconds, on one rank and on two."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagebert import api
from imagebert.config import SourceConfig, UsageError, load_recipe
from imagebert.model import ImageBertForImageTextRetrieval
from imagebert.training.run import run
from tests.training.sweep import Training, train_all
from tests.training.test_run import RECIPE, losses

ALIGN = [
    *("task=finetune", "schedule.batch_size=16", "schedule.steps=8", "model.dual_size=8"),
    *("retrieval.binary=0", "retrieval.dual=1", "retrieval.contrast=8", "model.layers=2", "model.fusion_layer=2"),
]
FUSE = [
    *("task=finetune", "schedule.batch_size=16", "schedule.steps=8", "model.dual_size=8", "retrieval.contrast=8"),
    *("retrieval.binary=0", "retrieval.multiclass=1", "retrieval.dual=1", "retrieval.negatives_from=similar"),
    *("model.layers=4", "model.residual_score=true", "retrieval.random_steps=2"),
]


@pytest.fixture(scope="module")
def aligned(source: SourceConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned") / "run"
    data = [f"data.sources.0.regions={source.regions}", f"data.sources.0.pairs={source.pairs}"]
    assert run(load_recipe(RECIPE, [*data, *ALIGN, f"output={folder}"])).finished
    return folder


def test_a_model_of_sides_scores_by_its_vectors(aligned: Path, source: SourceConfig) -> None:
    found = losses(aligned, "loss/dual")
    assert losses(aligned) == found
    assert found[-1] < 0.97 * found[0]
    model = ImageBertForImageTextRetrieval.from_pretrained(aligned / "model")
    assert model.itm is None
    assert len(model.imagebert.layers) == model.config.fusion_layer == 2
    data = api.Data(regions=source.regions, pairs=source.pairs, split="train")
    evaluated = api.evaluate(aligned, data, images=9, out=aligned.parent / "scores")
    scores = np.load(aligned.parent / "scores/scores.npy")
    assert scores.shape == (9, evaluated.figures["pairs"] // 9)


def test_fused_layers_begin_where_the_vectors_are(aligned: Path, recipe: list[str], tmp_path: Path) -> None:
    """The first scores are the products of vectors, and layers come from the folder that is named."""
    bert = tmp_path / "bert"
    run(load_recipe(RECIPE, [*recipe, f"output={bert}", "schedule.steps=1"]))
    start = ["model.preset=null", f"model.initialize_from={aligned}", f"model.fused_from={bert}"]
    config = load_recipe(RECIPE, [*recipe, *FUSE, *start, "optimizer.learning_rate=1e-12"])
    assert run(config).finished
    theirs, ours = (ImageBertForImageTextRetrieval.from_pretrained(p / "model") for p in (aligned, tmp_path / "run"))
    lower = ImageBertForImageTextRetrieval.from_pretrained(bert / "model")
    for number, origin in enumerate((theirs, theirs, lower, lower)):
        wanted = dict(origin.imagebert.layers[number].named_parameters())
        for name, parameter in ours.imagebert.layers[number].named_parameters():
            torch.testing.assert_close(parameter, wanted[name])
    assert ours.config.fusion_layer == 2
    assert ours.itm is not None
    assert ours.itm.score.weight.abs().max() < 1e-9
    # Moved elsewhere it is the same start; other weights are another.
    shutil.copytree(bert / "model", tmp_path / "moved")
    assert run(load_recipe(RECIPE, [*recipe, *FUSE, *start, "optimizer.learning_rate=1e-12",
                                    f"model.fused_from={tmp_path / 'moved'}"])).finished  # fmt: skip
    with pytest.raises(UsageError, match="made by another recipe or other data"):
        run(load_recipe(RECIPE, [*recipe, *FUSE, *start, "optimizer.learning_rate=1e-12", "model.fused_from=null"]))


@pytest.mark.ranks
@pytest.mark.parametrize("over", ["block", "step"])
def test_losses_do_not_depend_on_ranks(aligned: Path, source: SourceConfig, tmp_path: Path, over: str) -> None:
    """Nor do the negatives that are chosen: blocks stay whole."""
    settings = [*FUSE, "model.preset=null", f"model.initialize_from={aligned}", f"retrieval.contrast_over={over}"]
    for ranks in (1, 2):
        cuts = {"zero2": ["engine.deepspeed=zero2"]}
        if over == "block":
            cuts |= {"zero3": ["engine.deepspeed=zero3"], "parts": [f"schedule.accumulation={2 // ranks}"]}
        train_all(ranks, tmp_path, source, [Training(f"{n}-{ranks}", [*cut, *settings]) for n, cut in cuts.items()])
    reference = losses(tmp_path / "zero2-1")
    assert reference[-1] < reference[0]
    for folder in tmp_path.iterdir():
        assert losses(folder) == pytest.approx(reference, rel=1e-4), folder.name
        assert losses(folder, "gradient_norm") == pytest.approx(losses(tmp_path / "zero2-1", "gradient_norm"), rel=1e-3)


def test_over_a_step_of_one_block_it_is_the_blocks_loss(recipe: list[str], tmp_path: Path) -> None:
    """And of blocks of a pair each; alone in its block, a pair has nothing to be told from."""
    found = {}
    for over, contrast in (("block", 16), ("step", 16), ("step", 1), ("block", 1)):
        settings = [*recipe, *ALIGN, f"retrieval.contrast={contrast}", f"retrieval.contrast_over={over}"]
        run(load_recipe(RECIPE, [*settings, f"output={tmp_path / f'{over}-{contrast}'}"]))
        found[over, contrast] = losses(tmp_path / f"{over}-{contrast}")
    assert found["step", 16] == pytest.approx(found["block", 16], rel=1e-5)
    assert found["step", 1] == pytest.approx(found["block", 16], rel=1e-5)
    assert found["block", 1] == pytest.approx([0] * 8, abs=1e-6)


SHORTCUT = [*ALIGN, "model.dual_shortcut=32", "model.dual_shortcut_dropout=0.0", "model.dual_fit_epochs=300"]


@pytest.mark.ranks
def test_a_fitted_dual_head(source: SourceConfig, tmp_path: Path) -> None:
    """It knows its pairs before the first step, as one that is not does not; on two ranks it is the same one."""
    plain = [setting for setting in SHORTCUT if "fit_epochs" not in setting]
    for ranks in (1, 2):
        train_all(ranks, tmp_path, source, [Training(f"fitted-{ranks}", SHORTCUT)])
    train_all(1, tmp_path, source, [Training("plain", plain)])
    fitted, new = losses(tmp_path / "fitted-1"), losses(tmp_path / "plain")
    assert fitted[0] < 0.8 * new[0]
    assert losses(tmp_path / "fitted-2") == pytest.approx(fitted, rel=1e-4)


def test_a_dual_head_that_is_there_is_not_fitted_again(aligned: Path, recipe: list[str]) -> None:
    start = ["model.preset=null", f"model.initialize_from={aligned}"]
    with pytest.raises(UsageError, match=r"has a dual head, which model\.dual_fit_epochs would forget"):
        run(load_recipe(RECIPE, [*recipe, *SHORTCUT, *start]))


def test_a_fit_goes_on_from_a_checkpoint(recipe: list[str], tmp_path: Path) -> None:
    """A run that is stopped behind its fit goes on as if it had not been."""
    settings = [*recipe, *SHORTCUT, "checkpoint.every_steps=4"]
    assert run(load_recipe(RECIPE, [*settings, f"output={tmp_path / 'whole'}"])).finished
    parts = load_recipe(RECIPE, [*settings, f"output={tmp_path / 'parts'}"])
    assert not run(parts, stop_at=4).finished
    assert run(parts).finished
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.dual_shortcut": 4, "model.dual_size": 0, "retrieval.dual": 0},
            r"model\.dual_shortcut is 4, and there are no vectors",
        ),
        ({"model.dual_fit_epochs": 2}, r"model\.dual_fit_epochs is 2, and there is no shortcut to fit"),
        ({"model.layers": 4}, r"nothing is learnt from layer 2 on, of 4: set model\.layers=2"),
        ({"model.fusion_layer": 5}, r"model\.fusion_layer is 5, and model\.layers 2: give at most as many"),
        ({"retrieval.dual": 0, "model.dual_size": 0}, "retrieval has no loss"),
        ({"retrieval.multiclass": 1}, "none sees both sides of a pair"),
        ({"retrieval.multiclass": 1, "model.fusion_layer": 1, "model.dual_size": 0, "retrieval.dual": 0,
          "model.residual_score": "true"}, r"model\.residual_score is true, and there are no vectors"),
        ({"retrieval.contrast_over": "step", "schedule.accumulation": 2}, "a rank may have several microbatches in it"),
        ({"retrieval.negatives_from": "similar", "retrieval.contrast": 1}, "no block of vectors to find them in"),
        ({"retrieval.negatives_from": "similar", "engine.step": "compiled"}, "a step's tokens are not known before"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(recipe: list[str], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(load_recipe(RECIPE, [*recipe, *ALIGN, *(f"{key}={value}" for key, value in changes.items())]))


def test_another_fusion_layer_than_the_weights_have_is_refused(aligned: Path, recipe: list[str]) -> None:
    start = ["model.preset=null", f"model.initialize_from={aligned}"]
    with pytest.raises(UsageError, match="was trained with 2: its first layers see one side only; take 2"):
        run(load_recipe(RECIPE, [*recipe, *FUSE, *start, "model.fusion_layer=1"]))
    with pytest.raises(UsageError, match="has 2 layers of 128: it cannot give 3"):
        run(load_recipe(RECIPE, [*recipe, *FUSE, *start, "model.layers=5", f"model.fused_from={aligned}"]))
