"""The step check where there is no GPU: what it can tell holds, and what does not hold is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import check
from imagebert.model import PRESETS
from imagebert_kernels import backend
from tests.test_layout import ROOT


@pytest.mark.slow
def test_all_that_a_cpu_can_check_holds(tmp_path: Path) -> None:
    """As a user calls it, on PyTorch's reference; the interpreter has the test below."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    call = [sys.executable, "-m", "benchmarks.check", "--steps", "3", "--json", str(tmp_path / "check.json")]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "check.json").read_text())["figures"]["checks"]
    assert [row["holds"] for row in rows if "left_out" not in row] == [True] * 7
    assert sum(line.startswith(("yes ", "left out ")) for line in done.stdout.splitlines()) == len(rows) == 12


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> check.Trainer:
    monkeypatch.setattr(check, "PRESET", (1, 32, 1))
    monkeypatch.setattr(check, "PAIRS", 4)
    monkeypatch.setattr(check, "SIZES", (16, 5, 40))
    monkeypatch.setitem(PRESETS, "base", PRESETS["base"])  # which the trainer changes
    monkeypatch.setattr(backend, "_chosen", "auto")
    check.distributed.start()
    return check.Trainer(tmp_path, steps=2)


@pytest.mark.slow
def test_kernels_and_fill_in_the_interpreter(trainer: check.Trainer) -> None:
    kernels = check.Way("triton", dropout=0.0)
    plain = trainer.losses(kernels)
    assert plain[0] != plain[1]
    assert check.difference(plain, trainer.losses(kernels._replace(kernels="reference"))) < 1e-5
    dropping = kernels._replace(dropout=0.1)
    assert check.difference(trainer.losses(dropping), plain) > 1e-3
    assert check.difference(trainer.losses(dropping._replace(filled=True)), trainer.losses(dropping)) < 1e-5


class Made:
    """Losses that were not trained."""

    steps = 2

    def losses(self, way: check.Way) -> list[float]:
        if way.deepspeed == "zero2":
            raise RuntimeError("no memory")
        return [3.0, 2.1] if way.filled else [3.0, 2.0]

    train = losses

    def again(self, **_: str) -> list[float]:
        return [3.0, float("nan")]

    def as_a_user(self) -> list[float]:
        return [3.0, 2.0]


def test_what_does_not_hold_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["name"]: row for row in check.checks(Made())}  # type: ignore[arg-type]
    wrong = {name for name, row in rows.items() if not row.get("holds", True)}
    assert wrong == {
        "filled up to one shape as without fill",
        "ZeRO 2 as ZeRO 1",
        "the same bits in another process",
    }
    printed = capsys.readouterr().out
    assert "NO       filled up to one shape as without fill: 0.05, at most 0.0001" in printed
    assert "RuntimeError: no memory" in printed
    monkeypatch.setattr(check, "checks", lambda trainer: list(rows.values()))
    monkeypatch.setattr(check, "Trainer", lambda folder, steps: Made())
    monkeypatch.setattr(sys, "argv", ["check"])
    with pytest.raises(SystemExit) as end:
        check.main()
    assert end.value.code
