"""Types of arguments."""

from __future__ import annotations

import pytest

from imagebert.cli import main


def test_numbers_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    for call in (
        ["plan", "--pairs", "1e400k"],
        ["plan", "--pairs", "nank"],
        ["plan", "--epochs", "inf"],
        ["plan", "--nodes", "9" * 400],
        ["serve", "--port", "70000"],
        ["demo", "--seed", "-1"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(call)
        assert stop.value.code == 2
        assert f"argument {call[1]}: " in capsys.readouterr().err
