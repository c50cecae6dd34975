"""The wheel as it is installed, and what a release is held against."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.corpora import write_corpus

ROOT = Path(__file__).parents[1]
SOURCES = {"imagebert": "imagebert", "ds_configs": "imagebert/ds_configs", "slurm": "imagebert/slurm"}
SOURCES |= {"kernels/imagebert_kernels": "imagebert_kernels"}  # folder of the tree -> of the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what an earlier build left in build/ would be packed, too."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=folder, check=True, capture_output=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def test_the_wheel_has_every_file_of_its_folders(wheel: Path) -> None:
    expected = {
        f"{inside}/{path.relative_to(ROOT / outside).as_posix()}"
        for outside, inside in SOURCES.items()
        for path in (ROOT / outside).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {"imagebert/slurm/lib/job.sh", "imagebert/ds_configs/zero0.json", "imagebert/ladders/mrfr.yaml"} < names
    assert names == expected


def test_scripts_are_installed_as_executable_as_they_were(installed: Path) -> None:
    for path in (ROOT / "slurm").rglob("*.sh"):
        copy = installed / "imagebert/slurm" / path.relative_to(ROOT / "slurm")
        assert os.access(copy, os.X_OK) == os.access(path, os.X_OK), copy


def test_jobs_are_submitted_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    """No checkout anywhere: the recipe is looked at, by the installed command, and what would run is it."""
    for name in ("lait", "cc", "sbu", "flickr30k"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_corpus(tmp_path / "data" / name)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").touch()
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "IMAGEBERT_"))}
    env = plain | {"PYTHONPATH": str(installed), "PATH": f"{installed}/bin:{os.environ['PATH']}"}

    def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "imagebert/slurm" / script), "--dry-run", "--from", "bert", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    done = call("stage1.sh", "--nodes", "2")
    assert (done.returncode, done.stderr) == (0, "")
    submitted, doctor, train = done.stdout.splitlines()
    assert submitted.startswith("sbatch ")
    assert submitted.endswith(f" {installed}/imagebert/slurm/stage1.sh --from bert --nodes 2")
    assert " imagebert doctor " in doctor
    assert " imagebert pretrain stage1_lait " in train
    done = call("stage1.sh", "schedule.bach_size=3")
    assert (done.returncode, "schedule.bach_size" in done.stderr) == (2, True)
    done = call("pipeline.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.endswith(":")] == [
        *("stage1:", "stage2:", "finetune:", "evaluate:")
    ]


# ------------------------------------------------------------------------------------------------------------- release


@pytest.mark.parametrize(
    ("changelog", "cited", "tags", "refused"),
    [
        ("1.2.0, unreleased", "1.2.0", [], None),
        ("1.2.0, 2026-11-26", "1.2.0", ["v1.2.0"], None),
        ("1.1.0, 2026-11-26", "1.2.0", [], "CHANGELOG.md begins with 1.1.0"),
        ("1.2.0, unreleased", "1.1.0", [], "CITATION.cff is of 1.1.0"),
        ("1.2.0, 2026-11-26", "1.2.0", ["v1.2.1"], "the tag v1.2.1"),
        ("1.2.0, unreleased", "1.2.0", ["v1.2.0"], "CHANGELOG.md calls it 1.2.0, unreleased"),
    ],
)
def test_a_release_has_one_version(
    changelog: str, cited: str, tags: list[str], refused: str | None, tmp_path: Path
) -> None:
    agreed_version = runpy.run_path(str(ROOT / ".ci/release.py"))["agreed_version"]
    (tmp_path / "imagebert").mkdir()
    (tmp_path / "imagebert/__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {changelog}\n\n- x\n\n## 0.9.0, 2025-01-01\n")
    (tmp_path / "CITATION.cff").write_text(f"cff-version: 1.2.0\nversion: {cited}\n")
    if refused is None:
        assert agreed_version(tmp_path, tags) == "1.2.0"
    else:
        with pytest.raises(SystemExit, match=re.escape(refused)):
            agreed_version(tmp_path, tags)


def test_this_tree_has_one_version() -> None:
    assert runpy.run_path(str(ROOT / ".ci/release.py"))["agreed_version"](ROOT, [])


def test_the_python_that_is_said_is_the_python_that_is_tried() -> None:
    """Classifiers, the Makefile, the README and the workflows; a release looks at the first and the last."""
    said = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "setup.py").read_text())
    assert said[0] == "3.11"
    oldest_and_newest = (said[0], said[-1])
    assert runpy.run_path(str(ROOT / ".ci/release.py"))["OLDEST_AND_NEWEST"] == oldest_and_newest
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == said
    assert tuple(jobs["wheel"]["strategy"]["matrix"]["python"]) == oldest_and_newest
    for name in ("README.md", "Makefile"):
        assert "Python {} to {}".format(*oldest_and_newest) in (ROOT / name).read_text(), name


def test_workflows_call_what_is_there() -> None:
    """Targets of the Makefile, and actions by their major version."""
    targets = {*re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)}
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        steps = [step for job in jobs for step in job["steps"]]
        called = {step["run"][5:] for step in steps if step.get("run", "").startswith("make ")}
        chosen = {target for job in jobs for target in job.get("strategy", {}).get("matrix", {}).get("target", [])}
        assert called
        assert (called - {"${{ matrix.target }}"}) | chosen <= targets
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
