"""Scripts beside these modules that read files which may break whoever reads them: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def started(script: Path, *arguments: str) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """What it writes, and what waits for its end and gives its exit code. Behind the block there is no process."""
    with subprocess.Popen(
        [sys.executable, "-P", str(script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout, process.wait
        finally:
            process.kill()
