"""TSV of base64: each layout as its project writes it; lines, damaged, packed and empty."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagebert.config import UsageError
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import open_reader
from imagebert.data.readers.tsv import lines_of_share
from tests.data.readers.checks import (
    Case,
    Image,
    OfLayouts,
    b64,
    each,
    make,
    read,
    refused,
)


def write_bottom_up(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """tools/generate_tsv.py"""
    fields = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    with (folder / "features.tsv").open("w") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=fields)
        for i in images:
            values = i.key, i.width, i.height, len(i.boxes), b64(i.boxes), b64(i.features)
            writer.writerow(dict(zip(fields, values, strict=True)))
    return "bottom-up-attention", folder / "features.tsv"


def write_lxmert(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """data/*/extract_*_image.py"""
    with (folder / "obj36.tsv").open("w") as file:
        writer = csv.writer(file, delimiter="\t")
        for i in images:
            head = [i.key, i.height, i.width, b64(i.classes), b64(i.confidences), b64(i.classes), b64(i.confidences)]
            writer.writerow([*head, len(i.boxes), b64(i.boxes), b64(i.features)])
    return "lxmert", folder / "obj36.tsv"


def write_lxmert_python3(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """The same script under Python 3, whose csv writes bytes as b'...'."""
    name, path = write_lxmert(folder, images)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join("\t".join(f"b'{c}'" if c.endswith("=") else c for c in row) + "\r\n" for row in rows))
    return name, path


def write_lxmert_gz(folder: Path, images: list[Image]) -> tuple[str, Path]:
    name, path = write_lxmert(folder, images)
    (folder / "obj36.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return name, folder / "obj36.tsv.gz"


def volta_row(i: Image) -> dict[str, str]:
    """data/mscoco/extract_coco_image.py"""
    return {
        "img_id": f"COCO_val2014_{int(i.key):012d}",
        "img_h": str(i.height),
        "img_w": str(i.width),
        "objects_id": b64(i.classes),
        "objects_conf": b64(i.confidences),
        "attrs_id": b64(i.classes),
        "attrs_conf": b64(i.confidences),
        "num_boxes": str(len(i.boxes)),
        "boxes": b64(i.boxes),
        "features": b64(i.features),
        "cls_prob": b64(i.probabilities),
        "attrs": b64(i.probabilities),
        "classes": b64(i.probabilities),
    }


def write_volta_tsv(folder: Path, images: list[Image]) -> tuple[str, Path]:
    with (folder / "val2014_obj36-36.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=list(volta_row(images[0])))
        writer.writerows(volta_row(i) | {"img_id": i.key} for i in images)
    return "lxmert", folder / "val2014_obj36-36.tsv"


def write_vilbert_tsv(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """jiasenlu/bottom-up-attention's generate_tsv.py"""
    with (folder / "VCR_resnet101_faster_rcnn_genome.tsv.0").open("w", newline="") as file:
        for i in images:
            row = [i.key, i.width, i.height, len(i.boxes), b64(i.boxes), b64(i.features), b64(i.probabilities)]
            csv.writer(file, delimiter="\t").writerow(row)
    return "bottom-up-attention", folder / "VCR_resnet101_faster_rcnn_genome.tsv.0"


LAYOUTS = [
    Case(write_bottom_up, {"classes", "confidences"}),
    Case(write_vilbert_tsv),
    Case(write_lxmert),
    Case(write_lxmert_python3),
    Case(write_lxmert_gz),
    Case(write_volta_tsv),
]


@each(LAYOUTS)
class TestLayouts(OfLayouts): ...


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_line_is_in_one_share(tmp_path: Path, ends: str) -> None:
    """Shares that end where a line does, too: all lines are equally long."""
    files = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    files[0].write_text("".join(f"{i:04d}\tx{ends}" for i in range(8)), newline="")
    files[1].write_text("".join(f"{i:04d}\tx{ends}" for i in range(8, 12)), newline="")
    for shares in range(1, 14):
        lines = [line for share in range(shares) for _, _, line, _ in lines_of_share(files, share, shares)]
        assert [int(line[:4]) for line in lines] == list(range(12)), shares


def test_the_most_confident_region_comes_first(tmp_path: Path) -> None:
    (image, *_) = make(boxes=4)
    shuffled = [2, 0, 3, 1]
    mixed = image._replace(**{n: getattr(image, n)[shuffled] for n in ("boxes", "features", "classes", "confidences")})
    name, path = write_lxmert(tmp_path, [mixed])
    record = read(name, path)[image.key]
    np.testing.assert_array_equal(record.features, image.features)
    np.testing.assert_array_equal(record.confidences, image.confidences)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line.replace(b"\t640\t", b"\twide\t"), "width is b'wide'"),
        (lambda line: line[:-40] + b"\r\n", "features has|features is no base64"),
        (lambda line: line.replace(b"\t480\t", b"\t48\t"), "is outside of 640 x 48 pixels"),
        (lambda line: b"\t".join(line.split(b"\t")[:4]) + b"\n", "4 columns, not 6"),
        (lambda line: line.split(b"\t")[0] + b"\t640\t480\t0\t\t\r\n", "features has 0 bytes, which are not 0 rows"),
        (lambda line: b"\xff\xfe\x00nonsense\n", "1 columns, not 6"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    name, path = write_bottom_up(tmp_path, make())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = damage(lines[0])
    path.write_bytes(b"".join(lines))
    (error,) = refused(name, path, laid_out=True)
    assert re.search(message, error), error
    assert f"{path}, byte {len(lines[0]) + len(lines[1])}" in error


def test_a_file_without_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.tsv.LONGEST", 1000)
    (tmp_path / "x.tsv").write_bytes(b"x" * 5000)
    with pytest.raises(UsageError, match="byte 0: a line has more than 1000 bytes: is it a TSV"):
        read("lxmert", tmp_path / "x.tsv")


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    name, path = write_lxmert_gz(tmp_path, make())
    whole = path.read_bytes()
    for damaged in (whole[:200], whole[:20] + bytes(100) + whole[120:]):
        path.write_bytes(damaged)
        for ask in (lambda: read(name, path), lambda: detect([path])):
            with pytest.raises(UsageError, match=r"obj36\.tsv\.gz is a damaged gzip behind byte"):
                ask()


@pytest.mark.parametrize(("pack", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_what_is_packed_otherwise_is_told(pack: object, name: str, tmp_path: Path) -> None:
    _, path = write_lxmert(tmp_path, make())
    path.write_bytes(pack(path.read_bytes()))  # type: ignore[operator]
    for ask in (lambda: detect([path]), lambda: list(open_reader("lxmert", [path]).items(0, 1))):
        with pytest.raises(UsageError, match=f"is packed by {name}: unpack it, or pack it by gzip"):
            ask()


def test_empty_lines_end(tmp_path: Path) -> None:
    """A gzip of them unpacks to a thousand times its size."""
    path = tmp_path / "obj36.tsv.gz"
    path.write_bytes(gzip.compress(b"\n" * 70_000))
    with pytest.raises(UsageError, match="more than 65536 empty lines"):
        list(open_reader("lxmert", [path]).items(0, 1))
