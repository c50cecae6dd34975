"""`imagebert verify PATH`: everything that this program wrote there, compared byte for byte with what it was.

A path may be one artefact or a folder of many, such as a run or a data folder. Each kind is told by its files' names,
so that a damaged one is still known. Nothing is changed, but by `accept`, which gives older artefacts their digests and
takes a model or an evaluation that was changed on purpose as it is now.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from imagebert.config import load_recipe, rename_keys
from imagebert.data.localise import check_records
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore, content_of
from imagebert.data.upgrade import is_older, upgrade
from imagebert.engine.checkpoints import find_newest, problem_of
from imagebert.engine.metrics import examine_log, line_checksum
from imagebert.errors import UsageError
from imagebert.files import DIGESTS, check_digests, file_digest, read_json, read_sealed, write_digests
from imagebert.lait.engine import STEP, check_step
from imagebert.lait.whole import CHOSEN, TABLE, WANTED, check_build, check_choice, check_table, holds_step, holds_table
from imagebert.model_folder import open_model
from imagebert.regions.vg.weights import holds_detector, read_detector
from imagebert.retrieval.kept import check_kept
from imagebert.retrieval.queries import FILE as QUERIES
from imagebert.strict_yaml import to_plain
from imagebert.training.hard_negatives import check_hard_negatives

Tick = Callable[[str], None]  # told what is being looked at


class Found(NamedTuple):
    """Describes one artefact that was compared with its checksums.

    Attributes:
        kind: What it is, such as "region store".
        path: The file or folder.
        holds: How much it holds, in a phrase.
        problems: A sentence for each thing that is wrong with it; none where it is whole.
    """

    kind: str
    path: str
    holds: str
    problems: list[str]


def verify(path: Path, threads: int, tick: Tick = lambda what: None) -> list[Found]:
    """All artefacts at and below a path.

    Raises:
        UsageError: there is none.
        OSError: the disk fails.
    """
    found = [_look(kind, place, threads, tick) for kind, place in _artefacts(path)]
    if not found:
        raise UsageError(f"{path} holds nothing that imagebert wrote")
    return found


def accept(path: Path) -> list[str]:
    """Gives what is at and below a path the digests that it lacks, or that changed; what was done with each.

    Stores are only taken from an older version. A model is taken as it is.

    Raises:
        UsageError: an artefact is damaged.
        OSError: the disk is full or failing.
    """
    done = []
    for kind, place in _artefacts(path):
        if kind == "store" and is_older(read_json(place / "meta.json")):
            upgrade(place)
            done.append(f"{place} has its digests")
        elif kind == "model":
            before = (place / DIGESTS).is_file()
            write_digests(place)
            done.append(f"{place} is taken as it is" if before else f"{place} has its digests")
        elif kind == "evaluation" and (place / "scores.npy").is_file() and not (place / DIGESTS).is_file():
            names = ("scores.npy", "caption_image.npy", "images.json", "recall.json", QUERIES)
            write_digests(place, [name for name in names if (place / name).is_file()])
            done.append(f"{place} has its digests")
    return done


# Any of these files tells the kind, so that one may be missing.
_MARKS = {
    "store": {"meta.json", "index.npy", "pieces.npy"},
    "model": {"config.json", "model.safetensors"},
    "checkpoint": {"manifest.json"},
    "evaluation": {"evaluation.json", "scores.npy"},
    "run": {"log.jsonl", "config.yaml", "checkpoints"},
}


def _artefacts(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        if path.suffix == ".safetensors" and path.name != "model.safetensors":
            yield _kind_of_tensors(path), path
        elif path.name == TABLE:
            yield "LAIT pairs", path.parent
        elif path.name in ("model.safetensors", "meta.json", "manifest.json", "evaluation.json", STEP):
            yield from _artefacts(path.parent)
        return
    if not path.is_dir():
        raise UsageError(f"{path} is not there")
    names = set(os.listdir(path))
    kinds = [kind for kind, marks in _MARKS.items() if names & marks]
    if re.fullmatch(r"step-\d+", path.name) and "checkpoint" not in kinds:
        kinds.append("checkpoint")
    if holds_step(path, names):
        kinds.append("LAIT step")
    if holds_table(names):
        kinds.append("LAIT pairs")
    if path.name == "index" and any(name.endswith((".npy", ".json", ".faiss")) for name in names):
        kinds.append("index")
    yield from ((kind, path) for kind in kinds)
    if "store" in kinds:
        return  # what lies in a store is the store's
    for name in sorted(names):
        below = path / name
        hidden = name.startswith(".") and not name.startswith(".damaged")
        if not hidden and below.is_dir() and not below.is_symlink():
            yield from _artefacts(below)
        elif name.endswith(".safetensors") and not {"model", "checkpoint"} & set(kinds):
            yield _kind_of_tensors(below), below


def _kind_of_tensors(path: Path) -> str:
    return "detector" if holds_detector(path) else "hard negatives"


def _look(kind: str, path: Path, threads: int, tick: Tick) -> Found:
    tick(str(path))
    try:
        if kind == "store":
            return _store(path, threads, tick)
        holds, problems = _CHECKS[kind](path)
    except UsageError as error:
        return Found(kind, str(path), "", [str(error)])
    return Found(kind, str(path), holds, problems)


def _store(path: Path, threads: int, tick: Tick) -> Found:
    try:
        meta = read_json(path / "meta.json")
        form = meta.get("format") if isinstance(meta, dict) else None
    except UsageError as error:
        return Found("store", str(path), "", [str(error)])
    if form == "imagebert-pairs":
        pairs = PairStore(path)
        problems = [] if pairs.is_whole() else [f"{path} holds something else than its meta.json says: restore it"]
        return Found("pair store", str(path), f"{len(pairs):,} captions", problems)
    store = RegionStore(path)
    problems = []
    if store.content != content_of(store.meta, store.index):
        problems.append(f"{path}/index.npy has other content than meta.json says")
    for shard in store.shards:
        file = store.folder_of(shard["name"]) / "data.mdb"
        tick(str(file))
        if file.stat().st_size != shard["file_bytes"] or file_digest(file) != shard["sha256"]:
            problems.append(f"{file} has changed since it was written: restore it")
    for done, errors in check_records(store, threads):
        tick(f"{path}, {done:,} of {len(store):,} records")
        problems += errors
    return Found("region store", str(path), f"{len(store):,} images, shards: {len(store.shards)}", problems)


def _model(path: Path) -> tuple[str, list[str]]:
    if not (path / DIGESTS).is_file():
        return "", [f"{path} has no {DIGESTS}, nothing can be compared: `imagebert verify --accept {path}` adds it"]
    open_model(path)
    return f"{len(check_digests(path)['files'])} files", []


def _checkpoint(path: Path) -> tuple[str, list[str]]:
    problem = problem_of(path)
    return path.name, [f"{path}: {problem}"] if problem else []


def _evaluation(path: Path) -> tuple[str, list[str]]:
    read_sealed(path / "evaluation.json", f"remove {path}, evaluate again")
    if not (path / DIGESTS).is_file():
        if (path / "tiles").is_dir():
            return "unfinished", []
        return "", [f"{path} has no {DIGESTS}: evaluate again, or `imagebert verify --accept {path}`"]
    return f"{len(check_digests(path, f'remove {path}, evaluate again')['files'])} files", []


def _index(path: Path) -> tuple[str, list[str]]:
    stores, problems = check_kept(path)
    return f"vectors of {stores} stores" if stores != 1 else "vectors of a store", problems


def _run(path: Path) -> tuple[str, list[str]]:
    lines, damaged = examine_log(path / "log.jsonl")
    problems = [f"{path / 'log.jsonl'} has damaged lines: no more is lost"] * damaged
    written = f"{len(lines)} lines of log"
    try:
        recipe = to_plain(load_recipe(str(path / "config.yaml"))) if (path / "config.yaml").is_file() else None
        _, manifest = find_newest(path / "checkpoints")
    except UsageError as error:
        return written, [*problems, str(error)]
    if recipe is None or recipe != rename_keys(manifest["state"]["config"], str(path), quiet=True):
        problems.append(f"{path / 'config.yaml'} is not the recipe that the checkpoints were made by")
    last = manifest["state"].get("log")
    if last is not None and last not in map(line_checksum, lines):
        problems.append(f"{path / 'log.jsonl'} lacks the line that its newest checkpoint was made at: no more is lost")
    return written, problems


def _detector(path: Path) -> tuple[str, list[str]]:
    detector = read_detector(path)
    return f"{detector.rules.variant}, {len(detector.classes):,} classes", []


def _lait_step(path: Path) -> tuple[str, list[str]]:
    tables = sum(check_choice(path / name) for name in (WANTED, CHOSEN))
    return f"{check_step(path) + tables:,} files", []


def _lait_pairs(path: Path) -> tuple[str, list[str]]:
    pairs = check_table(path)
    check_build(path)
    return f"{pairs:,} pairs", []


def _hard_negatives(path: Path) -> tuple[str, list[str]]:
    return f"{check_hard_negatives(path):,} captions", []


_CHECKS: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    "model": _model,
    "checkpoint": _checkpoint,
    "evaluation": _evaluation,
    "index": _index,
    "run": _run,
    "detector": _detector,
    "hard negatives": _hard_negatives,
    "LAIT step": _lait_step,
    "LAIT pairs": _lait_pairs,
}
