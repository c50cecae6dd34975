"""What all tests share: poisoned memory, and one small corpus of random records and captions."""

from __future__ import annotations

import os

# Before any kernel is imported: Triton decides then. Kernels are compiled in tests/kernels/test_compiled.py only, and
# where a GPU suite says TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")
if os.environ["TRITON_INTERPRET"] == "1":
    # Nor would losses in bf16 be the golden ones, nor two ranks share a GPU: what a CPU tests is the same everywhere.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Models here are so small that threads wait for each other longer than they work; several ranks on two cores more so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from collections.abc import Generator
from pathlib import Path

import pytest

from imagebert.config import SourceConfig
from tests.corpora import write_corpus
from tests.poison import _poisoned_memory  # noqa: F401


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """A corpus of 24 images with 1 to 7 regions and 3 captions each; see tests/corpora.py."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def recipe(source: SourceConfig, tmp_path: Path) -> list[str]:
    """Overrides that make tests/recipe.yaml a run on that corpus."""
    return [
        f"output={tmp_path / 'run'}",
        f"data.sources.0.regions={source.regions}",
        f"data.sources.0.pairs={source.pairs}",
    ]


def pytest_collection_finish() -> None:
    """All modules are imported by now: DeepSpeed looks for garbage at each run's end, and need not look in those."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Names of files may be no text; what a process reports to another has to be."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
