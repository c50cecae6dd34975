"""What a recipe, or an exact evaluation, takes on a cluster, from Python: hours, memory, storage, network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagebert.api.train import Overrides, Recipe, open_recipe
from imagebert.errors import UsageError
from imagebert.model import ImageBertConfig
from imagebert.training.capacity import GPUS, Constants, Job, calibrated, step_time
from imagebert.training.capacity import plan as plan_job
from imagebert.training.planning import Exact, Planned, Size, knee, sizes_of_evaluation, sizes_of_training
from imagebert.training.planning import Told as Told
from imagebert.training.simulation import simulate as play

PathLike = str | os.PathLike[str]

_PAIRS = 10_000_000  # where it is not told


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Describes the machines that are planned for.

    Args:
        nodes: The number of nodes.
        gpus_per_node: The number of GPUs of each node.
        gpu: The kind of GPU: a100, h100, h200, b200, or cpu.
        calibration: A JSON file of measured constants, which `python -m benchmarks.calibrate` writes. None takes those
            of data sheets.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    gpu: str = "h200"
    calibration: PathLike | None = None

    @property
    def gpus(self) -> int:
        """Counts the GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    def constants(self) -> Constants:
        """Looks up the speeds and memory sizes that plans for these machines are computed from.

        Raises:
            UsageError: There is no such GPU, or the calibration cannot be read.
        """
        if self.gpu not in GPUS:
            raise UsageError(f"no gpu {self.gpu!r}: there are {', '.join(GPUS)}")
        constants = GPUS[self.gpu]
        return constants if self.calibration is None else calibrated(constants, Path(self.calibration))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Describes pre-training that is planned without a recipe.

    Args:
        epochs: The number of epochs. The paper has 17.
        batch_size: The number of pairs of a step over all GPUs. None takes 256 for each GPU and microbatch.
        accumulation: The number of microbatches of each GPU in a step.
        zero: The stage of ZeRO, from 0 to 3.
        recompute: Whether activations are computed again in the backward pass, as model.gradient_checkpointing does.
    """

    epochs: float = 17
    batch_size: int | None = None
    accumulation: int = 1
    zero: int = 1
    recompute: bool = False


@dataclass(frozen=True)
class ClusterEstimate:
    """Says what some work takes on a cluster.

    Attributes:
        title: The work and the machines, in a line.
        figures: Numbers by name, in groups. Those called "sizes" and "more do not pay from, GPUs" are `sizes` and
            `knee`.
        sizes: What the same work takes on 1, 2, 4, ... GPUs.
        knee: The number of GPUs from which twice as many save less than a fifth of the time. None means that all of
            `sizes` pay.
        notes: Sentences on what was taken on trust.
    """

    title: str
    figures: dict[str, Any]
    sizes: tuple[Size, ...] = ()
    knee: int | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def plan(
    recipe: Recipe | None = None,
    overrides: Overrides = (),
    *,
    cluster: Cluster = Cluster(),
    told: Told = Told(),
    schedule: Schedule | None = None,
    simulate: int | None = None,
) -> ClusterEstimate:
    """Says what training takes on a cluster: hours, memory, storage, network and failures.

    Args:
        recipe: The name of a recipe that ships, a YAML file, a plain tree of keys, or a loaded `RunConfig`. None plans
            pre-training as `told` and `schedule` describe it.
        overrides: Changes to the recipe, as "key=value" texts or as a mapping.
        cluster: The machines.
        told: The pairs, regions, words, features and model, where the recipe's data is not there to be counted.
        schedule: The schedule of pre-training without a recipe. None takes the paper's.
        simulate: The number of steps that are also played event by event, with failures and without. None computes by
            formula alone.

    Returns:
        The figures, and for a recipe what the same work takes on other numbers of GPUs.

    Raises:
        UsageError: The recipe is wrong, its batch cannot be cut for so many GPUs, or its data is neither there nor
            told.
    """
    constants = cluster.constants()
    sizes: Sequence[Size] = ()
    notes: list[str] = []
    if recipe is None:
        name, job = told.model or "base", _told_job(cluster, constants, told, schedule or Schedule())
        figures: dict[str, Any] = plan_job(job)
    else:
        if schedule is not None:
            raise UsageError("a recipe has its own schedule: give it as overrides, such as schedule.epochs=3")
        config, name = open_recipe(recipe, overrides)
        planned = Planned(config, constants, told)
        job, notes = planned.job(cluster.nodes, cluster.gpus_per_node), planned.notes
        sizes = sizes_of_training(planned, cluster.gpus_per_node)
        most = planned.most_gpus(sizes[-1].gpus)
        notes = [*notes, f"the batch can be cut for {most:,} GPUs at most"] if most else notes
        figures = plan_job(job)
        if job.task == "finetune":
            figures["negatives"] = planned.hard_negatives(job)
    if simulate:
        whole, calm = (play(job, simulate, with_failures=f) / simulate for f in (True, False))
        figures["simulated, ms a step"] = {"without failures": 1e3 * calm, "with": 1e3 * whole}
        figures["simulated, ms a step"]["by formula, without"] = 1e3 * step_time(job).total
    what = f"batch {job.batch_size:,.0f}, {job.accumulation} microbatches a GPU, ZeRO {job.stage}"
    return _estimate(f"{name}, {what}, {job.ranks} x {cluster.gpu}", figures, sizes, notes)


def plan_evaluation(
    images: int,
    captions: int,
    *,
    cluster: Cluster = Cluster(),
    told: Told = Told(),
    candidates: int | None = None,
) -> ClusterEstimate:
    """Says what an exact evaluation, of every image with every caption, takes on a cluster.

    Args:
        images: The number of images.
        captions: The number of captions.
        cluster: The machines.
        told: The regions and words of a pair, the features' type and the model. What it leaves out is 100, 41, int8 and
            base.
        candidates: The number of candidates of each query that the first process also searches with. None searches with
            none.

    Returns:
        The figures, and what the same work takes on other numbers of GPUs.

    Raises:
        UsageError: There is no such GPU or model, or the calibration cannot be read.
    """
    exact = Exact(
        images=images,
        captions=captions,
        shape=ImageBertConfig.preset(told.model or "base"),
        constants=cluster.constants(),
        regions=told.regions or 100,
        words=told.words or 41,
        feature_bytes=np.dtype(told.features or "int8").itemsize,
        candidates=candidates,
    )
    figures: dict[str, Any] = exact.plan(cluster.nodes, cluster.gpus_per_node)
    title = f"{images:,} x {captions:,}, {told.model or 'base'}, {cluster.gpus} x {cluster.gpu}"
    return _estimate(title, figures, sizes_of_evaluation(exact, cluster.gpus_per_node), [])


def _estimate(title: str, figures: dict[str, Any], sizes: Sequence[Size], notes: Sequence[str]) -> ClusterEstimate:
    found = knee(list(sizes)) if sizes else None
    if sizes:
        figures |= {"more do not pay from, GPUs": found, "sizes": [size._asdict() for size in sizes]}
    return ClusterEstimate(title, figures, tuple(sizes), found, tuple(notes))


def _told_job(cluster: Cluster, constants: Constants, told: Told, schedule: Schedule) -> Job:
    """Pre-training without a recipe."""
    return Job(
        pairs=told.pairs or _PAIRS,
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        shape=ImageBertConfig.preset(told.model or "base"),
        constants=constants,
        regions=told.regions or 100,
        words=told.words or 41,
        epochs=schedule.epochs,
        batch_size=schedule.batch_size or 256 * cluster.gpus * schedule.accumulation,
        accumulation=schedule.accumulation,
        stage=schedule.zero,
        feature_bytes=np.dtype(told.features or "int8").itemsize,
        recompute=schedule.recompute,
    )
