"""Damages every kind of file that the program reads, and looks at what the commands that read it say.

    python -m benchmarks.fuzz [--mutations N] [--seed S] [--kinds K ...] [--json FILE]
    python -m benchmarks.fuzz [--seed S] [--kinds K ...] --only N     one mutation again, with all that it printed

A mutation flips, overwrites, cuts, appends, swaps or removes: bytes, values of a JSON, files, or puts a pipe, a folder
or an endless device in a file's place. The rule: the command ends with exit code 1 or 2 and a sentence that names the
artefact or a file of it; or all its figures are those of the undamaged artefact. `imagebert verify` has to name every
change. Text of people (recipes, captions, vocabularies, published features) may change into other text: any end but a
crash is right there. In no case there is a traceback, a death by a signal, more than LIMIT_SECONDS, or more than
LIMIT_MIB of memory. What breaks the rule is a miss; misses are listed with the call that repeats each, exit code 1.

Kind, command, place and damage follow from seed, number and --kinds; the artefacts (artefacts.py) are built anew by
each call. A mutation runs in a folder of its own, where one artefact is a copy and the rest are links.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", COLUMNS="400")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a forked child has none

import argparse
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.artefacts import (
    BUILDERS,
    CORPUS,
    DATA,
    LIMIT_SECONDS,
    QUERY,
    RESUMED,
    Child,
    Ended,
    Rng,
    build,
    difference,
    make_small,
    of_json,
    of_log,
    of_page,
    of_pairs,
    of_store,
    sha,
    shas,
)
from benchmarks.report import Line, publish
from imagebert import cli

UNREADABLE = "what it wrote cannot be read"
UNREAD = {"jobs.jsonl", "failures.html", "report.html", "lock"}  # without checksums: `verify` need not name them


def nothing() -> Any:
    return None


class Command(NamedTuple):
    name: str
    words: tuple[str, ...]
    figures: Callable[[], Any]
    share: float = 1.0  # of the mutations
    every: bool = False  # has to name every change
    shown: bool = False  # what it prints belongs to its figures
    passes_over: str = ""  # goes on without what is damaged, and says so in a line with the artefact and these words


@dataclass(frozen=True)
class Kind:
    name: str
    path: str  # what is damaged: a folder or a file
    commands: list[Command]
    twin: str | None = None  # the same with other content
    text: bool = False  # of people: may change into other text
    needs: tuple[str, ...] = ()  # other artefacts
    files: str = "**/*"  # of the folder, which are damaged
    cache: bool = False  # made again where it is missing, so that a file which is gone is no damage


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


EVALUATE = ("evaluate", "modelA", *DATA, "--json", "figures.json")


def evaluate(*words: str) -> Command:
    return Command("evaluate", words or (*EVALUATE, "--out", "out"), lambda: [of_json(), sha("out/scores.npy")])


def pretrain(*overrides: str) -> Command:
    words = ("pretrain", "recipe.yaml", "output=out", *overrides)
    return Command("pretrain", words, lambda: of_log("out"), share=0.4)


def verify(path: str) -> Command:
    return Command("verify", ("verify", path), nothing, every=True)


def find(model: str = "modelA") -> Command:
    return Command("search", ("search", model, "regionsA", QUERY), nothing, shown=True)


def mine() -> Command:
    words = ("mine", "modelA", "out", "--regions", "regionsA", "--pairs", "pairsA", "--pool", "4", "--keep", "2")
    return Command("mine", words, lambda: sha("out"), share=0.5)


def report(run: str) -> Command:
    said = "damaged|left out|recipe is not known"
    return Command("report", ("report", run), lambda: of_page(f"{run}/report.html"), share=0.7, passes_over=said)


def caption_file(name: str) -> Kind:
    words = ("pairs", f"tablesA/{name}", "out", "--vocab", "vocab.txt")
    command = Command("pairs", words, lambda: of_pairs("out"))
    return Kind(name, f"tablesA/{name}", [command], f"tablesB/{name}", text=True, needs=("vocab.txt",))


def vocabulary(name: str, path: str) -> Kind:
    words = ("pairs", "tablesA/captions.tsv", "out", "--vocab", path)
    command = Command("pairs", words, lambda: of_pairs("out"), share=0.5)
    return Kind(name, path, [command], text=True, needs=("tablesA",))


def feature_file(name: str, path: str, form: str, files: str = "**/*") -> Kind:
    words = ("import", form, f"featuresA/{path}", "out")
    command = Command("import", words, lambda: of_store("out"))
    return Kind(name, "featuresA", [command], "featuresB", text=True, files=files)


def kinds() -> list[Kind]:
    inspect = ("store", "inspect", "regionsA", "--json", "figures.json")
    quantize = ("store", "quantize", "regionsA", "out", "--features", "float16")
    again = Command("evaluate again", (*EVALUATE, "--out", "evaluationA"), of_json)
    compare = ("compare", "evaluationA", "evaluationB", "--json", "figures.json")
    finetune = ("finetune", "finetune.yaml", "output=out", "retrieval.hard_negatives=minedA.safetensors")
    scores = ("evaluate", "--scores", "evaluationA", "--json", "figures.json")
    half = Command("evaluate", (*EVALUATE, "--out", "halfA"), lambda: [of_json(), sha("halfA/scores.npy")])
    localised = tuple(word.replace("regionsA", "localised") for word in (*EVALUATE, "--out", "out"))
    lait_pairs = ("lait", "pairs", "scoredA", "out/pairs.parquet")
    read = ("pretrain", "recipeT.yaml", "output=out", "schedule.steps=1", "schedule.batch_size=8")
    return [
        Kind(
            "region store",
            "regionsA",
            [
                evaluate(),
                pretrain(),
                verify("regionsA"),
                Command("store verify", ("store", "verify", "regionsA"), nothing),
                Command("inspect", inspect, of_json),
                Command("quantize", quantize, lambda: of_store("out")),
            ],
            twin="regionsB",
            needs=("modelA",),
        ),
        Kind("pair store", "pairsA", [evaluate(), pretrain(), verify("pairsA")], "pairsB", needs=("modelA",)),
        Kind(
            "model",
            "modelA",
            [
                *(evaluate(), find(), verify("modelA"), mine()),
                pretrain("model.preset=null", "model.initialize_from=modelA"),
            ],
            twin="modelB",
            needs=CORPUS,
        ),
        Kind(
            "unfinished run",
            "runA",
            [
                Command("pretrain", RESUMED, lambda: of_log("runA", 2)),
                Command("export", ("export", "runA", "out"), lambda: shas("out"), passes_over="passed over"),
                *(verify("runA"), report("runA")),
            ],
            twin="runB",
            needs=CORPUS,
        ),
        Kind(
            "finished run",
            "finishedA",
            [
                evaluate("evaluate", "finishedA", *DATA, "--json", "figures.json", "--out", "out"),
                Command("export", ("export", "finishedA", "out"), lambda: shas("out"), share=0.5),
                *(verify("finishedA"), report("finishedA")),
            ],
            twin="finishedB",
            needs=CORPUS,
        ),
        Kind(
            "evaluation",
            "evaluationA",
            [
                *(again, Command("evaluate --scores", scores, of_json)),
                *(Command("compare", compare, of_json), verify("evaluationA")),
            ],
            twin="evaluationB",
            needs=(*CORPUS, "modelA"),
        ),
        Kind("half evaluation", "halfA", [half], "halfB", needs=(*CORPUS, "modelA")),
        Kind(
            "index",
            "indexedA",
            [find("indexedA"), verify("indexedA")],
            "indexedB",
            files="index/*",
            needs=CORPUS,
            cache=True,
        ),
        Kind(
            "hard negatives",
            "minedA.safetensors",
            [Command("finetune", finetune, lambda: of_log("out"), share=0.6), verify("minedA.safetensors")],
            twin="minedB.safetensors",
            needs=(*CORPUS, "finetune.yaml", "modelA"),
        ),
        Kind(
            "detector",
            "detectorA.safetensors",
            [
                Command(
                    "extract",
                    ("extract", "pictures", "out", "--extractor", "detectorA.safetensors"),
                    lambda: of_store("out"),
                    share=0.3,
                ),
                verify("detectorA.safetensors"),
            ],  # another detector is a choice, and no damage
        ),
        Kind(
            "local copy of a store",
            "localised",
            [
                Command("evaluate", localised, lambda: [of_json(), sha("out/scores.npy")]),
                Command(
                    "localise", ("store", "localise", "regionsA", "localised", "--part", "0/2"), nothing, shown=True
                ),
                verify("localised"),
            ],
            twin="regionsB",
            needs=(*CORPUS, "modelA"),
        ),
        Kind(
            "LAIT step",
            "scoredA",
            [
                Command("lait pairs", (*lait_pairs, "pairs.relevance=0"), lambda: sha("out/pairs.parquet")),
                Command("lait sample", ("lait", "sample", "scoredA", "out.csv"), lambda: sha("out.csv")),
                verify("scoredA"),
            ],
            twin="scoredB",
        ),
        Kind("LAIT pairs", "laitA", [verify("laitA")], twin="laitB"),
        Kind(
            "unfinished store",
            ".unfinishedA.incomplete",
            [Command("import", ("import", "npz", "featuresA/npz", "unfinishedA"), lambda: of_store("unfinishedA"))],
            twin=".unfinishedB.incomplete",
        ),
        Kind("recipe", "recipeT.yaml", [Command("pretrain", read, nothing, share=0.5)], text=True, needs=CORPUS),
        vocabulary("vocabulary", "vocabT.txt"),
        vocabulary("words of a BERT", "bertT"),
        *map(caption_file, ("coco.json", "captions.csv", "captions.tsv", "c.parquet")),
        feature_file("npz", "npz", "npz", "npz/*"),
        feature_file("features.tsv", "features.tsv", "bottom-up-attention", "features.tsv"),
        feature_file("hdf5", "x.hdf5", "hdf5", "x*"),
        feature_file("lmdb", "x.lmdb", "vilbert", "x.lmdb/*.mdb"),
    ]


# --------------------------------------------------------------------------------------------------------- mutations


def damage(rng: Rng, artefact: Path, pattern: str, spared: set[str], twin: Path | None) -> tuple[str, Path]:
    """Changes something of an artefact; what, and in which file."""
    within = [artefact] if artefact.is_file() else sorted(artefact.glob(pattern))
    files = [path for path in within if path.is_file() and path.name not in spared]
    for _ in range(100):
        file = files[int(rng.integers(len(files)))]
        name, change = CHANGES[int(rng.choice(len(CHANGES), p=_SHARES))]
        before = file.read_bytes()
        what = change(rng, file, before, files, twin and _same_place(file, artefact, twin))
        if what is not None and not _equal(file, before):
            return f"{name} {what}".strip(), file
    raise RuntimeError(f"nothing of {artefact} could be changed")


def _equal(file: Path, before: bytes) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    after = file.read_bytes()
    if file.suffix == ".json":  # other spaces, or more digits of a number than it holds
        with suppress(ValueError, RecursionError):
            return repr(json.loads(after)) == repr(json.loads(before))
    return after == before


def _same_place(file: Path, artefact: Path, twin: Path) -> Path | None:
    """The file of another artefact that stands where this one does, by its name or else by its kind."""
    place = twin / file.relative_to(artefact) if file != artefact else twin
    if place.is_file():
        return place
    others = sorted(place.parent.glob(f"*{file.suffix}")) if place.parent.is_dir() else []
    return others[0] if others else None


def _place(rng: Rng, size: int) -> int:
    """Half of the places are where structure is: the beginning, and the end."""
    where, share = rng.random(), rng.random()
    near = min(size, 128 if where < 0.3 else 8192)
    if where < 0.4:
        return int(share * near)
    return size - 1 - int(share * min(size, 256)) if where < 0.5 else int(share * size)


def _flip(rng: Rng, file: Path, data: bytes, *_: Any) -> str | None:
    if not data:
        return None
    at, bit = _place(rng, len(data)), int(rng.integers(8))
    file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    return f"bit {bit} of byte {at}"


def _overwrite(rng: Rng, file: Path, data: bytes, *_: Any) -> str | None:
    if not data:
        return None
    at, length = _place(rng, len(data)), int(2 ** rng.uniform(0, 10))
    length = min(length, len(data) - at)
    run = rng.bytes(length) if rng.random() < 0.5 else bytes(length)
    file.write_bytes(data[:at] + run + data[at + length :])
    return f"{length} bytes from {at} on with {'zeros' if not any(run) else 'others'}"


def _cut(rng: Rng, file: Path, data: bytes, *_: Any) -> str | None:
    if not data:
        return None
    at = _place(rng, len(data))
    file.write_bytes(data[:at])
    return f"at byte {at} of {len(data)}"


def _append(rng: Rng, file: Path, data: bytes, *_: Any) -> str:
    more = rng.bytes(int(2 ** rng.uniform(0, 12))) if rng.random() < 0.7 else data
    file.write_bytes(data + more)
    return f"{len(more)} bytes"


def _swap(rng: Rng, file: Path, data: bytes, files: list[Path], _: Path | None) -> str | None:
    other = files[int(rng.integers(len(files)))]
    if other == file or other.read_bytes() == data:
        return None
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return f"with {other.name}"


def _twin(rng: Rng, file: Path, data: bytes, files: list[Path], twin: Path | None) -> str | None:
    if twin is None:
        return None
    shutil.copyfile(twin, file)
    return "by that of another"


def _instead(rng: Rng, file: Path, data: bytes, *_: Any) -> str:
    what = ["pipe", "folder", "empty file", "link to /dev/zero", "link to itself"][int(rng.integers(5))]
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "empty file":
        file.touch()
    else:
        file.symlink_to("/dev/zero" if what.endswith("zero") else file)
    return f"by a {what}"


def _remove(rng: Rng, file: Path, *_: Any) -> str:
    file.unlink()
    return ""


def _json(rng: Rng, file: Path, data: bytes, *_: Any) -> str | None:
    """One value of a JSON file, or of a line of JSON."""
    lines = data.decode(errors="replace").splitlines() if file.suffix == ".jsonl" else [data.decode(errors="replace")]
    number = int(rng.integers(max(1, len(lines))))
    try:
        content = json.loads(lines[number])
    except (ValueError, IndexError):
        return None
    places, level = [], [content]
    while level:
        node = level.pop()
        for key in (node if isinstance(node, dict) else range(len(node))) if isinstance(node, dict | list) else ():
            places.append((node, key))
            level.append(node[key])
    if not places:
        return None
    node, key = places[int(rng.integers(len(places)))]
    value, how = node[key], int(rng.integers(7))
    deep = "[" * 2000 + "]" * 2000
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(value, int | float):
        node[key] = value + 1
    elif how <= 2:
        node[key] = f"{value}x"
    else:
        node[key] = [None, -1, "$deep$", 10**30 if rng.random() < 0.5 else math.inf][how - 3]
    lines[number] = json.dumps(content).replace('"$deep$"', deep)
    file.write_text("\n".join(lines) + "\n")
    return f"{key!r}: {str(value)[:40]!r} -> {'gone' if how == 0 else str(node[key])[:40]}"


Change = Callable[[Rng, Path, bytes, list[Path], Path | None], str | None]
CHANGES: list[tuple[str, Change]] = [
    *(("flip", _flip), ("overwrite", _overwrite), ("cut", _cut), ("append", _append), ("swap", _swap)),
    *(("replace", _twin), ("replace", _instead), ("remove", _remove), ("JSON", _json)),
]
_SHARES = np.array([5, 4, 2, 1, 1, 2, 2, 1, 3]) / 21


# ------------------------------------------------------------------------------------------------------------- a trial


class Trial(NamedTuple):
    number: int
    kind: Kind
    command: Command
    what: str  # was done to
    file: str
    child: Child


class Outcome(NamedTuple):
    trial: Trial
    ended: Ended
    verdict: str  # named, nothing or miss
    why: str


class Fuzz:
    """The artefacts in `folder`, and what the commands say of them undamaged."""

    def __init__(self, folder: Path, chosen: list[Kind]) -> None:
        self.folder, self.world = folder, folder / "world" / "work"
        tops = [path.split("/")[0] for kind in chosen for path in (kind.path, kind.twin or kind.path)]
        named = {word.split("/")[0] for kind in chosen for command in kind.commands for word in command.words}
        build(folder / "world", dict.fromkeys([*tops, *(n for k in chosen for n in k.needs), *(named & set(BUILDERS))]))
        self.pairs, self.notes, self.failed = [], [], []
        self._before: dict[tuple[str, str], Any] = {}
        for kind in chosen:
            for command in kind.commands:
                ended, figures = self._undamaged(kind, command)
                if ended.code == 0 and not ended.crash and not str(figures).startswith(UNREADABLE):
                    self.pairs.append((kind, command))
                    self._before[kind.name, command.name] = figures
                elif "invalid choice" in ended.err:
                    self.notes.append(f"{kind.name}: there is no `imagebert {command.words[0]}`: left out")
                else:
                    why = figures or f"exit code {ended.code}: {ended.last}"
                    self.failed.append(f"{kind.name}, {command.name}, undamaged: {why}")

    def state(self) -> dict[str, tuple[int, int]]:
        """Of the artefacts that all children share: none may be written into."""
        files = [(str(path), path.lstat()) for path in self.world.rglob("*") if path.is_file()]
        return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in files}

    def _undamaged(self, kind: Kind, command: Command) -> tuple[Ended, Any]:
        folder = self._prepare("undamaged", kind)
        ended = Child(folder, partial(_carry_out, folder, command)).wait()
        return ended, self._figures(folder, command, ended)

    def _prepare(self, name: str, kind: Kind) -> Path:
        """A folder in which one artefact is a copy, and all others are links."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "work").mkdir(parents=True)
        for entry in self.world.iterdir():
            target = folder / "work" / entry.name
            if entry.name != kind.path.split("/")[0] and entry.suffix != ".lock":  # of a writer that was killed
                target.symlink_to(entry)
            elif entry.is_dir():
                shutil.copytree(entry, target)
            else:
                shutil.copyfile(entry, target)
        return folder

    def _figures(self, folder: Path, command: Command, ended: Ended) -> Any:
        if ended.code:
            return None
        shown = [line for line in ended.out.splitlines() if "│" in line or " of " in line]
        figures = json.loads((folder / "figures").read_text())
        return [figures, shown] if command.shown else figures

    def begin(self, seed: int, number: int) -> Trial:
        """Damages something and starts a command, both chosen by seed and number alone."""
        rng = np.random.default_rng([seed, number])
        shares = np.array([command.share for _, command in self.pairs])
        kind, command = self.pairs[int(rng.choice(len(self.pairs), p=shares / shares.sum()))]
        folder = self._prepare(f"mutation-{number}", kind)
        twin = self.world / kind.twin if kind.twin else None
        if command.every and (folder / "work" / kind.path).is_file():
            twin = None  # it knows its own content, not which one was meant
        spared = UNREAD if command.every else set[str]()
        what, file = damage(rng, folder / "work" / kind.path, kind.files, spared, twin)
        child = Child(folder, partial(_carry_out, folder, command))
        return Trial(number, kind, command, what, str(file.relative_to(folder / "work")), child)

    def judge(self, trial: Trial, ended: Ended) -> Outcome:
        kind, command = trial.kind, trial.command
        verdict, why = "miss", ended.crash
        if why:
            pass
        elif ended.code in (1, 2):
            words = {kind.path.removesuffix(".incomplete").lstrip("."), Path(trial.file).name}
            said = [line for line in ended.err.splitlines() if line.startswith("imagebert: ")]
            if said and (kind.text or any(word in line for word in words for line in said)):
                verdict = "named"
            else:
                why = f"does not name it: {ended.last}"
        elif ended.code != 0:
            why = f"exit code {ended.code}: {ended.last}"
        elif command.every and not (kind.cache and trial.what == "remove"):
            why = "not noticed"
        else:
            before = self._before[kind.name, command.name]
            after = self._figures(trial.child.folder, command, ended)
            if str(after).startswith(UNREADABLE):
                why = f"exit code 0, and {after}"
            elif kind.text or after == before:
                verdict = "nothing"
            elif command.passes_over and any(
                kind.path in line and re.search(command.passes_over, line) for line in ended.err.splitlines()
            ):
                verdict = "named"
            else:
                why = f"exit code 0, other figures: {difference(before, after)}"
        return Outcome(trial, ended, verdict, why)

    def run(self, seed: int, numbers: Iterable[int], at_once: int, limit: float) -> Iterator[Outcome]:
        left, running = iter(numbers), list[Trial]()
        while True:
            while len(running) < at_once and (number := next(left, None)) is not None:
                running.append(self.begin(seed, number))
            if not running:
                return
            for trial in list(running):
                if (ended := trial.child.poll(limit)) is not None:
                    running.remove(trial)
                    yield self.judge(trial, ended)
                    shutil.rmtree(trial.child.folder, ignore_errors=True)
            time.sleep(0.002)


def _carry_out(folder: Path, command: Command) -> int:
    """In a child: the command, and its figures where it says that all is well."""
    code = cli.main(command.words)
    if code == 0:
        try:
            figures = plain(command.figures())
        except Exception as error:
            figures = f"{UNREADABLE} ({error})"
        (folder / "figures").write_text(json.dumps(figures))
    return code


# --------------------------------------------------------------------------------------------------------------- main


def show(outcomes: list[Outcome], seconds: float) -> None:
    rows: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[outcome.trial.kind.name, outcome.trial.command.name].append(outcome)
    title = f"{len(outcomes):,} mutations in {seconds:.0f} s"
    columns = ("kind", "command", "mutations", "named", "changed nothing", "misses", "slowest, s", "memory, MiB")
    table = Table(*columns, title=title)
    for (kind, command), found in sorted(rows.items()):
        counts = Counter(outcome.verdict for outcome in found)
        slowest, largest = max(o.ended.seconds for o in found), max(o.ended.mib for o in found)
        numbers = (str(n or "") for n in (len(found), counts["named"], counts["nothing"], counts["miss"]))
        table.add_row(kind, command, *numbers, f"{slowest:.1f}", f"{largest:.0f}")
    Console(width=130).print(table)


def repeat(parsed: argparse.Namespace, number: int) -> str:
    chosen = ["--kinds", *map(shlex.quote, parsed.kinds)] if parsed.kinds else []
    return " ".join(["python -m benchmarks.fuzz --seed", str(parsed.seed), *chosen, "--only", str(number)])


def main(arguments: Sequence[str] | None = None) -> int:
    known = kinds()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in known], metavar="KIND")
    parser.add_argument("--only", type=int, metavar="K", help="mutation K alone, with all that it prints; it stays")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, metavar="N", help="(%(default)s)")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="of each (%(default)s)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    make_small()
    folder = Path(tempfile.mkdtemp(prefix="imagebert-fuzz-"))
    fuzz = Fuzz(folder, [kind for kind in known if kind.name in (parsed.kinds or [k.name for k in known])])
    for note in fuzz.notes + fuzz.failed:
        print(note)
    if parsed.only is not None:
        trial = fuzz.begin(parsed.seed, parsed.only)
        print(f"{trial.file}: {trial.what}\nimagebert {' '.join(trial.command.words)}\nin {trial.child.folder}/work")
        outcome = fuzz.judge(trial, trial.child.wait(parsed.limit))
        print(outcome.ended.out, outcome.ended.err, f"exit code {outcome.ended.code}; {outcome.verdict} {outcome.why}")
        return int(outcome.verdict == "miss")
    begun, outcomes, misses, state = time.perf_counter(), [], [], fuzz.state()
    for outcome in fuzz.run(parsed.seed, range(parsed.mutations), parsed.at_once, parsed.limit):
        outcomes.append(outcome)
        if outcome.verdict == "miss":
            trial = outcome.trial
            line = f"{trial.kind.name}, {trial.command.name}; {trial.file}: {trial.what}: {outcome.why}"
            misses.append({"what": line, "again": repeat(parsed, trial.number)})
            print(f"MISS {line}\n     {misses[-1]['again']}", flush=True)
    if changed := state.items() ^ fuzz.state().items():
        fuzz.failed.append(f"a command wrote into what it only reads: {', '.join(sorted({p for p, _ in changed}))}")
        print(fuzz.failed[-1])
    shutil.rmtree(folder)
    seconds = time.perf_counter() - begun
    show(outcomes, seconds)
    counts = {
        f"{kind.name}, {command.name}": dict(
            Counter(o.verdict for o in outcomes if (o.trial.kind.name, o.trial.command) == (kind.name, command))
        )
        for kind, command in fuzz.pairs
    }
    figures = {"seconds": seconds, "mutations": len(outcomes), "counts": counts, "misses": misses}
    publish(
        {**figures, "notes": fuzz.notes, "failed": fuzz.failed}, [Line("misses", len(misses), 0, True)], parsed.json
    )
    return int(bool(misses or fuzz.failed))


if __name__ == "__main__":
    sys.exit(main())
