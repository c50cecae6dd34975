"""The notebook runs from top to bottom, and is kept without what it printed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = nbformat.read(ROOT / "docs/first_steps.ipynb", as_version=4)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("notebook")
    paths = f"{ROOT}:{ROOT / 'kernels'}:{os.environ.get('PYTHONPATH', '')}"
    notebook: Any = NOTEBOOK.copy()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": paths, "TMPDIR": str(folder), "IPYTHONDIR": str(folder)}.items():
            patch.setenv(name, value)
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")


def test_nothing_that_it_printed_is_kept() -> None:
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_losses_fall(printed: str) -> None:
    masked_words = [float(loss) for loss in re.findall(r"mlm (\d+\.\d+)", printed)]
    assert len(masked_words) == 4
    assert masked_words[-1] < masked_words[0] - 0.3


@pytest.mark.slow
def test_pictures_are_found(printed: str) -> None:
    assert "24 images; the first one, scene-00000.jpg" in printed
    assert "they begin and end at [0, " in printed
    recall, chance = re.findall(r"R@5, text finds image: (\S+) % \(by chance (\S+) %\)", printed)[0]
    assert 0 <= float(recall) <= 100
    assert float(chance) == pytest.approx(100 * 5 / 24, abs=0.1)
