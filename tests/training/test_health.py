from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imagebert.training.health import Health


def test_a_step_that_cannot_be_written_down_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "skipped").write_text("a file in the folder's place")
    health = Health(tmp_path, ["a"], 10, lambda step: {"pairs": [f"of step {step}"]})
    health.note(6, 1.0, float("inf"), torch.tensor([float("nan")]))
    assert health.look()
    assert "step 7 moved nothing" in caplog.text
    assert "cannot write" in caplog.text
    assert "of step 6" in caplog.text
    health.note(7, 0.0, 1.0, torch.tensor([1.0]))
    assert not health.look()
