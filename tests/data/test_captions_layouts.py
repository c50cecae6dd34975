"""Each layout as its project writes it, told by its content; and what damage to any of them does."""

from __future__ import annotations

import gzip
import json
import logging
import random
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from imagebert.config import UsageError
from imagebert.data.captions import Captions
from tests.data.damage import outcomes_of_damage

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
    (
        "Flickr8k.lemma.token.txt",
        b"1_2.jpg#0\tA child in a pink dress be climb .\n",
        [("1_2.jpg", "A child in a pink dress be climb .")],
    ),
    (
        "nocaps_val_4500_captions.json",
        as_json(
            {
                "licenses": [],
                "info": {"url": "http://nocaps.org"},
                "images": [
                    {"id": 0, "open_images_id": "0013ea2087020901", "height": 1024, "width": 732}
                    | {"coco_url": URLS[0], "file_name": "0013ea2087020901.jpg", "license": 0, "domain": "near-domain"}
                ],
                "annotations": [{"image_id": 0, "id": 0, "caption": "A baby is standing."}],
            }
        ),
        [("0013ea2087020901.jpg", "A baby is standing.")],
    ),
    (  # VinVL, Oscar: ids are names
        "test_caption_coco_format.json",
        as_json(
            {
                "annotations": [{"image_id": "391895", "caption": "one", "id": 0}],
                "images": [{"id": "391895", "file_name": "391895"}],
                "type": "captions",
                "info": "dummy",
                "licenses": "dummy",
            }
        ),
        [("391895", "one")],
    ),
    (
        "caption_train.json",
        as_json({"1648305461": "one", "07": "two"}),
        [("1648305461", "one"), ("07", "two")],
    ),  # VOLTA
    ("cc3m.tsv", f"caption\turl\none\t{URLS[0]}\n".encode(), [("00000000", "one")]),  # as img2dataset wants it
    ("cc12m_header.tsv", f"url\tcaption\n{URLS[0]}\tone\n".encode(), [("00000000", "one")]),
    ("captions.csv.gz", gzip.compress(b'image,caption\na.jpg,"one, two"\n', mtime=0), [("a.jpg", "one, two")]),
    ("cc.tsv.gz", gzip.compress(f"one\t{URLS[0]}\n".encode(), mtime=0), [("00000000", "one")]),
    ("train.jsonl.gz", gzip.compress(b'{"image": "a", "caption": "one"}\n', mtime=0), [("a", "one")]),
    ("list.json.gz", gzip.compress(as_json([{"image": "a", "caption": "one"}]), mtime=0), [("a", "one")]),
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


def test_a_caption_that_is_refused_afterwards_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("image,caption\na,one\nb,two\n")
    captions = Captions(tmp_path / "x.csv")
    first, _ = captions
    captions.refuse(first)
    assert (captions.counts.came, captions.counts.taken, captions.counts.refused) == (2, 1, 1)


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


# ---------------------------------------------------------------------------------------------------- once for a source


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.csv", b"split,image,caption\ntest,a,one\n", "a table in UTF-8, image, caption, split between commas"),
        ("x.jsonl", b'{"image": "a", "caption": "one"}\n', "a table in UTF-8, JSON lines with image, caption"),
        ("x.json", as_json([{"image_id": 3, "caption": "one"}] * 2), "a JSON list of 2 objects with image_id, caption"),
        ("x.tsv", f"{URLS[0]}\tone\n".encode(), "Conceptual Captions, URL, tab, caption, in UTF-8"),
        ("x.txt", b"a.jpg#0\tone\n", "Flickr's captions, image#number, tab, caption, in UTF-8"),
        (
            "x.txt",
            b"image_name| comment_number| comment\na| 0| one\n",
            "Flickr's captions, image| number| caption, in UTF-8",
        ),
    ],
)
def test_what_was_found_is_said(
    tmp_path: Path, name: str, content: bytes, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.INFO):
        found(tmp_path / name)
    assert f"{name} is read as {what}; first: " in caplog.text


def test_a_first_line_that_cannot_be_used_does_not_decide(tmp_path: Path) -> None:
    for good, texts in ((f"one\t{URLS[0]}\n", ["one"]), ("a.jpg#0\tone\n", ["one"])):
        for bad in (b"\xff\n", b"what is this\n"):
            (tmp_path / "x.txt").write_bytes(bad + good.encode())
            captions = Captions(tmp_path / "x.txt")
            assert [c.text for c in captions] == texts
            assert (captions.counts.came, captions.counts.refused) == (2, 1)


def test_a_line_of_another_layout_is_refused(tmp_path: Path) -> None:
    """CC12M's within Conceptual Captions, and one with a field more: neither is read the other way round."""
    path = tmp_path / "x.tsv"
    path.write_text(f"one\t{URLS[0]}\n{URLS[0]}\ttwo\nthree\tand\t{URLS[0]}\nfour\t{URLS[1]}\n")
    captions = Captions(path)
    assert [(c.image, c.text) for c in captions] == [("00000000", "one"), ("00000003", "four")]
    assert captions.counts.refused == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "info.json",
            as_json({"images": [{"id": 1, "file_name": "a"}]}),
            "images without sentences.*: it has no captions",
        ),
        (
            "instances.json",
            as_json({"images": [], "annotations": [{"image_id": 1, "bbox": []}]}),
            "annotations without captions: give COCO's captions_",
        ),
        (
            "mscoco_minival.json",  # LXMERT
            as_json([{"img_id": "COCO_1", "sentf": {"mscoco": ["one"]}}]),
            "no objects with image and caption, the first has img_id, sentf: name the others as `columns`",
        ),
        ("flickr.jsonl", b'{"img_path": "1.jpg", "sentences": ["one"]}\n', "the first has img_path, sentences"),
        ("x.tsv", b"a.jpg\t0\tone\nb.jpg\t0\ttwo\n", "name the columns of a file without a header line as `columns`"),
        ("x.tsv", b"image\tcaption\ra\tone\rb\ttwo\r", "its lines end in CR alone: save it with LF or CRLF"),
        ("x.zip", b"PK\3\4....", "is a zip: unpack it"),
        ("x.pkl", b"\x80\x04N.", "is a pickle, which may hold a program"),
        ("x.json.xz", b"\xfd7zXZ\0", "is packed by xz: unpack it first"),
        ("x.csv.gz", gzip.compress(b"image,caption\n" + b"a,one\n" * 10, mtime=0)[:-12], "is a damaged gzip"),
        (
            "x.csv.gz",
            gzip.compress(b"image,caption\n" + (b"a," + b"x" * 900 + b"\n") * 2_000, mtime=0),
            "unpacks to more than 100 times its size",
        ),
        (
            "x.json.gz",
            gzip.compress(b"[" + b" " * 4_000_000 + b"]", mtime=0),
            "unpacks to more than 100 times its size",
        ),
    ],
)
def test_sources_of_no_use_end_in_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        found(tmp_path / name)


@pytest.mark.parametrize("kind", ["img2dataset", "webdataset"])
def test_a_format_that_the_file_has_not(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.csv").write_text("image,caption\na,one\n")
    with pytest.raises(UsageError, match=f"is neither Parquet nor a tar: format {kind}"):
        found(tmp_path / "x.csv", kind=kind)


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(("name", "content", "expected"), PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_damage(tmp_path: Path, name: str, content: bytes, expected: list[tuple[str, str]]) -> None:
    outcomes = outcomes_of_damage(tmp_path / name, content, 120, name)
    assert len(outcomes) >= (1 if name.endswith(".gz") else 2)  # a gzip knows its checksum


@pytest.mark.parametrize("at", [0, 1, 3, 4, 13, 14, 15, 17])
def test_lines_lost_doubled_and_swapped(tmp_path: Path, at: int) -> None:
    """Of whole lines nothing is made that was not there."""
    name, content, expected = PUBLISHED[at]
    lines = content.splitlines(keepends=True)
    header = lines[:1] if name in ("results.csv", "x.tsv") else []
    allowed = {text for _, text in expected}
    chance = random.Random(name)
    for _ in range(100):
        body = chance.choices(lines[len(header) :], k=chance.randint(1, 6))
        (tmp_path / name).write_bytes(b"".join([*header, *body]))
        captions = Captions(tmp_path / name)
        assert {c.text for c in captions} <= allowed
        assert captions.counts.came == len(body)
