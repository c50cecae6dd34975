"""A Ray cluster that does a step's tasks: for people who have one. The gate of ray, an extra.

All nodes see the folders by the same paths, as Slurm's do. A task whose node dies is done again on another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from imagebert.errors import UsageError

_RETRIES = 5


class _RayPool:
    """Runs functions on a cluster as a pool of processes does."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def submit(self, work: Callable[..., Mapping[str, int]], *arguments: Any) -> Future[Mapping[str, int]]:
        remote = self._ray.remote(max_retries=_RETRIES, num_cpus=1)(work)
        future: Future[Mapping[str, int]] = remote.remote(*arguments).future()
        return future


@contextmanager
def ray_pool(address: str) -> Iterator[tuple[_RayPool, int]]:
    """The cluster at an address, and how many processors it has.

    Raises:
        UsageError: ray is not installed, or there is no cluster at that address.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("a Ray cluster needs ray: pip install 'imagebert[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"there is no Ray cluster at {address} ({error}): start one with `ray start`") from None
    try:
        yield _RayPool(ray), max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()
