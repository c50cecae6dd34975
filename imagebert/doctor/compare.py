"""What all ranks found becomes a table of hosts, notes, problems of the call and faults of machines.

A machine is at fault where most others are otherwise (of two that differ, the second is named), where it alone has a
problem, or where it misses what an earlier attempt had. What all hosts have is no machine's fault.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, TypeVar

from imagebert.config import RunConfig
from imagebert.doctor.record import missing
from imagebert.doctor.speed import slow_links, slow_ranks

_SKEW_SECONDS = 2.0
_OPEN_FILES = 4096
_SHARED_MEMORY = 1 << 30
_NAMED = 8  # hosts in a sentence

Facts = Mapping[str, Any]
Value = TypeVar("Value")


class Fault(NamedTuple):
    host: str
    sentence: str


class Findings(NamedTuple):
    """Holds what was found about the machines of a job, compared between them.

    Attributes:
        ranks: The number of processes that looked.
        hosts: A row of facts for each host.
        links: The speed between hosts in GB/s, by the names of both hosts.
        notes: Sentences that hinder nothing.
        problems: Sentences on what is wrong with the call, which is wrong on any machines.
        faults: What is wrong with machines, each with its host; on others the job may run.
    """

    ranks: int
    hosts: list[dict[str, Any]]  # a row each
    links: dict[str, dict[str, float]]  # GB/s between hosts
    notes: list[str]
    problems: list[str]  # of the call: the same on any machines
    faults: list[Fault]  # of machines: others may do

    @property
    def fit(self) -> bool:
        """Says whether there is neither a problem nor a fault, so that the job can train."""
        return not self.problems and not self.faults


def compare(ranks: Sequence[Facts], config: RunConfig | None = None) -> Findings:
    """What `look`, `see_together` and the measurements found on all ranks, judged."""
    hosts: dict[str, list[Facts]] = {}
    for facts in ranks:
        hosts.setdefault(facts["host"], []).append(facts)
    firsts = {host: here[0] for host, here in hosts.items()}
    folder = config.output if config else ""
    links = {host: dict(facts["links"]) for host, facts in firsts.items()}

    faults, lost = _lost(hosts, folder)
    faults += _odd(firsts)
    faults += [Fault(facts["host"], text) for facts in ranks if facts["host"] not in lost for text in facts["failures"]]
    problems, more = _problems(hosts, lost)
    faults += more
    shared, more, notes = _judge_folder({host: facts for host, facts in firsts.items() if host not in lost}, folder)
    if next(iter(hosts)) not in lost:
        problems += shared
        faults += more
    slow, broken = slow_ranks(ranks)
    faults += [Fault(*pair) for pair in broken.items()]
    notes += [note for host, here in hosts.items() for note in _notes(host, here, ranks[0])]
    notes += [*slow, *slow_links(links)]
    rows = [_row(host, here, ranks, config) for host, here in hosts.items()]
    once = dict.fromkeys
    return Findings(len(ranks), rows, links, list(once(notes)), list(once(problems)), list(once(faults)))


def _lost(hosts: Mapping[str, Sequence[Facts]], folder: str) -> tuple[list[Fault], set[str]]:
    """Hosts that miss what an earlier attempt had, though it be all of them."""
    record = next((facts["record"] for here in hosts.values() for facts in here if facts["record"]), None)
    if record is None:
        return [], set()
    attempt = f"attempt {record['attempt']}" + f" of job {record['job']}" * bool(record.get("job"))
    unseen = [host for host, here in hosts.items() if not here[0]["record"]]
    first = next(iter(hosts))
    # A client of a file server may not know a file yet, and then sees what rank 0 writes now.
    apart = [host for host, here in hosts.items() if here[0].get("folder") == "absent"]
    faults = [
        Fault(host, f"does not see {folder}, where {attempt} was: is its file system mounted?")
        for host in unseen
        if host in apart or (host == first and apart)
    ]
    for host, here in hosts.items():
        paths = dict.fromkeys(path for facts in here for path in missing(record, facts["data"]))
        faults += [Fault(host, f"does not see {path}, which {attempt} had: is its disk mounted?") for path in paths]
    return faults, {fault.host for fault in faults}


def _odd(firsts: Mapping[str, Facts]) -> list[Fault]:
    """Hosts that are otherwise than most."""
    faults = []
    for name in dict.fromkeys(name for facts in firsts.values() for name in facts["versions"]):
        for host, value, other, common in _others(firsts, lambda facts, name=name: facts["versions"].get(name)):  # type: ignore[misc]
            faults.append(Fault(host, f"has {name} {value}, {other} has {common}: use one environment"))
    for path in dict.fromkeys(path for facts in firsts.values() for path in facts["data"]):
        seen = {host: facts for host, facts in firsts.items() if facts["data"].get(path)}
        for host, _, other, _ in _others(seen, lambda facts, path=path: facts["data"][path]):  # type: ignore[misc]
            faults.append(Fault(host, f"sees another {path} than {other}: is it on a shared disk?"))
    for host, value, other, common in _others(firsts, lambda facts: facts["gpu"]):
        faults.append(Fault(host, f"has GPUs {value}, {other} {common}: take nodes of one kind"))
    return faults


def _others(hosts: Mapping[str, Facts], find: Callable[[Facts], Value]) -> list[tuple[str, Value, str, Value]]:
    """Hosts whose value is not that of most, it, a host of most, and theirs. Of equally many the first host's is it."""
    values = {host: find(facts) for host, facts in hosts.items()}
    if not values:
        return []
    common = Counter(values.values()).most_common(1)[0][0]
    example = next(host for host, value in values.items() if value == common)
    return [(host, value, example, common) for host, value in values.items() if value != common]


def _problems(hosts: Mapping[str, Sequence[Facts]], lost: set[str]) -> tuple[list[str], list[Fault]]:
    """What all hosts have, said once, and what only some have. Those that have lost something say that already."""
    own: dict[str, dict[str, str]] = {}
    for host, here in hosts.items():
        if host not in lost:
            own[host] = {kind: text for facts in here for kind, text in [*facts["problems"].items(), *_no_gpu(facts)]}
    problems, faults = [], []
    for kind in dict.fromkeys(kind for found in own.values() for kind in found):
        having = [host for host in own if kind in own[host]]
        if len(having) == len(own):
            problems.append(own[having[0]][kind])
        else:
            faults += [Fault(host, own[host][kind]) for host in having]
    return problems, faults


def _no_gpu(facts: Facts) -> list[tuple[str, str]]:
    if facts["gpu"] != "none" or facts["given_gpus"] in ("0", "") or os.environ.get("IMAGEBERT_ALLOW_CPU"):
        return []
    cure = "is PyTorch built for CUDA, and the driver new enough? IMAGEBERT_ALLOW_CPU=1 trains on CPUs"
    return [("GPUs", f"Slurm gave {facts['given_gpus']} GPUs and PyTorch finds none: {cure}")]


def _judge_folder(hosts: Mapping[str, Facts], folder: str) -> tuple[list[str], list[Fault], list[str]]:
    """Problems, faults and notes of hosts that do not see what rank 0's writes into the run's folder."""
    apart = [host for host, facts in hosts.items() if facts.get("folder") == "absent"]
    notes = [
        f"{host} still sees a file in {folder} by its old name some seconds after it was renamed: its client is slow"
        for host, facts in hosts.items()
        if facts.get("folder") == "stale"
    ]
    if not apart:
        return [], [], notes
    first = next(iter(hosts))
    if first in apart:  # which does not see what it did itself
        return [f"a file in {folder} cannot be renamed, as checkpoints are: give --runs on a disk that can"], [], notes
    cure = "give --runs on a shared disk"
    if len(apart) >= len(hosts) - 1:
        named = ", ".join(apart[:_NAMED]) + f" and {len(apart) - _NAMED} more" * (len(apart) > _NAMED)
        return [f"{folder} is another folder on {named} than on {first}: {cure}"], [], notes
    return [], [Fault(host, f"{folder} is another folder on {host} than on {first}: {cure}") for host in apart], notes


def _notes(host: str, here: Sequence[Facts], first: Facts) -> list[str]:
    facts, notes = here[0], []
    if facts["gpu"] == "none" and facts["given_gpus"] not in ("0", "") and os.environ.get("IMAGEBERT_ALLOW_CPU"):
        notes.append(
            f"{host}: Slurm gave {facts['given_gpus']} GPUs and PyTorch finds none: training on CPUs, as "
            "IMAGEBERT_ALLOW_CPU says"
        )
    skew = facts["clock"] - first["clock"]
    if abs(skew) > _SKEW_SECONDS:
        notes.append(f"{host}'s clock is {skew:+.1f} s off {first['host']}'s: training does not mind, logs will")
    if facts["open_files"] < _OPEN_FILES:
        notes.append(f"{host} allows {facts['open_files']} open files: raise `ulimit -n` to {_OPEN_FILES}")
    if facts["shared_memory"] < _SHARED_MEMORY and facts["gpu"] != "none":
        notes.append(f"{host} has {facts['shared_memory'] >> 20} MiB in /dev/shm: NCCL wants 1 GiB")
    if facts["cores"] < len(here):
        notes.append(f"{host}: {len(here)} processes share {facts['cores']} cores: ask for more --cpus-per-task")
    return notes


def _row(host: str, here: Sequence[Facts], ranks: Sequence[Facts], config: RunConfig | None) -> dict[str, Any]:
    """A host in the table; of its ranks the slowest."""
    facts = here[0]
    row = {
        "host": host,
        "processes": len(here),
        "GPUs": facts["gpu"],
        "cores": facts["cores"],
        "memory GiB": facts["memory_gib"],
        "clock s": facts["clock"] - ranks[0]["clock"],
        "free disk GiB": facts.get("disk_free", 0) / 2**30 if config else "",
    }
    if "local_free" in ranks[0] or "local" in ranks[0]["problems"]:
        row["free local GiB"] = facts["local_free"] / 2**30 if "local_free" in facts else "none"
    row |= {name: min(f["speed"][name] for f in here if name in f["speed"]) for name in facts["speed"]}
    row["all-reduce GB/s"] = min(f["all_reduce_gbs"] for f in here) if len(ranks) > 1 else ""
    row["links GB/s"] = median(facts["links"].values()) if facts["links"] else ""
    return row
