"""The tests of this folder alone, as benchmarks/gpu_suite.sh runs them on a GPU: without the rest of the program."""

from tests.poison import _poisoned_memory  # noqa: F401
