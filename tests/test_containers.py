"""slurm/env/ as a job sources it, and the container files as far as they can be read without a builder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "slurm/env").glob("*.sh"))
# An interface to another node, at 100 Gbit/s, in place of this machine's own network.
CLUSTER = {
    "scontrol": "echo me; echo other",
    "getent": 'case $2 in me) echo "127.0.1.1 STREAM me" ;; *) echo "10.0.0.2 STREAM other" ;; esac',
    "ip": 'case $4 in 127.*) echo "local $4 dev lo src $4" ;; *) echo "$4 via 10.0.0.1 dev eth9 src 10.0.0.1" ;; esac',
    "cat": "echo 100000",
}


def sourced(file: Path, folder: Path, **given: str) -> dict[str, str]:
    """What a job's environment has after it, by the shell options of a job."""
    for name, does in CLUSTER.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    script = 'set -euo pipefail; set +u; source "$1"; set -u; env; compgen -v imagebert || true'
    env = {
        "PATH": f"{folder}:/usr/bin:/bin:/usr/sbin:/sbin",
        "SLURM_JOB_NODELIST": "me,other",
        "SLURM_JOB_NUM_NODES": "2",
    }
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(file)], env=env | given, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    variables = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    return {name: value for name, value in variables.items() if name not in {*env, "PWD", "SHLVL", "_"}}


def documented(file: Path) -> set[str]:
    own = set(re.findall(r"export (.*)", file.read_text()))
    return {name for line in own for name in re.findall(r"\b([A-Z_]{4,})=", line)}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_only_what_it_documents_is_set_and_nothing_that_was_given(file: Path, tmp_path: Path) -> None:
    found = sourced(file, tmp_path)
    names = documented(file) | documented(ROOT / "slurm/env/tcp.sh")
    assert found
    assert set(found) <= names
    given = dict.fromkeys(names, "mine")
    assert sourced(file, tmp_path, **given) == given
    assert "https://" in file.read_text()


def test_the_interface_is_the_one_that_leads_to_another_node(tmp_path: Path) -> None:
    found = sourced(ROOT / "slurm/env/tcp.sh", tmp_path)
    assert found == {
        "NCCL_SOCKET_IFNAME": "=eth9",
        "GLOO_SOCKET_IFNAME": "eth9",
        "UCX_NET_DEVICES": "eth9",
        "NCCL_SOCKET_NTHREADS": "4",
        "NCCL_NSOCKS_PERTHREAD": "4",
    }
    assert set(sourced(ROOT / "slurm/env/efa.sh", tmp_path)) == {
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "FI_EFA_USE_HUGE_PAGE",
    }


def test_slingshot_leaves_a_single_node_to_nccl(tmp_path: Path) -> None:
    file = ROOT / "slurm/env/slingshot.sh"
    assert sourced(file, tmp_path)["NCCL_NET"] == "AWS Libfabric"
    assert "NCCL_NET" not in sourced(file, tmp_path, SLURM_JOB_NUM_NODES="1")


def test_both_images_are_made_alike() -> None:
    docker = (ROOT / "containers/Dockerfile").read_text()
    apptainer = (ROOT / "containers/imagebert.def").read_text()
    images = re.findall(r"^FROM (\S+)", docker, re.M)
    assert images == re.findall(r"^From: (\S+)", apptainer, re.M)
    assert all(re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-\w+-ubuntu24\.04", image) for image in images)
    cuda = re.search(r"nvidia-dali-cuda(\d\d)0", (ROOT / "constraints.txt").read_text())
    assert cuda
    assert all(f":{cuda[1]}." in image for image in images)
    copied = {word for line in re.findall(r"^COPY ((?!--).*) \S+$", docker, re.M) for word in line.split()}
    files = apptainer.split("%files\n")[1].split("%post")[0]
    assert copied == set(re.findall(r"^    (\S+)", files, re.M))
    assert all((ROOT / source).exists() for source in copied)
    kept = re.findall(r"^!(\S+)", (ROOT / "containers/Dockerfile.dockerignore").read_text(), re.M)
    assert set(kept) == copied
    for step in ("install.sh --prefix /opt/imagebert\n", "install.sh --prefix /opt/imagebert --check\n"):
        assert step in docker
        assert step in apptainer
    for text in (docker, apptainer):
        assert {"python3-dev", "ibverbs-providers", "build-essential"} <= set(text.split())


def test_install_refuses_what_it_does_not_know() -> None:
    for arguments in (["--apex"], ["--prefix"]):
        done = subprocess.run(["sh", str(ROOT / "containers/install.sh"), *arguments], capture_output=True, check=False)
        assert done.returncode == 2
