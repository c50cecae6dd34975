"""Vectors of a store and the index over them: the same by any number of ranks, kept, and refused when they changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from imagebert import api
from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.regions import RegionStore
from imagebert.files import read_json, write_sealed
from imagebert.model import ImageBertForImageTextRetrieval
from imagebert.model_folder import open_model
from imagebert.retrieval.search import Finder
from imagebert.verify import verify
from tests.forked import IMAGEBERT, finish, start_ranks
from tests.retrieval.scenes import Scenes, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    made = write_scenes(tmp_path_factory.mktemp("scenes"), images=12)
    with_dual(made, "dual")
    return made


def with_dual(scenes: Scenes, name: str, weight: float | None = None) -> Path:
    """A model like the scenes' own, with a dual head."""
    folder = scenes.folder / name
    torch.manual_seed(0)
    model = ImageBertForImageTextRetrieval.from_pretrained(scenes.folder / "model", dual_size=8)
    if weight is not None:
        assert model.dual is not None
        model.dual.image.projection.weight.data.fill_(weight)
    model.save_pretrained(folder)
    shutil.copy(scenes.folder / "vocab.txt", folder)
    return folder


def found(scenes: Scenes, name: str = "dual") -> list[int]:
    store = RegionStore(scenes.folder / "regions")
    finder = Finder(folder := open_model(scenes.folder / name), store, folder.limits)
    return [hit.number for hit in finder.images(finder.query("a red square"), top=9)]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_search_uses_the_index(
    scenes: Scenes, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("imagebert.retrieval.search.CANDIDATES", 4)
    call = ["index", str(scenes.folder / "dual"), str(scenes.folder / "regions"), "--kind"]
    assert main([*call, "flat"]) == 0
    exact, vectors = found(scenes), sorted((scenes.folder / "dual/index").iterdir())
    assert len(exact) == 4
    assert main([*call, kind]) == 0
    (file,) = (scenes.folder / "dual/index").glob("*.faiss")
    sealed = read_json(file.with_name(f"{file.name}.json"))
    assert (sealed["kind"], sealed["vectors"], sealed["dimensions"]) == (kind, 12, 8)
    assert sealed.keys() >= {"parameters", "faiss", "vectors_digest", "sha256", "digest"}
    caplog.clear()
    monkeypatch.setattr("imagebert.retrieval.search.nearest", None)
    assert found(scenes) == exact
    assert "all vectors are searched" not in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr("imagebert.retrieval.search.CANDIDATES", 4)
    # Changed: said, and all vectors are searched.
    whole = file.read_bytes()
    for change in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], b""):
        file.write_bytes(change)
        caplog.clear()
        assert found(scenes) == exact
        assert f"{file} has changed since it was written: make it again with `imagebert index`" in caplog.text
        (problem,) = [p for f in verify(scenes.folder / "dual/index", 1) for p in f.problems]
        assert str(file) in problem
    assert main([*call, kind]) == 0  # which is done
    assert [f.problems for f in verify(scenes.folder / "dual/index", 1)] == [[]]
    # Of other vectors, or with another file's description.
    described = file.with_name(f"{file.name}.json")
    for other in ({**sealed, "vectors_digest": "0"}, read_json(file.with_suffix(".json"))):
        write_sealed(described, other)
        caplog.clear()
        assert found(scenes) == exact
        assert f"{file} is of other vectors" in caplog.text
    shutil.copy(described, file.with_suffix(".json"))
    assert main([*call, "flat"]) == 0  # makes the vectors again, and removes the index
    assert sorted((scenes.folder / "dual/index").iterdir()) == vectors
    assert found(scenes) == exact


@pytest.mark.ranks
def test_any_number_of_ranks_finds_the_same(scenes: Scenes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks of five images, so that each of two ranks has some; of vectors, and of what is mined by them."""
    code = f"from imagebert.retrieval import mining, vectors; vectors._BLOCK = mining._SEARCHED = 5; {IMAGEBERT}"
    data = ["--regions", scenes.folder / "regions", "--pairs", scenes.folder / "pairs", "--split", "train"]
    for ranks in (1, 2):
        folder = with_dual(scenes, f"by-{ranks}")
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
        api.index(with_dual(scenes, "not-finite", weight=float("nan")), scenes.folder / "regions")
