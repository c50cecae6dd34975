"""Real bottom-up-attention features of ten COCO images, where a folder of them is at hand (IMAGEBERT_REAL_FEATURES).

It holds train2014_obj36.tsv as LXMERT distributes it, the names of its 1,600 classes and the images themselves.
"""

from __future__ import annotations

import base64
import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebert.cli import main
from imagebert.data.regions import RegionStore

FOLDER = os.environ.get("IMAGEBERT_REAL_FEATURES")


@pytest.mark.skipif(FOLDER is None, reason="IMAGEBERT_REAL_FEATURES names no folder")
def test_ten_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FOLDER is not None
    folder = Path(FOLDER)
    file, names = folder / "train2014_obj36.tsv", folder / "objects_vocab.txt"
    call = ["import", "lxmert", str(file), str(tmp_path / "out"), "--classes", str(names), "--features", "float32"]
    assert main(call) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("10 images: 10 stored")
    store = RegionStore(tmp_path / "out")
    csv.field_size_limit(sys.maxsize)
    with file.open() as opened:
        rows = {row[0]: row for row in csv.reader(opened, delimiter="\t")}
    for number in range(len(store)):
        row, record = rows[store.key(number)], store.read(number)
        order = np.argsort(-np.frombuffer(base64.b64decode(row[4]), np.float32), kind="stable")
        features = np.frombuffer(base64.b64decode(row[9]), np.float32).reshape(36, 2048)[order]
        np.testing.assert_array_equal(record.features, features)
        np.testing.assert_array_equal(record.classes, np.frombuffer(base64.b64decode(row[3]), np.int64)[order])
        (picture,) = (folder / "images").glob(f"{store.key(number)}.*")
        with Image.open(picture) as image:
            assert (record.width, record.height) == image.size
        assert (record.boxes[:, 2:] <= [record.width, record.height]).all()
    assert main(["store", "quantize", str(tmp_path / "out"), str(tmp_path / "int8")]) == 0
    assert RegionStore(tmp_path / "int8").statistics["relative_storage_error"] < 0.025
