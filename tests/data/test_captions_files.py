"""Captions that lie in no text: Parquet, tars of webdataset, UNITER's LMDB, Oscar's files of torch.save."""

from __future__ import annotations

import io
import json
import logging
import sys
import tarfile
from pathlib import Path
from typing import Any

import lmdb
import lz4.frame
import msgpack
import pyarrow
import pytest
import torch
from pyarrow import parquet

from imagebert.config import UsageError
from imagebert.data.captions import Captions
from tests.data.damage import outcomes_of_damage


def found(path: Path, **options: Any) -> list[tuple[str, str]]:
    return [(c.image, c.text) for c in Captions(path, **options)]


def write_downloads(path: Path, status: list[str]) -> None:
    """As img2dataset's parquet_sample_writer and the others' metadata files are."""
    number = range(len(status))
    columns: dict[str, Any] = {"url": [f"http://x/{path.stem}{i}" for i in number]}
    columns |= {"caption": [f"words {path.stem} {i}" for i in number], "key": [f"{path.stem}{i:04d}" for i in number]}
    columns |= {"status": status, "error_message": [None if s == "success" else "HTTP Error 404" for s in status]}
    columns |= {"width": [10 for _ in number], "sha256": ["" for _ in number]}
    parquet.write_table(pyarrow.table(columns), path)


def test_downloads_of_img2dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_downloads(tmp_path / "00001.parquet", ["success"])
    write_downloads(tmp_path / "00000.parquet", ["success", "failed_to_download", "failed_to_resize", "success"])
    (tmp_path / "00000_stats.json").write_text("{}")
    captions = Captions(tmp_path)
    with caplog.at_level(logging.INFO):
        assert [(c.image, c.text) for c in captions] == [
            ("000000000", "words 00000 0"),
            ("000000003", "words 00000 3"),
            ("000010000", "words 00001 0"),
        ]
    assert (captions.counts.came, captions.counts.taken, captions.counts.not_downloaded) == (5, 3, 2)
    assert "1 'failed_to_download', 1 'failed_to_resize'" in caplog.messages[-1]
    assert [key for key, _ in found(tmp_path, image_key="{row} {url}")][-1] == "4 http://x/000010"
    assert len(found(tmp_path / "00000.parquet")) == 2


def test_images_within_parquet(tmp_path: Path) -> None:
    """As Hugging Face's datasets hold them."""
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    images = [{"bytes": b"\xff\xd8", "path": "a.jpg"}, {"bytes": b"\xff\xd8", "path": None}]
    table = pyarrow.table({"image": pyarrow.array(images, struct), "caption": [["one", "two"], ["three"]]})
    parquet.write_table(table, tmp_path / "x.parquet")
    captions = Captions(tmp_path / "x.parquet")
    assert [(c.image, c.text) for c in captions] == [("a.jpg", "one"), ("a.jpg", "two")]
    assert captions.counts.refused == 1
    nameless = pyarrow.array([{"bytes": b"\xff"}], pyarrow.struct({"bytes": pyarrow.binary()}))
    for column in (nameless, pyarrow.array([b"\xff"], pyarrow.binary())):
        parquet.write_table(pyarrow.table({"image": column, "caption": ["one"]}), tmp_path / "x.parquet")
        with pytest.raises(UsageError, match=r"its column image is .*, neither text nor images with a path"):
            found(tmp_path / "x.parquet")


def test_a_folder_of_tables(tmp_path: Path) -> None:
    """As Hugging Face's datasets are published: the first file decides, and another is refused."""
    for number, image in enumerate("ab"):
        table = pyarrow.table({"image": [f"{image}.jpg"], "caption": [image], "error_message": [""]})
        parquet.write_table(table, tmp_path / f"train-0000{number}-of-00002.parquet")
    assert found(tmp_path) == [("a.jpg", "a"), ("b.jpg", "b")]
    write_downloads(tmp_path / "z.parquet", ["success"])
    with pytest.raises(UsageError, match=r"z\.parquet: it has no column image: it has caption, error_message"):
        found(tmp_path)
    with pytest.raises(UsageError, match="it has no column key"):
        found(tmp_path, kind="img2dataset")


def test_what_of_parquet_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_downloads(tmp_path / "00000.parquet", ["failed_to_download", "success"])
    with caplog.at_level(logging.INFO):
        found(tmp_path / "00000.parquet"), found(tmp_path)
    assert "is read as img2dataset, Parquet of 2 rows, key, caption; first: '000000001', 'words 00000 1'" in caplog.text
    assert "is read as img2dataset, Parquet of 1 files, key, caption; first: " in caplog.text


def test_folders_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no \.parquet and no \.tar"):
        found(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot open .* as LMDB"):
        found(tmp_path)
    with pytest.raises(UsageError, match="is a folder of uniter: format coco reads something else"):
        found(tmp_path, kind="coco")


# ---------------------------------------------------------------------------------------------------------- webdataset


def write_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    """As webdataset's ShardWriter, and so img2dataset: by tarfile."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def sample(key: str, text: str, **more: str) -> dict[str, bytes]:
    """As img2dataset's webdataset_sample_writer."""
    told = {"caption": text, "url": f"http://x/{key}", "key": key, "status": "success", "error_message": None, **more}
    return {f"{key}.jpg": b"\xff\xd8" * 3000, f"{key}.txt": text.encode(), f"{key}.json": json.dumps(told).encode()}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_webdataset(tmp_path: Path, form: int, caplog: pytest.LogCaptureFixture) -> None:
    long = "a" * 80 + "/" + "b" * 90  # pax and GNU write names of more than 100 characters apart
    write_tar(tmp_path / "00001.tar", sample("000010000", "three"), form)
    write_tar(tmp_path / "00000.tar", sample("000000000", "one\u00e9") | sample(long, "two"), form)
    expected = [("000000000", "one\u00e9"), (long, "two"), ("000010000", "three")]
    with caplog.at_level(logging.INFO):
        assert found(tmp_path) == expected
    assert f"{tmp_path} is read as webdataset, 2 tars, captions in .json; first: '000000000', 'one" in caplog.text
    assert found(tmp_path, image_key="{url}")[0][0] == "http://x/000000000"
    assert found(tmp_path / "00000.tar") == expected[:2]
    write_downloads(tmp_path / "00000.parquet", ["success"])
    assert found(tmp_path)[0][1] == "words 00000 0"  # which also says what was not downloaded
    assert found(tmp_path, kind="webdataset") == expected


def test_tars_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    files = {"a.jpg": b"", "a.txt": b"one\n", "b.jpg": b"", "c.txt": b"\xff", "d.txt": b"x" * (1 << 20) + b"x"}
    write_tar(path, files | {"e.txt": b"five"} | {"__index__.txt": b"of webdataset"})
    captions = Captions(path)
    assert [(c.image, c.text) for c in captions] == [("a", "one"), ("e", "five")]
    assert (captions.counts.came, captions.counts.refused) == (5, 3)
    write_tar(path, sample("0", "one") | {"1.txt": b"two"} | {"2.json": b"[]"} | sample("3", "x", status="failed"))
    captions = Captions(path)
    assert [c.text for c in captions] == ["one"]
    assert (captions.counts.came, captions.counts.refused, captions.counts.not_downloaded) == (4, 2, 1)


def test_tars_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"a.jpg": b"", "a.npz": b""})
    with pytest.raises(UsageError, match=r"holds no \.txt and no \.json with a caption"):
        found(path)
    write_tar(path, {"a.txt": b"one"})
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(
        UsageError, match=r"x\.tar: a tar that is damaged, or packed: from byte 0 on it is lost: a header"
    ):
        found(path)


def test_a_damaged_tar_costs_what_stands_behind_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Named and counted once, as one caption that cannot be used; the other tars are read."""
    write_tar(tmp_path / "1.tar", {"c.txt": b"three"})
    path = tmp_path / "0.tar"
    write_tar(path, {"a.txt": b"one", "b.txt": b"two"})
    whole = path.read_bytes()
    header = bytearray(whole)
    header[1024 + 10] ^= 1  # the second file's, which tarfile takes for the end
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 40
    for content, at, message in (
        (whole[:2048], 2048, "it has no end"),
        (whole[:1537], 1024, "it says 3 bytes, there are 1"),
        (bytes(header), 1024, "a header is damaged (bad checksum)"),
        (whole[:2048] + huge.tobuf(tarfile.GNU_FORMAT) + whole[2048:], 2048, "it says 1099511627776 bytes"),
    ):
        path.write_bytes(content)
        captions = Captions(tmp_path)
        expected = ["one", "two", "three"] if at == 2048 else ["one", "three"]
        assert [c.text for c in captions] == expected
        assert (captions.counts.came, captions.counts.refused) == (len(expected) + 1, 1)
        assert caplog.messages[-1].startswith(f"{path}, from byte {at} on is refused: it is lost: ")
        assert message in caplog.messages[-1]
        with pytest.raises(UsageError, match=f"from byte {at} on: it is lost"):
            found(tmp_path, strict=True)


def test_one_tar_behind_another_is_read(tmp_path: Path) -> None:
    """cat a.tar b.tar"""
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.txt": name.encode()})
    (tmp_path / "both").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    assert found(tmp_path / "both") == [("a", "a"), ("b", "b")]


# -------------------------------------------------------------------------------------------------------------- UNITER


def write_txt_db(path: Path, records: dict[str, Any]) -> None:
    """As TxtLmdb and prepro.py."""
    path.mkdir()
    for name in ("meta", "id2len", "txt2img", "img2txts"):
        (path / f"{name}.json").write_text("{}")
    environment = lmdb.open(str(path), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key, record in records.items():
            value = (
                record if isinstance(record, bytes) else lz4.frame.compress(msgpack.dumps(record, use_bin_type=True))
            )
            transaction.put(key.encode(), value)
    environment.close()


KARPATHY = {
    "tokens": ["a"],
    "imgid": 67,
    "sentid": 335,
    "image_id": 1018148011,
    "toked_caption": ["A"],
    "input_ids": [138],
}


@pytest.mark.parametrize("text", ["raw", "caption", "sent", "sentence"])
def test_uniters_txt_db(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    records: dict[str, Any] = {
        "1": {**KARPATHY, text: "A group of people.", "img_fname": "flickr30k_001018148011.npz"},
        "2": {**KARPATHY, text: "Two.", "img_fname": "b.npz", "split": "test"},
        "3": {**KARPATHY, text: "Three.", "img_fname": ["nlvr2_x-img0.npz", "nlvr2_x-img1.npz"]},
        "4": {**KARPATHY, "img_fname": "d.npz"},
        "5": b"no frame",
        "6": [1],
        "7": {"raw": "x" * (1 << 21), "img_fname": "f.npz"},  # of what it unpacks to, a part is read
        "8": {text: "x", "img_fname": "g.npz", "input_ids": [1] * 5000},  # lists are made before they are read
    }
    write_txt_db(tmp_path / "itm.db", records)
    captions = Captions(tmp_path / "itm.db")
    with caplog.at_level(logging.INFO):
        given = [(c.image, c.text, c.split) for c in captions]
    assert given == [("flickr30k_001018148011.npz", "A group of people.", "train"), ("b.npz", "Two.", "test")]
    assert (captions.counts.came, captions.counts.refused) == (8, 6)
    assert f"is read as UNITER's txt_db, {text} of 8 texts; first: 'flickr30k" in caplog.text
    assert "key '3' is refused: it is of several images" in caplog.text
    assert caplog.text.count("is refused: it is no msgpack packed by lz4") == 3
    assert found(tmp_path / "itm.db", image_key="{id}")[0][0] == "1018148011"


def test_a_damaged_page_of_a_txt_db_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_txt_db(
        tmp_path / "x", {f"{i:03d}": {**KARPATHY, "raw": f"words {i}", "img_fname": "a.npz"} for i in range(200)}
    )
    data = bytearray((tmp_path / "x/data.mdb").read_bytes())
    leaves = [at for at in range(2 * 4096, len(data), 4096) if data[at + 10 : at + 12] == b"\2\0"]
    data[leaves[1] + 10] = 4  # LMDB's flag of a page in a long value
    (tmp_path / "x/data.mdb").write_bytes(data)
    captions = Captions(tmp_path / "x")
    given = list(captions)
    assert 0 < len(given) < 200
    assert (captions.counts.came, captions.counts.refused) == (len(given) + 1, 1)
    assert f"is refused: its texts are lost, {len(given)} of 200 were found" in caplog.text


def test_txt_dbs_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_txt_db(tmp_path / "ids", {"1": {**KARPATHY, "img_fname": "a.npz"}})
    with pytest.raises(UsageError, match="holds word pieces and no text, its records have tokens, imgid"):
        found(tmp_path / "ids")
    write_txt_db(tmp_path / "nlvr2", {"1": {**KARPATHY, "sentence": "x", "img_fname": ["a.npz", "b.npz"]}})
    with pytest.raises(UsageError, match="texts of several images each, as NLVR2's"):
        found(tmp_path / "nlvr2")
    write_txt_db(tmp_path / "features", {"a": b"\x93NUMPY"})
    with pytest.raises(UsageError, match="it is no txt_db"):
        found(tmp_path / "features")
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(UsageError, match=r"pip install 'imagebert\[data\]'"):
        found(tmp_path / "ids")


# --------------------------------------------------------------------------------------------------------------- Oscar


@pytest.mark.parametrize("is_zip", [True, False])
def test_oscars_captions(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "train_captions.pt"

    def save(content: Any) -> None:
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)

    save({391895: ["one", "two"], 5: ["three"]})
    assert found(path) == [("391895", "one"), ("391895", "two"), ("5", "three")]
    assert found(path, image_key="{id:06d}")[2][0] == "000005"
    save({391895: json.dumps(["one", "two"]), 5: "no JSON", 6: "[3]", 7: "[]"})
    captions = Captions(path)
    assert [(c.image, c.text) for c in captions] == [("391895", "one"), ("391895", "two")]
    assert (captions.counts.came, captions.counts.refused) == (5, 3)
    for content in ({}, {"a": torch.zeros(2)}, {"a": ["x"], "b": torch.zeros(2)}, {"a": 3}, ["x"], Path("x")):
        save(content)
        with pytest.raises(UsageError, match=r"train_captions\.pt"):
            found(path)


def test_a_cut_end_of_oscars_captions_is_told(tmp_path: Path) -> None:
    """Of the form before PyTorch 1.6, which lists its tensors behind the captions: here none."""
    path = tmp_path / "train_captions.pt"
    torch.save({5: ["three"]}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UsageError, match=r"cannot read captions from .*train_captions\.pt: its pickle is damaged"):
        found(path)


# -------------------------------------------------------------------------------------------------------------- damage


def test_damage_to_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "y.tar", {"0.txt": b"one", "1.json": b"{}", "1.txt": b"two"})
    content = (tmp_path / "y.tar").read_bytes()[:4096]
    assert outcomes_of_damage(tmp_path / "x.tar", content, 200, "tar") == {"captions", "refused", "error"}


def test_damage_to_a_txt_db(tmp_path: Path) -> None:
    records = {f"{i}": {**KARPATHY, "raw": f"words {i}", "img_fname": f"{i}.npz"} for i in range(20)}
    write_txt_db(tmp_path / "x", records)
    content = (tmp_path / "x/data.mdb").read_bytes()
    assert outcomes_of_damage(tmp_path / "x", content, 150, "lmdb", "data.mdb") == {"captions", "refused", "error"}


@pytest.mark.parametrize("is_zip", [True, False])
def test_damage_to_oscars_captions(tmp_path: Path, is_zip: bool) -> None:
    torch.save({1: ["one"], 2: ["two"]}, tmp_path / "y.pt", _use_new_zipfile_serialization=is_zip)
    content = (tmp_path / "y.pt").read_bytes()
    assert "error" in outcomes_of_damage(tmp_path / "x.pt", content, 150, "torch")


def test_damage_to_parquet(tmp_path: Path) -> None:
    """Few: each starts a process."""
    write_downloads(tmp_path / "y.parquet", ["success", "failed_to_download"])
    content = (tmp_path / "y.parquet").read_bytes()
    assert "error" in outcomes_of_damage(tmp_path / "x.parquet", content, 15, "parquet")
