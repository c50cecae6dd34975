"""Facts of hosts that were made up, and what is said of them."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebert.config import load_recipe
from imagebert.doctor.compare import Fault, compare
from imagebert.doctor.look import look

RECIPE = "tests/recipe.yaml"
PYTHON = Path(sys.executable)


def hosts_alike(recipe: list[str], *names: str) -> list[dict[str, Any]]:
    facts = look(load_recipe(RECIPE, recipe))
    facts |= {"all_reduce_gbs": 10.0, "open_files": 1 << 20, "speed": {"product TFLOP/s": 1.0}, "folder": "seen"}
    return [copy.deepcopy(facts) | {"host": name, "links": {n: 5.0 for n in names if n != name}} for name in names]


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts.update(values)


def test_alike_hosts_are_fit(recipe: list[str]) -> None:
    found = compare(hosts_alike(recipe, "a", "b", "c"))
    assert found.fit
    assert found.notes == []
    assert [row["host"] for row in found.hosts] == ["a", "b", "c"]
    assert found.hosts[1]["links GB/s"] == 5.0


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda facts: facts["versions"].update(torch="1.0"), "has torch 1.0, {} has .*: use one environment"),
        (lambda facts: facts["data"].update(dict.fromkeys(facts["data"], "0")), "sees another .*regions than {}: is"),
        (change(gpu="8 x H100"), "has GPUs 8 x H100, {} none: take nodes of one kind"),
        (change(given_gpus="8"), "Slurm gave 8 GPUs and PyTorch finds none: is PyTorch built for CUDA"),
        (change(problems={"nowhere is not there": "nowhere is not there"}), "nowhere is not there$"),
    ],
)
@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_host_that_differs_from_most_is_at_fault(
    recipe: list[str], spoil: Callable[[dict[str, Any]], None], fault: str, odd: int
) -> None:
    ranks = hosts_alike(recipe, "a", "b", "c")
    spoil(ranks[odd])
    found = compare(ranks)
    assert found.problems == []
    assert {host for host, _ in found.faults} == {"abc"[odd]}
    assert any(re.match(fault.format("b" if odd == 0 else "a"), sentence) for _, sentence in found.faults), found.faults


def test_what_all_hosts_have_is_no_machines_fault_and_is_said_once(recipe: list[str]) -> None:
    ranks = hosts_alike(recipe, "a", "b")
    for number, facts in enumerate(ranks):
        facts["problems"] = {"room": f"{number} GiB free", "lamb": "no LAMB"}
    assert compare(ranks).problems == ["0 GiB free", "no LAMB"]
    assert compare(ranks).faults == []
    del ranks[0]["problems"]["lamb"]
    assert compare(ranks).problems == ["0 GiB free"]
    assert compare(ranks).faults == [Fault("b", "no LAMB")]


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda facts: facts.update(clock=facts["clock"] + 90), "other's clock is +90.0 s off"),
        (change(open_files=1024), "other allows 1024 open files"),
        (change(cores=0), "other: 1 processes share 0 cores"),
        (change(folder="stale"), "other still sees a file in {} by its old name"),
    ],
)
def test_what_only_hurts_is_a_note(recipe: list[str], spoil: Callable[[dict[str, Any]], None], note: str) -> None:
    ranks = hosts_alike(recipe, "first", "other")
    spoil(ranks[1])
    config = load_recipe(RECIPE, recipe)
    found = compare(ranks, config)
    assert found.fit
    (line,) = found.notes
    assert line.startswith(note.format(config.output))


@pytest.mark.parametrize(
    ("hosts", "absent", "problem", "faults"),
    [
        (["a", "b"], ["b"], "on b than on a", []),
        (["a", "b", "c"], ["b", "c"], "on b, c than on a", []),
        (["a", "b", "c"], ["c"], "", ["c"]),
        (["a", "b", "c", "d"], ["b", "c", "d"], "on b, c, d than on a", []),
        (["a", "b", "c", "d"], ["c", "d"], "", ["c", "d"]),
    ],
)
def test_a_folder_that_is_another_one(
    recipe: list[str], hosts: list[str], absent: list[str], problem: str, faults: list[str]
) -> None:
    ranks = hosts_alike(recipe, *hosts)
    for facts in ranks:
        if facts["host"] in absent:
            facts["folder"] = "absent"
    config = load_recipe(RECIPE, recipe)
    found = compare(ranks, config)
    said = f"{config.output} is another folder {problem}: give --runs on a shared disk"
    assert found.problems == ([said] if problem else [])
    assert [host for host, _ in found.faults] == faults
    for host, sentence in found.faults:
        assert sentence == f"{config.output} is another folder on {host} than on a: give --runs on a shared disk"


def test_a_folder_in_which_nothing_can_be_renamed(recipe: list[str]) -> None:
    ranks = hosts_alike(recipe, "a", "b")
    for facts in ranks:
        facts["folder"] = "absent"
    config = load_recipe(RECIPE, recipe)
    found = compare(ranks, config)
    assert found.problems == [
        f"a file in {config.output} cannot be renamed, as checkpoints are: give --runs on a disk that can"
    ]
    assert found.faults == []


def test_a_failing_disk_is_no_calls_though_all_hosts_have_it(recipe: list[str]) -> None:
    ranks = hosts_alike(recipe, "a", "b")
    for facts in ranks:
        facts["failures"] = ["reading x failed: Stale file handle"]
    found = compare(ranks)
    assert found.problems == []
    assert found.faults == [Fault(host, "reading x failed: Stale file handle") for host in "ab"]


ATTEMPT = {"job": "12", "attempt": 1}


@pytest.mark.parametrize("lost", ["b", "a", "a b"])
@pytest.mark.parametrize("without_job", [False, True])
def test_what_an_earlier_attempt_had_is_lost_by_machines(recipe: list[str], lost: str, without_job: bool) -> None:
    """Also where all of them have lost it, which would else be a call that is wrong."""
    ranks = hosts_alike(recipe, "a", "b")
    store = next(iter(ranks[0]["data"]))
    for facts in ranks:
        facts["record"] = {"data": dict(facts["data"]), **ATTEMPT, **({"job": ""} if without_job else {})}
    for facts in ranks:
        if facts["host"] in lost:
            facts["data"] = {**facts["data"], store: ""}
            facts["problems"] = {"x": f"{store} is not there"}
    found = compare(ranks)
    attempt = "attempt 1" if without_job else "attempt 1 of job 12"
    assert found.problems == []
    assert found.faults == [
        Fault(host, f"does not see {store}, which {attempt} had: is its disk mounted?") for host in lost.split()
    ]


def test_what_no_attempt_had_is_the_calls(recipe: list[str]) -> None:
    ranks = hosts_alike(recipe, "a", "b")
    for facts in ranks:
        facts["record"] = {"data": dict(facts["data"]), **ATTEMPT}
        facts["data"] = {**facts["data"], "nowhere": ""}
        facts["problems"] = {"x": "nowhere is not there"}
    found = compare(ranks)
    assert found.problems == ["nowhere is not there"]
    assert found.faults == []


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_has_lost_the_runs_folder(recipe: list[str], lost: int) -> None:
    """Though there are two: an earlier attempt tells whose fault it is, also where it is the host that wrote."""
    ranks = hosts_alike(recipe, "a", "b")
    ranks[1]["folder"] = "absent"
    ranks[1 - lost]["record"] = {"data": {}, **ATTEMPT}
    config = load_recipe(RECIPE, recipe)
    found = compare(ranks, config)
    assert found.problems == []
    sentence = f"does not see {config.output}, where attempt 1 of job 12 was: is its file system mounted?"
    assert found.faults == [Fault("ab"[lost], sentence)]


def test_a_record_that_a_file_servers_client_does_not_know_yet(recipe: list[str]) -> None:
    ranks = hosts_alike(recipe, "a", "b")
    ranks[0]["record"] = {"data": {}, **ATTEMPT}
    assert compare(ranks, load_recipe(RECIPE, recipe)).fit
