"""What `make demo` must reach, read from the report that it wrote.

python -m benchmarks.demo [--report runs/demo/report.json] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.report import Line, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("runs/demo/report.json"))
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    report = json.loads(parsed.report.read_text())
    *_, mixed, two_stages, finetuned = report["ladder"]
    lines = [
        Line("image retrieval R@1, fine-tuned, times chance", finetuned["ir"]["r1"] / report["chance"]["ir"]["r1"], 20),
        Line("image retrieval R@1, two stages less one mixed", two_stages["ir"]["r1"] - mixed["ir"]["r1"], 0),
        Line("text retrieval R@1, two stages less one mixed", two_stages["tr"]["r1"] - mixed["tr"]["r1"], 0),
        Line("600 s over the seconds taken", 600 / report["seconds"], 1),
    ]
    publish(report, lines, parsed.json)


if __name__ == "__main__":
    main()
