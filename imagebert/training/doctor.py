"""Is this job fit to train? Each rank looks at its host, all tell each other, and differences become sentences.

Asked at the start of every job (slurm/common.sh), so that a wrong machine is named in seconds instead of being found by
a hang: other versions on one node, fewer GPUs than processes, data that one node does not see, no room for checkpoints,
a network that does not connect, clocks that disagree.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from imagebert import __version__, distributed
from imagebert.config import RunConfig, UsageError
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.engine.engine import check_monitors, merge_deepspeed_config
from imagebert.training.capacity import checkpoint_bytes, parameter_count
from imagebert.training.run import fit_microbatches, model_shape

PACKAGES = ("torch", "deepspeed", "triton", "transformers", "lmdb", "numpy")
_SKEW_SECONDS = 2.0
_OPEN_FILES = 4096
_SHARED_MEMORY = 1 << 30


class Findings(NamedTuple):
    ranks: int
    hosts: list[dict[str, Any]]  # a row each
    notes: list[str]
    problems: list[str]  # of the call: the same on any machines
    faults: list[str]  # of machines: others may do


def examine(config: RunConfig | None, quick: bool) -> Findings:
    """Looks at this job. Collective.

    Args:
        config: a recipe whose data, disk and batch are checked too
        quick: a shorter measurement of the all-reduce
    """
    distributed.start(1 if config is None else config.engine.timeout_minutes)
    distributed.total([1])  # all are here: from now on clocks can be compared
    mine = look(config) | {"all_reduce_gbs": _all_reduce(4 << 20 if quick else 64 << 20, 3 if quick else 10)}
    return compare([json.loads(text) for text in distributed.gather(json.dumps(mine))], config)


def look(config: RunConfig | None) -> dict[str, Any]:
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
        checks: list[Callable[[], None]] = [lambda: _check_disk(config, facts), lambda: _check_batch(config)]
        checks += [lambda source=source: _check_source(source, facts) for source in config.data.sources]  # type: ignore[misc]
        checks.append(lambda: check_monitors(config))
        for check in checks:
            try:
                check()
            except UsageError as error:
                facts["problems"].append(str(error))
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


def _check_source(source: Any, facts: dict[str, Any]) -> None:
    store, pairs = RegionStore(source.regions), PairStore(source.pairs)
    for path in (store.path, pairs.path):
        facts["data"][str(path)] = hashlib.sha256((path / "meta.json").read_bytes()).hexdigest()


def _check_disk(config: RunConfig, facts: dict[str, Any]) -> None:
    """Room for the checkpoints that are kept, one that is written, and what is there already."""
    folder = Path(config.output).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise UsageError(f"output {folder} cannot be written: give another folder")
    facts["disk_free"] = shutil.disk_usage(there).free
    first = config.data.sources[0]
    store, pairs = RegionStore(first.regions), PairStore(first.pairs)
    sizes = {
        "vocab_size": len(pairs.tokenizer()),
        "feature_size": store.feature_size,
        "num_region_classes": len(store.classes),
    }
    one = checkpoint_bytes(parameter_count(model_shape(config, sizes)[0], config.task))
    kept = len(list((folder / "checkpoints").glob("step-*")))
    needed = one * (config.checkpoint.keep + 1 - min(kept, config.checkpoint.keep))
    if facts["disk_free"] < needed:
        raise UsageError(
            f"{there} has {facts['disk_free'] / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB are needed for "
            f"checkpoints of {one / 2**30:.2f} GiB: free some, or lower checkpoint.keep"
        )


def _check_batch(config: RunConfig) -> None:
    ranks = distributed.world_size()
    merge_deepspeed_config(config, "fp32", ranks)
    parts = ranks * fit_microbatches(config, ranks).schedule.accumulation
    size = config.schedule.batch_size
    if size is not None and size < parts:
        raise UsageError(
            f"schedule.batch_size {size} cannot be cut into {parts} microbatches (ranks x accumulation): raise it"
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
