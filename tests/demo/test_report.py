from __future__ import annotations

import json
from pathlib import Path

from imagebert.demo.report import _curves


def test_curves_of_damaged_logs(tmp_path: Path) -> None:
    """A step that was skipped has no loss, a line is broken, one run has no log at all."""
    lines = [json.dumps({"step": s, "loss/mlm": 1.0 / s, "loss/total": 2.0}) for s in range(1, 9)]
    (tmp_path / "one").mkdir()
    (tmp_path / "one/log.jsonl").write_text("\n".join([*lines, "{", json.dumps({"step": 9})]))
    (chart,) = _curves(tmp_path, ["one", "none"])
    assert "masked words" in chart
    assert chart.count("<polyline") == 1
    assert _curves(tmp_path, ["none"]) == [""]
