"""Rules of the tree that a tool would not check."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebert import api
from imagebert.renamed import warn_renamed

ROOT = Path(__file__).parents[1]
GATES = {
    "lmdb": {"imagebert/data/environments.py"},
    "deepspeed": {"imagebert/engine/engine.py", "imagebert/engine/optimizers.py"},
    "yaml": {"imagebert/strict_yaml.py"},
    # The second one needs neither torch nor networks of regions.
    "onnxruntime": {"imagebert/regions/networks.py", "imagebert/lait/nsfw.py"},
    "mpi4py": {"imagebert/workers.py"},
    "apex": {"imagebert/engine/optimizers.py"},
    "huggingface_hub": {"imagebert/model/modeling.py"},
    "h5py": {"imagebert/data/readers/hdf5.py"},
    "lz4": {"imagebert/data/captions/uniter.py"},
    "msgpack": {"imagebert/data/readers/lmdbs.py", "imagebert/data/captions/uniter.py"},
    "nvidia": {"imagebert/feed/dali.py", "imagebert/regions/dali_decoder.py"},
    "pyarrow": {
        "imagebert/data/parquet_rows.py",
        "imagebert/data/readers/table_rows.py",
        "imagebert/retrieval/queries.py",
        # What LAIT's steps hand on to each other are tables.
        *(f"imagebert/lait/{step}.py" for step in ("aggregate", "archived", "filter", "pages", "plan", "report")),
        *(f"imagebert/lait/{step}.py" for step in ("score", "shards", "tables", "wanted")),
        "imagebert/demo/from_web.py",
    },
    "faiss": {"imagebert/retrieval/candidates.py"},
    "starlette": {"imagebert/retrieval/serve.py"},
    "uvicorn": {"imagebert/retrieval/server.py"},
    "h11": {"imagebert/retrieval/server.py"},
}


def test_nothing_shadows_hugging_faces_kernels() -> None:
    tracked = [p for p in ROOT.rglob("*.py") if ".venv" not in p.parts]
    assert not [p for p in tracked if p.name == "kernels.py"]
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "tests/kernels/__init__.py").exists()


def test_transformers_models_import_from_the_repository_root() -> None:
    code = "import transformers; from transformers import BertModel, VisualBertForPreTraining"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_one_gate_per_third_party() -> None:
    for module, gates in GATES.items():
        pattern = re.compile(rf"^\s*(import|from) {module}\b", re.M)
        users = {
            str(p.relative_to(ROOT))
            for folder in ("imagebert", "kernels")
            for p in (ROOT / folder).rglob("*.py")
            if pattern.search(p.read_text())
        }
        assert users == gates, module


def test_triton_stays_among_the_kernels() -> None:
    users = [
        p for p in (ROOT / "imagebert").rglob("*.py") if re.search(r"^\s*(import|from) triton\b", p.read_text(), re.M)
    ]
    assert users == []


@pytest.mark.parametrize(("asked", "seen"), [(None, ""), ("1", ""), ("0", "3")])
def test_tests_hide_a_gpu_unless_it_is_asked_for(asked: str | None, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv("TRITON_INTERPRET")
    if asked is not None:
        monkeypatch.setenv("TRITON_INTERPRET", asked)
    runpy.run_path(str(ROOT / "tests/conftest.py"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, imagebert.cli; print([m for m in ('torch', 'numpy', 'yaml', 'dataclasses') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# Options of the scripts in slurm/, of srun, and of another project.
NOT_OURS = {"--runs", "--from", "--local", "--cpus-per-task", "--exclude", "--mpi", "--background"}


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a module, formatted ones with {} for what is put in; docstrings are none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def test_below_the_command_line_no_sentence_names_an_option() -> None:
    """It may be read in a notebook; a whole command is understood there, too."""
    drives = {ROOT / "imagebert/side_by_side.py"}  # it calls the command
    paths = set((ROOT / "imagebert").rglob("*.py")) - set((ROOT / "imagebert/cli").rglob("*.py")) - drives
    named = {
        (str(path.relative_to(ROOT)), option)
        for path in paths
        for text in texts_of(path)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"imagebert [a-z][^`\n]*", "", text))
    }
    assert {(path, option) for path, option in named if option not in NOT_OURS} == set()


def test_the_api_has_what_its_modules_define() -> None:
    """Its table of names is written by hand, so that it imports nothing before it is asked."""
    for module, names in api._MODULES.items():
        found = importlib.import_module(f"imagebert.api.{module}")
        own = {
            name
            for name, value in vars(found).items()
            if getattr(value, "__module__", "") == found.__name__ and not name.startswith("_")
        }
        assert own - {"open_recipe", "names_of", "paths_of"} <= set(names) <= set(vars(found))
    assert dir(api) == sorted(api._MODULE_OF)
    with pytest.raises(AttributeError, match=r"has no .pretain.: it has .*pretrain"):
        api.pretain  # noqa: B018


@pytest.mark.parametrize(("old", "new"), api._RENAMED.items())
def test_names_of_the_version_before_work_and_say_so_once(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_renamed.cache_clear()
    assert old not in dir(api)
    assert getattr(api, old) is getattr(api, old) is getattr(api, new)
    assert [record.getMessage() for record in caplog.records] == [
        f"imagebert.api.{old} is called imagebert.api.{new} now: the next version knows no other name"
    ]


def test_documents_name_what_the_api_has() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "imagebert/api/__init__.py",
    ]
    named = {name for page in pages for name in re.findall(r"\bapi\.(\w+)\(", page.read_text(encoding="utf-8"))}
    assert {"pairs", "finetune", "evaluate"} <= named <= set(dir(api))


def test_whoever_imports_the_api_imports_nothing_heavy() -> None:
    code = "import sys; from imagebert import api; print([m for m in ('torch', 'numpy', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_functions_are_short_and_take_little() -> None:
    """80 lines and 8 parameters at most; what is longer is listed, and leaves the list when it is not."""
    longer = {
        ("imagebert/model/configuration.py", "__init__"),  # a configuration, as transformers wants it
    }
    found = set()
    for path in (ROOT / "imagebert").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                lines, taken = (node.end_lineno or 0) - node.lineno + 1, len(set(given) - {"self", "cls"})
                if lines > 80 or taken > 8:
                    found.add((str(path.relative_to(ROOT)), node.name))
    assert found == longer


STARTS_RANKS = {("tests.forked", "start_ranks"), ("tests.forked", "free_port"), ("", "mpirun"), ("", "MPIRUN")}


def test_what_starts_ranks_is_marked() -> None:
    """`pytest -m "not ranks"` starts none: neither in a test, nor in what it calls or is given. Who asks for a port has
    ranks that meet there."""
    uses: dict[tuple[str, str], set[tuple[str, str]]] = {}  # of a module's name: the names in it, and whose they are
    marked = set()
    for path in (ROOT / "tests").rglob("*.py"):
        module, tree = ".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_text())
        whole = any("ranks" in marks_in(node) for node in tree.body if isinstance(node, ast.Assign))
        defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        owners = {alias.name: node.module or "" for node in imported for alias in node.names}
        owners |= {node.name: module for node in defined}
        for node in defined:
            uses[module, node.name] = {(owners.get(name, ""), name) for name in names_in(node)}
            if whole or any("ranks" in marks_in(decorator) for decorator in node.decorator_list):
                marked.add((module, node.name))
    starting = set(STARTS_RANKS)
    while new := {part for part, names in uses.items() if names & starting} - starting:
        starting |= new
    tests = {(module, name) for module, name in starting if name.startswith("test_")}
    assert len(tests) > 20
    assert tests - marked == set()


def names_in(tree: ast.AST) -> Iterator[str]:
    """Variables and arguments, and texts, of which one may name a program."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Constant(value=str(name)):
                yield name


def marks_in(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
