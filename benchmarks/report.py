"""What every benchmark says besides its figures: machine, versions, commit, command, and the lines it must reach."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from imagebert.files import write_json

_PACKAGES = (
    *("torch", "triton", "deepspeed", "transformers", "numpy", "lmdb", "onnxruntime"),
    *("nvidia-dali-cuda130", "webdataset", "mosaicml-streaming"),
)


class Line(NamedTuple):
    """A figure beside the least, or the most, that it should be."""

    name: str
    value: float
    line: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.line if self.at_most else self.value >= self.line


def environment() -> dict[str, Any]:
    processor = next(
        (line.split(":")[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        # Where things lie on this machine is nobody's business: of an absolute path the name stays.
        "command": " ".join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}"]
            + [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
        ),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _commit() -> str:
    """Of this tree; where it is a copy without its history, IMAGEBERT_COMMIT says it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)

    try:
        commit = git("rev-parse", "HEAD").stdout.strip()
        return commit + (" with changes" if git("status", "--porcelain", "--untracked-files=no").stdout else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("IMAGEBERT_COMMIT", "unknown")


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def publish(figures: dict[str, Any], lines: list[Line], path: Path | None) -> None:
    """Prints the lines, if any; with a path writes figures, lines and environment as JSON."""
    table = Table("line", "value", "should be", "holds")
    for line in lines:
        bound = f"at {'most' if line.at_most else 'least'} {line.line:g}"
        table.add_row(line.name, f"{line.value:.3g}", bound, "yes" if line.holds else "NO")
    if lines:
        Console().print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        recorded = [{**line._asdict(), "holds": line.holds} for line in lines]
        result = {**environment(), "figures": figures, "lines": recorded}
        write_json(path, result)
