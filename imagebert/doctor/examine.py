"""The conversation of all ranks: each looks, all measure together, and everything is compared everywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

from imagebert import distributed
from imagebert.config import RunConfig
from imagebert.doctor.compare import Findings, compare
from imagebert.doctor.folder import see_together
from imagebert.doctor.look import look
from imagebert.doctor.record import write_record
from imagebert.doctor.speed import measure, measure_links
from imagebert.launch import find_job


def examine(config: RunConfig | None, quick: bool, local: Path | None = None) -> Findings:
    """Looks at this job. Collective.

    Args:
        config: a recipe whose data, disk and batch are checked too
        quick: shorter measurements
        local: a folder on each host's own disk that must be writable

    Raises:
        UsageError: the launcher's variables do not make sense.
        OSError: the ranks do not meet, or lose each other.
    """
    distributed.start(1 if config is None else config.engine.timeout_minutes)
    distributed.total([1])  # all are here: from now on clocks can be compared
    mine = look(config, local)
    if config is not None:
        mine["folder"] = see_together(Path(config.output))
    mine |= measure(quick)
    mine["links"] = measure_links(distributed.gather(mine["host"]), quick)
    ranks = [json.loads(text) for text in distributed.gather(json.dumps(mine))]
    found = compare(ranks, config)
    if config is not None and found.fit and distributed.rank() == 0 and find_job(os.environ)[0]:
        write_record(Path(config.output), mine["data"])
    return found
