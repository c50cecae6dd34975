"""What is planted is found, and no more. One process that has no threads forks all children, as the command does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Five calls: as it is; with a reader that does not compare digests; with a command that dies in three ways of what
# it should refuse; and killed, as it is and with one that leaves a file behind.
SCRIPT = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from benchmarks import fuzz, kills
from imagebert import cli
from imagebert.data import regions
from imagebert.errors import UsageError

out = Path(sys.argv[1])

def call(main, name, *words):
    print("CODE of", name, "is", main([*words, "--json", str(out / name)]), flush=True)

# The cheap commands of a kind whose others need a model.
known = {kind.name: kind for kind in fuzz.kinds()}
store = known["region store"]
cheap = [command for command in store.commands if command.name in ("inspect", "quantize")]  # in this order
store = replace(store, commands=cheap, needs=())
described = replace(store, name="description", files="meta.json", commands=cheap[:1])
fuzz.kinds = lambda: [store, described, known["captions.csv"], known["unfinished store"]]

call(fuzz.main, "clean", "--mutations", "21", "--limit", "15")

check_sealed = regions.check_sealed
regions.check_sealed = lambda content, *_: content
call(fuzz.main, "unsealed", "--mutations", "32", "--kinds", "description")
regions.check_sealed = check_sealed

commands, pairs = cli.COMMANDS, cli.data.pairs

def with_pairs(run):
    return tuple(pairs._replace(run=run) if command is pairs else command for command in commands)

def dying(parsed):
    try:
        return pairs(parsed)
    except UsageError:
        with out.with_suffix(".died").open("ab") as times:  # each child is a process
            times.write(b".")
            how = times.tell() % 3
        if how == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(99 * (how == 1))
        raise KeyError("planted")

cli.COMMANDS = with_pairs(dying)
call(fuzz.main, "dying", "--mutations", "40", "--kinds", "captions.csv", "--limit", "1")
cli.COMMANDS = commands

def leaving(parsed):
    if Path.cwd().parent.name.startswith("try-"):  # and not undisturbed
        Path("left.part").touch()
    return pairs(parsed)

call(kills.main, "killed", "--kills", "2", "--commands", "pairs")
cli.COMMANDS = with_pairs(leaving)
call(kills.main, "leaving", "--kills", "2", "--commands", "pairs")
"""


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("fuzz")
    call = [sys.executable, "-c", SCRIPT, str(out)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.name: json.loads(path.read_text())["figures"] for path in out.iterdir()}
    for name, code in re.findall(r"^CODE of (\w+) is (\d)$", done.stdout, re.M):
        found[name]["code"] = int(code)
    return found


def test_damage_is_named_or_changes_nothing(figures: dict[str, Any]) -> None:
    assert figures["clean"]["failed"] == figures["clean"]["misses"] == []
    assert figures["clean"]["code"] == figures["killed"]["code"] == 0
    counts = figures["clean"]["counts"].values()
    assert sum(sum(count.values()) for count in counts) == 21
    assert sum(count.get("named", 0) for count in counts) > 0
    assert figures["killed"]["commands"]["pairs"]["misses"] == []


def test_a_reader_that_skips_its_check_is_a_miss(figures: dict[str, Any]) -> None:
    assert figures["unsealed"]["code"] == 1
    assert any("other figures" in miss["what"] for miss in figures["unsealed"]["misses"])


def test_a_command_that_dies_is_a_miss_and_says_how(figures: dict[str, Any]) -> None:
    found = [miss["what"] for miss in figures["dying"]["misses"]]
    for how in ("traceback: KeyError: 'planted'", "killed by SIGSEGV", "no end within 1 s"):
        assert any(line.endswith(how) for line in found), how
    assert "python -m benchmarks.fuzz --seed 0 --kinds captions.csv --only" in figures["dying"]["misses"][0]["again"]


def test_what_a_killed_command_leaves_behind_is_a_miss(figures: dict[str, Any]) -> None:
    assert figures["leaving"]["code"] == 1
    found = figures["leaving"]["commands"]["pairs"]["misses"]
    assert len(found) == 2
    assert all("left.part" in miss["why"] for miss in found)
