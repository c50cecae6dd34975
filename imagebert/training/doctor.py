"""Is this job fit to train? Each rank looks at its host, all tell each other, and differences become sentences.

Asked at the start of every job (slurm/common.sh), so that a wrong machine is named in seconds instead of being found by
a hang: other versions on one node, fewer GPUs than processes, data that one node does not see, no room for checkpoints,
a network that does not connect, clocks that disagree. A recipe is opened and planned by the code that trains it, up to
the model, which has no memory here: what training would refuse in its first seconds is refused with the same sentence.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from imagebert import __version__, distributed
from imagebert.config import RunConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.engine.optimizers import make_optimizer
from imagebert.files import file_digest
from imagebert.training.capacity import checkpoint_bytes, parameter_count
from imagebert.training.ownership import check_folder
from imagebert.training.run import check_resumable, make_carrier, make_model, model_shape, prepare, sizes_of

PACKAGES = ("torch", "deepspeed", "triton", "transformers", "lmdb", "numpy")
Answer = TypeVar("Answer")
_SKEW_SECONDS = 2.0
_OPEN_FILES = 4096
_SHARED_MEMORY = 1 << 30


class Findings(NamedTuple):
    ranks: int
    hosts: list[dict[str, Any]]  # a row each
    notes: list[str]
    problems: list[str]  # of the call: the same on any machines
    faults: list[str]  # of machines: others may do


# Looks at what a recipe evaluates while it trains.
CheckEvaluation = Callable[[RunConfig], object]


def examine(config: RunConfig | None, quick: bool, check_evaluation: CheckEvaluation | None = None) -> Findings:
    """Looks at this job. Collective.

    Args:
        config: a recipe whose data, disk and batch are checked too
        quick: a shorter measurement of the all-reduce
        check_evaluation: raises a UsageError where training could not evaluate; None: that is not asked
    """
    distributed.start(1 if config is None else config.engine.timeout_minutes)
    distributed.total([1])  # all are here: from now on clocks can be compared
    mine = look(config, check_evaluation) | {
        "all_reduce_gbs": _all_reduce(4 << 20 if quick else 64 << 20, 3 if quick else 10)
    }
    return compare([json.loads(text) for text in distributed.gather(json.dumps(mine))], config)


def look(config: RunConfig | None, check_evaluation: CheckEvaluation | None = None) -> dict[str, Any]:
    """What one rank finds on its host; its own problems as sentences."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    gpus = torch.cuda.device_count()
    if gpus:
        versions |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}  # type: ignore[no-untyped-call]
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "clock": time.time(),
        "versions": versions | {"imagebert": __version__},
        "gpu": f"{gpus} x {torch.cuda.get_device_name()}" if gpus else "none",
        "given_gpus": os.environ.get("SLURM_GPUS_ON_NODE", "0"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "shared_memory": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        "problems": [],
        "data": {},
    }
    if config is not None:
        facts["data"] = _digests(config)
        facts["problems"] = _problems(config, facts, check_evaluation)
    return facts


def compare(ranks: Sequence[dict[str, Any]], config: RunConfig | None = None) -> Findings:
    """What `look` found on all ranks, as a table of hosts, notes and problems."""
    notes, problems, faults = [], [], []
    hosts: dict[str, list[dict[str, Any]]] = {}
    for facts in ranks:
        hosts.setdefault(facts["host"], []).append(facts)
        problems += [f"{facts['host']}: {problem}" for problem in facts["problems"]]
    first = ranks[0]
    rows = []
    for host, here in hosts.items():
        facts = here[0]
        for name, version in facts["versions"].items():
            if version != first["versions"].get(name):
                other = f"{first['host']} has {first['versions'].get(name)}"
                faults.append(f"{host} has {name} {version}, {other}: use one environment")
        for path, digest in facts["data"].items():
            if digest != first["data"].get(path):
                faults.append(f"{host} sees another {path} than {first['host']}: is it on a shared disk?")
        if facts["gpu"] != first["gpu"]:
            faults.append(f"{host} has GPUs {facts['gpu']}, {first['host']} {first['gpu']}: take nodes of one kind")
        if facts["gpu"] == "none" and facts["given_gpus"] not in ("0", ""):
            found = f"{host}: Slurm gave {facts['given_gpus']} GPUs and PyTorch finds none"
            if os.environ.get("IMAGEBERT_ALLOW_CPU"):
                notes.append(f"{found}: training on CPUs, as IMAGEBERT_ALLOW_CPU says")
            else:
                cure = "is PyTorch built for CUDA, and the driver new enough? IMAGEBERT_ALLOW_CPU=1 trains on CPUs"
                faults.append(f"{found}: {cure}")
        skew = facts["clock"] - first["clock"]
        if abs(skew) > _SKEW_SECONDS:
            notes.append(f"{host}'s clock is {skew:+.1f} s off {first['host']}'s: training does not mind, logs will")
        if facts["open_files"] < _OPEN_FILES:
            notes.append(f"{host} allows {facts['open_files']} open files: raise `ulimit -n` to {_OPEN_FILES}")
        if facts["shared_memory"] < _SHARED_MEMORY and facts["gpu"] != "none":
            notes.append(f"{host} has {facts['shared_memory'] >> 20} MiB in /dev/shm: NCCL wants 1 GiB")
        if facts["cores"] < len(here):
            notes.append(f"{host}: {len(here)} processes share {facts['cores']} cores: ask for more --cpus-per-task")
        rows.append(
            {
                "host": host,
                "processes": len(here),
                "GPUs": facts["gpu"],
                "cores": facts["cores"],
                "memory GiB": facts["memory_gib"],
                "clock s": skew,
                "free disk GiB": facts.get("disk_free", 0) / 2**30 if config else "",
                "all-reduce GB/s": min(f["all_reduce_gbs"] for f in here) if len(ranks) > 1 else "",
            }
        )
    notes, problems, faults = (list(dict.fromkeys(lines)) for lines in (notes, problems, faults))
    return Findings(len(ranks), rows, notes, problems, faults)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _digests(config: RunConfig) -> dict[str, str]:
    """SHA-256 of each store's meta.json, for a comparison of hosts; what cannot be read is a problem of its own."""
    sources = [*config.data.sources, *config.evaluation.sources]
    found = {}
    for path in (path for source in sources for path in (source.regions, source.pairs)):
        with suppress(UsageError):
            found[path] = file_digest(Path(path) / "meta.json")
    return found


def _problems(config: RunConfig, facts: dict[str, Any], check_evaluation: CheckEvaluation | None) -> list[str]:
    """What training would refuse of a recipe, and too little room; asks for all that can be asked."""
    problems = []

    def ask(check: Callable[[], Answer]) -> Answer | None:
        try:
            return check()
        except UsageError as error:
            problems.append(str(error))
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
            ask(lambda: _check_room(config, corpus, there, facts["disk_free"]))
        if config.evaluation.sources and check_evaluation is not None:
            ask(lambda: check_evaluation(config))
    return problems


def _check_optimizer(config: RunConfig) -> None:
    """Where one implementation is asked for; one of all is always there."""
    if config.optimizer.implementation != "auto":
        make_optimizer(nn.Linear(1, 1, device=distributed.device()), config.optimizer)


def _check_room(config: RunConfig, corpus: Corpus, there: Path, free: int) -> None:
    """Room for the checkpoints that are kept, one that is written, and what is there already."""
    one = checkpoint_bytes(parameter_count(model_shape(config, sizes_of(corpus))[0], config.task))
    kept = len(list((Path(config.output) / "checkpoints").glob("step-*")))
    needed = one * (config.checkpoint.keep + 1 - min(kept, config.checkpoint.keep))
    if free < needed:
        raise UsageError(
            f"{there} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed for "
            f"checkpoints of {one / 2**30:.2f} GiB: free some, or lower checkpoint.keep"
        )


def _all_reduce(size: int, times: int) -> float:
    """Bytes a second and rank that an all-reduce moves on the wire, in GB/s; 0 when alone."""
    ranks = distributed.world_size()
    if ranks == 1:
        return 0.0
    values = torch.zeros(size // 4, device=distributed.device())
    distributed.total_on_device(values)
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        distributed.total_on_device(values)
        if values.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * (ranks - 1) / ranks * size / sorted(seconds)[len(seconds) // 2] / 1e9
