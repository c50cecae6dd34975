"""What a run tells: a JSON-lines log, a live console line, and DeepSpeed's monitors.

Every line of the log carries the step, so that a resumed run can drop the lines that it is about to write again.
Rates cover the time since the line before; evaluation and checkpoints stop that clock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.text import Text

_QUIET_SECONDS = 10  # between console lines where there is no terminal to rewrite


class Meter:
    """Rank 0's book-keeping of a run; on other ranks `enabled` is off and nothing is written.

    Args:
        seconds: of training before this start
        ranks: that train
        peak_share: what one pair a second is of the matmul rate of all ranks; 0: not known
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        total_steps: int,
        seconds: float,
        enabled: bool,
        ranks: int = 1,
        peak_share: float = 0.0,
    ) -> None:
        self.total_steps = total_steps
        self._ranks, self._peak_share = ranks, peak_share
        self.seconds = seconds  # of training, over all restarts
        self._pairs = self._tokens = self._seconds_data = 0.0
        self._since = time.perf_counter()
        self._elapsed = 0.0
        self._file: IO[str] | None = None
        self._live: Live | None = None
        self._console = Console(stderr=True)
        self._printed = -float("inf")
        if enabled:
            path = folder / "log.jsonl"
            kept = [line for line in read_log(path) if line["step"] <= start_step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            part = path.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
            self._file = path.open("a", encoding="utf-8")
            if self._console.is_terminal:
                self._live = Live(console=self._console, refresh_per_second=4)
                self._live.start()

    def count(self, pairs: float, tokens: float, seconds_data: float) -> None:
        """Adds a step's pairs and tokens over all ranks, and this rank's wait for data."""
        self._pairs += pairs
        self._tokens += tokens
        self._seconds_data += seconds_data

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock of the rates."""
        self._stop_clock()
        yield
        self._since = time.perf_counter()

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        self._elapsed += now - self._since
        self.seconds += now - self._since
        self._since = now

    def write(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Logs `values` of the state after `step` steps, with the rates since the line before."""
        self._stop_clock()
        elapsed = max(self._elapsed, 1e-9)
        line = {
            "step": step,
            **values,
            "rate/pairs_per_second": self._pairs / elapsed,
            "rate/tokens_per_second": self._tokens / elapsed,
            "rate/share_waiting_for_data": self._seconds_data / elapsed,
            "time/seconds": self.seconds,
            "time/ranks": self._ranks,
        }
        if self._peak_share:
            line["rate/share_of_matmul"] = self._peak_share * line["rate/pairs_per_second"]
        self._pairs = self._tokens = self._seconds_data = self._elapsed = 0.0
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._show(line)
        return line

    def _show(self, line: dict[str, float]) -> None:
        step = int(line["step"])
        left = self.seconds / max(step, 1) * (self.total_steps - step)
        losses = "  ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in line.items() if k.startswith("loss/"))
        if "recall/rsum" in line:
            losses += f"  R@1 {line['recall/ir_r1']:.1f} {line['recall/tr_r1']:.1f}  R-sum {line['recall/rsum']:.1f}"
        text = (
            f"step {step}/{self.total_steps}  {losses}  {line['rate/pairs_per_second']:.0f} pairs/s  "
            f"{line['rate/tokens_per_second']:.0f} tokens/s  {int(left) // 60}:{int(left) % 60:02d} left"
        )
        if self._live is not None:
            self._live.update(Text(text))
        elif self.seconds - self._printed > _QUIET_SECONDS or step == self.total_steps or "recall/rsum" in line:
            self._console.print(text, soft_wrap=True, highlight=False)
            self._printed = self.seconds

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
        if self._file is not None:
            self._file.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
