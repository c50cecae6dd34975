"""Commands that train, or look at what training takes: the demo, both tasks, plans, the doctor, ladders, recipes."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagebert.cli.commands import command
from imagebert.cli.options import FEATURES, add_json, amount, finite, numbers, positive, seed
from imagebert.cli.printing import check_json, is_first, print_plan, print_report, print_table, print_tables, write_json
from imagebert.errors import UsageError


def _demo_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--web", action="store_true", help="build the weak set from web pages, as LAIT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")


@command(
    "demo",
    "The whole of ImageBERT, small, on one CPU: corpus, two stages, fine-tuning, R@K, report",
    _demo_options,
    ranks="none",
)
def demo(parsed: Namespace) -> int:
    from imagebert import api
    from imagebert.host import STOPPED

    if api.demo(parsed.out, parsed.seed, parsed.overrides, web=parsed.web) is None:
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
    from imagebert import api
    from imagebert.host import STOPPED

    train = api.pretrain if parsed.task == "pretrain" else api.finetune
    trained = train(parsed.recipe, parsed.overrides, stop_at=parsed.stop_at, profile=parsed.profile)
    if is_first():
        if seconds := trained.profile:
            shares = {name: f"{1e3 * s:.2f} ms, {s / seconds['step']:.0%}" for name, s in seconds.items()}
            print_report("A step of rank 0", shares)
            trace = trained.folder / "profile/trace.json"
            print(f"trace in {trace}: open it in chrome://tracing or ui.perfetto.dev")
        end = f"model in {trained.folder}/model" if trained.finished else "the same command goes on from here"
        print(f"{trained.steps} steps done; {end}")
    return 0 if trained.finished else STOPPED


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
    from imagebert import api

    exported = api.export(parsed.run, parsed.out)
    print(f"the model after {exported.steps} steps is in {exported.folder}")
    return 0


def _onnx_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="model folder of fine-tuning, or a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write scorer.onnx into, and both towers")


@command("onnx", "A fine-tuned model as ONNX: pairs to scores, and with a dual head both towers", _onnx_options)
def onnx(parsed: Namespace) -> int:
    from imagebert import api

    for path in api.onnx(parsed.model, parsed.out):
        print(path)
    return 0


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("paths", type=Path, nargs="+", metavar="RUN", help="a run's folder; a second one stands beside")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file to write (report.html in the first RUN)")


@command("report", "A run, or two side by side, as one HTML page: curves, attempts, R@K, recipes", _report_options)
def report(parsed: Namespace) -> int:
    from imagebert import api

    if len(parsed.paths) > 2:
        raise UsageError(f"{len(parsed.paths)} runs: a page shows one or two")
    print(f"open {api.report(*parsed.paths, out=parsed.out)} in a browser")
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
    from imagebert import api

    cluster = api.Cluster(
        nodes=parsed.nodes, gpus_per_node=parsed.gpus_per_node, gpu=parsed.gpu, calibration=parsed.calibrate
    )
    told = api.Told(**{name: getattr(parsed, name) for name in ("pairs", "regions", "words", "features", "model")})
    if parsed.recipe == "evaluate":
        if parsed.images is None or parsed.captions is None:
            raise UsageError("say how many: imagebert plan evaluate --images 5k --captions 25k")
        found = api.plan_evaluation(
            parsed.images, parsed.captions, cluster=cluster, told=told, candidates=parsed.candidates
        )
    else:
        for name in ("images", "captions", "candidates"):
            if getattr(parsed, name) is not None:
                raise UsageError(f"--{name} is of an evaluation: imagebert plan evaluate --images N --captions N")
        given = {name: getattr(parsed, name) for name in _OF_RECIPE if getattr(parsed, name)}
        if parsed.recipe is not None and given:
            name = next(iter(given))
            raise UsageError(f"--{name.replace('_', '-')} is the recipe's: give it as {_OF_RECIPE[name]}=...")
        schedule = None if parsed.recipe is not None else api.Schedule(**given)
        found = api.plan(
            *(parsed.recipe, parsed.overrides), cluster=cluster, told=told, schedule=schedule, simulate=parsed.simulate
        )
    print_plan(found)
    if not parsed.calibrate:
        print("from data sheets and the project's aim of half the matmul rate; --calibrate brings measured constants")
    write_json(parsed.json, found.figures)
    return 0


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
    from imagebert import api
    from imagebert.host import say_fault

    if parsed.on_paper:
        if parsed.recipe is None:
            raise UsageError("--on-paper needs a RECIPE")
        said = api.doctor_on_paper(
            parsed.recipe, parsed.overrides, ranks=parsed.on_paper, task=parsed.task, later=parsed.later
        )
        for line in said:
            print(f"imagebert: {line}", file=sys.stderr)
        return 2 if said else 0
    found = api.doctor(parsed.recipe, parsed.overrides, task=parsed.task, local=parsed.local, quick=parsed.quick)
    if is_first():
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
    from imagebert import api
    from imagebert.host import STOPPED

    if parsed.name is None:
        print("\n".join(api.ladders()))
        return 0
    check_json(parsed.json)
    figures = api.ladder(
        parsed.name,
        parsed.overrides,
        data=parsed.data,
        out=parsed.out,
        seeds=parsed.seeds,
        seed=parsed.seed,
        only=parsed.only,
    )
    if figures is None:
        print("stopped; the same command goes on from here")
        return STOPPED
    if is_first():
        print_tables(api.ladder_tables(figures))
        write_json(parsed.json, figures)
    return 0


def _recipes_options(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME")


@command("recipes", "The recipes that ship with the package; with a name, its text", _recipes_options)
def recipes(parsed: Namespace) -> int:
    from imagebert import api

    if parsed.name is None:
        print("\n".join(api.recipes()))
    else:
        print(api.recipe(parsed.name), end="")
    return 0
