from __future__ import annotations

import json
from pathlib import Path

from benchmarks.track import FIGURES, read, summary


def test_a_damaged_log_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    recall = {f"recall/{name}": 30.0 for name in FIGURES} | {"recall/seconds": 1.0}
    lines = [
        json.dumps({"step": 1, "time/seconds": 3600.0, "rate/pairs_per_second": 5.0}),
        "{damaged",
        json.dumps({"step": 2}),
        json.dumps({"step": 3, "time/seconds": 7200.0, **recall}),
        json.dumps({"step": 4, "time/seconds": 9000.0, "recall/rsum": 1.0}),
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    (curve,) = read(tmp_path)
    assert [(point["step"], point["hours"]) for point in curve["points"]] == [(3, 2.0)]
    assert summary(curve, "rsum", 20.0)["steps to target"] == 3
