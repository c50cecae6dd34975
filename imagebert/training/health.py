"""Steps that moved nothing because their gradient was not finite: found without waiting for the GPU, kept, limited.

Whether a step was one of these is known on the device only; it is looked at when the run logs or saves. Each is written
down with its place in the plan (`skipped/step-00000123.json` in the run's folder), which is all that is needed to have
it again: its batch, masks and dropout are functions of the step.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imagebert import distributed
from imagebert.files import write_json

log = logging.getLogger(__name__)


class _Noted(NamedTuple):
    step: int
    skipped: Tensor  # [] 1: it moved nothing
    norm: Tensor  # []
    sums: Tensor  # [losses] of this rank


class Health:
    """Collective: all ranks make the same calls.

    Args:
        folder: of the run
        names: of the losses
        limit: skipped steps in a row that end the run
        describe: what a step consists of, as plain data

    Attributes:
        folder: where they are written down
        in_a_row: skipped steps that were the last ones when it was looked
    """

    def __init__(
        self, folder: Path, names: Sequence[str], limit: int, describe: Callable[[int], dict[str, Any]]
    ) -> None:
        self.folder, self._names, self._limit, self._describe = folder / "skipped", names, limit, describe
        self._noted: list[_Noted] = []
        self.in_a_row = 0

    def note(self, step: int, skipped: Tensor | float, norm: Tensor | float, sums: Tensor) -> None:
        """Remembers step number `step`, counted from 0; nothing is waited for."""
        flag, size = (torch.as_tensor(v, dtype=torch.float32, device=sums.device) for v in (skipped, norm))
        self._noted.append(_Noted(step, flag, size, sums))

    def look(self) -> bool:
        """Whether the last step was skipped; writes down those that were since the last look. Synchronises.

        Raises:
            FloatingPointError: too many were, one behind the other.
        """
        noted, self._noted = self._noted, []
        flags = torch.stack([n.skipped for n in noted]).tolist()
        for bad, found in zip(flags, noted, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                self._write(found)
            if self.in_a_row >= self._limit:
                raise FloatingPointError(
                    f"loss or gradient was not finite in {self.in_a_row} steps in a row, up to step {found.step + 1}: "
                    f"nothing was saved since; see {self.folder}, then lower the learning rate or mend the data"
                )
        return bool(flags[-1])

    def _write(self, found: _Noted) -> None:
        # Which rank it came from: that one's own sum of losses, mostly.
        flags = torch.zeros(distributed.world_size())
        flags[distributed.rank()] = float(not found.sums.isfinite().all())
        ranks = [rank for rank, flag in enumerate(distributed.total(flags.tolist())) if flag]
        losses = distributed.total(found.sums.tolist())
        if distributed.rank() != 0:
            return
        path = self.folder / f"step-{found.step + 1:08d}.json"
        content = {
            "step": found.step + 1,
            "gradient_norm": str(float(found.norm)),
            "sums_of_losses": dict(zip(self._names, map(str, losses), strict=True)),
            "ranks_whose_loss_is_not_finite": ranks,
            **self._describe(found.step),
        }
        log.warning("step %d moved nothing: its gradient is not finite; see %s", found.step + 1, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        except OSError as error:
            log.warning("cannot write %s (%s): %s", path, os.strerror(error.errno or errno.EIO), json.dumps(content))
