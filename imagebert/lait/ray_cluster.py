"""A Ray cluster that does a step's tasks: for people who have one. The gate of ray, an extra.

All nodes see the folders by the same paths, as Slurm's do. A task whose node dies is done again on another one: its
results get their names when they are whole, and are the same bytes whoever makes them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from imagebert.errors import UsageError

_RETRIES = 5  # of a task whose node dies

Work = Callable[..., Mapping[str, int]]


class _RayPool:
    """Runs functions on a cluster as a pool of processes does."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote = ray.remote(max_retries=_RETRIES, num_cpus=1)(_answer)

    def submit(self, work: Work, /, *arguments: Any) -> Future[Mapping[str, int]]:
        """The counts of a task, once it is done."""
        told: Future[Mapping[str, int]] = Future()
        told.set_running_or_notify_cancel()

        def tell(answer: Future[Any]) -> None:
            try:
                counts, kind, sentence = answer.result()
            except Exception as error:  # of the cluster, whose own have frames in them
                told.set_exception(OSError(f"Ray gave a task up: {str(error).splitlines()[0][:300]}"))
                return
            if kind:
                told.set_exception(UsageError(sentence) if kind == "UsageError" else OSError(sentence))
            else:
                told.set_result(counts)

        self._remote.remote(work, *arguments).future().add_done_callback(tell)
        return told


def _answer(work: Work, *arguments: Any) -> tuple[Mapping[str, int], str, str]:
    """What a task says, or the sentence of its error: an exception would come with its frames as its text."""
    try:
        return work(*arguments), "", ""
    except UsageError as error:
        return {}, "UsageError", str(error)
    except OSError as error:
        return {}, "OSError", str(error)


@contextmanager
def ray_pool(address: str) -> Iterator[tuple[_RayPool, int]]:
    """The cluster at an address, and how many processors it has.

    Raises:
        UsageError: ray is not installed, or there is no cluster at that address.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("a Ray cluster is asked by ray, which is missing: pip install 'imagebert[ray]'") from None
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # else ray itself asks there for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"there is no Ray cluster at {address} ({reason}): start one by `ray start`") from None
    try:
        yield _RayPool(ray), max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
