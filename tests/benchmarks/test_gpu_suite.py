"""benchmarks/gpu_suite.sh from the first to the last part, with stubs for all that needs a GPU; its parts' own bugs.

A stub of Python writes down how it was called and a JSON where one is asked for. What the suite asks of each benchmark
then goes through that benchmark's own parser.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import benchmarks.train
from benchmarks import ops, ops_attention, ops_parts

ROOT = Path(__file__).parents[2]
PARTS = ["check", "tests", "base", "real", "ops", "tune", "large", "score", "sanitizer"]
PARTS += ["feed-tests", "feed", "plan", "compiled", "detector"]
FIGURES = {
    "check_gpu_h100.json": "check",
    "train_gpu_h100_base.json": "train",
    "train_gpu_h100_real.json": "train",
    "ops_gpu_h100.json": "ops",
    "ops_gpu_h100_tune.json": "ops",
    "train_gpu_h100_large.json": "train",
    "score_gpu_h100.json": "score",
    "feed_gpu_h100.json": "feed",
    "calibrate_gpu_h100.json": "calibrate",
    "train_gpu_h100_compiled.json": "train",
    "extract_gpu_h100.json": "extract",
}

PYTHON = r"""
import json, os, sys, zipfile
arguments = sys.argv[1:]
names = ["PYTHONPATH", "IMAGEBERT_COMMIT", "TRITON_INTERPRET", "CUBLAS_WORKSPACE_CONFIG"]
call = {"arguments": arguments, "environment": {name: os.environ.get(name) for name in names}}
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps(call), file=file)
if os.environ.get("FAILS", "nothing") in " ".join(arguments):
    print("\n".join(f"line {n} of 100" for n in range(1, 101)))
    sys.exit(1)
if "--json" in arguments:
    open(arguments[arguments.index("--json") + 1], "w").write("{}")
if "zipfile" in arguments[1]:  # it looks for pydantic's core
    sys.argv = arguments[:1] + arguments[2:]
    exec(arguments[1])
elif any(word.startswith("pydantic==") for word in arguments):
    with zipfile.ZipFile(arguments[arguments.index("-d") + 1] + "/pydantic-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pydantic-1.dist-info/METADATA", "Requires-Dist: pydantic-core==9.8.7\n")
else:
    print("-n 12" if arguments[0] == "-c" else "a figure")
"""
TIMEOUT = 'echo "$3" >> "$LIMITS"\n[ "$1 $2" = "-k 10" ] || exit 9\nshift 3\nexec "$@"\n'
SANITIZER = 'while [ "$1" != "$PYTHON" ]; do shift; done\nexec "$@"\n'


class Suite:
    """The suite on a machine of stubs: a folder that is first in PATH."""

    def __init__(self, folder: Path, card: str = "NVIDIA H100 80GB HBM3") -> None:
        self.out, self.stubs, self.environment = folder / "results", folder / "bin", dict(os.environ)
        self.stubs.mkdir()
        self.stub("timeout", TIMEOUT)
        self.stub("nvidia-smi", f"echo '{card}'\n")
        self.stub("compute-sanitizer", SANITIZER)
        (folder / "stub.py").write_text(PYTHON)
        self.stub(
            "stub-python", f'exec {shlex.quote(sys.executable)} -S -E {shlex.quote(str(folder / "stub.py"))} "$@"\n'
        )
        self.environment |= {
            "PATH": f"{self.stubs}:{os.environ['PATH']}",
            "OUT": str(self.out),
            "PYTHON": str(self.stubs / "stub-python"),
            "CALLS": str(folder / "calls"),
            "LIMITS": str(folder / "limits"),
            "PYTHONPATH": "what/was:there",
            "IMAGEBERT_COMMIT": "abc123",
            "TRITON_INTERPRET": "1",
        }

    def stub(self, name: str, script: str) -> None:
        (self.stubs / name).write_text("#!/bin/sh\n" + script)
        (self.stubs / name).chmod(0o755)

    def run(self, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
        call = ["sh", str(ROOT / "benchmarks/gpu_suite.sh"), *parts]
        return subprocess.run(call, env=self.environment | environment, cwd="/", capture_output=True, text=True)

    def calls(self) -> list[dict[str, Any]]:
        path = Path(self.environment["CALLS"])
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def limits(self) -> list[int]:
        return [int(line) for line in Path(self.environment["LIMITS"]).read_text().split()]


def table(output: str) -> list[list[str]]:
    """Rows of the table that comes last: part, state, seconds, JSON."""
    lines = output.split("\n== ")[-1].splitlines()[2:]
    return [[line[:12].strip(), line[13:39].strip(), line[40:45].strip(), line[47:]] for line in lines]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the module's own parser makes of the arguments; nothing else of it runs."""

    class Parsed(Exception):
        pass

    plain: Callable[..., argparse.Namespace] = argparse.ArgumentParser.parse_args

    def leave(self: argparse.ArgumentParser, *given: Any) -> None:
        raise Parsed(plain(self, *given))

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", leave)
        with pytest.raises(Parsed) as caught:
            importlib.import_module(module).main()
    found: argparse.Namespace = caught.value.args[0]
    return found


def test_all_parts_in_order(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    done = suite.run()
    assert done.returncode == 0, done.stdout + done.stderr
    rows = table(done.stdout)
    assert [row[0] for row in rows] == PARTS
    assert {row[1] for row in rows} == {"ok"}
    assert "== NVIDIA H100 80GB HBM3\n" in done.stdout
    assert [row[3] for row in rows if row[3] != "-"] == list(FIGURES)
    assert all((suite.out / name).exists() for name in FIGURES)
    assert len(suite.limits()) == len(PARTS) + 1  # the detector is tested before it is measured
    assert max(suite.limits()) <= 480

    modules, tested = [], []
    for call in suite.calls():
        arguments, environment = call["arguments"], call["environment"]
        assert environment["PYTHONPATH"] == f"{ROOT}:{ROOT}/kernels:what/was:there"
        assert environment["IMAGEBERT_COMMIT"] == "abc123"
        assert environment["TRITON_INTERPRET"] in (None, "0")
        match arguments:
            case ["-m", "pytest", *rest]:
                tested.append(rest)
                paths = [word.split("=")[-1] for word in rest if "tests/" in word]
                assert paths
                assert all((ROOT / path).exists() for path in paths)
                assert environment["CUBLAS_WORKSPACE_CONFIG"]
                assert "--maxfail=40" in rest
                assert "-x" not in rest
            case ["-m", module, *rest]:
                modules.append(module)
                parsed = parse(module, rest, monkeypatch)
                assert FIGURES[parsed.json.name] == module.removeprefix("benchmarks.")
            case _:
                assert arguments[0] == "-c"
    assert modules == [f"benchmarks.{name}" for name in FIGURES.values()]
    assert len(tested) == 4
    assert tested[0][-2:] == ["-n", "12"]


def test_a_part_that_fails_does_not_end_the_others(suite: Suite) -> None:
    done = suite.run("base", "plan", "sanitizer", "ops", FAILS="calibrate")
    assert done.returncode == 1
    assert [row[:2] for row in table(done.stdout)] == [
        ["base", "ok"],
        ["plan", "failed"],
        ["sanitizer", "ok"],
        ["ops", "ok"],
    ]
    assert [row[3] for row in table(done.stdout)] == ["train_gpu_h100_base.json", "-", "-", "ops_gpu_h100.json"]
    assert "line 41 of 100\n" in done.stdout  # the last 60
    assert "line 40 of 100\n" not in done.stdout


def test_a_part_that_takes_too_long_is_ended(suite: Suite) -> None:
    suite.stub("timeout", "exit 124\n")
    done = suite.run("check", "plan")
    assert done.returncode == 1
    assert [row[:2] for row in table(done.stdout)] == [
        [part, "failed: ended after 480 s"] for part in ("check", "plan")
    ]


def test_what_a_call_has_no_time_for_is_left_out(suite: Suite) -> None:
    assert suite.run("plan", LIMIT="100").returncode == 0
    assert 90 <= suite.limits()[0] <= 100
    done = suite.run("plan", "ops", LIMIT="10")
    assert done.returncode == 0
    assert [row[1] for row in table(done.stdout)] == ["left out"] * 2


def test_an_unknown_part_is_named_before_anything_runs(suite: Suite) -> None:
    done = suite.run("check", "everything")
    assert done.returncode == 2
    assert done.stderr == f"everything is no part: give some of {' '.join(PARTS)}, or prepare\n"
    assert suite.calls() == []


@pytest.mark.parametrize(("name", "card"), [("NVIDIA H200", "h200"), ("NVIDIA L4", "other")])
def test_results_are_named_by_card(tmp_path: Path, name: str, card: str) -> None:
    done = Suite(tmp_path, name).run("plan")
    assert [row[3] for row in table(done.stdout)] == [f"calibrate_gpu_{card}.json"]
    assert f"== {name}\n" in done.stdout


def test_without_a_sanitizer_its_part_is_left_out(suite: Suite) -> None:
    suite.environment["PATH"] = str(suite.stubs)
    (suite.stubs / "compute-sanitizer").unlink()
    for tool in ["sh", "dirname", "mkdir", "mktemp", "rm", "date", "head", "tail", "grep", "env", "cat"]:
        (suite.stubs / tool).symlink_to(subprocess.check_output(["sh", "-c", f"command -v {tool}"], text=True).strip())
    done = suite.run("sanitizer", "plan")
    assert done.returncode == 0, done.stderr
    assert [row[1] for row in table(done.stdout)] == ["left out", "ok"]


def test_wheels_stand_before_what_the_image_has(suite: Suite, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "lmdb.whl").touch()
    suite.run("plan", WHEELS=str(wheels))
    install, call = suite.calls()
    folder, wheel = install["arguments"][-2:]
    assert install["arguments"][:-2] == ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    assert wheel == str(wheels / "lmdb.whl")
    assert call["environment"]["PYTHONPATH"] == f"{ROOT}:{ROOT}/kernels:{folder}:what/was:there"


def test_wheels_name_their_versions(suite: Suite, tmp_path: Path) -> None:
    """Or constraints.txt does; pydantic's core is the one that its wheel asks for."""
    done = suite.run("prepare", str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stderr
    calls = [call["arguments"] for call in suite.calls()]
    built, *downloaded = [arguments for arguments in calls if arguments[:2] == ["-m", "pip"]]
    assert all("constraints.txt" in arguments and "--no-deps" in arguments for arguments in (built, *downloaded))
    asked = [built[-1]]
    for arguments in downloaded:
        asked += arguments[arguments.index("manylinux_2_17_x86_64") + 1 :]
    assert asked[-1] == "pydantic-core==9.8.7"
    constrained = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name for name in asked if "==" not in name} <= constrained


# --------------------------------------------------------------------------------- what the parts once stumbled over


def test_the_feeders_tests_without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    tests = importlib.import_module("tests.feed.test_feeder")
    with pytest.raises(pytest.skip.Exception):
        tests.test_dali_would_copy_what_it_gives_out()


@pytest.mark.parametrize("error", [None, "called a synchronizing CUDA operation"])
def test_only_the_step_may_not_wait(monkeypatch: pytest.MonkeyPatch, error: str | None) -> None:
    """Copying a microbatch from pageable memory waits, as it may; neither the step nor drawing its masks may."""
    done: list[Any] = []

    class Bytes:
        def to(self, device: torch.device) -> Bytes:
            done.append("copied")
            return self

    class Packed(SimpleNamespace):
        def _replace(self, memory: Any) -> Packed:
            return Packed(memory=memory)

        def finish(self, step: int, masking: Any) -> str:
            done.append(f"masked by {masking}")
            return "fresh"

    def step(batch: str) -> None:
        done.append(f"step of {batch}")
        if batch == "fresh":
            with pytest.raises(RuntimeError, match="synchronize was called"):
                torch.cuda.synchronize()
            if error:
                raise RuntimeError(error)

    def pack(*_: Any) -> Packed:
        done.append("packed")
        return Packed(memory=Bytes())

    train = benchmarks.train
    candidate = train.Candidate(["first", "second", "third"], step, lambda: done.append("closed"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", done.append)
    plain = torch.cuda.synchronize
    monkeypatch.setattr(train, "ours", lambda config, step: candidate)
    monkeypatch.setattr(train, "Corpus", lambda sources: None)
    monkeypatch.setattr(train, "Packer", lambda corpus, limits: SimpleNamespace(lay_out=pack))
    monkeypatch.setattr(train, "make_plan", lambda *_: SimpleNamespace(step=lambda *_: ["samples"]))
    monkeypatch.setattr(train, "make_masking", lambda *_: "masking")
    config: Any = SimpleNamespace(data=SimpleNamespace(sources=[]))
    found = train.waits(config)
    assert (found is None) if error is None else (error in str(found))
    assert done == [
        *("step of first", "step of second", "packed", "copied", "waited"),
        *("error", "masked by masking", "step of fresh", "default", "closed"),
    ]
    assert torch.cuda.synchronize is plain


@pytest.mark.parametrize("lost", ["GELU", "attention"])
def test_figures_of_operations_are_written_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """What a limit of time cuts off is what comes after it."""

    def measure(name: str, *_: Any) -> list[dict[str, Any]]:
        if lost in name:
            raise KeyboardInterrupt
        return [{"operation": name}]

    def measure_attention(shape: ops_attention.Shape, name: str) -> dict[str, Any]:
        if shape.mix == "real":
            raise KeyboardInterrupt
        return {"candidate": name}

    monkeypatch.setattr(ops, "ceilings", lambda: {"matmul": 1.0, "bandwidth": 1.0})
    monkeypatch.setattr(ops_parts, "measure", measure)
    monkeypatch.setattr(ops_parts, "_print", lambda *_: None)
    monkeypatch.setattr(ops_parts, "_lines", lambda *_: [])
    monkeypatch.setattr(ops_attention, "measure", measure_attention)
    with pytest.raises(KeyboardInterrupt):
        ops.on_gpu([256], tmp_path / "ops.json")
    figures = json.loads((tmp_path / "ops.json").read_text())["figures"]
    names = list(ops_parts.OPERATIONS)
    expected = names[: names.index("bias, GELU")] if lost == "GELU" else names
    assert [row["operation"] for row in figures["operations"]] == [name for name in expected for _ in range(3)]
    assert {row["candidate"] for row in figures["attention"]} == (
        set() if lost == "GELU" else set(ops_attention.CANDIDATES)
    )
