"""Rules of the tree that a tool would not check."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GATES = {
    "lmdb": {"imagebert/data/environments.py"},
    "deepspeed": {"imagebert/engine/engine.py", "imagebert/engine/optimizers.py"},
    "yaml": {"imagebert/config.py"},
    "onnxruntime": {"imagebert/regions/networks.py"},
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
    code = "import sys, imagebert.cli; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
