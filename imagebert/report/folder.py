"""What a run's folder tells, finished or not: recipe, log, attempts, evaluations.

Nothing is needed but one of config.yaml and log.jsonl. What is damaged is left out and named in `notes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.config import RECIPES, load_recipe, rename_keys
from imagebert.engine.checkpoints import newest_manifest
from imagebert.engine.metrics import examine_log, line_checksum
from imagebert.errors import UsageError
from imagebert.files import DIGESTS, check_digests, read_json
from imagebert.header import flat
from imagebert.host import STOPPED
from imagebert.strict_yaml import read_yaml, to_plain
from imagebert.training.attempts import read_attempts

WAYS, CUTOFFS = ("ir", "tr"), ("r1", "r5", "r10")


class Attempt(NamedTuple):
    """One start of a run and its end, as jobs.jsonl has them."""

    start: Mapping[str, Any]  # empty: it ended before it could start
    end: Mapping[str, Any] | None  # None: it still runs, or was killed


class Evaluated(NamedTuple):
    """The figures of an evaluation beside the run, and of what they are."""

    name: str  # of its folder
    split: str | None
    figures: Mapping[str, Any]  # as in recall.json

    @property
    def of(self) -> tuple[Any, ...]:
        """What has to be equal for two to stand in one table."""
        return (self.split, *(self.figures.get(name) for name in ("images", "captions", "folds")))


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        recipe: its values by dotted keys; empty where config.yaml cannot be read
        shipped: the name of the recipe that ships and is nearest, and its values; the same stage goes before fewer keys
        lines: of log.jsonl
        notes: a sentence for each thing that is damaged or missing
    """

    folder: Path
    recipe: Mapping[str, Any]
    shipped: tuple[str, Mapping[str, Any]] | None
    lines: Sequence[Mapping[str, float]]
    attempts: Sequence[Attempt]
    evaluations: Sequence[Evaluated]
    notes: Sequence[str]

    @property
    def steps(self) -> int:
        """Done, as far as they are logged."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def total(self) -> int | None:
        """Steps of the whole run; None: its epochs are not counted yet."""
        told = [a.start.get("of") for a in self.attempts] + [self.recipe.get("schedule.steps")]
        return next((int(total) for total in told if isinstance(total, int)), None)

    @property
    def state(self) -> str:
        if not self.attempts:  # of an earlier version, or not begun
            return "finished" if (self.folder / "model/config.json").is_file() else "not finished"
        end = self.attempts[-1].end
        if end is None:
            return "running, or killed before it could say why it ended"
        code = end.get("exit")
        return "finished" if code == 0 else "stopped, the same command goes on" if code == STOPPED else "failed"

    def points(self, name: str) -> list[tuple[float, float]]:
        """Steps and values of a figure of the log, at the steps that have it."""
        return [(line["step"], line[name]) for line in self.lines if name in line]

    def last(self, name: str) -> float | None:
        return next((line[name] for line in reversed(self.lines) if name in line), None)


def read_run(folder: Path) -> Run:
    """Reads a run's folder, be it of a run that still trains.

    Raises:
        UsageError: it is no run's.
        OSError: the disk fails.
    """
    if not any((folder / name).is_file() for name in ("config.yaml", "log.jsonl")):
        raise UsageError(f"{folder} is no run's folder: name one that has config.yaml or log.jsonl")
    notes = []
    line = _line_of_checkpoint(folder)  # before the log is read, which a run may be writing
    lines, damaged = examine_log(folder / "log.jsonl")
    if damaged or (line is not None and line not in map(line_checksum, lines)):
        notes.append("log.jsonl is damaged: its good lines are shown")
    recipe: dict[str, Any] = {}
    try:
        recipe = flat(rename_keys(read_yaml(folder / "config.yaml"), str(folder), quiet=True))
    except UsageError as error:
        notes.append(f"the recipe is not known: {error}")
    evaluations: list[Evaluated] = []
    for path in sorted(folder.glob("evaluation/*/recall*.json")):
        try:
            evaluations.append(_read_evaluation(path))
        except UsageError as error:
            notes.append(f"left out: {error}")
    attempts = list(_pair(read_attempts(folder)))
    return Run(folder, recipe, _nearest(recipe), lines, attempts, evaluations, notes)


def _line_of_checkpoint(folder: Path) -> int | None:
    """The checksum of the log's line at which the newest checkpoint was made; None where that is not known."""
    with suppress(UsageError):
        if newest := newest_manifest(folder / "checkpoints"):
            return newest[1]["state"].get("log")  # type: ignore[no-any-return]
    return None


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys at which two recipes differ, with both values; None: it has no such key. The run's folder is left out."""
    keys = sorted((before.keys() | after.keys()) - {"output"})
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _nearest(recipe: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    if not recipe:
        return None
    all_ = _all_shipped()
    of_task = [name for name, values in all_.items() if values.get("task") == recipe.get("task")]

    def distance(name: str) -> tuple[bool, int]:
        return all_[name].get("stage") != recipe.get("stage"), len(differing(all_[name], recipe))

    name = min(of_task, key=distance, default=None)
    return None if name is None else (name, all_[name])


@cache
def _all_shipped() -> dict[str, dict[str, Any]]:
    return {path.stem: flat(to_plain(load_recipe(str(path)))) for path in sorted(RECIPES.glob("*.yaml"))}


def _pair(lines: Sequence[Mapping[str, Any]]) -> Iterator[Attempt]:
    """Starts with the ends that come behind them: who is killed has none, and some end before they start."""
    begun: Mapping[str, Any] | None = None
    for line in lines:
        if line["event"] == "start":
            if begun is not None:
                yield Attempt(begun, None)
            begun = line
        else:
            yield Attempt(begun or {}, line)
            begun = None
    if begun is not None:
        yield Attempt(begun, None)


def _read_evaluation(path: Path) -> Evaluated:
    """Raises UsageError: it is damaged."""
    folder = path.parent
    if (folder / DIGESTS).is_file():
        check_digests(folder, "evaluate again", [path.name])
    figures = read_json(path)
    try:
        wanted = [figures[way][k] for way in WAYS for k in CUTOFFS]
        wanted += [figures["chance"][way][k] for way in WAYS for k in CUTOFFS]
        wanted += [figures[name] for name in ("rsum", "images", "captions", "folds")]
    except (KeyError, TypeError, IndexError):
        wanted = [None]
    if not all(type(value) in (int, float) and abs(value) < 2**53 for value in wanted):
        raise UsageError(f"{path} has no R@K both ways: evaluate again")
    record = folder / "evaluation.json"
    identity = read_json(record) if record.is_file() else {}
    split = identity.get("split") if isinstance(identity, dict) else None
    return Evaluated(folder.name, str(split) if split is not None else None, figures)
