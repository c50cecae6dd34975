"""Ranks as srun starts them, without MPI: plain processes with its variables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.data.regions import RegionStore
from tests.data.readers.test_formats import make, write_bottom_up
from tests.data.test_transfer import bottom_up

IMAGEBERT = [sys.executable, "-m", "imagebert"]


def srun(ranks: int, command: Sequence[str | Path], **more: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(ranks):
        place = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(ranks), "SLURM_LOCALID": str(rank)}
        processes.append(
            subprocess.Popen(
                list(map(str, command)),
                env=os.environ | rendezvous | place | more,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def records(path: Path) -> dict[str, bytes]:
    store = RegionStore(path)
    return {store.key(i): store.read(i).features.tobytes() for i in range(len(store))}


@pytest.mark.parametrize("ranks", [2, 3])
def test_an_import_and_what_is_made_of_it_are_shared(ranks: int, tmp_path: Path) -> None:
    images = [image._replace(key=f"{k}-{image.key}") for k in range(3) for image in make()]
    _, path = write_bottom_up(tmp_path, images)
    done = srun(ranks, [*IMAGEBERT, "import", "auto", path, tmp_path / "out"])
    assert [code for code, *_ in done] == [0] * ranks, done
    assert done[0][1].splitlines()[-1] == f"15 images: 15 stored in {tmp_path / 'out'}, 0 refused"
    assert [out for _, out, _ in done[1:]] == [""] * (ranks - 1)
    assert main(["import", "auto", str(path), str(tmp_path / "one")]) == 0
    several, one = RegionStore(tmp_path / "out"), RegionStore(tmp_path / "one")
    assert several.content == one.content
    assert len({shard["name"][:9] for shard in several.shards}) == ranks
    assert records(tmp_path / "out") == records(tmp_path / "one")
    # Two stores one behind the other, in one meeting.
    parts = srun(ranks, [*IMAGEBERT, "store", "split", tmp_path / "out", tmp_path / "part", "--parts", "2"])
    assert [code for code, *_ in parts] == [0] * ranks, parts
    assert records(tmp_path / "part-0") | records(tmp_path / "part-1") == records(tmp_path / "one")


def test_when_one_rank_fails_all_end_and_say_why(tmp_path: Path) -> None:
    path = bottom_up(tmp_path)
    done = srun(3, [*IMAGEBERT, "import", "bottom-up-attention", path, tmp_path / "out", "--strict"])
    codes = [code for code, *_ in done]
    assert sorted(codes)[-1] == 2, done
    assert 0 not in codes
    assert all("image '1001': features" in errors for *_, errors in done)
    assert sum("another rank failed: rank" in errors for *_, errors in done) == 2
    assert not (tmp_path / "out").exists()
