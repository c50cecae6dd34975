from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.captions import Captions, Columns
from imagebert.data.folder import lock_of
from imagebert.data.pairs import Caption, PairStore
from tests.corpora import write_vocabulary


def found(path: Path, **options: Any) -> list[tuple[str, str, str]]:
    return [(c.image, c.text, c.split) for c in Captions(path, **options)]


def test_tables(tmp_path: Path) -> None:
    tsv = tmp_path / "captions.tsv"
    tsv.write_text('a.jpg\t0\tsays "hi"\nb.jpg\t0\ttwo\nc.jpg\t0\tthree\n')
    captions = Captions(
        tsv, columns=Columns(names=("image", "number", "caption")), image_splits={"a.jpg": "train", "c.jpg": "dev"}
    )
    assert [(c.image, c.text, c.split) for c in captions] == [
        ("a.jpg", 'says "hi"', "train"),
        ("c.jpg", "three", "dev"),
    ]
    assert (captions.counts.came, captions.counts.taken, captions.counts.left_out) == (3, 2, 1)
    csv = tmp_path / "captions.csv"
    csv.write_text('\ufeffimage,caption,split,relevance\na.jpg,"one, two",test,0.25\n')
    assert list(Captions(csv)) == [Caption("a.jpg", "one, two", "test", 0.25)]
    jsonl = tmp_path / "captions.jsonl"
    jsonl.write_text('{"file": "a.jpg", "text": ["one", "two"]}\n{"file": "b.jpg", "text": "three", "split": "dev"}\n')
    named = Columns(image="file", caption="text")
    expected = [("a.jpg", "one", "train"), ("a.jpg", "two", "train"), ("b.jpg", "three", "dev")]
    assert found(jsonl, columns=named) == expected
    table = pyarrow.table({"file": ["a.jpg", "a.jpg", "b.jpg"], "text": ["one", "two", "three"]})
    parquet.write_table(table.append_column("split", [["train", "train", "dev"]]), tmp_path / "x.parquet")
    assert found(tmp_path / "x.parquet", columns=named) == expected


def test_collections_as_they_are_published(tmp_path: Path) -> None:
    coco = tmp_path / "captions_val2014.json"
    images = [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}]
    annotations = [{"image_id": 9, "id": 1, "caption": "one"}, {"image_id": 9, "id": 2, "caption": "two"}]
    coco.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "licenses": []}))
    name = "COCO_val2014_000000000009"
    assert found(coco) == [(f"{name}.jpg", text, "train") for text in ("one", "two")]
    assert found(coco, image_key="{stem}")[0][0] == name
    assert found(coco, image_key="coco_val2014_{id:012d}.npz")[0][0] == "coco_val2014_000000000009.npz"

    karpathy = tmp_path / "dataset_coco.json"
    entry = {"filepath": "val2014", "filename": f"{name}.jpg", "imgid": 0, "cocoid": 9}
    sentences = [{"tokens": ["one"], "raw": "One.", "imgid": 0, "sentid": 0}]
    entries = [{**entry, "split": split, "sentences": sentences} for split in ("restval", "test")]
    karpathy.write_text(json.dumps({"dataset": "coco", "images": entries}))
    assert found(karpathy) == [(f"{name}.jpg", "One.", "train"), (f"{name}.jpg", "One.", "test")]
    assert found(karpathy, image_key="{id}")[0][0] == "9"

    flickr = tmp_path / "results_20130124.token"
    flickr.write_text("1000092795.jpg#0\tTwo guys # 1 .\n1000092795.jpg#1\tTwo men .\n")
    assert found(flickr, image_key="{stem}") == [
        ("1000092795", "Two guys # 1 .", "train"),
        ("1000092795", "Two men .", "train"),
    ]

    cc = tmp_path / "Train_GCC-training.tsv"
    cc.write_text("a very typical bus station\thttp://x/a.jpg\nsierra looked stunning\thttp://x/b.png\n")
    assert found(cc, kind="cc", image_key="gcc_{row:07d}") == [
        ("gcc_0000000", "a very typical bus station", "train"),
        ("gcc_0000001", "sierra looked stunning", "train"),
    ]

    sbu = tmp_path / "sbu-captions-all.json"
    urls = ["http://static.flickr.com/2723/4385058960_b0f291553e.jpg"]
    sbu.write_text(json.dumps({"image_urls": urls, "user_ids": ["x"], "captions": ["a wooden chair"]}))
    assert found(sbu) == [("4385058960_b0f291553e.jpg", "a wooden chair", "train")]
    folder = tmp_path / "sbu"
    folder.mkdir()
    (folder / "SBU_captioned_photo_dataset_urls.txt").write_text(urls[0] + "\n")
    (folder / "SBU_captioned_photo_dataset_captions.txt").write_text("a wooden chair\n")
    assert found(folder) == found(sbu)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.tsv", "image\tcaption\na.jpg\n", "line 2: it has no caption"),
        ("x.tsv", "image\tcaption\trelevance\na.jpg\tone\tmuch\n", "line 2: relevance 'much' is no number"),
        ("x.tsv", "image\tcaption\na.jpg\t \n", "line 2: the caption of image 'a.jpg' is empty"),
        ("x.tsv", "image\tcaption\na.jpg\tone\ttwo\n", "line 2: it has too many fields"),
        ("x.jsonl", '{"image": \n', "line 1: it is no JSON"),
        ("x.token", "a.jpg one\n", "line 1: it is not IMAGE#NUMBER"),
        (
            "x.json",
            '{"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}',
            "annotation 0: its image_id 3 is not among the images",
        ),
        ("x.json", '{"images": [{"filename": "a.jpg"}, {"sentences": []}]}', "image 0: it has no sentences"),
        ("x.jsonl", '{"image": "a.jpg", "caption": "half \\ud83d"}', "half a character"),
        ("x.jsonl", '{"image": "' + "a" * 600 + '", "caption": "x"}', "name has 600 bytes"),
        ("x.jsonl", '{"image": "a", "caption": "x", "relevance": 1' + "0" * 400 + "}", "relevance 1000.* is no number"),
        ("x.jsonl", "[" * 100_000, "line 1: it is nested too deep"),
        ("x.jsonl", '{"image": "a", "caption": ' + "[" * 70 + "]" * 70 + "}", "line 1: it is nested deeper than 64"),
        ("x.jsonl", '{"image": ' + "9" * 5000 + "}", "line 1: it is no JSON .Exceeds the limit"),
    ],
)
def test_what_cannot_be_used_is_counted_or_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    captions = Captions(tmp_path / name)
    assert list(captions) == []
    assert (captions.counts.came, captions.counts.refused) == (1, 1)
    with pytest.raises(UsageError, match=message):
        list(Captions(tmp_path / name, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.tsv", "a.jpg\tone\n", "no column caption and no column image"),
        ("x.tsv", "", "is empty"),
        ("x.json", "3", "holds int, not an object"),
        ("x.json", "{", "cannot read captions"),
        ("x.json", '{"image_urls": ["a"], "captions": []}', "1 URLs and 0 captions: it is not whole"),
        ("x.parquet", "nothing", "cannot read captions"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        list(Captions(tmp_path / name))


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.json", "x.token", "x.parquet"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="is no regular file: give a file"):
        list(Captions(tmp_path / name))


def test_collections_of_any_depth(tmp_path: Path) -> None:
    for text in ("[" * 99_999, '{"images": ' + "[" * 70 + "]" * 70 + "}", '{"images": ' + "9" * 5000 + "}"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UsageError, match=r"cannot read captions from .*x\.json: .*x\.json is n"):
            list(Captions(tmp_path / "x.json"))


def test_a_file_without_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.files.LINE_BYTES", 1000)
    for name in ("x.tsv", "x.jsonl", "x.token"):
        (tmp_path / name).write_text("image\tcaption\n" + "x" * 5000)
        with pytest.raises(UsageError, match=r"line 2: it has more than 1,000 bytes: is it a text\?"):
            list(Captions(tmp_path / name))


def test_a_parquet_that_would_fill_the_memory(tmp_path: Path) -> None:
    """Of 2 kB each: 4 GB of captions that are one, and rows of a million captions."""
    equal = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 40_000, pyarrow.int32()), ["x" * 100_000])
    table = pyarrow.table({"image": ["a"] * 40_000, "caption": equal})
    parquet.write_table(table, tmp_path / "long.parquet", compression="zstd", store_schema=False)
    table = pyarrow.table({"image": ["a"] * 4, "caption": [["x"] * 1_000_000] * 4})
    parquet.write_table(table, tmp_path / "wide.parquet", compression="zstd")
    for name in ("long", "wide"):
        path = tmp_path / f"{name}.parquet"
        assert path.stat().st_size < 20_000
        with pytest.raises(UsageError, match="unpacks to more than 1000 times its size"):
            list(Captions(path))


def test_a_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"image": [f"{i}.jpg" for i in range(200)], "caption": [f"words {i}" for i in range(200)]})
    parquet.write_table(table, path)
    assert len(found(path)) == 200
    assert next(iter(Captions(path))).image == "0.jpg"  # and no process stays
    whole = path.read_bytes()
    for place in range(20, len(whole), 997):
        path.write_bytes(whole[:place] + b"\xff\xff\xff" + whole[place + 3 :])
        with contextlib.suppress(UsageError):
            found(path)
    with pytest.raises(UsageError, match=r"it has no column text: it has caption, image"):
        path.write_bytes(whole)
        found(path, columns=Columns(caption="text"))


def test_lines_end_where_they_were_ended(tmp_path: Path) -> None:
    (tmp_path / "cc.tsv").write_bytes("one\rtwo\u2028three\thttp://x\nfour\thttp://y\n".encode())
    lines = found(tmp_path / "cc.tsv", kind="cc")
    assert [(image, text) for image, text, _ in lines] == [("00000000", "one\rtwo\u2028three"), ("00000001", "four")]
    (tmp_path / "x.tsv").write_bytes("image\tcaption\r\na.jpg\tone\rtwo\u2028three\r\n".encode())
    assert found(tmp_path / "x.tsv") == [("a.jpg", "one\rtwo\u2028three", "train")]
    (tmp_path / "x.csv").write_bytes(b'image,caption\r\na.jpg,one\rtwo\r\nb.jpg,"one\rtwo,\r\nthree"\r\n')
    assert [text for _, text, _ in found(tmp_path / "x.csv")] == ["one\rtwo", "one\rtwo,\nthree"]


def test_a_pattern_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "x.token").write_text("a.jpg#0\tone\n")
    with pytest.raises(
        UsageError, match=r"image_key '\{id:03d\}' does not fit .*: there are \{image\}, \{stem\}, \{row\}"
    ):
        list(Captions(tmp_path / "x.token", image_key="{id:03d}"))


def test_the_command_says_what_became_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vocabulary(tmp_path)
    (tmp_path / "x.tsv").write_text("image\tcaption\na.jpg\tword01\nb.jpg\t \nc.jpg\tword02\n")
    (tmp_path / "dev").write_text("a.jpg\nb.jpg\n")
    call = ["pairs", str(tmp_path / "x.tsv"), str(tmp_path / "out"), "--vocab", str(tmp_path)]
    assert main([*call, "--split", f"dev={tmp_path / 'dev'}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"3 captions: 1 stored in {tmp_path / 'out'}, 1 refused, 1 of other images left out"
    assert len(PairStore(tmp_path / "out")) == 1
    assert main([*call, "--strict", "--overwrite"]) == 2
    assert "line 3: the caption of image 'b.jpg' is empty" in capsys.readouterr().err


def test_captions_without_a_word_piece_are_refused_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What `flaw` takes for a caption, and the tokenizer for nothing; the counts still add up."""
    write_vocabulary(tmp_path)
    lines = ["a.jpg\tword01", "b.jpg\t\u0301", "c.jpg\t\ufffd", "d.jpg\t\u200b", "e.jpg\tword02"]
    (tmp_path / "x.tsv").write_text("image\tcaption\n" + "\n".join(lines) + "\n")
    (tmp_path / "dev").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\n")
    call = ["pairs", str(tmp_path / "x.tsv"), str(tmp_path / "out"), "--vocab", str(tmp_path)]
    assert main([*call, "--split", f"dev={tmp_path / 'dev'}"]) == 0
    last = next(line for line in capsys.readouterr().out.splitlines() if "captions: " in line)
    assert last == f"5 captions: 1 stored in {tmp_path / 'out'}, 3 refused, 1 of other images left out"
    assert "refused, no word piece is left of the caption '\u0301' of image 'b.jpg'" in caplog.text
    (tmp_path / "x.tsv").write_text("image\tcaption\n" + "\n".join(lines[:3]) + "\n")
    assert main([*call[:2], str(tmp_path / "strict"), *call[3:], "--strict"]) == 2
    assert "no word piece is left of the caption" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


def test_lists_of_a_split_as_other_programs_save_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vocabulary(tmp_path)
    (tmp_path / "x.tsv").write_text("image\tcaption\na.jpg\tword01\nb.jpg\tword02\n")
    call = ["pairs", str(tmp_path / "x.tsv"), str(tmp_path / "out"), "--vocab", str(tmp_path)]
    for content in (b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n", b"a.jpg\rb.jpg\r", gzip.compress(b"a.jpg\nb.jpg")):
        (tmp_path / "dev").write_bytes(content)
        assert main([*call, "--overwrite", "--split", f"dev={tmp_path / 'dev'}"]) == 0
        assert PairStore(tmp_path / "out").splits == ["dev"]
        assert len(PairStore(tmp_path / "out")) == 2
    capsys.readouterr()
    for content, message in ((b"a.jpg\nb\xff.jpg\n", "line 2: it is no UTF-8"), (b"\xff\xfea\0", "is UTF-16: save it")):
        (tmp_path / "dev").write_bytes(content)
        assert main([*call, "--overwrite", "--split", f"dev={tmp_path / 'dev'}"]) == 2
        assert message in capsys.readouterr().err


def test_images_that_were_not_downloaded_are_in_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vocabulary(tmp_path)
    columns = {name: ["word01", "word02"] for name in ("url", "caption", "key", "error_message")}
    (tmp_path / "cc3m").mkdir()
    table = pyarrow.table({**columns, "status": ["failed_to_download", "success"]})
    parquet.write_table(table, tmp_path / "cc3m/00000.parquet")
    assert main(["pairs", str(tmp_path / "cc3m"), str(tmp_path / "out"), "--vocab", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"2 captions: 1 stored in {tmp_path / 'out'}, 0 refused, 1 of images not downloaded"


def test_a_call_that_ended_well_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_vocabulary(tmp_path)
    table = tmp_path / "x.tsv"
    table.write_text("image\tcaption\na.jpg\tword01\nb.jpg\t \nc.jpg\tword02\n")
    call = ["pairs", str(table), str(tmp_path / "out"), "--vocab", str(tmp_path)]
    told = []
    for _ in range(2):
        assert main(call) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "3 captions: 2 stored" in told[0]
    stat = table.stat()
    table.write_text(table.read_text().replace("word02", "word03"))
    os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert main(call) == 2
    assert "out exists: remove it" in capsys.readouterr().err


def test_a_lock_of_a_call_that_was_killed_behind_its_last_rename(tmp_path: Path) -> None:
    table, out = tmp_path / "captions.csv", tmp_path / "pairs"
    table.write_text("image,caption\na.jpg,word01\n")
    call = ["pairs", str(table), str(out), "--vocab", str(write_vocabulary(tmp_path).path)]
    assert main(call) == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    killed = (
        "import os, signal, sys; from pathlib import Path; from imagebert.lock import lock; out = Path(sys.argv[1])\n"
    )
    killed += "with lock(out, out): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", killed, str(lock_of(out))], check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) != before
    assert main(call) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before
