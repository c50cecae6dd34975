"""One of every artefact, tiny, made by the program's own commands; and children that read or damage copies of them.

For benchmarks/fuzz.py and benchmarks/kills.py. A child is a fork of a process that has imported everything and has no
threads, so that a command costs a tenth of a second and not ten. Tiles, candidates and commits are made small, so that
a dozen images have several of each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagebert import cli
from imagebert.data import region_writer
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import SPECIALS, Tokenizer
from imagebert.lait.engine import Task, run_step
from imagebert.lait.filter import KEPT_SCHEMA
from imagebert.regions import extract, extractor, vg  # noqa: F401  # all that any command imports, so that no child has to
from imagebert.retrieval import matrix, mining, search, validation  # noqa: F401

LIMIT_SECONDS, LIMIT_MIB = 60.0, 2048
BROKEN = 70  # exit code of a child whose command raised
IMAGES, CAPTIONS, FEATURES, CLASSES = 12, 2, 12, 5
WORDS = [f"word{i:02d}" for i in range(40)]
Rng = np.random.Generator

SMALL: list[tuple[Any, str, int]] = [
    *((matrix, "_IMAGES", 4), (matrix, "_CAPTIONS", 8)),
    *((search, "CANDIDATES", 4), (region_writer, "_COMMIT_RECORDS", 2)),
]


def make_small() -> None:
    for module, name, value in SMALL:
        assert hasattr(module, name), f"{module.__name__}.{name} has another name now"
        setattr(module, name, value)


# --------------------------------------------------------------------------------------------------------- children


class Ended(NamedTuple):
    code: int  # negative: the signal
    seconds: float
    mib: float  # the most memory
    late: bool
    out: str
    err: str

    @property
    def crash(self) -> str:
        """Why no command may ever end so; "" where it may."""
        if self.late:
            return f"no end within {self.seconds:.0f} s"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        if self.code == BROKEN or "Traceback (most recent call last)" in self.err:
            return f"traceback: {self.last}"
        return f"{self.mib:.0f} MiB of memory" if self.mib > LIMIT_MIB else ""

    @property
    def last(self) -> str:
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "nothing on stderr")


class Child:
    """A forked process that works in `folder`/work; what it prints lies beside that."""

    def __init__(self, folder: Path, work: Callable[[], int | None]) -> None:
        self.folder, self.began = folder, time.perf_counter()
        (folder / "work").mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], int | None]) -> None:
        code = BROKEN
        try:
            os.setsid()
            for number, name in ((0, os.devnull), (1, self.folder / "stdout"), (2, self.folder / "stderr")):
                opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY, 0o644)
                os.dup2(opened, number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.chdir(self.folder / "work")
            code = work() or 0
            threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self, limit: float = LIMIT_SECONDS) -> Ended | None:
        """How it ended, if it has; after `limit` seconds it is ended."""
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        seconds = time.perf_counter() - self.began
        late = pid == 0 and seconds > limit
        if late:
            os.killpg(self.pid, signal.SIGKILL)
            _, status, used = os.wait4(self.pid, 0)
        elif pid == 0:
            return None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it may have left
        files = [self.folder / name for name in ("stdout", "stderr")]  # killed at once it had not made them
        texts = [file.read_text(errors="replace") if file.exists() else "" for file in files]
        return Ended(os.waitstatus_to_exitcode(status), seconds, used.ru_maxrss / 1024, late, *texts)

    def wait(self, limit: float = LIMIT_SECONDS) -> Ended:
        while (ended := self.poll(limit)) is None:
            time.sleep(0.002)
        return ended


def _address_space() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    return int(line.split()[1]) << 10


_ADDRESSES = _address_space() + (4 << 30)  # of a child: what libraries reserve, and much more than LIMIT_MIB

# --------------------------------------------------------------------------------------------------------- artefacts


def call(*words: str, codes: Sequence[int] = (0,)) -> None:
    code = cli.main(words)
    if code not in codes:
        raise RuntimeError(f"imagebert {' '.join(words)}: exit code {code}")


def random_record(rng: Rng, regions: int, features: int = FEATURES) -> RegionRecord:
    width, height = (int(v) for v in rng.integers(50, 400, 2))
    corners = np.sort(rng.random((regions, 2, 2)), axis=1) * (width, height)
    classes = rng.integers(0, CLASSES, regions).astype(np.uint16)
    classes[0] = WHOLE_IMAGE
    return RegionRecord(
        *(width, height, corners.reshape(regions, 4).astype(np.float32)),
        np.sort(rng.random(regions).astype(np.float32))[::-1],
        *(classes, rng.normal(size=(regions, features)).astype(np.float32), np.ones(regions, np.float32)),
    )


def records_of(seed: int, images: int = IMAGES, name: str = "image") -> Iterator[tuple[str, RegionRecord]]:
    """The same keys and counts of regions for any seed, so that files of one store fit into another's place."""
    rng = np.random.default_rng(seed)
    return ((f"{name}{i:03d}", random_record(rng, 2 + i % 5)) for i in range(images))


def captions_of(seed: int, images: int = IMAGES) -> Iterator[Caption]:
    rng = np.random.default_rng(seed)
    for number, i in enumerate(np.repeat(np.arange(images), CAPTIONS)):
        yield Caption(f"image{i:03d}", " ".join(rng.choice(WORDS, 2 + number % 6)))


def region_store(seed: int, out: str, images: int = IMAGES, name: str = "image") -> None:
    names = [f"class{i}" for i in range(CLASSES)]
    target = region_writer.Target(Path(out), names, {"name": "random", "digest": "0"}, shard_bytes=1000)
    with region_writer.write_regions(target) as writer:
        for key, record in records_of(seed, images, name):
            writer.add(key, record)


def pair_store(seed: int, out: str, images: int = IMAGES) -> None:
    left_out = {"without_regions.txt": [f"lost{seed}", "lost"]}
    write_pairs(out, captions_of(seed, images), Tokenizer("vocab.txt"), lists=lambda: left_out)


RECIPE = """# A run of seconds.
task: pretrain
stage: fuzz
output: unset
data:
  sources: [{regions: regionsA, pairs: pairsA}]
  max_damaged_records: 0
model: {preset: tiny, hidden_dropout: 0.1, attention_dropout: 0.1}
optimizer: {learning_rate: 1e-3}
schedule: {batch_size: 8, steps: 2}
checkpoint: {every_steps: 1000}
logging: {every_steps: 1}
"""
FINETUNE = RECIPE.replace("task: pretrain", "task: finetune").replace("preset: tiny", "initialize_from: modelA")
DATA = ("--regions", "regionsA", "--pairs", "pairsA", "--split", "train")
DUAL = ("model.dual_size=8", "pretraining.dual=1.0", "pretraining.contrast=8")
RESUMED = ("pretrain", "recipe.yaml", "output=runA", "schedule.steps=4", "checkpoint.every_steps=1")
QUERY = "word00 word01 word02"


def trained(seed: int, out: str, *overrides: str) -> None:
    call("pretrain", "recipe.yaml", f"output={out}", f"seed={seed}", *overrides)


def unfinished_run(seed: int, out: str) -> None:
    words = [word.replace("runA", out) for word in RESUMED]
    call(*words, f"seed={seed}", "--stop-at", "2", codes=(75,))


def indexed(seed: int, out: str) -> None:
    trained(seed, f"{out}-run", *DUAL)
    call("export", f"{out}-run", out)
    call("index", out, "regionsA")


def half_scored(model: str, out: str) -> None:
    """Ends without a word after four tiles."""
    score = matrix.score_tiles
    matrix.score_tiles = lambda *arguments: itertools.islice(score(*arguments), 4)
    call("evaluate", model, *DATA, "--out", out, codes=(1,))


def unfinished_store(source: str, out: str) -> None:
    """Ends as by a kill at the ninth image."""
    append, count = region_writer.RegionWriter.append, itertools.count()

    def killed(*arguments: Any) -> None:
        if next(count) == 8:
            os._exit(0)
        append(*arguments)

    region_writer.RegionWriter.append = killed  # type: ignore
    call("import", "npz", source, out)


def tables(seed: int, folder: str, images: int = IMAGES) -> None:
    """Captions as projects publish them."""
    import pyarrow as pa
    from pyarrow import parquet

    found, out = list(captions_of(seed, images)), Path(folder)
    out.mkdir()
    rows = [(c.image, c.text) for c in found]
    for name, mark in (("captions.csv", ","), ("captions.tsv", "\t")):
        (out / name).write_text("".join(f"{i}{mark}{t}\n" for i, t in [("image", "caption"), *rows]))
    columns = zip(*rows, strict=True)
    parquet.write_table(pa.table(dict(zip(("image", "caption"), map(list, columns), strict=True))), out / "c.parquet")
    coco = {
        "images": [{"id": i, "file_name": f"image{i:03d}"} for i in range(images)],
        "annotations": [{"image_id": int(c.image[5:]), "id": n, "caption": c.text} for n, c in enumerate(found)],
    }
    (out / "coco.json").write_text(json.dumps(coco))


def features(seed: int, folder: str, images: int = IMAGES) -> None:
    """Regions as projects publish them: a file an image, TSV of base64, HDF5, LMDB of pickles."""
    import base64

    import h5py
    import lmdb

    def b64(array: Any) -> str:
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

    out = Path(folder)
    (out / "npz").mkdir(parents=True)
    found = list(records_of(seed, images))
    lines = []
    for key, r in found:
        size: dict[str, Any] = {"image_h": r.height, "image_w": r.width}
        sizes = (str(r.width), str(r.height), str(len(r.boxes)))
        np.savez(out / "npz" / key, x=r.features, bbox=r.boxes, num_bbox=len(r.boxes), **size)
        lines.append("\t".join([key, *sizes, b64(r.boxes), b64(r.features)]) + "\n")
    (out / "features.tsv").write_text("".join(lines))
    with h5py.File(out / "x.hdf5", "w") as file:
        sides = [r.boxes / np.tile([r.width, r.height], 2).astype(np.float32) for _, r in found]
        file["image_features"] = np.concatenate([r.features for _, r in found])
        file["image_bb"] = np.concatenate([r.boxes for _, r in found])
        file["spatial_features"] = np.concatenate([np.hstack([s, s[:, 2:] - s[:, :2]]) for s in sides])
        ends = np.cumsum([len(r.boxes) for _, r in found])
        file["pos_boxes"] = np.stack([ends - [len(r.boxes) for _, r in found], ends], axis=1)
    (out / "x_imgid2idx.pkl").write_bytes(pickle.dumps({i: i for i in range(images)}, protocol=2))
    with lmdb.open(str(out / "x.lmdb"), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, r in found:
            item = {"image_id": key, "image_h": str(r.height), "image_w": str(r.width), "num_boxes": str(len(r.boxes))}
            item |= {
                "boxes": b64(r.boxes),
                "features": b64(r.features),
                "cls_prob": b64(np.ones((len(r.boxes), 1601), np.float32)),
            }
            transaction.put(key.encode(), pickle.dumps(item))
        transaction.put(b"keys", pickle.dumps([key.encode() for key, _ in found]))


def detector(seed: int, out: str) -> None:
    """A small Visual Genome detector, and a picture for it."""
    import torch

    from benchmarks.made_up import picture, weights

    Path("pictures").mkdir(exist_ok=True)
    Image.fromarray(picture("small")).save("pictures/small.png")
    made = weights("detectron2", seed, base=2, blocks=(1, 1, 1, 1), classes=6, attributes=4)
    torch.save({name: torch.from_numpy(array) for name, array in made.items()}, f"{out}.pth")
    call("detector", "convert", f"{out}.pth", out)


def bert_words(out: str) -> None:
    """The files of a BERT that say what its words are."""
    from transformers import BertTokenizer

    BertTokenizer("vocab.txt").save_pretrained(out)
    _write(f"{out}/vocab.txt", Path("vocab.txt").read_text())


def kept_sentences(seed: int, folder: str) -> None:
    """What `lait filter` knows of pictures that it kept, in two files."""
    rows = []
    for number, caption in enumerate(captions_of(seed)):
        row: dict[str, Any] = {"key": caption.image, "url": f"http://example.org/{caption.image}.jpg", "page": "/"}
        row |= {"sentence": f"{caption.text} {number}", "source": "alt", "fit": number % 7 / 7, "dominance": 0.9}
        rows.append({**{field.name: 1 for field in KEPT_SCHEMA}, **row})
    half = len(rows) // 2
    tasks = [Task("00000", seed, (rows[:half],)), Task("00001", seed, (rows[half:],))]
    run_step("keep", Path(folder), _write_rows, tasks, None)


def _write_rows(rows: list[dict[str, Any]], out: Path) -> dict[str, int]:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows, KEPT_SCHEMA), out.with_name(f"{out.name}.parquet"))
    return {"sentences": len(rows)}


Builder = tuple[tuple[str, ...], Callable[[], None]]  # what it needs, and what makes it
CORPUS = ("vocab.txt", "recipe.yaml", "regionsA", "pairsA")
BUILDERS: dict[str, Builder] = {
    "vocab.txt": ((), lambda: _write("vocab.txt", "\n".join([*SPECIALS, *WORDS]) + "\n")),
    "recipe.yaml": ((), lambda: _write("recipe.yaml", RECIPE)),
    "finetune.yaml": ((), lambda: _write("finetune.yaml", FINETUNE)),
    "recipeT.yaml": ((), lambda: _write("recipeT.yaml", RECIPE)),  # these two are damaged
    "vocabT.txt": (("vocab.txt",), lambda: _write("vocabT.txt", Path("vocab.txt").read_text())),
    "bertT": (("vocab.txt",), lambda: bert_words("bertT")),
    "localised": (("regionsA",), lambda: call("store", "localise", "regionsA", "localised", "--part", "0/2")),
}
for _seed, _x in enumerate("AB"):
    BUILDERS |= {
        f"regions{_x}": ((), partial(region_store, _seed, f"regions{_x}")),
        f"pairs{_x}": (("vocab.txt",), partial(pair_store, _seed, f"pairs{_x}")),
        f"finished{_x}": (CORPUS, partial(trained, _seed, f"finished{_x}")),
        f"model{_x}": ((*CORPUS, f"finished{_x}"), partial(call, "export", f"finished{_x}", f"model{_x}")),
        f"run{_x}": (CORPUS, partial(unfinished_run, _seed, f"run{_x}")),
        f"indexed{_x}": (CORPUS, partial(indexed, _seed, f"indexed{_x}")),
        f"evaluation{_x}": (
            (*CORPUS, f"model{_x}"),
            partial(call, "evaluate", f"model{_x}", *DATA, "--out", f"evaluation{_x}"),
        ),
        f"half{_x}": ((*CORPUS, f"model{_x}"), partial(half_scored, f"model{_x}", f"half{_x}")),
        # Mined from other data, so that the other one is damage and no choice.
        f"mined{_x}.safetensors": (
            ("modelA", f"regions{_x}", f"pairs{_x}"),
            partial(
                call, "mine", "modelA", f"mined{_x}.safetensors", "--regions", f"regions{_x}", "--pairs", f"pairs{_x}"
            ),
        ),
        f"detector{_x}.safetensors": ((), partial(detector, _seed, f"detector{_x}.safetensors")),
        f"tables{_x}": ((), partial(tables, _seed, f"tables{_x}")),
        f"features{_x}": ((), partial(features, _seed, f"features{_x}")),
        f"kept{_x}": ((), partial(kept_sentences, _seed, f"kept{_x}")),
        f"scored{_x}": (
            (f"kept{_x}",),
            partial(call, "lait", "score", f"kept{_x}", f"scored{_x}", "--processes", "1"),
        ),
        f"lait{_x}": (
            (f"scored{_x}",),
            partial(call, "lait", "pairs", f"scored{_x}", f"lait{_x}/pairs.parquet", "pairs.relevance=0"),
        ),
        f".unfinished{_x}.incomplete": (
            (f"features{_x}",),
            partial(unfinished_store, f"features{_x}/npz", f"unfinished{_x}"),
        ),
    }


def _write(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")


def build(folder: Path, wanted: Iterable[str]) -> None:
    """Makes artefacts in `folder`/work, each in a child of its own."""
    for name in wanted:
        if not (folder / "work" / name).exists():
            needs, make = BUILDERS[name]
            build(folder, needs)
            ended = Child(folder, make).wait(600)
            if ended.code or not (folder / "work" / name).exists():
                raise SystemExit(f"{name} could not be built ({ended.code}): {ended.err[-3000:]}")


# ----------------------------------------------------------------------------------------------------------- figures


def sha(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def shas(folder: str, pattern: str = "*") -> dict[str, str]:
    """Of the files of a folder."""
    return {p.name: sha(p) for p in sorted(Path(folder).glob(pattern)) if p.is_file()}


def difference(a: Any, b: Any, where: str = "") -> str:
    """The first place where two plain values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = [[*a], *a.values()], [[*b], *b.values()]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next(
            (found for i, (x, y) in enumerate(zip(a, b, strict=True)) if (found := difference(x, y, f"{where}.{i}"))),
            "",
        )
    return "" if a == b else f"{where[1:] or 'it'} was {str(a)[:80]}, is {str(b)[:80]}"


def of_json(name: str = "figures.json") -> Any:
    """What a command wrote, without what depends on the clock."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k}
        return value

    return timeless(json.loads(Path(name).read_text()))


def of_log(run: str, after: int = 0) -> Any:
    """Losses of the steps behind `after`, and the model."""
    losses = {}
    for text in (Path(run) / "log.jsonl").read_text(errors="replace").splitlines():
        with suppress(ValueError):
            if (line := json.loads(text))["step"] > after:
                losses[line["step"]] = {k: v for k, v in line.items() if k.startswith(("loss", "gradient"))}
    return [sorted(losses.items()), sha(f"{run}/model/model.safetensors")]


def of_page(path: str) -> Any:
    """Plots and tables of R@K: the rest of a run's page is of files without checksums, config.yaml and jobs.jsonl."""
    page = Path(path).read_text()
    recalls = re.findall(r"<h2>(R@K,.*?)</table>", page, re.DOTALL)
    return [re.findall(r'aria-label="[^"]*"|<(?:polyline|circle)[^>]*>', page), recalls]


def of_store(path: str) -> Any:
    """Every key and record of a region store."""
    store, digest = RegionStore(path), hashlib.sha256(json.dumps(list(map(str, RegionStore(path).classes))).encode())
    for image in range(len(store)):
        digest.update(store.key(image).encode())
        for value in store.read(image):
            digest.update(np.asarray(value).tobytes())
    return [len(store), digest.hexdigest(), {k: f"{v:.9g}" for k, v in store.statistics.items()}]


def of_pairs(path: str) -> Any:
    store = PairStore(path)
    return [store.images.tolist(), store.pieces.tolist(), [store.text(i) for i in range(len(store))]]
