"""Commands that train, or look at what training takes: the demo, both tasks, plans, the doctor, ladders, recipes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from imagebert.cli.commands import command
from imagebert.cli.options import FEATURES, add_json, amount, finite, numbers, positive, seed
from imagebert.cli.printing import check_writable, print_report, print_table, tables_console, write_json
from imagebert.errors import UsageError
from imagebert.host import STOPPED


def _demo_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")


@command(
    "demo",
    "The whole of ImageBERT, small, on one CPU: corpus, two stages, fine-tuning, R@K, report",
    _demo_options,
    ranks="none",
)
def demo(parsed: Namespace) -> int:
    from imagebert.demo.run import run_demo

    if run_demo(parsed.out, parsed.seed, parsed.overrides) is None:
        print("stopped; the same command goes on from here")
        return STOPPED
    return 0


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a recipe of the package")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as schedule.steps=100")
    parser.add_argument("--stop-at", type=positive, metavar="STEP", help="stop with a checkpoint after so many steps")
    parser.add_argument(
        "--profile", type=positive, metavar="N", help="record N steps: where their time goes, and a Chrome trace"
    )


def _pretrain_options(parser: ArgumentParser) -> None:
    _train_options(parser)
    parser.set_defaults(task="pretrain")


def _finetune_options(parser: ArgumentParser) -> None:
    _train_options(parser)
    parser.set_defaults(task="finetune")


@command(
    "pretrain",
    "Pre-train by a recipe: alone, under torchrun, deepspeed, srun or mpirun",
    _pretrain_options,
    ranks="all",
    header=True,
)
def pretrain(parsed: Namespace) -> int:
    from imagebert.config import load_recipe
    from imagebert.endings import asked_to_stop

    config = load_recipe(parsed.recipe, parsed.overrides)
    if config.task != parsed.task:
        raise UsageError(f"{parsed.recipe} is a recipe to {config.task}: call `imagebert {config.task}`")
    from imagebert.header import announce_recipe

    announce_recipe(parsed.recipe, config)
    with asked_to_stop():  # also while all this is imported
        from imagebert import distributed
        from imagebert.retrieval.validation import Validation
        from imagebert.training.run import run

        stopped = run(config, parsed.stop_at, parsed.profile or 0, Validation)
    if distributed.rank() == 0:
        profile = Path(config.output) / "profile/profile.json"
        if parsed.profile and profile.is_file():
            seconds = json.loads(profile.read_text(encoding="utf-8"))
            shares = {name: f"{1e3 * s:.2f} ms, {s / seconds['step']:.0%}" for name, s in seconds.items()}
            print_report("A step of rank 0", shares, None)
            print(f"trace in {profile.parent}/trace.json: open it in chrome://tracing or ui.perfetto.dev")
        end = f"model in {config.output}/model" if stopped.finished else "the same command goes on from here"
        print(f"{stopped.step} steps done; {end}")
    return 0 if stopped.finished else STOPPED


finetune = pretrain._replace(
    name="finetune",
    summary="Fine-tune for retrieval by a recipe, started the same ways",
    options=_finetune_options,
)


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder to write (RUN/model)")


@command(
    "export",
    "The newest complete checkpoint of a run, finished or not, as a model folder",
    _export_options,
    ranks="first_others_wait",
    header=True,
)
def export(parsed: Namespace) -> int:
    from imagebert.training.run import export_run

    out = parsed.out or parsed.run / "model"
    steps = export_run(parsed.run, out)
    print(f"the model after {steps} steps is in {out}")
    return 0


def _plan_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="as training takes it, or `evaluate`; without: pre-training as told"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of the recipe, such as schedule.batch_size=2048"
    )
    parser.add_argument(
        "--pairs",
        type=amount,
        metavar="N",
        help="of an epoch (counted where the stores are there; without RECIPE 10M)",
    )
    parser.add_argument(
        "--regions", type=positive, metavar="N", help="of a pair (counted, or the recipe's most, or 100)"
    )
    parser.add_argument("--words", type=positive, metavar="N", help="of a pair (counted, or the recipe's most, or 41)")
    parser.add_argument(
        "--model",
        choices=["tiny", "small", "base", "large", "xl"],
        help="where what the recipe starts from is not there (base)",
    )
    parser.add_argument("--features", choices=FEATURES, help="where the stores are not there (int8)")
    parser.add_argument("--nodes", type=positive, default=1)
    parser.add_argument("--gpus-per-node", type=positive, default=8)
    parser.add_argument("--gpu", choices=["a100", "h100", "h200", "b200", "cpu"], default="h200")
    own = parser.add_argument_group("without RECIPE, which says them otherwise")
    own.add_argument("--epochs", type=finite, help="(17, the paper's)")
    own.add_argument("--batch-size", type=positive, metavar="PAIRS", help="over all GPUs (256 a GPU)")
    own.add_argument("--accumulation", type=positive, help="(1)")
    own.add_argument("--zero", type=int, choices=[0, 1, 2, 3], help="(1)")
    own.add_argument("--recompute", action="store_true", help="with model.gradient_checkpointing")
    exact = parser.add_argument_group("with `evaluate`")
    exact.add_argument("--images", type=amount, metavar="N")
    exact.add_argument("--captions", type=amount, metavar="N")
    exact.add_argument("--candidates", type=positive, metavar="K", help="also searched with, in the first process")
    parser.add_argument("--calibrate", type=Path, metavar="JSON", help="measured constants, from benchmarks.calibrate")
    parser.add_argument("--simulate", type=positive, metavar="STEPS", help="also play so many steps event by event")
    add_json(parser)


# Options that a recipe has keys for.
_OF_RECIPE = {
    "epochs": "schedule.epochs",
    "batch_size": "schedule.batch_size",
    "accumulation": "schedule.accumulation",
    "zero": "engine.deepspeed",
    "recompute": "model.gradient_checkpointing",
}


@command(
    "plan",
    "What a recipe, or an exact evaluation, takes on a cluster: hours, memory, storage, network",
    _plan_options,
)
def plan(parsed: Namespace) -> int:
    from imagebert.training.capacity import GPUS, calibrated, plan, step_time
    from imagebert.training.planning import Planned, Told, knee, sizes_of_training
    from imagebert.training.simulation import simulate

    constants = GPUS[parsed.gpu]
    if parsed.calibrate:
        constants = calibrated(constants, parsed.calibrate)
    if parsed.recipe == "evaluate":
        return _plan_evaluation(parsed, constants)
    for name in ("images", "captions", "candidates"):
        if getattr(parsed, name) is not None:
            raise UsageError(f"--{name} is of an evaluation: imagebert plan evaluate --images N --captions N")
    notes, sizes = [], []
    if parsed.recipe is None:
        job = _told_job(parsed, constants)
    else:
        from imagebert.config import load_recipe

        for name, key in _OF_RECIPE.items():
            if getattr(parsed, name):
                raise UsageError(f"--{name.replace('_', '-')} is the recipe's: give it as {key}=...")
        config = load_recipe(parsed.recipe, parsed.overrides)
        told = Told(**{name: getattr(parsed, name) for name in ("pairs", "regions", "words", "features", "model")})
        planned = Planned(config, constants, told)
        job, notes = planned.job(parsed.nodes, parsed.gpus_per_node), planned.notes
        sizes = sizes_of_training(planned, parsed.gpus_per_node)
        most = planned.most_gpus(sizes[-1].gpus)
        notes = [*notes, f"the batch can be cut for {most:,} GPUs at most"] if most else notes
    figures: dict[str, Any] = plan(job)
    if parsed.recipe is not None and job.task == "finetune":
        figures["negatives"] = planned.hard_negatives(job)
    if parsed.simulate:
        whole, calm = (simulate(job, parsed.simulate, with_failures=f) / parsed.simulate for f in (True, False))
        figures["simulated, ms a step"] = {"without failures": 1e3 * calm, "with": 1e3 * whole}
        figures["simulated, ms a step"]["by formula, without"] = 1e3 * step_time(job).total
    what = f"batch {job.batch_size:,.0f}, {job.accumulation} microbatches a GPU, ZeRO {job.stage}"
    title = f"{parsed.recipe or parsed.model or 'base'}, {what}, {job.ranks} x {parsed.gpu}"
    if sizes:
        figures["more do not pay from, GPUs"] = knee(sizes)
    _plan_tables(title, figures, sizes, parsed, notes)
    return 0


def _told_job(parsed: Namespace, constants: Any) -> Any:
    """Pre-training without a recipe, by the options."""
    import numpy as np

    from imagebert.model import ImageBertConfig
    from imagebert.training.capacity import Job

    accumulation, gpus = parsed.accumulation or 1, parsed.nodes * parsed.gpus_per_node
    return Job(
        pairs=parsed.pairs or 10_000_000,
        nodes=parsed.nodes,
        gpus_per_node=parsed.gpus_per_node,
        shape=ImageBertConfig.preset(parsed.model or "base"),
        constants=constants,
        regions=parsed.regions or 100,
        words=parsed.words or 41,
        epochs=parsed.epochs or 17,
        batch_size=parsed.batch_size or 256 * gpus * accumulation,
        accumulation=accumulation,
        stage=1 if parsed.zero is None else parsed.zero,
        feature_bytes=np.dtype(parsed.features or "int8").itemsize,
        recompute=parsed.recompute,
    )


def _plan_evaluation(parsed: Namespace, constants: Any) -> int:
    import numpy as np

    from imagebert.model import ImageBertConfig
    from imagebert.training.planning import Exact, knee, sizes_of_evaluation

    if parsed.images is None or parsed.captions is None:
        raise UsageError("say how many: imagebert plan evaluate --images 5k --captions 25k")
    exact = Exact(
        images=parsed.images,
        captions=parsed.captions,
        shape=ImageBertConfig.preset(parsed.model or "base"),
        constants=constants,
        regions=parsed.regions or 100,
        words=parsed.words or 41,
        feature_bytes=np.dtype(parsed.features or "int8").itemsize,
        candidates=parsed.candidates,
    )
    figures: dict[str, Any] = exact.plan(parsed.nodes, parsed.gpus_per_node)
    sizes = sizes_of_evaluation(exact, parsed.gpus_per_node)
    gpus = parsed.nodes * parsed.gpus_per_node
    title = f"{parsed.images:,} x {parsed.captions:,}, {parsed.model or 'base'}, {gpus} x {parsed.gpu}"
    figures["more do not pay from, GPUs"] = knee(sizes)
    _plan_tables(title, figures, sizes, parsed, [])
    return 0


def _plan_tables(title: str, figures: dict[str, Any], sizes: list[Any], parsed: Namespace, notes: list[str]) -> None:
    """Prints a plan, what more GPUs bring, and what was taken on trust."""
    from rich.table import Table

    console = tables_console(None if sys.stdout.isatty() else 130)  # a file has no width
    table = Table("", "", "", title=title)
    for group, rows in figures.items():
        for number, (name, value) in enumerate(rows.items() if isinstance(rows, dict) else ()):
            table.add_row(group * (number == 0), name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
        table.add_section()
    console.print(table)
    if sizes:
        console.print(_table_of_sizes(sizes))
        figures["sizes"] = [size._asdict() for size in sizes]
        knee, most = figures["more do not pay from, GPUs"], sizes[-1].gpus
        if knee is None:
            print(f"up to {most:,} GPUs twice as many are at least 1.2 times as fast")
        else:
            print(f"from {knee:,} GPUs on more do not pay: twice as many gain less than 20 %")
    for note in notes:
        print(f"note: {note}")
    if not parsed.calibrate:
        print("from data sheets and the project's aim of half the matmul rate; --calibrate brings measured constants")
    write_json(parsed.json, figures)


def _table_of_sizes(sizes: list[Any]) -> Any:
    from rich.table import Table

    training = sizes[0].milliseconds > 0
    table = Table("GPUs", "hours", "efficiency", title="the same on more GPUs")
    for name in ("a step, ms", "microbatches a GPU", "memory") if training else ():
        table.add_column(name)
    for size in sizes:
        efficiency = sizes[0].hours * sizes[0].gpus / (size.hours * size.gpus)
        step = f"{size.milliseconds:,.4g}", f"{size.microbatches}", "fits" if size.fits else "is too small"
        table.add_row(f"{size.gpus:,}", f"{size.hours:,.4g}", f"{efficiency:.0%}", *(step if training else ()))
    return table


def _doctor_options(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="check this recipe's data, disk and batch too")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--task", choices=["pretrain", "finetune"], help="what the recipe has to be for")
    parser.add_argument(
        "--local", type=Path, metavar="DIR", help="a folder on each host's own disk: can it be written?"
    )
    parser.add_argument("--quick", action="store_true", help="with shorter measurements")
    add_json(parser)
    parser.add_argument(
        "--on-paper",
        type=numbers,
        metavar="RANKS",
        help="only what can be said of RECIPE without the machines, for so many processes: 16, or 16,32",
    )
    parser.add_argument("--later", action="store_true", help="with --on-paper: what it starts from is not made yet")


@command(
    "doctor",
    "Is this machine, or under srun this job, fit to train? Names what is not, and cures",
    _doctor_options,
    ranks="all",
)
def doctor(parsed: Namespace) -> int:
    if parsed.on_paper:
        from imagebert.doctor.on_paper import problems

        if parsed.recipe is None:
            raise UsageError("--on-paper needs a RECIPE")
        said = problems(parsed.recipe, parsed.overrides, parsed.task, parsed.on_paper, parsed.later)
        for line in said:
            print(f"imagebert: {line}", file=sys.stderr)
        return 2 if said else 0

    from imagebert import distributed
    from imagebert.config import load_recipe
    from imagebert.doctor.examine import examine
    from imagebert.doctor.on_paper import check_task
    from imagebert.host import say_fault

    config = load_recipe(parsed.recipe, parsed.overrides) if parsed.recipe else None
    if config:
        check_task(config, parsed.recipe, parsed.task)
    found = examine(config, parsed.quick, parsed.local)
    if distributed.rank() == 0:
        print_table(f"{found.ranks} processes on {len(found.hosts)} hosts", found.hosts)
        for line in found.notes:
            print(f"note: {line}")
        for line in found.problems:
            print(f"problem: {line}")
        print("fit to train" if found.fit else "not fit to train", flush=True)
        for fault in found.faults:
            say_fault(*fault)
        write_json(parsed.json, found._asdict())
    return 2 if found.problems else 1 if found.faults else 0


def _ladder_options(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="LADDER", help="YAML file, or one of the package; without: a list")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    parser.add_argument("--data", type=Path, default=Path("data"), help="{data} in the ladder (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the runs (runs/LADDER)")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="seeds 0 to N - 1 (%(default)s)")
    parser.add_argument("--seed", type=seed, metavar="K", help="only this one of them; the whole call prints the table")
    parser.add_argument(
        "--only", action="append", default=[], metavar="RUNG", help="this rung, and what it starts from; any number"
    )
    add_json(parser)


@command(
    "ladder",
    "An ablation of the paper: trains and evaluates its rungs, prints them as a table",
    _ladder_options,
    ranks="all",
    header=True,
)
def ladder(parsed: Namespace) -> int:
    from imagebert.ladder import LADDERS, climb, load_ladder, tables

    if parsed.name is None:
        print("\n".join(sorted(path.stem for path in LADDERS.glob("*.yaml"))))
        return 0

    from imagebert import distributed

    ladder = load_ladder(parsed.name)
    check_writable(parsed.json)
    out = parsed.out or Path("runs") / Path(parsed.name).stem
    distributed.start(timeout_minutes=60)
    figures = climb(ladder, out, parsed.data, range(parsed.seeds), parsed.overrides, parsed.only, parsed.seed)
    if figures is None:
        print("stopped; the same command goes on from here")
        return STOPPED
    if distributed.rank() == 0:
        console = tables_console(None if sys.stdout.isatty() else 130)  # a file has no width
        for table in tables(figures):
            console.print(table)
        write_json(parsed.json, figures)
    return 0


def _recipes_options(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME")


@command("recipes", "The recipes that ship with the package; with a name, its text", _recipes_options)
def recipes(parsed: Namespace) -> int:
    from imagebert.config import RECIPES

    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if parsed.name is None:
        print("\n".join(names))
        return 0
    if parsed.name not in names:
        raise UsageError(f"no recipe {parsed.name!r}: there are {', '.join(names)}")
    print((RECIPES / f"{parsed.name}.yaml").read_text(encoding="utf-8"), end="")
    return 0
