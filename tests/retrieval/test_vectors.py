"""Vectors of a store: the same by any number of ranks, or a sentence that says why there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagebert import api
from imagebert.config import UsageError
from tests.forked import IMAGEBERT, finish, start_ranks
from tests.retrieval.scenes import Scenes, write_dual, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    made = write_scenes(tmp_path_factory.mktemp("scenes"), images=12)
    write_dual(made, "dual")
    return made


@pytest.mark.ranks
def test_any_number_of_ranks_finds_the_same(scenes: Scenes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks of five images, so that each of two ranks has some; of vectors, and of what is mined by them."""
    code = f"from imagebert.retrieval import mining, vectors; vectors._BLOCK = mining._SEARCHED = 5; {IMAGEBERT}"
    data = ["--regions", scenes.folder / "regions", "--pairs", scenes.folder / "pairs", "--split", "train"]
    for ranks in (1, 2):
        folder = write_dual(scenes, f"by-{ranks}")
        finish(start_ranks(ranks, code, "index", folder, scenes.folder / "regions", "--kind", "ivf"))
        out = tmp_path / f"mined-{ranks}"
        finish(start_ranks(ranks, code, "mine", folder, out, *data, "--by", "vectors", "--keep", 3))
    (one,), (two,) = ((scenes.folder / name / "index").glob("*.npy") for name in ("by-1", "by-2"))
    assert np.load(one).shape == (12, 8)
    assert np.allclose(np.linalg.norm(np.load(one), axis=1), 1, atol=1e-5)
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "mined-1").read_bytes() == (tmp_path / "mined-2").read_bytes()


def test_what_cannot_be_indexed(scenes: Scenes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the model has no dual head"):
        api.index(scenes.folder / "model", scenes.folder / "regions")
    with pytest.raises(UsageError, match="kind lsh: there are flat, hnsw and ivf"):
        api.index(scenes.folder / "dual", scenes.folder / "regions", kind="lsh")  # type: ignore[arg-type]
    data = api.Data(regions=scenes.folder / "regions", pairs=scenes.folder / "pairs", split="train")
    with pytest.raises(UsageError, match="the model has no dual head"):
        api.mine(scenes.folder / "model", tmp_path / "hard", data, by="vectors")
    with pytest.raises(UsageError, match="by chance: mine by scores or by vectors"):
        api.mine(scenes.folder / "dual", tmp_path / "hard", data, by="chance")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the model's vectors are not finite numbers"):
        api.index(write_dual(scenes, "not-finite", weight=float("nan")), scenes.folder / "regions")
