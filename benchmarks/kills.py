"""Kills every command that writes, at random instants, and calls it again until it ends by itself.

    python -m benchmarks.kills [--kills N] [--seed S] [--commands C ...] [--json FILE]
    python -m benchmarks.kills [--seed S] --commands C --only K     try K again; its folder stays

A try begins in an empty folder. SIGKILL comes at an instant between the start and one and a half of the undisturbed
duration, once and, by the toss of a coin, again in each next call. The rule: the last call, which is left alone, ends
with exit code 0, or with 2 and the word that what it would write exists; then all is as after the undisturbed call:
the bytes of what was written (of region stores their records and content, since LMDB's files and the cut into shards
may differ; of runs losses, weights and checkpoints), and the names of all files, so that nothing is left behind. What
breaks the rule is a miss; exit code 1.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", COLUMNS="400")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a forked child has none

import argparse
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.artefacts import (
    BUILDERS,
    DATA,
    DUAL,
    QUERY,
    Child,
    build,
    difference,
    features,
    make_small,
    of_json,
    of_log,
    of_store,
    region_store,
    sha,
    shas,
    tables,
    trained,
)
from benchmarks.report import Line, publish
from imagebert import cli
from imagebert.data.regions import RegionStore
from imagebert.demo.web import Subject, make_web, write_warcs

IMAGES = 120  # of what is read and written, so that there is time to kill in


class Detector(nn.Module):
    """Three boxes that depend on the picture, and a score for each of two classes."""

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        corners = picture.mean(dim=(0, 2, 3)) / 4 % 16  # [3]
        boxes = torch.stack([torch.stack([c, c, c + 12, c + 9]) for c in corners])
        return boxes[None], torch.stack([corners, 16 - corners], dim=1)[None] / 16


class Backbone(nn.Module):
    def forward(self, picture: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(picture, 4)


def pictures() -> None:
    folder, rng = Path("pictures"), np.random.default_rng(0)
    folder.mkdir()
    for number in range(IMAGES // 4):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(folder / f"{number:03d}.png")
    Path("classes.txt").write_text("cat\ndog\n")
    size = "input: {height: 32, width: 32}"
    Path("extractor.yaml").write_text(
        "name: kills\n"
        f"detector: {{network: {{module: 'benchmarks.kills:Detector', {size}}}, classes: classes.txt, "
        "layout: boxes_scores}\n"
        f"backbone: {{module: 'benchmarks.kills:Backbone', {size}}}\n"
    )


def keys_of(store: str) -> None:
    found = RegionStore(store)
    Path("keys.txt").write_text("".join(f"{found.key(i)}\n" for i in range(0, len(found), 2)))


def crawl() -> None:
    """Pages of a made-up web in two archives, with their pictures."""
    rng = np.random.default_rng(0)
    subjects = [
        Subject(f"scene-{n}", f"a {['red', 'blue', 'green'][n % 3]} kite above the hill {n}", 64, 48) for n in range(12)
    ]
    web = make_web(subjects, IMAGES // 4, 0)
    data = dict[str, bytes]()
    for subject in subjects:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(buffer, "JPEG")
        data[subject.name] = buffer.getvalue()
    shown = {url: data[of.name] for page in web for url, of in page.images.items() if of is not None}
    Path("crawl").mkdir()
    write_warcs(web, Path("crawl"), 2, shown)


def dual() -> None:
    trained(0, "dual-run", *DUAL)
    if cli.main(["export", "dual-run", "dual"]):
        raise RuntimeError("no model")


BUILDERS |= {
    "large": ((), partial(region_store, 0, "large", IMAGES)),
    "others": ((), partial(region_store, 1, "others", IMAGES // 2, "other")),
    "featuresL": ((), partial(features, 0, "featuresL", IMAGES)),
    "tablesL": ((), partial(tables, 0, "tablesL", 2 * IMAGES)),
    "pictures": ((), pictures),
    "crawl": ((), crawl),
    "keys.txt": (("large",), partial(keys_of, "large")),
    "dual": (("vocab.txt", "recipe.yaml", "regionsA", "pairsA"), dual),
}


class Write(NamedTuple):
    name: str
    words: tuple[str, ...]
    result: Callable[[], Any]
    needs: tuple[str, ...] = ()
    into: str | None = None  # an artefact that is written into, and is therefore a copy


def stores(*paths: str) -> Any:
    return [[of_store(path), getattr(RegionStore(path), "content", None)] for path in paths]


def whole_run() -> Any:
    """Losses and weights, and the tensors of the checkpoints that are kept."""
    shards = sorted(Path("out").glob("checkpoints/*/*.safetensors"))
    weights = {str(shard): sha(shard) for shard in shards}
    return [of_log("out"), shas("out/model", "[!dt]*"), of_json("out/model/training.json"), weights]


def built() -> Any:
    """What each step of LAIT wrote, its notes among it."""
    return {str(path): sha(path) for path in sorted(Path("out").rglob("*")) if path.is_file()}


def commands() -> list[Write]:
    data = ("vocab.txt", "regionsA", "pairsA")
    run = ("output=out", "schedule.steps=6", "checkpoint.every_steps=1", "data.max_damaged_records=0")
    model = (*data, "modelA", "finishedA", "recipe.yaml")
    lait = ("filter.side=40", "filter.natural=0", "filter.nsfw=1", "filter.hamming=-1", "pairs.relevance=0")
    localise = ("store", "localise", "large", "out")
    return [
        Write("import", ("import", "npz", "featuresL/npz", "out"), lambda: stores("out"), ("featuresL",)),
        Write(
            "pairs",
            ("pairs", "tablesL/captions.tsv", "out", "--vocab", "vocab.txt"),
            lambda: shas("out"),
            ("tablesL", "vocab.txt"),
        ),
        Write(
            "extract",
            ("extract", "pictures", "out", "--extractor", "extractor.yaml"),
            lambda: stores("out"),
            ("pictures",),
        ),
        Write("merge", ("store", "merge", "others", "large", "out"), lambda: stores("out"), ("others", "large")),
        Write("quantize", ("store", "quantize", "large", "out"), lambda: stores("out"), ("large",)),
        Write(
            "split --keys",
            ("store", "split", "large", "out", "--keys", "keys.txt"),
            lambda: stores("out"),
            ("keys.txt", "large"),
        ),
        Write(
            "split --parts",
            ("store", "split", "large", "out", "--parts", "3"),
            lambda: stores("out-0", "out-1", "out-2"),
            ("large",),
        ),
        Write("localise", localise, lambda: [stores("out"), shas("out", "shard-*/data.mdb")], ("large",)),
        Write("pretrain", ("pretrain", "recipe.yaml", *run), whole_run, (*data, "recipe.yaml")),
        Write("finetune", ("finetune", "finetune.yaml", *run), whole_run, (*model, "finetune.yaml")),
        Write(
            "evaluate",
            ("evaluate", "modelA", *DATA, "--out", "out"),
            lambda: [shas("out", "*[!l].npy"), shas("out", "*.parquet"), of_json("out/recall.json")],
            model,
        ),
        Write(
            "mine",
            ("mine", "modelA", "out", "--regions", "regionsA", "--pairs", "pairsA", "--pool", "4", "--keep", "2"),
            lambda: sha("out"),
            model,
        ),
        Write("export", ("export", "finishedA", "out"), lambda: shas("out"), model),
        Write(
            "search",
            ("search", "dual", "regionsA", QUERY),
            lambda: shas("dual/index", "*.npy"),
            (*data, "dual"),
            into="dual",
        ),
        Write(
            "lait build", ("lait", "build", "crawl", "out", "--archived", "--processes", "1", *lait), built, ("crawl",)
        ),
        # Of a few images IVF is the same bytes each time; HNSW is made by threads that race.
        Write(
            "index",
            ("index", "dual", "regionsA", "--kind", "ivf"),
            lambda: shas("dual/index", "*.*"),
            (*data, "dual"),
            into="dual",
        ),
    ]


class Tried(NamedTuple):
    number: int
    kills: list[float]  # seconds after the start of each call
    verdict: str  # same, there (the last call said that it exists) or miss
    why: str


class Kills:
    def __init__(self, folder: Path, write: Write, seed: int) -> None:
        self.folder, self.world, self.write, self.seed = folder, folder / "world" / "work", write, seed
        build(folder / "world", write.needs)
        seconds = []
        for turn in range(3):  # the first to warm the disk's cache
            whole = self._prepare(f"undisturbed-{turn}")
            ended = self._call(whole).wait()
            if ended.code or ended.crash:
                raise RuntimeError(f"{write.name}, undisturbed: exit code {ended.code}: {ended.last}")
            seconds.append(ended.seconds)
        self.seconds = min(seconds)
        self.expected = self._result(whole)

    def _prepare(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "work").mkdir(parents=True)
        for entry in self.world.iterdir():
            if entry.name == self.write.into:
                shutil.copytree(entry, folder / "work" / entry.name)
            else:
                (folder / "work" / entry.name).symlink_to(entry)
        return folder

    def _call(self, folder: Path) -> Child:
        return Child(folder, partial(cli.main, self.write.words))

    def _result(self, folder: Path) -> Any:
        """What was written, and the names of all files; a sentence where it cannot be read."""

        def look() -> None:
            (folder / "result").write_text(json.dumps(self.write.result(), default=str))

        ended = Child(folder, look).wait()
        if ended.code:
            return f"the result cannot be read: {ended.last}"
        return [json.loads((folder / "result").read_text()), sorted(set(_names(folder / "work")))]

    def attempt(self, number: int) -> Tried:
        rng = np.random.default_rng([self.seed, number])
        folder = self._prepare(f"try-{number}")
        kills: list[float] = []
        while not kills or (rng.random() < 0.5 and len(kills) < 6):
            kills.append(float(rng.uniform(0, 1.5 * self.seconds)))
            child = self._call(folder)
            time.sleep(max(0.0, child.began + kills[-1] - time.perf_counter()))
            ended = child.poll()
            if ended is None:
                os.kill(child.pid, signal.SIGKILL)
                ended = child.wait()
            if ended.code != -signal.SIGKILL:  # it was faster
                break
        else:
            ended = self._call(folder).wait()
        there = ended.code == 2 and "exists" in ended.last
        if ended.crash or (ended.code and not there):
            return Tried(number, kills, "miss", ended.crash or f"exit code {ended.code}: {ended.last}")
        found = self._result(folder)
        if found == self.expected:
            return Tried(number, kills, "there" if there else "same", "")
        return Tried(number, kills, "miss", f"{'it exists, and ' * there}{_difference(self.expected, found)}")

    def run(self, numbers: Sequence[int], at_once: int) -> Iterator[Tried]:
        """Each try is a process of its own: it waits for the calls that it kills."""
        left, running = iter(numbers), list[tuple[int, Child]]()

        def driven(number: int, answer: Path) -> None:
            answer.write_text(json.dumps(self.attempt(number)))

        while True:
            while len(running) < at_once and (number := next(left, None)) is not None:
                folder = self.folder / f"driver-{number}"
                running.append((number, Child(folder, partial(driven, number, folder / "answer"))))
            if not running:
                return
            for pair in list(running):
                number, child = pair
                if (ended := child.poll(600)) is not None:
                    running.remove(pair)
                    if ended.code:
                        raise SystemExit(f"try {number} itself failed: {ended.err[-3000:]}")
                    yield Tried(*json.loads((child.folder / "answer").read_text()))
            time.sleep(0.002)


def _names(work: Path) -> Iterator[str]:
    """Of all that the command wrote; shards by their kind, since their number may differ, and evaluations by theirs."""
    for path in work.rglob("*"):
        name = path.relative_to(work).as_posix()
        if not (work / name.split("/")[0]).is_symlink():
            yield "/".join("shard" if part.startswith("shard-0") else part for part in name.split("/"))


def _difference(expected: Any, found: Any) -> str:
    if isinstance(found, str):
        return found
    if found[1] != expected[1]:
        more, less = sorted(set(found[1]) - set(expected[1])), sorted(set(expected[1]) - set(found[1]))
        return f"left behind: {', '.join(more) or 'nothing'}; missing: {', '.join(less) or 'nothing'}"
    return f"another result: {difference(expected[0], found[0])}"


def main(arguments: Sequence[str] | None = None) -> int:
    known = commands()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, metavar="N", help="tries of each command (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=[w.name for w in known], metavar="COMMAND")
    parser.add_argument("--only", type=int, metavar="K", help="try K of one command; its folder stays")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, metavar="N", help="(%(default)s)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    make_small()
    top, figures, begun = Path(tempfile.mkdtemp(prefix="imagebert-kills-")), dict[str, Any](), time.perf_counter()
    failed: list[str] = []
    columns = ("command", "undisturbed, s", "tries", "kills", "same", "was there", "misses")
    table = Table(*columns)
    for write in known:
        if parsed.commands and write.name not in parsed.commands:
            continue
        folder = top / write.name.replace(" ", "")
        try:
            kills = Kills(folder, write, parsed.seed)
        except RuntimeError as error:
            failed.append(str(error))
            continue
        numbers = range(parsed.kills) if parsed.only is None else [parsed.only]
        tried = list(kills.run(numbers, parsed.at_once))
        misses = [t for t in tried if t.verdict == "miss"]
        for miss in misses:
            instants = ", ".join(f"{s:.3f}" for s in miss.kills)
            print(f"MISS {write.name}, killed after {instants} s: {miss.why}")
            again = f"--seed {parsed.seed} --commands {write.name!r} --only {miss.number}"
            print(f"     python -m benchmarks.kills {again}", flush=True)
        counts = [sum(t.verdict == verdict for t in tried) for verdict in ("same", "there", "miss")]
        total = sum(len(t.kills) for t in tried)
        table.add_row(write.name, f"{kills.seconds:.2f}", str(len(tried)), str(total), *map(str, counts))
        figures[write.name] = {
            "seconds": kills.seconds,
            "kills": total,
            "misses": [{"try": t.number, "kills": t.kills, "why": t.why} for t in misses],
        }
        if parsed.only is None:
            shutil.rmtree(folder)
        else:
            print(f"in {folder}/try-{parsed.only}/work")
    Console(width=130).print(table)
    print("\n".join(failed))
    found = len(failed) + sum(len(figure["misses"]) for figure in figures.values())
    publish(
        {"seconds": time.perf_counter() - begun, "commands": figures, "failed": failed},
        [Line("misses", found, 0, True)],
        parsed.json,
    )
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
