"""What can be said of a run without the machines that it is for: where it is submitted, in a second, without PyTorch.

The doctor asks the machines themselves, by training's own code. Here is what a login node can know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from imagebert.config import RunConfig, check_monitors, is_installed, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.errors import UsageError
from imagebert.feed.plan import check_cut, fit_microbatches


def problems(recipe: str, overrides: Sequence[str], task: str | None, ranks: Sequence[int], later: bool) -> list[str]:
    """What training would refuse.

    Args:
        task: pretrain, finetune, or None: either
        ranks: numbers of processes, each of which must do
        later: what the run starts from is made by a job before it
    """
    try:
        config = load_recipe(recipe, overrides)
    except UsageError as error:
        return [str(error)]
    found: list[str] = []
    checks: list[Callable[[], object]] = [
        lambda: check_task(config, recipe, task),
        lambda: Corpus(config.data.sources),
        lambda: Corpus(config.evaluation.sources) if config.evaluation.sources else None,
        lambda: _check_files(config, later),
        lambda: _check_packages(config),
        *(lambda count=count: _check_batch(config, count) for count in ranks),  # type: ignore[misc]
    ]
    for check in checks:
        try:
            check()
        except UsageError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def check_task(config: RunConfig, recipe: str, task: str | None) -> None:
    """Raises: UsageError: the recipe is of another task."""
    if task is not None and config.task != task:
        raise UsageError(f"{recipe} is a recipe to {config.task}, and this job is to {task}: give one of that task")


def _check_files(config: RunConfig, later: bool) -> None:
    start, hard = config.model.initialize_from, config.retrieval.hard_negatives
    if start is not None and not later:
        places = [Path(start) / name for name in ("config.json", "model/config.json", "checkpoints")]
        if not any(place.exists() for place in places):
            raise UsageError(f"model.initialize_from {start} is neither a model folder nor a run: give --from DIR")
    fused = config.model.fused_from
    if fused is not None and not any((Path(fused) / name).exists() for name in ("config.json", "model/config.json")):
        raise UsageError(f"model.fused_from {fused} is neither a model folder nor a run that has finished")
    if config.task == "finetune" and hard is not None and not Path(hard).is_file():
        raise UsageError(f"there is no file retrieval.hard_negatives {hard}: make it with `imagebert mine`")


def _check_packages(config: RunConfig) -> None:
    """Also of a login node: jobs mostly run in the same environment."""
    check_monitors(config)
    for name in ("torch", "deepspeed"):
        if not is_installed(name):
            raise UsageError(f"{name} is not installed here: pip install 'imagebert[train]' where the job runs")


def _check_batch(config: RunConfig, ranks: int) -> None:
    """By tokens the longest pair counts, which the doctor looks up."""
    schedule = fit_microbatches(config, ranks).schedule
    if schedule.batch_size is not None:
        check_cut(schedule.batch_size, ranks * schedule.accumulation, config.contrast)
