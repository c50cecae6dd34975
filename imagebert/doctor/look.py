"""What one rank finds on its host. A recipe is opened and planned by the code that trains it, up to the model, which
has no memory here: what training would refuse in its first seconds is refused with the same sentence.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from imagebert import __version__, distributed
from imagebert.config import RunConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.doctor.record import read_record
from imagebert.engine.optimizers import make_optimizer
from imagebert.files import file_digest
from imagebert.launch import host_name
from imagebert.model.initialization import find_model
from imagebert.retrieval.validation import validation_corpus
from imagebert.training.assemble import make_carrier, make_model, model_shape, prepare, sizes_of
from imagebert.training.capacity import checkpoint_bytes, parameter_count
from imagebert.training.identity import check_resumable
from imagebert.training.ownership import check_folder

PACKAGES = ("torch", "deepspeed", "triton", "transformers", "lmdb", "numpy")
Answer = TypeVar("Answer")


def look(config: RunConfig | None, local: Path | None = None) -> dict[str, Any]:
    """What one rank finds on its host, as plain data; its own problems as sentences.

    `problems` has them by what they are: two hosts may say the same with other figures. `failures` are of disks, which
    are no call's. `data` has a digest of each
    thing that the recipe names, empty where it cannot be read.
    """
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    gpus = torch.cuda.device_count()
    if gpus:
        versions |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}  # type: ignore[no-untyped-call]
    facts: dict[str, Any] = {
        "host": host_name(os.environ),
        "clock": time.time(),
        "versions": versions | {"imagebert": __version__},
        "gpu": f"{gpus} x {torch.cuda.get_device_name()}" if gpus else "none",
        "given_gpus": os.environ.get("SLURM_GPUS_ON_NODE", "0"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "shared_memory": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        "problems": {},
        "failures": [],
        "data": {},
        "record": None,
    }
    if local is not None:
        try:
            facts["local_free"] = _room_of(local)
        except UsageError as error:
            facts["problems"]["local"] = str(error)
    if config is not None:
        facts["record"] = read_record(Path(config.output))
        facts["data"] = _digests(config)
        facts["problems"] |= _problems(config, facts)
    return facts


def _room_of(local: Path) -> int:
    """Free bytes where a folder is or can be made.

    Raises:
        UsageError: it cannot be written.
    """
    local = local.absolute()
    try:
        there = next(place for place in (local, *local.parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
        return shutil.disk_usage(there).free
    except OSError as error:
        raise UsageError(f"cannot write to local {local}: {error.strerror}: give a folder of the node's own") from None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _digests(config: RunConfig) -> dict[str, str]:
    """What names each store, the weights to start from, and hard negatives: for a comparison of hosts, so only what
    is quickly read."""
    sources = [*config.data.sources, *config.evaluation.sources]
    asked = {path: Path(path) / "meta.json" for source in sources for path in (source.regions, source.pairs)}
    found = dict.fromkeys(asked, "")
    for path, file in asked.items():
        with suppress(UsageError, OSError):
            found[path] = file_digest(file)
    hard = config.retrieval.hard_negatives
    for origin in filter(None, (config.model.initialize_from, config.model.fused_from)):
        found[origin] = ""
        with suppress(UsageError, OSError):
            found[origin] = file_digest(find_model(Path(origin)) / "config.json")
    if hard is not None and config.task == "finetune":
        found[hard] = ""
        with suppress(OSError):
            found[hard] = f"{os.path.getsize(hard)} bytes"
    return found


def _problems(config: RunConfig, facts: dict[str, Any]) -> dict[str, str]:
    """What training would refuse of a recipe, and too little room; asks for all that can be asked."""
    problems = {}

    def ask(check: Callable[[], Answer], kind: str | None = None) -> Answer | None:
        try:
            return check()
        except UsageError as error:
            problems[kind or str(error)] = str(error)
        except OSError as error:
            facts["failures"].append(str(error))
        return None

    def carry() -> None:
        if carrier := make_carrier(config):
            carrier.close()

    def build() -> None:
        assert prepared is not None
        with torch.device("meta"):
            make_model(prepared.config, prepared.corpus)

    there = ask(lambda: check_folder(Path(config.output)))
    if there is not None:
        facts["disk_free"] = shutil.disk_usage(there).free
    ask(lambda: _check_optimizer(config))
    ask(carry)
    prepared = ask(lambda: prepare(config))
    if prepared is not None:
        corpus = prepared.corpus
        ask(build)
        if there is not None:
            ask(lambda: check_resumable(config, corpus))
            ask(lambda: _check_room(config, corpus, there, facts["disk_free"]), "room")
        if config.evaluation.sources:
            ask(lambda: validation_corpus(config))
    return problems


def _check_optimizer(config: RunConfig) -> None:
    """Where one implementation is asked for; one of all is always there."""
    if config.optimizer.implementation != "auto":
        make_optimizer(nn.Linear(1, 1, device=distributed.device()), config.optimizer)


def _check_room(config: RunConfig, corpus: Corpus, there: Path, free: int) -> None:
    """Room for the checkpoints that are kept, one that is written, and what is there already."""
    one = checkpoint_bytes(parameter_count(model_shape(config, sizes_of(config, corpus))[0], config.task))
    kept = len(list((Path(config.output) / "checkpoints").glob("step-*")))
    needed = one * (config.checkpoint.keep + 1 - min(kept, config.checkpoint.keep))
    if free < needed:
        raise UsageError(
            f"{there} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed for "
            f"checkpoints of {one / 2**30:.2f} GiB: free some, or lower checkpoint.keep"
        )
