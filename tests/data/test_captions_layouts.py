"""Each layout as its project writes it, told by its content; and what damage to any of them does."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow
import pytest
from pyarrow import parquet

from imagebert.config import UsageError
from imagebert.data.captions import Captions

URLS = ["http://lh6.ggpht.com/-IvRtNLNcG8o/a.jpg?imgmax=800", "https://x.org/b/\u00e9.png"]


def found(path: Path, **options: Any) -> list[tuple[str, str]]:
    return [(c.image, c.text) for c in Captions(path, **options)]


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


# Name, content as its project writes it, key and text of each caption.
PUBLISHED: list[tuple[str, bytes, list[tuple[str, str]]]] = [
    (
        "Flickr8k.token.txt",
        b"1000268201_693b08cb0e.jpg#0\tA child in a pink dress .\n1000268201_693b08cb0e.jpg#1\tA girl # 2 .\n",
        [("1000268201_693b08cb0e.jpg", "A child in a pink dress ."), ("1000268201_693b08cb0e.jpg", "A girl # 2 .")],
    ),
    ("results_20130124.token", b"1000092795.jpg#0\tTwo young guys .\n", [("1000092795.jpg", "Two young guys .")]),
    (  # Kaggle's Flickr8k
        "captions.txt",
        b'image,caption\na_6.jpg,A child .\nb.jpg,"A man , ""Bob"" , sits ."\n',
        [("a_6.jpg", "A child ."), ("b.jpg", 'A man , "Bob" , sits .')],
    ),
    (  # Kaggle's Flickr30k
        "results.csv",
        b'image_name| comment_number| comment\n1000092795.jpg| 0| Two young guys | "hi" , .\n'
        b"2199200615.jpg| 4   A dog runs across the grass .\n2199200615.jpg| 1| A dog .\n",
        [("1000092795.jpg", 'Two young guys | "hi" , .'), ("2199200615.jpg", "A dog .")],
    ),
    ("nlvr.jsonline", b'{"image": "a.jpg", "caption": "one"}\n', [("a.jpg", "one")]),
    ("x.ndjson", b'\xef\xbb\xbf{"image": 0, "caption": "one"}\r\n', [("0", "one")]),
    (
        "lines.json",
        b'{"image": "a", "caption": "one"}\n{"image": "b", "caption": "two"}\n',
        [("a", "one"), ("b", "two")],
    ),
    (  # ALBEF, BLIP, LAVIS
        "coco_karpathy_val.json",
        as_json([{"image": "val2014/COCO_9.jpg", "caption": ["one", "two"]}, {"image": "b", "caption": "three"}]),
        [("val2014/COCO_9.jpg", "one"), ("val2014/COCO_9.jpg", "two"), ("b", "three")],
    ),
    (
        "coco_karpathy_train.json",
        as_json([{"caption": "one", "image": "train2014/a.jpg", "image_id": "coco_1"}]),
        [("train2014/a.jpg", "one")],
    ),
    (  # VinVL, Oscar
        "train_caption.json",
        as_json([{"image_id": "318556", "id": 48, "caption": "one"}, {"image_id": 116100, "id": 67, "caption": "two"}]),
        [("318556", "one"), ("116100", "two")],
    ),
    (
        "captions_val.json",
        as_json(
            {
                "images": [{"id": i, "file_name": n} for i, n in (("9", "a.jpg"), (7, "b.jpg"), ("x1", "c.jpg"))],
                "annotations": [{"image_id": i, "caption": t} for i, t in ((9, "one"), ("7", "two"), ("x1", "three"))],
            }
        ),
        [("a.jpg", "one"), ("b.jpg", "two"), ("c.jpg", "three")],
    ),
    (
        "dataset_flickr30k.json",
        as_json(
            {"images": [{"filename": "a.jpg", "imgid": 0, "split": "val", "sentences": [{"raw": "One."}]}]}
            | {"dataset": "flickr30k"}
        ),
        [("a.jpg", "One.")],
    ),
    ("sbu-captions-all.json", as_json({"image_urls": URLS[:1], "captions": ["one"]}), [("a.jpg?imgmax=800", "one")]),
    (
        "Train_GCC-training.tsv",
        f"[ a very typical ] bus station\t{URLS[0]}\ntwo\t{URLS[1]}\n".encode(),
        [("00000000", "[ a very typical ] bus station"), ("00000001", "two")],
    ),
    (
        "Image_Labels_Subset_Train_GCC-Labels-training.tsv",
        f"a bus\t{URLS[0]}\tbus,road\t/m/1,/m/2\t0.9,0.8\ntwo\t{URLS[1]}\t\t\t\n".encode(),
        [("00000000", "a bus"), ("00000001", "two")],
    ),
    (
        "cc12m.tsv",
        f"{URLS[0]}\tMetal Design Within Reach\n{URLS[1]}\tsee http://x.org\n".encode(),
        [("00000000", "Metal Design Within Reach"), ("00000001", "see http://x.org")],
    ),
    ("x.csv", b'image,caption\r\n"a.jpg","one\r\ntwo"\r\n', [("a.jpg", "one\ntwo")]),
    ("x.tsv", b'\xef\xbb\xbfimage\tcaption\na.jpg\tsays "hi\n', [("a.jpg", 'says "hi')]),
]


@pytest.mark.parametrize(("name", "content", "expected"), PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_a_layout_is_told_by_its_content(
    tmp_path: Path, name: str, content: bytes, expected: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert found(tmp_path / name) == expected
    said = [message for message in caplog.messages if "is read as" in message]
    image, text = expected[0]
    assert len(said) == 1
    assert said[0].endswith(f"first: {image!r}, {text!r}")


def test_kaggles_line_without_a_number_is_refused_and_counted(tmp_path: Path) -> None:
    name, content, _ = PUBLISHED[3]
    (tmp_path / name).write_bytes(content)
    captions = Captions(tmp_path / name)
    assert len(list(captions)) == 2
    assert [key for key, _ in found(tmp_path / name, image_key="{row}")] == ["0", "2"]
    assert (captions.counts.came, captions.counts.refused) == (3, 1)
    with pytest.raises(UsageError, match=r"line 3: it is not IMAGE\| NUMBER\| caption"):
        list(Captions(tmp_path / name, strict=True))


@pytest.mark.parametrize("at", [13, 14, 15])
def test_keys_made_of_urls(tmp_path: Path, at: int) -> None:
    name, content, _ = PUBLISHED[at]
    (tmp_path / name).write_bytes(content)
    assert [key for key, _ in found(tmp_path / name, image_key="{url}")] == URLS
    assert [key for key, _ in found(tmp_path / name, image_key="{crc32}")] == [str(crc32(u.encode())) for u in URLS]
    (tmp_path / "x.token").write_text("a.jpg#0\tone\n")
    with pytest.raises(UsageError, match=r"'\{crc32\}' does not fit"):
        found(tmp_path / "x.token", image_key="{crc32}")


def test_ids_written_as_text_are_numbers(tmp_path: Path) -> None:
    name, content, _ = PUBLISHED[10]
    (tmp_path / name).write_bytes(content.replace(b'"x1"', b'"11"'))
    keys = [key for key, _ in found(tmp_path / name, image_key="COCO_{id:012d}")]
    assert keys == ["COCO_000000000009", "COCO_000000000007", "COCO_000000000011"]


# ----------------------------------------------------------------------------------------------------------- text lines


@pytest.mark.parametrize("suffix", ["tsv", "csv", "token", "jsonl", "cc"])
def test_one_line_that_cannot_be_used_costs_itself(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A byte that is no UTF-8, and a caption of 200,000 characters, among those that are kept."""
    lines = {
        "tsv": ("image\tcaption\n", "a\t%s\n"),
        "csv": ("image,caption\n", 'a,"%s"\n'),
        "token": ("", "a#0\t%s\n"),
        "jsonl": ("", '{"image": "a", "caption": "%s"}\n'),
        "cc": ("", "%s\thttp://x/a.jpg\n"),
    }
    header, line = lines[suffix]
    path = tmp_path / f"x.{suffix.replace('cc', 'tsv')}"
    texts = ["one", "tw\udcffo", "x" * 200_000, "y" * 100_000, "four"]
    text = "\ufeff" + header + "".join(line % text for text in texts)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    captions = Captions(path)
    assert [c.text for c in captions] == [texts[0], *texts[3:]]
    assert (captions.counts.came, captions.counts.refused) == (5, 2)
    first = header.count("\n") + 2
    assert any(f"{path}, line {first} is refused: it is no UTF-8" in message for message in caplog.messages)
    assert any(f"{path}, line {first + 1} is refused: " in message for message in caplog.messages)


def test_a_quotation_mark_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('image,caption\na,5" disc\nb,"one" two\nc,three\n')
    captions = Captions(path)
    assert [c.text for c in captions] == ['5" disc', "three"]
    assert captions.counts.refused == 1
    path.write_text('image,caption\na,one\nb,"two\nc,three\n')
    with pytest.raises(UsageError, match="line 3: a quotation mark opens there that none closes"):
        found(path)


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.token", "x.jsonl"])
def test_utf16_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("image\tcaption\na\tone\n".encode("utf-16"))
    with pytest.raises(UsageError, match="is UTF-16: save it as UTF-8"):
        found(tmp_path / name)


@pytest.mark.parametrize("text", ["\u200b", "\u200b\u200d \ufeff", "\x00\x01\x1f", "\u2028\u00a0", "\ue000"])
def test_captions_without_a_visible_character_are_refused(tmp_path: Path, text: str) -> None:
    rows = [{"image": "a", "caption": text}, {"image": "b", "caption": f"{text}\u4e00"}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    captions = Captions(tmp_path / "x.json")
    assert [c.image for c in captions] == ["b"]
    assert captions.counts.refused == 1


# -------------------------------------------------------------------------------------------------------------- folders


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


def test_folders_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no \.parquet"):
        found(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(UsageError, match="UNITER's txt_db: give the captions' own JSON"):
        found(tmp_path)


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(("name", "content", "expected"), PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_damage(tmp_path: Path, name: str, content: bytes, expected: list[tuple[str, str]]) -> None:
    """Bytes changed, cut, doubled, swapped: captions, refused lines or a UsageError, and counts that add up."""
    chance = random.Random(name)
    outcomes = set()
    for _ in range(120):
        data = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            some = bytes(chance.choice(b"\x00\xff\xc3\t\n\r\",|#[]{}:0'") for _ in range(chance.randint(0, 3)))
            data[at : at + chance.choice([0, 1, 2, len(data)])] = some
            data = data or bytearray(b"x")
        (tmp_path / name).write_bytes(data)
        captions = Captions(tmp_path / name)
        try:
            given = list(captions)
        except UsageError:
            outcomes.add("error")
            continue
        counts = captions.counts
        assert (counts.came, counts.taken) == (len(given) + counts.refused, len(given))
        assert all(c.image and c.text.strip() for c in given)
        outcomes |= {"captions"} if given else set()
        outcomes |= {"refused"} if counts.refused else set()
    assert len(outcomes) >= 2
