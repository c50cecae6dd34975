"""Ladders: the paper's ablations, each a file of runs, rungs to compare, and what the paper found.

A run is a recipe with some keys set, perhaps started from another run; a rung is a run that is evaluated exactly on one
split. `imagebert ladder` trains what is not there yet, for each seed, evaluates it, and prints the table as the paper
does, with each relation that the file names: found where the seeds' differences leave 0 out of their 95 % interval
(Student's t, which for three seeds is 4.3 standard errors), against where they do so on the other side. Stopped
anywhere, the same call goes on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from imagebert import distributed
from imagebert.config import SourceConfig, UsageError, check_unweighted, differences, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.files import write_json
from imagebert.model_folder import open_model
from imagebert.retrieval.evaluation import Evaluation, report, score
from imagebert.retrieval.pictures import Pictures
from imagebert.strict_yaml import build, read_yaml, to_plain
from imagebert.training.run import run

LADDERS = Path(__file__).parent / "ladders"
WAYS = ("ir", "tr")


@dataclass(frozen=True, kw_only=True)
class LadderRun:
    """{data} in a path stands for the folder that the caller names."""

    recipe: str
    start: str | None = None  # the run whose weights it starts from
    sources: tuple[SourceConfig, ...] = ()  # none: the recipe's
    set: tuple[str, ...] = ()  # key=value


@dataclass(frozen=True, kw_only=True)
class Rung:
    name: str
    run: str
    paper: tuple[float, float] | None = None  # R@1, text finds image and image finds text


@dataclass(frozen=True, kw_only=True)
class Relation:
    """What the paper found: one rung above another."""

    better: str
    worse: str


@dataclass(frozen=True, kw_only=True)
class Ladder:
    title: str
    evaluate: SourceConfig
    images: int | None = None  # the first of the split; None: all
    runs: dict[str, Any]
    rungs: tuple[Rung, ...]
    relations: tuple[Relation, ...] = ()


def load_ladder(name_or_path: str) -> Ladder:
    """A ladder's file, or one of the package's by its name.

    Raises:
        UsageError: no such ladder, or one whose parts do not fit together.
    """
    path = Path(name_or_path)
    if not path.is_file():
        shipped = sorted(p.stem for p in LADDERS.glob("*.yaml"))
        if name_or_path not in shipped:
            raise UsageError(f"no ladder {name_or_path!r}: give a YAML file or one of {', '.join(shipped)}")
        path = LADDERS / f"{name_or_path}.yaml"
    ladder = build(Ladder, read_yaml(path), str(path))
    check_unweighted(f"{path}: evaluate", ladder.evaluate)
    runs = {name: build(LadderRun, tree, f"{path}: runs.{name}") for name, tree in ladder.runs.items()}
    names = [rung.name for rung in ladder.rungs]
    for name, one in runs.items():
        if one.start is not None and one.start not in list(runs)[: list(runs).index(name)]:
            raise UsageError(f"{path}: runs.{name}.start is {one.start!r}: name a run above it")
    for rung in ladder.rungs:
        if rung.run not in runs:
            raise UsageError(f"{path}: rung {rung.name!r} is of run {rung.run!r}: there are {', '.join(runs)}")
    for relation in ladder.relations:
        if relation.better not in names or relation.worse not in names:
            raise UsageError(f"{path}: relation of {relation.better!r} and {relation.worse!r}: there are {names}")
    return replace(ladder, runs=runs)


def run_folder(out: Path, seeds: Sequence[int], seed: int, name: str) -> Path:
    return out / name if len(seeds) == 1 else out / f"seed-{seed}" / name


def climb(
    ladder: Ladder,
    out: Path,
    data: Path,
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    alone: int | None = None,
) -> dict[str, Any] | None:
    """Trains and evaluates all rungs for all seeds; returns the figures, or None if it was asked to stop.

    Args:
        data: what {data} stands for in the ladder's file
        overrides: key=value for every run
        only: these rungs, and what they start from; none: all
        alone: this one of the seeds, in the folder that it has beside the others; None: all

    Raises:
        UsageError: no such rung or seed, or what is there was trained by another recipe.
    """
    for name in only:
        if name not in [rung.name for rung in ladder.rungs]:
            raise UsageError(f"no rung {name!r}: there are {', '.join(rung.name for rung in ladder.rungs)}")
    if alone is not None and alone not in seeds:
        raise UsageError(f"no seed {alone}: there are {', '.join(map(str, seeds))}")
    taken = list(seeds) if alone is None else [alone]
    console = Console(stderr=True, markup=False, emoji=False)  # names come from files
    source = _located(ladder.evaluate, data)
    rungs: list[dict[str, Any]] = []
    chance: dict[str, Any] = {}
    for rung in ladder.rungs:
        if only and rung.name not in only:
            continue
        found = []
        for seed in taken:
            if distributed.rank() == 0:
                console.rule(f"{rung.name}, seed {seed}")
            if not _train(ladder, rung.run, out, data, seeds, seed, overrides):
                return None
            figures = _evaluate(ladder, rung, run_folder(out, seeds, seed, rung.run), source)
            if figures is not None:
                chance = figures["chance"]
                found.append(figures)
        rungs.append({"name": rung.name, "run": rung.run, "paper": rung.paper, "seeds": found})
    if distributed.rank() != 0:
        return {}
    figures = {
        "title": ladder.title,
        "seeds": taken,
        "chance": chance,
        "rungs": rungs,
        "relations": _relations(ladder, rungs),
    }
    if not only and alone is None:
        write_json(out / "ladder.json", figures)
    return figures


def _located(source: SourceConfig, data: Path) -> SourceConfig:
    regions, pairs = (text.replace("{data}", str(data)) for text in (source.regions, source.pairs))
    return replace(source, regions=regions, pairs=pairs)


def _train(
    ladder: Ladder, name: str, out: Path, data: Path, seeds: Sequence[int], seed: int, overrides: Sequence[str]
) -> bool:
    this: LadderRun = ladder.runs[name]
    if this.start is not None and not _train(ladder, this.start, out, data, seeds, seed, overrides):
        return False
    folder = run_folder(out, seeds, seed, name)
    settings = [f"output={folder}", f"seed={seed}", *this.set]
    if this.sources:
        sources = [to_plain(_located(source, data)) for source in this.sources]
        settings.append(f"data.sources={json.dumps(sources)}")
    if this.start is not None:
        settings.append(f"model.initialize_from={run_folder(out, seeds, seed, this.start)}")
        settings.append("model.preset=null")
    config = load_recipe(this.recipe, [*settings, *overrides])
    # Rank 0 decides: on a shared disk the others may look too early.
    main = distributed.rank() == 0
    (there,) = distributed.total([main and (folder / "model" / "config.json").is_file()])
    if not there:
        return run(config).finished
    trained = open_model(folder).training
    changed = differences(to_plain(load_recipe(str(folder / "config.yaml"))), to_plain(config))
    changed += differences(trained.get("data", {}), Corpus(config.data.sources).digest(), "data of ")
    if this.start is not None:
        start = open_model(run_folder(out, seeds, seed, this.start)).digest
        changed += [f"the model of {this.start}"] * (trained.get("started_from") != start)
    if changed:
        raise UsageError(f"{folder} was trained otherwise ({'; '.join(changed)}): give another `out`")
    return True


def _evaluate(ladder: Ladder, rung: Rung, folder: Path, source: SourceConfig) -> dict[str, Any] | None:
    """The rung's figures on rank 0; images and words are cut as the run cut them."""
    config = load_recipe(str(folder / "config.yaml"))
    corpus = Corpus([source])
    images = corpus.images if ladder.images is None else min(ladder.images, corpus.images)
    model = open_model(folder)
    evaluation = Evaluation(model, folder / "evaluation", corpus, model.limits, source.split, images)
    kept, result = score(evaluation, None)
    if result is None:
        return None
    figures = report(evaluation, kept, result, 1, Pictures.beside(Path(source.regions), None))
    return {**figures, "steps": config.schedule.steps, "folder": str(kept)}


def last_matrix(figures: dict[str, Any]) -> Path:
    """The evaluation folder of the last rung and seed."""
    return Path(figures["rungs"][-1]["seeds"][-1]["folder"])


def _relations(ladder: Ladder, rungs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each relation by R@1 both ways and by R-sum: the mean over seeds of the differences, and its standard error."""
    by_name = {rung["name"]: rung["seeds"] for rung in rungs}
    found = []
    for relation in ladder.relations:
        if relation.better not in by_name or relation.worse not in by_name:
            continue
        row: dict[str, Any] = {"better": relation.better, "worse": relation.worse}
        pairs = list(zip(by_name[relation.better], by_name[relation.worse], strict=True))
        for key in ("ir r1", "tr r1", "rsum"):
            differences = [_figure(a, key) - _figure(b, key) for a, b in pairs]
            error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
            mean = statistics.mean(differences)
            verdict = "one seed" if len(differences) == 1 else "undecided"
            if len(differences) > 1 and abs(mean) > student.ppf(0.975, len(differences) - 1) * error:
                verdict = "found" if mean > 0 else "against"
            row[key] = {"difference": mean, "standard_error": error, "verdict": verdict}
        found.append(row)
    return found


def _figure(figures: dict[str, Any], key: str) -> float:
    way, _, k = key.partition(" ")
    return float(figures[way][k] if k else figures[way])


def tables(figures: dict[str, Any]) -> list[Table]:
    """What the paper's table shows, means over the seeds, the R-sum with its standard deviation; and the relations."""
    many = len(figures["seeds"]) > 1
    with_paper = any(rung["paper"] for rung in figures["rungs"])
    first = figures["rungs"][0]["seeds"][0]
    over = f", mean over {len(figures['seeds'])} seeds" if many else ""
    table = Table(title=f"{figures['title']}; {first['images']} images, {first['captions']} captions{over}")
    for column in ("", "text finds image", "image finds text", "R-sum"):
        table.add_column(column, justify="right" if column else "left")
    if with_paper:
        table.add_column("paper, R@1", justify="right")
    for rung in [{"name": "chance", "seeds": [figures["chance"]], "paper": None}, *figures["rungs"]]:
        cells = [
            " / ".join(f"{statistics.mean(f[way][k] for f in rung['seeds']):.1f}" for k in ("r1", "r5", "r10"))
            for way in WAYS
        ]
        rsums = [f["rsum"] for f in rung["seeds"] if "rsum" in f]
        rsum = f"{statistics.mean(rsums):.1f}" if rsums else ""
        spread = f" ({statistics.stdev(rsums):.1f})" if len(rsums) > 1 else ""
        paper = [" / ".join(f"{v:.1f}" for v in rung["paper"] or ())] if with_paper else []
        table.add_row(rung["name"], *cells, rsum + spread, *paper)
    if not figures["relations"]:
        return [table]
    relations = Table(title="The paper's relations: difference, its standard error, verdict")
    for column in ("", "R@1, text finds image", "R@1, image finds text", "R-sum"):
        relations.add_column(column)
    for row in figures["relations"]:
        cells = [
            f"{row[k]['difference']:+.1f}" + f" ± {row[k]['standard_error']:.1f}" * many + f" {row[k]['verdict']}"
            for k in ("ir r1", "tr r1", "rsum")
        ]
        relations.add_row(f"{row['better']} > {row['worse']}", *cells)
    return [table, relations]
