"""Ranks as srun starts them, without MPI: plain processes with its variables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.training.hard_negatives import read_hard_negatives
from tests.corpora import write_vocabulary
from tests.data.readers.checks import make
from tests.data.readers.test_tsv import write_bottom_up
from tests.data.test_transfer import bottom_up
from tests.forked import IMAGEBERT, free_port, start
from tests.retrieval.test_scoring import make_model

pytestmark = pytest.mark.ranks


def srun(ranks: int, code: str, *arguments: object, **more: str) -> list[tuple[int | None, str, str]]:
    """Exit code, output and errors of each rank."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(ranks):
        place = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(ranks), "SLURM_LOCALID": str(rank)}
        processes.append(start(code, *arguments, **rendezvous, **place, **more))
    found = [process.communicate() for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def records(path: Path) -> dict[str, bytes]:
    store = RegionStore(path)
    return {store.key(i): store.read(i).features.tobytes() for i in range(len(store))}


@pytest.mark.parametrize("ranks", [2, 3])
def test_an_import_and_what_is_made_of_it_are_shared(ranks: int, tmp_path: Path) -> None:
    images = [image._replace(key=f"{k}-{image.key}") for k in range(3) for image in make()]
    _, path = write_bottom_up(tmp_path, images)
    done = srun(ranks, IMAGEBERT, "import", "auto", path, tmp_path / "out")
    assert [code for code, *_ in done] == [0] * ranks, done
    assert done[0][1].splitlines()[-1] == f"15 images: 15 stored in {tmp_path / 'out'}, 0 refused"
    assert [out for _, out, _ in done[1:]] == [""] * (ranks - 1)
    assert main(["import", "auto", str(path), str(tmp_path / "one")]) == 0
    several, one = RegionStore(tmp_path / "out"), RegionStore(tmp_path / "one")
    assert several.content == one.content
    assert len({shard["name"][:9] for shard in several.shards}) == ranks
    assert records(tmp_path / "out") == records(tmp_path / "one")
    # Two stores one behind the other, in one meeting.
    parts = srun(ranks, IMAGEBERT, "store", "split", tmp_path / "out", tmp_path / "part", "--parts", "2")
    assert [code for code, *_ in parts] == [0] * ranks, parts
    assert records(tmp_path / "part-0") | records(tmp_path / "part-1") == records(tmp_path / "one")


def test_when_one_rank_fails_all_end_and_say_why(tmp_path: Path) -> None:
    path = bottom_up(tmp_path)
    done = srun(3, IMAGEBERT, "import", "bottom-up-attention", path, tmp_path / "out", "--strict")
    codes = [code for code, *_ in done]
    assert sorted(codes)[-1] == 2, done
    assert 0 not in codes
    assert all("image '1001': features" in errors for *_, errors in done)
    assert sum("another rank failed: rank" in errors for *_, errors in done) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranks", [2, 3])
def test_mining_is_shared_and_finds_the_same(ranks: int, source: SourceConfig, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    data = ["--regions", source.regions, "--pairs", source.pairs, "--pool", "20", "--keep", "5"]
    done = srun(ranks, IMAGEBERT, "mine", tmp_path / "model", tmp_path / "several", *data)
    assert [code for code, *_ in done] == [0] * ranks, done
    assert ["hard negatives of 24 images" in out for _, out, _ in done] == [True] + [False] * (ranks - 1)
    assert main(["mine", str(tmp_path / "model"), str(tmp_path / "one"), *data]) == 0
    several, one = (read_hard_negatives(tmp_path / name, Corpus([source])) for name in ("several", "one"))
    for found, expected in zip(several, one, strict=True):  # the file's header has no fixed order
        np.testing.assert_array_equal(found, expected)


DETECTOR = """
import numpy as np
import torch


class Network(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, pixels):
        if self.outputs == 1:
            return torch.nn.functional.avg_pool2d(pixels, 8)
        boxes = torch.tensor([[[0.0, 0.0, 16.0, 16.0], [4.0, 4.0, 20.0, 30.0]]])
        return boxes, torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_extraction_is_shared(ranks: int, tmp_path: Path) -> None:
    (tmp_path / "tiny_detector.py").write_text(DETECTOR)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    network = "{module: 'tiny_detector:Network', arguments: {outputs: %d}, input: {height: 32, width: 32}}"
    detector = f"{{network: {network % 2}, classes: {tmp_path}/classes.txt, layout: boxes_scores}}"
    (tmp_path / "extractor.yaml").write_text(f"name: tiny\ndetector: {detector}\nbackbone: {network % 1}\n")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(7):
        Image.new("RGB", (40, 40), (number, 100, 200)).save(pictures / f"{number}.png")
    (pictures / "broken.jpg").write_text("no picture")
    call = ["extract", pictures, "OUT", "--extractor", tmp_path / "extractor.yaml"]
    found = {}
    for name, many in (("several", ranks), ("one", 1)):
        command = [tmp_path / name if word == "OUT" else word for word in call]
        for _ in range(2):  # a store that is there is left as it is
            done = srun(many, IMAGEBERT, *command, PYTHONPATH=str(tmp_path))
            assert [code for code, *_ in done] == [0] * many, done
            assert done[0][1].splitlines()[-1] == f"8 pictures: 7 stored in {tmp_path / name}, 1 refused"
            assert [out for _, out, _ in done[1:]] == [""] * (many - 1)
        found[name] = RegionStore(tmp_path / name)
    assert found["several"].content == found["one"].content
    assert len(found["several"].shards) in range(1, ranks + 1)  # one of each rank that was in time to claim a picture
    assert records(tmp_path / "several") == records(tmp_path / "one")


def test_one_process_work_is_done_by_the_first_rank(tmp_path: Path) -> None:
    """The others wait, since srun may end a step some seconds after its first process."""
    write_vocabulary(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a cat\nb.jpg,a dog\n")
    call = ["pairs", tmp_path / "captions.csv", tmp_path / "pairs", "--vocab", tmp_path / "vocab.txt"]
    done = srun(3, IMAGEBERT, *call)
    assert [code for code, *_ in done] == [0, 0, 0], done
    assert ["2 captions: 2 stored" in out for _, out, _ in done] == [True, False, False]
    assert ["rank 0 of 3 does it" in errors for *_, errors in done] == [True, False, False]
    assert len(PairStore(tmp_path / "pairs")) == 2
    again = srun(2, IMAGEBERT, *call, "--format", "list")  # refused by the first: no rank ends well
    assert [code for code, *_ in again] == [2, 1], again
    short = srun(2, IMAGEBERT, "recipes")
    assert [(code, bool(out)) for code, out, _ in short] == [(0, True), (0, False)]
    demo = srun(2, IMAGEBERT, "demo", "--out", tmp_path / "demo")
    assert [code for code, *_ in demo] == [2, 2]
    assert all("slurm started 2 processes of the demo" in errors for *_, errors in demo)


def test_localising_is_each_ranks_own(source: SourceConfig, tmp_path: Path) -> None:
    """On its node's disk; two on one node wait for each other."""
    done = srun(2, IMAGEBERT, "store", "localise", source.regions, tmp_path / "local")
    assert [code for code, *_ in done] == [0, 0], done
    assert RegionStore(tmp_path / "local").content == RegionStore(source.regions).content


def test_a_rank_that_is_gone_ends_the_others(tmp_path: Path) -> None:
    code = """
import sys, time, os
from imagebert import meeting
from imagebert.workers import workers
meeting._SILENT, meeting._BEAT = 1.0, 0.2
with workers() as team:
    team.barrier()
    if team.rank == 1 and sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
    if team.rank == 1:
        raise OSError("the disk is full")
    if team.rank == 2:
        time.sleep(60)  # at work: it is ended
    team.barrier()
"""
    killed, failed = (srun(3, code, how) for how in ("killed", "failed"))
    assert "rank 1 has not been heard of for 1 s" in killed[0][2]
    assert "another rank failed: rank 0 on" in killed[2][2]
    assert all("the disk is full" in errors for *_, errors in failed)
    assert all(code for code, *_ in [*killed, *failed])


def test_nothing_is_asked_of_the_store_when_python_ends() -> None:
    """A thread that is unwound within PyTorch's C++ aborts the process, whose work was done."""
    code = """
import atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))  # the last one to be called
from imagebert import meeting
from imagebert.workers import workers
meeting._BEAT = 0.05
with workers() as team:
    team.barrier()
    print([thread.name for thread in threading.enumerate()])
"""
    assert srun(2, code) == [(0, "['MainThread', 'meeting']\n['MainThread']\n", "")] * 2
