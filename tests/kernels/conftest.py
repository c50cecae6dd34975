"""What the tests of this folder share; benchmarks/gpu_suite.sh runs them alone, without the rest of the program."""

from __future__ import annotations

import pytest
import torch

from imagebert_kernels import backend
from tests.kernels.numerics import TYPES
from tests.poison import _poisoned_memory  # noqa: F401


@pytest.fixture(params=["triton", "reference"])
def entry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both entries of an operation, one after the other."""
    monkeypatch.setenv(backend.VARIABLE, request.param)
    return str(request.param)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel, wherever it can run."""
    monkeypatch.setenv(backend.VARIABLE, "triton")


@pytest.fixture(params=[*(("triton", t) for t in TYPES), ("reference", TYPES[0])], ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The types that an entry is made for, the entry being set: the kernel, then the reference."""
    entry, kind = request.param
    monkeypatch.setenv(backend.VARIABLE, entry)
    found: torch.dtype = kind
    return found
