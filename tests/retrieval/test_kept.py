"""The index over a store's vectors: used by searches, and refused when it changed."""

from __future__ import annotations

import shutil

import pytest

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.regions import RegionStore
from imagebert.files import read_json, write_sealed
from imagebert.lock import lock
from imagebert.model_folder import open_model
from imagebert.retrieval.kept import KeptVectors
from imagebert.retrieval.search import Finder
from imagebert.verify import verify
from tests.retrieval.scenes import Scenes, write_dual, write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    made = write_scenes(tmp_path_factory.mktemp("scenes"), images=12)
    write_dual(made, "dual")
    return made


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


def test_one_builds_at_a_time(scenes: Scenes) -> None:
    assert main(["index", str(scenes.folder / "dual"), str(scenes.folder / "regions"), "--kind", "ivf"]) == 0
    (file,) = (scenes.folder / "dual/index").glob("*.faiss")
    kept = KeptVectors(file.parent, file.stem)
    with lock(file.with_name(f".{file.name}.lock"), file), pytest.raises(UsageError, match="wait for it"):
        kept.write_index(lambda vectors: pytest.fail("built beside another"))
    assert kept.check_index()
