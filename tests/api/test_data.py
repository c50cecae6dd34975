"""Data from Python: what is counted is what the stores hold, and nothing is printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagebert import api
from imagebert.config import SourceConfig, UsageError
from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from tests.corpora import write_vocabulary
from tests.data.readers.checks import NAMES, make
from tests.data.readers.test_tsv import write_lxmert


def test_captions(source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, listed = tmp_path / "captions.csv", tmp_path / "test.txt"
    names = ["lost.jpg", *(f"image{number:03d}.jpg" for number in range(6)), "other.jpg"]
    table.write_text("image,caption\n" + "".join(f"{name},word01\n" for name in names))
    listed.write_text("\n".join(names[:-1]))
    vocabulary = write_vocabulary(tmp_path).path
    stores = source.regions  # one, or a list
    done = api.pairs(table, tmp_path / "a", vocabulary, splits={"test": listed}, regions=stores)
    assert (done.came, done.stored, done.without_regions, done.left_out, done.refused) == (8, 6, 1, 1, 0)
    assert (done.images, done.splits, done.folder) == (6, ("test",), tmp_path / "a")
    assert any("1 images with 1 captions have no regions" in note for note in done.notes)
    assert api.pairs(table, tmp_path / "a", vocabulary, splits={"test": listed}, regions=stores) == done
    api.pairs(table, tmp_path / "b", vocabulary, splits=[("test", names[:3]), ("test", names[3:-1])], regions=[stores])
    assert PairStore(tmp_path / "a").content == PairStore(tmp_path / "b").content
    with pytest.raises(UsageError, match="match stem finds images in region stores: name them in `regions`"):
        api.pairs(table, tmp_path / "c", vocabulary, options=api.CaptionOptions(match="stem"))
    with pytest.raises(UsageError, match="split test lists no image"):
        api.pairs(table, tmp_path / "c", vocabulary, splits={"test": []})
    assert capsys.readouterr().out == ""


def test_published_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make()
    _, path = write_lxmert(tmp_path, images)
    features = api.survey_features(path, classes=NAMES)
    assert (features.format, features.classes) == ("lxmert", tuple(NAMES))
    assert f"{path}: lxmert, about 5 images" in features.lines[0]
    done = api.import_features(features, tmp_path / "out", options=api.StoreOptions(features="float32"))
    assert (done.came, done.stored, done.refused) == (5, 5, 0)
    store = RegionStore(tmp_path / "out")
    (place,) = store.find(np.array([images[2].key.encode()]))
    np.testing.assert_array_equal(store.read(int(place)).features, images[2].features)
    assert store.extractor["name"] == "lxmert"
    # A path is surveyed with nothing told, and features are bytes where nothing else is said.
    api.import_features([path], tmp_path / "plain", extractor="mine")
    assert api.inspect(tmp_path / "plain")["feature_type"] == "int8"
    assert RegionStore(tmp_path / "plain").extractor["name"] == "mine"
    assert [(found.kind, found.problems) for found in api.verify(tmp_path / "out", threads=1)] == [("region store", [])]
    assert api.accept(tmp_path / "out") == []
    with pytest.raises(UsageError, match="layout has no 'units'"):
        api.survey_features(path, layout={"units": "pixels"})
    assert "lxmert" in api.formats()
    assert capsys.readouterr().out == ""
