"""Training from Python: both tasks, export, ladders, the demo, the doctor, and the recipes that ship."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imagebert.config import RECIPES, RunConfig, build_recipe, load_recipe
from imagebert.errors import UsageError
from imagebert.strict_yaml import to_plain

log = logging.getLogger(__name__)

_LONG_LOG = 8 << 20  # bytes: over ten thousand lines, read in half a second

if TYPE_CHECKING:
    from rich.table import Table

    from imagebert.doctor.compare import Findings

PathLike = str | os.PathLike[str]
Task = Literal["pretrain", "finetune"]
# The name of one that ships, a YAML file, a plain tree of keys, or what `imagebert.config.load_recipe` returned.
Recipe = PathLike | Mapping[str, Any] | RunConfig
# "schedule.steps=100" and so on, or {"schedule.steps": 100}.
Overrides = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """Says how a call of `imagebert.api.pretrain` or `imagebert.api.finetune` ended.

    Attributes:
        folder: The run's folder, with config.yaml, log.jsonl, checkpoints/, and model/ once the run is finished.
        steps: The number of steps done so far, those of earlier calls included.
        finished: Whether the recipe is at its end. Otherwise the same call goes on from here.
        losses: The losses that were logged last, such as {"total": 2.1, "mlm": 1.3}. It is empty on every rank but the
            first.
        figures: The results of the last evaluation while training, such as {"ir_r1": 40.2, "rsum": 310.5}. It is empty
            on every rank but the first.
        profile: The seconds of each part of a step, where this call recorded some. It is empty on every rank but the
            first.
    """

    folder: Path
    steps: int
    finished: bool
    losses: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    profile: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """Describes a model folder that `imagebert.api.export` wrote.

    Attributes:
        folder: The model folder.
        steps: The number of steps after which its model was saved.
    """

    folder: Path
    steps: int


def pretrain(
    recipe: Recipe, overrides: Overrides = (), *, stop_at: int | None = None, profile: int | None = None
) -> Trained:
    """Pre-trains by a recipe, or goes on where an earlier call of the same recipe stopped.

    While it trains it evaluates the data that `evaluation.sources` names, as often as the recipe says. Under a launcher
    all ranks make this call. SIGTERM and SIGUSR1 ask for a checkpoint and a stop at the next step.

    Args:
        recipe: The name of a recipe that ships, a YAML file, a plain tree of keys, or a loaded `RunConfig`.
        overrides: Changes to the recipe, as "key=value" texts or as a mapping such as {"schedule.steps": 100, "output":
            "runs/mine"}.
        stop_at: The number of steps in all after which the run stops with a checkpoint. None trains to the end of the
            recipe.
        profile: The number of steps whose time is recorded in detail, into profile/ in the run's folder. None records
            none.

    Returns:
        The run's folder, its steps, whether it is finished, and the figures that were logged last.

    Raises:
        UsageError: The recipe is one to fine-tune; or it, its data and its checkpoints do not fit together.
        FloatingPointError: The loss or the gradient is not finite, again and again.
        OSError: The disk is full or fails, or another rank is gone.
        SystemExit: A signal asked to stop before the first step; its code is 75.
    """
    return _train("pretrain", recipe, overrides, stop_at, profile)


def finetune(
    recipe: Recipe, overrides: Overrides = (), *, stop_at: int | None = None, profile: int | None = None
) -> Trained:
    """Fine-tunes for retrieval by a recipe, or goes on where an earlier call of the same recipe stopped.

    While it trains it evaluates the data that `evaluation.sources` names, as often as the recipe says. Under a launcher
    all ranks make this call. SIGTERM and SIGUSR1 ask for a checkpoint and a stop at the next step.

    Args:
        recipe: The name of a recipe that ships, a YAML file, a plain tree of keys, or a loaded `RunConfig`.
        overrides: Changes to the recipe, as "key=value" texts or as a mapping such as {"model.initialize_from":
            "runs/stage2"}.
        stop_at: The number of steps in all after which the run stops with a checkpoint. None trains to the end of the
            recipe.
        profile: The number of steps whose time is recorded in detail, into profile/ in the run's folder. None records
            none.

    Returns:
        The run's folder, its steps, whether it is finished, and the figures that were logged last.

    Raises:
        UsageError: The recipe is one to pre-train; or it, its data and its checkpoints do not fit together.
        FloatingPointError: The loss or the gradient is not finite, again and again.
        OSError: The disk is full or fails, or another rank is gone.
        SystemExit: A signal asked to stop before the first step; its code is 75.
    """
    return _train("finetune", recipe, overrides, stop_at, profile)


def _train(task: Task, recipe: Recipe, overrides: Overrides, stop_at: int | None, profile: int | None) -> Trained:
    from imagebert.endings import asked_to_stop
    from imagebert.header import announce_recipe

    config, name = open_recipe(recipe, overrides)
    if config.task != task:
        raise UsageError(f"{name} is a recipe to {config.task}: call `imagebert {config.task}`")
    if isinstance(recipe, str | os.PathLike):
        announce_recipe(name, config)
    with asked_to_stop():  # also while all this is imported
        from imagebert import distributed
        from imagebert.engine.metrics import read_log
        from imagebert.training.run import run

        stopped = run(config, stop_at, profile or 0)
    folder = Path(config.output)
    if distributed.rank() != 0:
        return Trained(folder, stopped.step, stopped.finished)
    _write_report(folder)
    lines = read_log(folder / "log.jsonl")
    losses, figures = (_last(lines, group) for group in ("loss/", "recall/"))
    recorded = folder / "profile/profile.json"
    seconds = json.loads(recorded.read_text(encoding="utf-8")) if profile and recorded.is_file() else {}
    return Trained(folder, stopped.step, stopped.finished, losses, figures, seconds)


def _write_report(folder: Path) -> None:
    """The page of a run that has ended for now, where that takes no second; that there is none ends nothing."""
    try:
        if (folder / "log.jsonl").stat().st_size <= _LONG_LOG:
            report(folder)
    except Exception as error:
        log.warning("no page of the run: %s", error)


def _last(lines: Sequence[Mapping[str, float]], group: str) -> dict[str, float]:
    """What the last line of a log that has a group says of it."""
    for line in reversed(lines):
        if found := {name.removeprefix(group): value for name, value in line.items() if name.startswith(group)}:
            return found
    return {}


def open_recipe(recipe: Recipe, overrides: Overrides = ()) -> tuple[RunConfig, str]:
    """A recipe with overrides, and what it is called in messages.

    Raises:
        UsageError: there is no such recipe, or a key or a value of it is wrong.
    """
    texts = _texts(overrides)
    if isinstance(recipe, RunConfig):
        name = f"the recipe of {recipe.output}"
        return (build_recipe(to_plain(recipe), texts, name) if texts else recipe), name
    if isinstance(recipe, Mapping):
        name = f"the recipe of {recipe.get('output')}"
        return build_recipe(copy.deepcopy(dict(recipe)), texts, name), name
    name = os.fspath(recipe)
    return load_recipe(name, texts), name


def _texts(overrides: Overrides) -> list[str]:
    if isinstance(overrides, str):
        raise UsageError(f"overrides is the text {overrides!r}: give a list of such")
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value, default=os.fspath)}" for key, value in overrides.items()]
    return list(overrides)


def export(run: PathLike, out: PathLike | None = None) -> Exported:
    """Writes the newest complete checkpoint of a run, which may still be training, as a model folder.

    Args:
        run: The run's folder. Its data need not be there.
        out: The folder to write. None takes model/ in the run's folder.

    Returns:
        The model folder, and after how many steps its model was saved.

    Raises:
        UsageError: The folder holds no run or no checkpoint.
        OSError: The disk is full or fails.
    """
    from imagebert.training.export import export_run

    folder = Path(run) / "model" if out is None else Path(out)
    return Exported(folder, export_run(Path(run), folder))


def onnx(model: PathLike, out: PathLike) -> list[Path]:
    """Writes a fine-tuned model as ONNX graphs, which onnxruntime runs.

    The graph scorer.onnx scores pairs. A model with a dual head also has image.onnx and text.onnx, which give the
    vectors of images and texts. The graphs take the padded tensors that `ImageBertProcessor` makes, by their names.

    Args:
        model: A model folder, or the folder of a finished run.
        out: The folder to write.

    Returns:
        The files.

    Raises:
        UsageError: There is no fine-tuned model, it has changed, or a package of PyTorch's exporter is missing.
        OSError: The disk is full or fails.
    """
    from imagebert.data.tokens import Tokenizer
    from imagebert.model import ImageBertForImageTextRetrieval
    from imagebert.model.exportable import write_onnx
    from imagebert.model_folder import open_model

    folder = open_model(Path(model)).path
    scorer = ImageBertForImageTextRetrieval.from_pretrained(folder)
    return write_onnx(scorer, Path(out), Tokenizer(folder).cls_id)


def report(run: PathLike, beside: PathLike | None = None, *, out: PathLike | None = None) -> Path:
    """Writes an HTML page about a run, finished or not: curves of its log, attempts, R@K, and its recipe.

    Args:
        run: The run's folder. Nothing else need be there.
        beside: The folder of another run, which each plot and table shows too. None shows one run.
        out: The HTML file to write, which loads nothing from elsewhere. None takes report.html in the run's folder.

    Returns:
        The file.

    Raises:
        UsageError: A folder holds no run, or the file cannot be written.
        OSError: The disk is full or fails.
    """
    from imagebert.report.folder import read_run
    from imagebert.report.write import FILE, write_report

    file = Path(run) / FILE if out is None else Path(out)
    runs = [read_run(Path(folder)) for folder in (run, beside) if folder is not None]
    for read in runs:
        for note in read.notes:
            log.warning("%s: %s", read.folder, note)
    write_report(runs, file)
    return file


def ladder(
    name: PathLike,
    overrides: Overrides = (),
    *,
    data: PathLike = "data",
    out: PathLike | None = None,
    seeds: int = 1,
    seed: int | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Trains and evaluates the rungs of a ladder, which is one of the paper's ablations.

    What an earlier call has trained is kept.

    Args:
        name: One of the names that `imagebert.api.ladders` lists, or a YAML file.
        overrides: Changes to the recipe of every run, as "key=value" texts or as a mapping.
        data: The folder that {data} stands for in the ladder's file.
        out: The folder of the runs. None takes the ladder's name within runs/.
        seeds: The number of seeds, which are 0 to `seeds` - 1.
        seed: The only one of these seeds to train. None trains all.
        only: The names of the rungs to train, with those that they start from. Where none is given, all are trained.

    Returns:
        The figures of all rungs and the relations between them, as ladder.json has them, which are empty on every rank
        but the first. None says that it was asked to stop, and the same call goes on.

    Raises:
        UsageError: There is no such ladder, rung or seed, or what is there was trained by another recipe.
        OSError: The disk is full or fails, or another rank is gone.
    """
    from imagebert import distributed
    from imagebert.ladder import climb, load_ladder

    loaded = load_ladder(os.fspath(name))
    folder = Path("runs") / Path(name).stem if out is None else Path(out)
    distributed.start(timeout_minutes=60)
    return climb(loaded, folder, Path(data), range(seeds), _texts(overrides), only, seed)


def ladder_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Shows the figures of a ladder as tables for the terminal.

    They have what the paper's table has, and the relations between rungs.

    Args:
        figures: The figures that `imagebert.api.ladder` returned.

    Returns:
        The tables, which a `rich.console.Console` prints.
    """
    from imagebert.ladder import tables

    return tables(dict(figures))


def ladders() -> list[str]:
    """Lists the names of the ladders that ship with the package."""
    from imagebert.ladder import LADDERS

    return sorted(path.stem for path in LADDERS.glob("*.yaml"))


def demo(
    out: PathLike = "runs/demo", seed: int = 0, overrides: Overrides = (), *, web: bool = False
) -> dict[str, Any] | None:
    """Runs the whole of ImageBERT, small, on CPUs: corpus, two stages, fine-tuning, exact R@K and a report.

    Args:
        out: The folder of the results, report.html among them.
        seed: The seed of the corpus and of every run.
        overrides: Changes to the recipe of every run, as "key=value" texts or as a mapping.
        web: Whether the weak set is what the LAIT builder finds on pages around its scenes.

    Returns:
        The figures, as report.json has them. None says that it was asked to stop, and the same call goes on.

    Raises:
        UsageError: What is in the folder was made by another call.
        OSError: A run failed, or the disk is full.
    """
    from imagebert.demo.run import run_demo

    return run_demo(Path(out), seed, _texts(overrides), web)


def doctor(
    recipe: PathLike | None = None,
    overrides: Overrides = (),
    *,
    task: Task | None = None,
    local: PathLike | None = None,
    quick: bool = False,
) -> Findings:
    """Says whether this machine, or under a launcher this job, is fit to train.

    Args:
        recipe: The recipe whose data, disk and batch are checked too. None checks the machines alone.
        overrides: Changes to the recipe, as "key=value" texts or as a mapping.
        task: The task that the recipe has to be for. None allows either.
        local: A folder on each host's own disk that has to be writable. None needs none.
        quick: Whether shorter measurements are taken.

    Returns:
        A row for each host, notes, problems of the call, and faults of machines; `fit` is true where there is neither a
        problem nor a fault.

    Raises:
        UsageError: The recipe or the launcher's variables are wrong.
        OSError: The ranks do not meet, or lose each other.
    """
    from imagebert.doctor.examine import examine
    from imagebert.doctor.on_paper import check_task

    config = None
    if recipe is not None:
        config, name = open_recipe(recipe, overrides)
        check_task(config, name, task)
    return examine(config, quick, None if local is None else Path(local))


def doctor_on_paper(
    recipe: PathLike,
    overrides: Overrides = (),
    *,
    ranks: Sequence[int] = (1,),
    task: Task | None = None,
    later: bool = False,
) -> list[str]:
    """Says what training by a recipe would refuse, as far as that can be said without the machines, within a second.

    Args:
        recipe: The name of a recipe that ships, or a YAML file.
        overrides: Changes to the recipe, as "key=value" texts or as a mapping.
        ranks: Numbers of processes, each of which the recipe has to suit.
        task: The task that the recipe has to be for. None allows either.
        later: Whether the model that the run starts from is made by an earlier job, and need not be there yet.

    Returns:
        A sentence for each problem. An empty list says that none was found.
    """
    from imagebert.doctor.on_paper import problems

    return problems(os.fspath(recipe), _texts(overrides), task, ranks, later)


def recipes() -> list[str]:
    """Lists the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe(name: str) -> str:
    """Reads the text of a recipe that ships with the package, its comments included.

    Args:
        name: One of the names that `imagebert.api.recipes` lists.

    Raises:
        UsageError: There is no recipe of that name.
    """
    if name not in recipes():
        raise UsageError(f"no recipe {name!r}: there are {', '.join(recipes())}")
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
